"""Demonstrations by a stronger model: its sessions are run and recorded, screened, and the best of each sample's are written.

samples -> sessions -> trajectories/*.parquet -> those that pass -> the best one of each sample -> demonstrations.parquet
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.scorer import score
from arm_rl.core import trajectory_file
from arm_rl.core.concurrency import for_each
from arm_rl.core.parsing import ToolFormat
from arm_rl.core.session import Session, observation
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import Message, Sample, Trajectory
from arm_rl.judge.backends import Backend, SessionFiles, trajectories_folder
from arm_rl.prepare.screening import refusal_reason
from arm_rl.training.group import RunStopped

STAGE = "cold-start"


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionSummary:
    """What is known of a recorded session without reading it whole."""

    path: Path
    row: int
    sample_id: str
    group_id: str
    refusal: str | None  # None: it may be learned from
    num_calls: int


def read_recorded(folder: Path) -> list[SessionSummary]:
    """Return the recorded sessions of a run, by file and row; broken ones are skipped, to be run again."""
    found = []
    for path in sorted((folder / "trajectories").glob(f"{STAGE}-*.parquet")):
        for row, light in enumerate(trajectory_file.read_summaries(path)):
            if light["end"] == "aborted":
                continue
            statuses = [event["status"] for turn in light["turns"] for event in turn["tool_events"]]
            reason = refusal_reason(
                format_ok=light["format_ok"],
                correct=light["correct"],
                num_calls=len(statuses),
                num_successful_calls=statuses.count("ok"),
                call_needed=True,
            )
            if "unknown_tool" in statuses:
                reason = "a call of a tool that is not offered"
            names = {name: light[name] for name in ("sample_id", "group_id")}
            found.append(SessionSummary(path=path, row=row, **names, refusal=reason, num_calls=len(statuses)))
    return found


def plan_sessions(samples: Sequence[Sample], best_of: int) -> dict[str, Sample]:
    """Return the sample of each session to run, by the group id of the session."""
    return {f"{STAGE}/{number}/{sample.id}": sample for sample in samples for number in range(best_of)}


async def run_sessions(
    backend: Backend[Any],
    sessions: Mapping[str, Sample],
    config: TrainConfig,
    tool_format: ToolFormat,
    *,
    on_done: Callable[[], None] = lambda: None,
) -> None:
    """Runs sessions, and records them, 64 in a file.

    Raises:
        RunStopped: more broke than run.max_broken_sessions allows. The others are recorded.
    """
    files = SessionFiles(backend, trajectories_folder(config))
    may_break, num_broken = int(config.run.max_broken_sessions * len(sessions)), 0

    async def ask(session: tuple[str, Sample]) -> None:
        nonlocal num_broken
        group_id, sample = session
        asked = await backend.ask(sample, group_id)
        await files.add(STAGE, asked, score(asked.trajectory, sample, config.reward, tool_format))
        if asked.trajectory.error is not None:
            num_broken += 1
            if num_broken > may_break:
                raise RunStopped(
                    f"{num_broken} sessions broke, more than run.max_broken_sessions allows; the others are kept, and the same command "
                    f"goes on from there. The last one:\n{asked.trajectory.error}"
                )
        on_done()

    try:
        await for_each(sessions.items(), ask, at_a_time=backend.concurrency)
    finally:
        await files.flush()


def choose_best(found: Sequence[SessionSummary], samples: Sequence[Sample]) -> list[SessionSummary]:
    """Return for each sample the passing session with the fewest calls, in the samples' order."""
    passing: dict[str, list[SessionSummary]] = {}
    for one in found:
        if one.refusal is None:
            passing.setdefault(one.sample_id, []).append(one)
    return [
        min(passing[sample.id], key=lambda one: (one.num_calls, one.group_id))
        for sample in samples
        if sample.id in passing
    ]


def load_sessions(chosen: Sequence[SessionSummary], notice: str) -> Iterator[tuple[Sample, Session]]:
    """Read sessions back, one at a time. `notice` is the configuration's `session.last_turn_notice`."""
    for one in chosen:
        ((scored, sample),) = trajectory_file.read_rows(one.path, [one.row])
        trajectory = scored.trajectory
        images = trajectory_file.read_images(one.path, [info.key for info in trajectory.images])
        messages = _rebuild_messages(trajectory, notice)
        yield sample, Session(trajectory=trajectory, messages=messages, images=images)


def report(
    samples: Sequence[Sample], found: Sequence[SessionSummary], chosen: Sequence[SessionSummary], best_of: int
) -> dict[str, Any]:
    """What was kept and why the rest was not, for JSON."""
    reasons = Counter(one.refusal for one in found if one.refusal is not None)
    tracks = {sample.id: sample.track for sample in samples}
    broken = len(samples) * best_of - len(found)
    return {
        "samples": len(samples),
        "sessions": len(found),
        "kept": len(chosen),
        "refused_sessions": dict(reasons.most_common()) | ({"the session broke": broken} if broken else {}),
        "samples_without_any": len(samples) - len(chosen),
        "kept_by_track": dict(Counter(tracks[one.sample_id] for one in chosen)),
        "calls_a_demonstration": sum(one.num_calls for one in chosen) / len(chosen) if chosen else None,
    }


def _rebuild_messages(trajectory: Trajectory, notice: str) -> tuple[Message, ...]:
    """Return the messages after the prompt, as the session had them."""
    messages: list[Message] = []
    for number, turn in enumerate(trajectory.turns):
        messages.append(Message(role="assistant", parts=(turn.text,)))
        for event in turn.tool_events:
            messages.append(observation(event, notice if trajectory.turns[number + 1].call_forbidden else None))
    return tuple(messages)
