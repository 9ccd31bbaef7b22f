"""Section 10: `jobs.train` with one learner and one engine on the same device, whose engine is killed after a step."""

import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable

from arm_rl.demo import dataset
from arm_rl.experiments.chaos import Victim
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.scale import NOT_ON_CPU, Proof
from arm_rl.gpu_proof.stage import engine_share, used_bytes
from arm_rl.plan.hardware import GIB
from arm_rl.run.metrics_log import read_lines

NUM_STEPS = 3
LEFT_BYTES = GIB  # of the GPU's memory, that may still be in use when the run is over
RETURN_SECONDS = 20.0  # for the driver to take memory back
POLL_SECONDS = 0.2


def run(proof: Proof) -> Report:
    """Pass where the run ends well, each step is there once, and the GPU's memory is free again."""
    run_folder = proof.folder / "run"
    shutil.rmtree(run_folder, ignore_errors=True)  # of an earlier proof
    before, started = used_bytes(), time.monotonic()
    ends_at = started + proof.seconds
    run = Victim(_command(proof), proof.folder / "train.log")
    problems: list[str] = []
    try:
        first = _wait(lambda: len(_steps(proof)) >= 1 or run.status is not None, ends_at)
        step_seconds = time.monotonic() - started
        engines = run.processes("engine")
        if not first or run.status is not None or not engines:
            return Report(
                line="", problems=[f"no step, or no engine to kill, after {step_seconds:.0f} s: {_last_words(run)}"]
            )
        killed_at = time.monotonic()
        run.kill("engine", min(engines), signal.SIGKILL)
        if not _wait(lambda: run.status is not None, ends_at):
            problems.append(f"the run did not end: {_last_words(run)}")
        resumed_seconds = time.monotonic() - killed_at
    finally:
        run.kill_all()
    if run.status:
        problems.append(f"the run ended with status {run.status}: {_last_words(run)}")
    steps = Counter(_steps(proof))
    if steps != dict.fromkeys(range(1, NUM_STEPS + 1), 1):
        problems.append(f"steps 1 to {NUM_STEPS} should be there once each, and there are {dict(steps)}")
    if not (run_folder / "export" / "config.json").is_file():
        problems.append("the run has exported no model")
    recovered = run.recovery_seconds("engine")
    if not recovered:
        problems.append("the run has not noticed that its engine was killed")
    numbers = {
        "seconds_to_first_step": step_seconds,
        "seconds_after_kill": resumed_seconds,
        "recovery_seconds": recovered,
    }
    line = f"first step after {step_seconds:.0f} s; engine killed, {NUM_STEPS} steps done {resumed_seconds:.0f} s later"
    if before is None:
        return Report(line=f"{line}; GPU memory: {NOT_ON_CPU}", numbers=numbers, problems=problems)
    _wait(lambda: (used_bytes() or 0) - before < LEFT_BYTES, time.monotonic() + RETURN_SECONDS)
    left = (used_bytes() or 0) - before
    if left >= LEFT_BYTES:
        problems.append(f"{left / GIB:.1f} GiB of the GPU are still in use")
    return Report(line=f"{line}; {max(left, 0) / GIB:.2f} GiB left in use", numbers=numbers, problems=problems)


def _command(proof: Proof) -> list[str]:
    """Write the data and return the command of the run."""
    data = dataset.write(proof.folder / "train.parquet", seed=0, split="train", num_samples=16)
    length = 1024
    keys = {
        "run.root": proof.folder,
        "run.name": "run",
        "num_steps": NUM_STEPS,
        "model.path": proof.thin_folder,
        "model.dtype": proof.scale.dtype,
        "data.train": f"[{data}]",
        "data.held_out": "[]",
        "session.max_prompt_tokens": length,
        "session.max_response_tokens": length,
        "rollout.max_model_len": 2 * length,
        "rollout.max_num_seqs": 32,
        "rollout.enforce_eager": True,
        "algorithm.samples_per_step": 4,
        "algorithm.group_size": 4,
        "algorithm.drop_flat_groups": False,  # an untrained judge earns nothing
        "learner.zero_stage": 3,
        "learner.num_threads": 1,
        "learner.micro_batch_tokens": 8192 if proof.on_gpu else 1024,
        "learner.gradient_checkpointing": True,
        "placement.kind": "shared",
        "placement.use_gpu": proof.on_gpu,
        "placement.gpus_per_node": 1,
        "checkpoint.every": 1,
        "metrics.wandb": "disabled",
    }
    if proof.on_gpu:
        keys["rollout.gpu_memory_utilization"] = engine_share(proof, proof.thin_folder)
    return [
        "jobs.train",
        "configs/demo.yaml",
        *(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in keys.items()),
    ]


def _steps(proof: Proof) -> list[int]:
    """Return the steps that the run has logged."""
    return [line["step"] for line in read_lines(proof.folder / "run" / "metrics.jsonl") if "learner/loss" in line]


def _wait(done: Callable[[], bool], ends_at: float) -> bool:
    """Wait until something is done, or the time is over; return whether it is done."""
    while not done() and time.monotonic() < ends_at:
        time.sleep(POLL_SECONDS)
    return done()


def _last_words(run: Victim) -> str:
    return next((line for line in reversed(run.output().splitlines()) if line.strip()), "it printed nothing")[:300]
