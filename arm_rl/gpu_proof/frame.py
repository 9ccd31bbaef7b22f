"""The frame of the proof: sections one after the other, each in a process with a time box, one line and one entry each.

    run_proof -> python -m arm_rl.gpu_proof.section_process SECTION … -> result.json -> a line, summary.json

The time box of a section is its share of the time that is left, so that what one section saves is there for the next.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.owner import tie_to_parent

Device = Literal["cuda", "cpu"]
Role = Literal["driver", "learner", "engine"]
Verdict = Literal["passed", "failed", "timeout", "killed", "not installed"]

MODULE = "arm_rl.gpu_proof.section_process"
RESULT, SUMMARY = "result.json", "summary.json"
POLL_SECONDS = 0.5  # between two looks at what a section has started
END_SECONDS = 20.0  # given to killed processes to be gone, and their GPU memory with them


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One section: the module of this package whose `run` it is, and its share of the time."""

    number: int
    title: str
    module: str
    weight: float  # share of the time, relative to the other sections
    role: Role = "driver"  # which actor's environment variables the process needs, before it imports torch or vLLM


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a section has to say; it passed if there are no problems."""

    line: str  # what was measured, in a few words
    numbers: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[str] = ()  # what should have been otherwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a section; an entry of summary.json."""

    section: int
    title: str
    verdict: Verdict
    seconds: float
    time_box: float
    line: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        number = f"{self.section:>2}" if self.section >= 0 else "  "
        return f"{number}  {self.title:<34}  {self.verdict:<8}  {self.seconds:4.0f} s  {self.line}"


def run_proof(
    sections: Sequence[Section],
    *,
    device: Device,
    out: Path,
    seconds: float,
    command: Sequence[str] = (sys.executable, "-m", MODULE),
    show: Callable[[str], object] = print,
) -> list[Outcome]:
    """Run the sections one after the other; one that fails, hangs or dies does not stop the next.

    Args:
        sections: Sections in order.
        device: Where they run.
        out: Folder for `summary.json`, which is written after each section, and for each section's own folder.
        seconds: Time for all of them.
        command: Command of a section's process, up to its arguments.
        show: Takes one line a section.
    """
    out.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for place, section in enumerate(sections):
        left = max(ends_at - time.monotonic(), 0.0)
        time_box = left * section.weight / sum(other.weight for other in sections[place:])
        outcomes.append(_run_section(section, device, out, time_box, command))
        show(str(outcomes[-1]))
        _write_summary(out, device, outcomes)
    return outcomes


def _run_section(section: Section, device: Device, out: Path, time_box: float, command: Sequence[str]) -> Outcome:
    """Run a section in a process, and return what became of it."""
    folder = out / "sections" / section.module
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).unlink(missing_ok=True)
    arguments = [section.module, "--device", device, "--out", str(out), "--folder", str(folder)]
    started = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            tie_to_parent([*command, *arguments, "--seconds", f"{time_box:.1f}"]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_environment(section.role, device)},
        )
        descendants: set[psutil.Process] = set()
        try:
            status = wait(process, time_box, descendants)
        finally:
            end_all(process, descendants)
    seconds = time.monotonic() - started
    verdict, line, numbers = _read_result(folder, status, time_box)
    return Outcome(
        section=section.number,
        title=section.title,
        verdict=verdict,
        seconds=round(seconds, 1),
        time_box=round(time_box, 1),
        line=line,
        numbers=numbers,
    )


def _read_result(folder: Path, status: int | None, time_box: float) -> tuple[Verdict, str, Mapping[str, Any]]:
    """Return verdict, line and numbers of a section whose process ended with `status`, or was ended (None)."""
    log = folder / "log.txt"
    if status is None:
        return "timeout", f"not done within {time_box:.0f} s; its last words are in {log}", {}
    if status < 0:
        return "killed", f"by {signal.Signals(-status).name}; its last words are in {log}", {}
    if not (folder / RESULT).is_file():
        return "failed", f"it ended with status {status} and without a result; see {log}", {}
    result = json.loads((folder / RESULT).read_text())
    return result["verdict"], result["line"], result["numbers"]


def wait(process: subprocess.Popen[Any], seconds: float, descendants: set[psutil.Process]) -> int | None:
    """Wait until a process ends; return its exit status, or None if its time is over first.

    Args:
        process: Process to wait for.
        seconds: Time that it has.
        descendants: Gets all processes that were seen below the process. When the process has died, the system no longer
            knows that they were its own.
    """
    ends_at = time.monotonic() + seconds
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendants.update(psutil.Process(process.pid).children(recursive=True))
        try:
            return process.wait(min(POLL_SECONDS, max(ends_at - time.monotonic(), 0.0)))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= ends_at:
                return None


def end_all(process: subprocess.Popen[Any], descendants: set[psutil.Process]) -> None:
    """Kill a process, if it still runs, with all that it has started: Ray and vLLM have processes of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        descendants.update(psutil.Process(process.pid).children(recursive=True))
    process.kill()
    process.wait()
    for descendant in descendants:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended already
            descendant.kill()
    psutil.wait_procs(descendants, END_SECONDS)


def _environment(role: Role, device: Device) -> dict[str, str]:
    """Return the environment variables that a learner's or an engine's process has in a run."""
    from actors.learner.settings import learner_environment
    from actors.rollout.engine_settings import engine_environment
    from arm_rl.core.compute_config import LearnerConfig

    use_gpu = device == "cuda"
    common = {"HF_HUB_OFFLINE": "1"}
    if use_gpu:  # one GPU is what is proven; CUDA shall count GPUs as nvidia-smi does
        common["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        common["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if role == "learner":
        return common | learner_environment(LearnerConfig(), use_gpu)
    return common | (engine_environment(use_gpu) if role == "engine" else {})


def _write_summary(out: Path, device: Device, outcomes: Sequence[Outcome]) -> None:
    """Write `summary.json`: every section, and what was measured of the plan's `Efficiency`."""
    efficiency: dict[str, float] = {}
    for outcome in outcomes:
        efficiency |= outcome.numbers.get("efficiency", {})
    summary = {
        "device": device,
        "passed": all(outcome.verdict == "passed" for outcome in outcomes),
        "efficiency": efficiency,
        "sections": [asdict(outcome) for outcome in outcomes],
    }
    replace_text(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
