"""Chaos: a run whose processes are killed at random times, one kind after the other, until it is done; and what came of it.

    run -> kill -> another process is there, or the run itself is started again -> kill -> ... -> done -> ledger, lost, learned

The run is a process of its own (`python -m jobs.train`), and every process that it starts is a descendant of it: that is how the victims
are found. Nothing in the run knows of this.
"""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arm_rl import checkpoint
from arm_rl.core.errors import UserError
from arm_rl.ledger import FATES, Ledger
from arm_rl.metrics_log import read_lines

logger = logging.getLogger(__name__)

# What a process's command line or title begins with or holds, by kind; `driver` is the run's own process.
VICTIMS = {
    "rollout": "ray::RolloutActor",
    "engine": "VLLM::EngineCore",
    "tools": "ray::ToolExecutor",
    "tool_worker": "tools.worker",
    "scorer": "ray::Scorer",
    "learner": "ray::Learner",
}
KINDS = (*VICTIMS, "driver")
POLL_SECONDS = 0.2
GRACE_SECONDS = 300.0  # until a kind of process must be there (again)


class ChaosError(UserError):
    """The run did not live through it; the message has its last words."""


@dataclass(kw_only=True)
class Summary:
    """What came of it; `summary.json`."""

    kills: dict[str, int]
    lost: int = 0  # trajectories that were drawn and are nowhere in the ledger
    trained_twice: int = 0
    recovery_seconds: dict[str, float] = field(default_factory=dict)  # mean; of a driver until the next step is done, else as the run says
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
        return {process for process, line in _descendants(self._process.pid) if VICTIMS[kind] in line}

    def kill(self, kind: str, process: int) -> None:
        """Kills it; with the driver all others go, and the run is started again."""
        others = {one for other in VICTIMS for one in self.processes(other)} if kind == "driver" else set()
        os.kill(process, signal.SIGKILL)
        if kind == "driver":
            self._process.wait()
            limit = time.monotonic() + GRACE_SECONDS
            while left := [one for one in others if _lives(one)]:  # Ray ends with it, and they with Ray
                if time.monotonic() > limit:
                    raise ChaosError(f"processes {left} outlive the driver")
                time.sleep(POLL_SECONDS)
            self._start()

    def end(self) -> None:
        """Ends what is left of it."""
        left = [process for process, _ in _descendants(self._process.pid)]
        for process in (self._process.pid, *left):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def last_words(self) -> str:
        """The end of its output."""
        return self._log.read_text(errors="replace")[-3000:]


def chaos(command: Sequence[str], run: Path, *, kills: dict[str, int], seed: int, pause_seconds: float, mark: float) -> Summary:
    """Runs the command to its end, killing as many of each kind as is said, in a random order and at random times.

    Args:
        command: `jobs.train CONFIG key=value ...`, of a synchronous or an asynchronous run.
        run: the run's folder.
        kills: by kind.
        seed: of order and times.
        pause_seconds: mean between a recovery and the next kill.
        mark: mean reward of the last steps that counts as learned.

    Raises:
        ChaosError: the run ended before its time, or with an error, or a process did not come back.
    """
    rng = random.Random(seed)
    plan = [kind for kind in KINDS for _ in range(kills.get(kind, 0))]
    rng.shuffle(plan)
    summary = Summary(kills=dict.fromkeys(KINDS, 0))
    seconds: list[float] = []  # of the driver
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
            started, killed_at = time.monotonic(), _written(run)
            victim.kill(kind, killed)
            plan.remove(kind)
            summary.kills[kind] += 1
            logger.info("killed %s %d; %d kills to come", kind, killed, len(plan))
            if kind != "tool_worker":  # which comes back with the next call
                _wait_for_another(victim, kind, before)
            if kind in ("driver", "learner"):  # else the run might never get anywhere
                _wait_for_a_step(victim, run, killed_at)
            if kind == "driver":
                seconds.append(time.monotonic() - started)
        while victim.status is None:
            time.sleep(POLL_SECONDS)
        if victim.status or plan:
            raise ChaosError(f"the run ended with status {victim.status} and {len(plan)} kills to come: {victim.last_words()}")
    finally:
        victim.end()
    summary.starts = victim.num_starts
    _judge(summary, run, mark)
    if seconds:
        summary.recovery_seconds["driver"] = round(sum(seconds) / len(seconds), 1)
    return summary


def write(summary: Summary, path: Path) -> None:
    """Writes `summary.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(vars(summary), indent=2))


def _judge(summary: Summary, run: Path, mark: float) -> None:
    """Compares what was drawn with what became of it, and reads the reward."""
    state = _newest_state(run)
    table = Ledger.of(state["collector"]["ledger"]).table()
    drawn = sum(row["drawn"] for row in table.values())
    found = sum(row[name] for row in table.values() for name in (*FATES, "pending"))
    summary.lost, summary.trained_twice = max(drawn - found, 0), max(found - drawn, 0)
    lines = [line for line in read_lines(run / "metrics.jsonl") if "reward/mean" in line]
    steps = Counter(line["step"] for line in lines)
    summary.trained_twice += sum(number - 1 for number in steps.values())  # a step that is done again replaces its line
    for kind in ("rollout", "tools", "scorer", "learner"):  # an engine takes its rollout actor along
        number, total = (sum(line[f"recovery/{name}"] for line in lines) for name in (kind, f"{kind}_seconds"))
        if number:
            summary.recovery_seconds[kind] = round(total / number, 1)
    last = [line["reward/mean"] for line in lines[-5:]]
    summary.reward = sum(last) / len(last)
    summary.reached_mark = summary.reward >= mark


def _newest_state(run: Path) -> dict[str, Any]:
    found = checkpoint.latest(run / "checkpoints")
    if found is None:
        raise ChaosError(f"{run}: the run is done and has no checkpoint")
    return found.state


def _is_underway(run: Path) -> bool:
    """Whether there is something to lose: a step is done."""
    return bool(read_lines(run / "metrics.jsonl"))


def _written(run: Path) -> float:
    """When the last step was logged."""
    return (run / "metrics.jsonl").stat().st_mtime


def _wait_for_a_step(victim: Victim, run: Path, since: float) -> None:
    limit = time.monotonic() + GRACE_SECONDS
    while _written(run) <= since and victim.status is None:
        if time.monotonic() > limit:
            raise ChaosError(f"no step in {GRACE_SECONDS:g} seconds: {victim.last_words()}")
        time.sleep(POLL_SECONDS)


def _wait_for_another(victim: Victim, kind: str, before: set[int]) -> None:
    limit = time.monotonic() + GRACE_SECONDS
    while not victim.processes(kind) - before:
        if victim.status is not None:
            return  # the end of the run: who waits for it looks at its status
        if time.monotonic() > limit:
            raise ChaosError(f"no other {kind} in {GRACE_SECONDS:g} seconds: {victim.last_words()}")
        time.sleep(POLL_SECONDS)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _descendants(root: int) -> Iterator[tuple[int, str]]:
    """Processes that a process has started, they in turn, and so on; each with its command line or title."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    lines: dict[int, str] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                lines[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, ValueError):
                continue  # it has just ended
            if state != "Z":
                children[int(parent)].append(int(folder.name))
    pending = [root]
    while pending:
        for child in children[pending.pop()]:
            pending.append(child)
            yield child, lines[child]
