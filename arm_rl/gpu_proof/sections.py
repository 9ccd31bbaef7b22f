"""The sections in order.

Their weights are shares of the time. What sections take on a GPU is not measured yet; the weights are guesses: 45 for an
engine that compiles, 30 for an engine that does not, 25 for a learner, and what is done with them.
"""

from arm_rl.gpu_proof.frame import Section

MODELS = Section(number=-1, title="random models", module="models", weight=20)
SECTIONS = (
    Section(number=0, title="driver, versions, free memory", module="machine", weight=10, role="learner"),
    Section(number=1, title="learner: two steps, ZeRO-3", module="learner_steps", weight=40, role="learner"),
    Section(number=2, title="kernels of attention", module="kernels", weight=20, role="learner"),
    Section(number=3, title="the longest session", module="long_session", weight=35, role="learner"),
    Section(number=4, title="checkpoint, new process, load", module="checkpoint", weight=65, role="learner"),
    Section(number=5, title="engine alongside the learner, twice", module="engine_starts", weight=125),
    Section(number=6, title="sleep, step, wake, direct transfer", module="transfer", weight=80),
    Section(number=7, title="transfer by file, and LoRA", module="transfer_by_file", weight=120),
    Section(number=8, title="requests over an update, and gaps", module="requests", weight=60, role="engine"),
    Section(number=9, title="throughput for the plan", module="throughput", weight=120, role="engine"),
    Section(number=10, title="jobs.train, a killed engine", module="training", weight=110),
)
