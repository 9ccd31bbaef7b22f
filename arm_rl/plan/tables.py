"""What the plan found, as tables for a terminal."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from arm_rl.plan import memory
from arm_rl.plan.duration import Duration
from arm_rl.plan.fit import GpuMemory, cache_tokens
from arm_rl.plan.hardware import GIB
from arm_rl.plan.modelled import Setting
from arm_rl.plan.overheads import Overheads
from arm_rl.plan.search import Candidate
from arm_rl.plan.steps import StepPlan

_SHOWN = 8  # nearby settings


def memory_table(setting: Setting, needs: GpuMemory) -> Table:
    """Return the memory of a GPU by part."""
    cluster, shape = setting.cluster, setting.shape
    gpus = f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.gpu.name}"
    title = f"{shape.name}, {shape.parameters / 1e9:.2f} billion parameters, on {gpus}"
    table = Table("GPU of", "part", "GiB", title=title, title_justify="left")
    table.columns[-1].justify = "right"
    rows: list[tuple[str, Mapping[str, int]]] = [("a learner", needs.learner)]
    if needs.engine:
        rows.append(("an engine", needs.engine))
    for name, parts in rows:
        for part, size in parts.items():
            if size and part != "host":
                table.add_row(name, part, f"{size / GIB:.1f}")
                name = ""
        table.add_row(name, "in all", f"{memory.on_gpu(parts) / GIB:.1f}")
        table.add_section()
    if needs.longest != memory.on_gpu(needs.learner):
        table.add_row("a learner", "in all, with the longest sessions that are allowed", f"{needs.longest / GIB:.1f}")
    if setting.takes_turns:
        table.add_row("both", "engine, and what a learner keeps beside it", f"{needs.shared / GIB:.1f}")
    if needs.learner["host"]:
        table.add_row("host", "optimizer of a rank, off-loaded", f"{needs.learner['host'] / GIB:.1f}")
    table.add_row("", "there is", f"{needs.limit / GIB:.1f}")
    if needs.engine:
        held, length = max(cache_tokens(setting, needs.engine), 0), setting.train.rollout.max_model_len
        table.add_row("an engine", f"sessions of {length} tokens in the cache at once", f"{held / length:.1f}")
    return table


def step_table(step: StepPlan) -> Table:
    """Return a step's seconds by phase, and what bounds each."""
    table = Table(
        "phase",
        "seconds",
        "share",
        "bound by",
        title=f"a step: {step.seconds:.1f} s, {step.trajectories} trajectories",
        title_justify="left",
    )
    for column in table.columns[1:3]:
        column.justify = "right"

    def add_row(name: str, seconds: float, bound: str = "") -> None:
        if seconds:
            table.add_row(name, f"{seconds:.1f}", f"{seconds / step.seconds:.0%}", bound)

    add_row("the driver waits for groups", step.rollout)
    add_row("learners train", step.learner, _format_bounds(step.bounds))
    add_row("new weights travel", step.sync, "host and network")
    table.add_section()
    add_row("an engine reads prompts", step.prefill, "compute")
    add_row("an engine samples", step.decode, _format_bounds(step.engine_bounds))
    if step.rollout or step.prefill:
        add_row("an engine is idle", step.engine_idle * step.seconds, "tools, the longest sessions, learners, weights")
    add_row("a learner is idle", step.learner_idle * step.seconds, "groups, weights")
    add_row("a call waits for an executor", step.tools, "tools.num_executors")
    return table


def _format_bounds(bounds: Mapping[str, float]) -> str:
    total = sum(bounds.values()) or 1.0
    shares = sorted(bounds.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares if seconds >= 0.01 * total)


def candidates_table(candidates: Sequence[Candidate]) -> Table:
    """Return nearby settings, the fastest first, and some that do not fit."""
    table = Table("nearby settings", "seconds", "idle: engine, learner", "", title_justify="left")
    table.columns[1].justify = "right"
    fitting = [candidate for candidate in candidates if candidate.step is not None]
    for candidate in (*fitting[:_SHOWN], *[candidate for candidate in fitting[_SHOWN:] if not candidate.changes]):
        assert candidate.step is not None
        idle = f"{candidate.step.engine_idle:.0%}, {candidate.step.learner_idle:.0%}"
        table.add_row(
            "\n".join(candidate.changes) or "as configured",
            f"{relative_seconds(candidate, candidates):.2f} x",
            idle,
            "",
        )
    for candidate in [candidate for candidate in candidates if candidate.step is None][: _SHOWN // 2]:
        table.add_row("\n".join(candidate.changes) or "as configured", "", "", candidate.problems[0])
    return table


def sizes_table(sizes: Sequence[tuple[int, StepPlan]]) -> Table:
    """Return steps on more and more GPUs."""
    table = Table(
        "GPUs",
        "s a step",
        "trajectories/s",
        "of linear",
        "rollouts",
        "learners",
        "sync",
        "engine idle",
        "learners bound by",
        title_justify="left",
    )
    for column in table.columns[:-1]:
        column.justify = "right"
    first_gpus, first = sizes[0]
    for gpus, step in sizes:
        linear = step.rate / first.rate * first_gpus / gpus
        times = (step.rollout, step.learner, step.sync)
        table.add_row(
            str(gpus),
            f"{step.seconds:.1f}",
            f"{step.rate:.1f}",
            f"{linear:.0%}",
            *(f"{seconds:.1f}" for seconds in times),
            f"{step.engine_idle:.0%}",
            _format_bounds(step.bounds),
        )
    return table


def overheads_table(overheads: Overheads, duration: Duration | None) -> Table:
    """Return the seconds of what interrupts learning, and the length of the run."""
    table = Table("event", "seconds", title="besides learning and sampling", title_justify="left")
    table.columns[-1].justify = "right"
    for name, seconds in (
        ("new weights reach the engines", overheads.sync),
        ("a checkpoint is written", overheads.checkpoint),
        ("a lost engine is replaced", overheads.engine_restart),
        ("an ended run resumes", overheads.resume),
    ):
        if seconds:
            table.add_row(name, f"{seconds:.1f}")
    if duration is not None:
        table.add_section()
        table.add_row(f"the run, {duration.steps} steps", f"{duration.seconds:.0f}")
        table.add_row("GPU hours", f"{duration.gpu_hours:.1f}")
    return table


def relative_seconds(candidate: Candidate, candidates: Sequence[Candidate]) -> float:
    """Return the seconds of a candidate's step over those of the configured setting."""
    own = next((other.step for other in candidates if not other.changes), None)
    return candidate.step.seconds / own.seconds if candidate.step is not None and own is not None else 1.0
