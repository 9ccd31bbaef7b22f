"""Chaos: a run whose processes are killed at random times, one kind after the other, until it is done; and what came of it.

    run -> kill -> another process is there, or the run itself is started again -> kill -> ... -> done -> ledger, lost, learned

The run is a process of its own (`python -m jobs.train`), and every process that it starts is a descendant of it: that is how the victims
are found. Nothing in the run knows of this. Some are not killed but stopped: they hang, and the run must notice that by itself.
"""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.supervision import BACK
from arm_rl.core import trajectory_file
from arm_rl.core.atomic_file import replace_text
from arm_rl.core.errors import UserError
from arm_rl.experiments import processes
from arm_rl.run import checkpoint
from arm_rl.run.metrics_log import read_lines
from arm_rl.training.ledger import FATES, Ledger

logger = logging.getLogger(__name__)

# What a process's command line or title begins with or holds, by kind; `driver` is the run's own process.
VICTIMS = {
    "rollout": "ray::RolloutActor",
    "engine": "VLLM::EngineCore",
    "tools": "ray::ToolExecutor",
    "tool_worker": "tools.execution.worker",
    "scorer": "ray::Scorer",
    "archive": "ray::Archive",
    "learner": "ray::Learner",
}
KINDS = (*VICTIMS, "driver")
# what the log says is back, where it is not the kind itself: an engine takes its rollout actor along
BACK_AS = {"engine": "rollout"}
POLL_SECONDS = 0.2
GRACE_SECONDS = 300.0  # until a kind of process must be there (again)
WORKER_SECONDS = 20.0  # until a tool worker may be: it comes back with the next call that needs it
_BACK = re.compile(re.escape(BACK).replace(re.escape("%s"), r"(\w+)").replace(re.escape("%.1f"), r"([\d.]+)"))


class ChaosError(UserError):
    """The run did not live through it; the message has its last words."""


@dataclass(kw_only=True)
class Summary:
    """What came of it; `summary.json`."""

    kills: dict[str, int]
    hangs: int = 0  # of the kills: processes that were stopped in place of killed
    lost: int = 0  # trajectories that were drawn and are nowhere in the ledger, or in no file
    trained_twice: int = 0  # in the ledger, or in the files
    recovery_seconds: dict[str, float] = field(default_factory=dict)  # mean: as `_Recovery.wait` says
    starts: int = 0  # of the driver
    reward: float = 0.0  # mean of the last steps
    reached_mark: bool = False


class Victim:
    """A run that can be killed in parts, and as a whole, and is started again then."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Starts it.

        Args:
            command: of `jobs.train`, from its name on.
            log: gets its output.
        """
        self._command, self._log = [sys.executable, "-m", *command], log
        self.num_starts = 0
        self._start()

    def _start(self) -> None:
        self.num_starts += 1
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(self._command, stdout=output, stderr=output, start_new_session=True)

    @property
    def status(self) -> int | None:
        """Exit status, once it is over."""
        return self._process.poll()

    def processes(self, kind: str) -> set[int]:
        """Those of a kind that live."""
        if kind == "driver":
            return {self._process.pid} if self.status is None else set()
        return {
            process.pid for process in processes.find_descendants(self._process.pid) if VICTIMS[kind] in process.command
        }

    def kill(self, kind: str, process: int, how: signal.Signals = signal.SIGKILL) -> None:
        """Kills it, or stops it so that it hangs; with the driver all others go, and the run is started again."""
        others = {one for other in VICTIMS for one in self.processes(other)} if kind == "driver" else set()
        os.kill(process, how)
        if kind == "driver":
            self._process.wait()
            limit = time.monotonic() + GRACE_SECONDS
            # Ray ends with it, and they with Ray
            while left := [one for one in others if processes.is_alive(one)]:
                if time.monotonic() > limit:
                    raise ChaosError(f"processes {left} outlive the driver")
                time.sleep(POLL_SECONDS)
            self._start()

    def kill_all(self) -> None:
        """Kill what is left of the run."""
        left = [process.pid for process in processes.find_descendants(self._process.pid)]
        for process in (self._process.pid, *left):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def output(self) -> str:
        """Return the output so far, of all starts."""
        return self._log.read_text(errors="replace")

    def output_tail(self) -> str:
        """Return the end of the output."""
        return self.output()[-3000:]

    def recovery_seconds(self, kind: str) -> list[float]:
        """Return the seconds of each recovery of a kind that the run has logged."""
        return [float(seconds) for name, seconds in _BACK.findall(self.output()) if name == BACK_AS.get(kind, kind)]


def run_chaos(
    command: Sequence[str],
    run: Path,
    *,
    kills: dict[str, int],
    seed: int,
    pause_seconds: float,
    mark: float,
    hangs: Collection[str] = (),
) -> Summary:
    """Run the command to its end while killing its processes in a random order and at random times.

    Args:
        command: `jobs.train CONFIG key=value ...`, of a synchronous or an asynchronous run; with `metrics.trajectories_every=1`.
        run: the run's folder.
        kills: by kind.
        seed: of order and times.
        pause_seconds: mean between a recovery and the next kill.
        mark: mean reward of the last steps that counts as learned.
        hangs: kinds of which the last one is stopped in place of killed.

    Raises:
        ChaosError: the run ended before its time, or with an error, or a process did not come back.
    """
    rng = random.Random(seed)
    plan = [kind for kind in KINDS for _ in range(kills.get(kind, 0))]
    rng.shuffle(plan)
    summary = Summary(kills=dict.fromkeys(KINDS, 0))
    seconds: defaultdict[str, list[float]] = defaultdict(list)  # that recoveries took, by kind
    victim = Victim(command, run.with_name(f"{run.name}.log"))
    try:
        while plan and victim.status is None:
            kind = next((kind for kind in plan if victim.processes(kind) and _is_underway(run)), None)
            if kind is None:
                time.sleep(POLL_SECONDS)
                continue
            time.sleep(rng.expovariate(1 / pause_seconds))
            before = victim.processes(kind)
            if not before:
                continue
            killed = rng.choice(sorted(before))
            plan.remove(kind)
            hang = kind in hangs and kind not in plan
            recovered = _Recovery(victim, run, kind, before)
            victim.kill(kind, killed, signal.SIGSTOP if hang else signal.SIGKILL)
            summary.kills[kind] += 1
            summary.hangs += hang
            logger.info("%s %s %d; %d to come", "stopped" if hang else "killed", kind, killed, len(plan))
            seconds[kind] += recovered.wait()
        while victim.status is None:
            time.sleep(POLL_SECONDS)
        if victim.status or plan:
            raise ChaosError(
                f"the run ended with status {victim.status} and {len(plan)} kills to come: {victim.output_tail()}"
            )
    finally:
        victim.kill_all()
    summary.starts = victim.num_starts
    summary.recovery_seconds = {kind: round(sum(found) / len(found), 1) for kind, found in seconds.items() if found}
    _evaluate_run(summary, run, mark)
    return summary


def write_summary(summary: Summary, path: Path) -> None:
    """Write `summary.json`."""
    replace_text(path, json.dumps(vars(summary), indent=2))


def _evaluate_run(summary: Summary, run: Path, mark: float) -> None:
    """Compare the trajectories drawn with their fates, and read the reward."""
    state = _newest_state(run)
    table = Ledger.of(state["collector"]["ledger"]).table()
    drawn = sum(row["drawn"] for row in table.values())
    found = sum(row[name] for row in table.values() for name in (*FATES, "pending"))
    used = sum(row[name] for row in table.values() for name in FATES if name != "too_old")  # what a step was given
    written = Counter(
        (row["group_id"], row["index"])
        for path in _trajectory_files(run)
        for row in trajectory_file.read_summaries(path)
    )
    summary.lost = max(drawn - found, 0) + max(used - len(written), 0)
    summary.trained_twice = max(found - drawn, 0) + written.total() - len(written) + max(len(written) - used, 0)
    lines = [line for line in read_lines(run / "metrics.jsonl") if "reward/mean" in line]
    steps = Counter(line["step"] for line in lines)
    summary.trained_twice += sum(number - 1 for number in steps.values())  # a step that is done again replaces its line
    last = [line["reward/mean"] for line in lines[-5:]]
    summary.reward = sum(last) / len(last)
    summary.reached_mark = summary.reward >= mark


def _trajectory_files(run: Path) -> list[Path]:
    """Of the training steps; each step's is written anew where the step is done again."""
    return sorted((run / "trajectories").glob(f"{run.name}-*.parquet"))


def _newest_state(run: Path) -> dict[str, Any]:
    found = checkpoint.latest(run / "checkpoints")
    if found is None:
        raise ChaosError(f"{run}: the run is done and has no checkpoint")
    return found.state


def _is_underway(run: Path) -> bool:
    """Whether there is something to lose: a step is done."""
    return bool(read_lines(run / "metrics.jsonl"))


def _last_logged_at(run: Path) -> float:
    """Return when the last step was logged."""
    return (run / "metrics.jsonl").stat().st_mtime


class _Recovery:
    """The way back from a kill. Made before it."""

    def __init__(self, victim: Victim, run: Path, kind: str, before: set[int]) -> None:
        self._victim, self._run, self._kind, self._before = victim, run, kind, before
        self._started, self._step, self._num_logged = (
            time.monotonic(),
            _last_logged_at(run),
            len(victim.recovery_seconds(kind)),
        )

    def wait(self) -> list[float]:
        """Wait until the victim has recovered, and return the seconds of each recovery; none if none was needed.

        The seconds of an actor are those that the run logs. A tool worker has recovered when another one exists, and the driver when
        another step is done. None is needed if the run ended before, or if no call needed a worker.

        Raises:
            ChaosError: it does not come.
        """
        if self._kind == "tool_worker":
            came = self._wait_until(lambda: bool(self._victim.processes("tool_worker") - self._before), WORKER_SECONDS)
            return [time.monotonic() - self._started] if came else []
        if self._kind == "driver":
            came = self._wait_until(lambda: _last_logged_at(self._run) > self._step)
        else:
            came = self._wait_until(lambda: len(self._victim.recovery_seconds(self._kind)) > self._num_logged)
        if not came and self._victim.status is None:
            raise ChaosError(f"no other {self._kind} in {GRACE_SECONDS:g} seconds: {self._victim.output_tail()}")
        if self._kind == "driver":
            return [time.monotonic() - self._started]
        return self._victim.recovery_seconds(self._kind)[self._num_logged :]

    def _wait_until(self, done: Callable[[], bool], limit: float = GRACE_SECONDS) -> bool:
        """Whether it was, before the limit and the run's end."""
        until = time.monotonic() + limit
        while not done() and self._victim.status is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return done()
