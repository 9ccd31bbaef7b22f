"""Asks a backend the items of benchmarks: many at a time, each once, verdicts and trajectories written as they come."""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arm_rl.benchmarks import BENCHMARKS
from arm_rl.benchmarks.base import Item, ItemVerdict, ReadOptions
from arm_rl.benchmarks.files import BenchmarkError, ImageStore
from arm_rl.benchmarks.results import FILE, Key, ResultsError, read_results, result_line
from arm_rl.benchmarks.verdicts import read_verdict
from arm_rl.core.concurrency import for_each
from arm_rl.core.errors import UserError
from arm_rl.core.json_lines import JsonLines
from arm_rl.core.seeding import derive_seed
from arm_rl.core.types import Sample, ScoredTrajectory, Trajectory
from arm_rl.judge.backends import Backend, JudgedSession, SessionFiles

logger = logging.getLogger(__name__)

REFUSED = "refused"  # end of an item that cannot be shown to the model
TOOLS, NO_TOOLS = "tools", "no tools"  # ways of asking


class EvaluationStopped(UserError):
    """Too many sessions broke; the message holds the first one's traceback. What was judged is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemQuestion:
    """An item, asked in one way."""

    benchmark: str
    way: str
    item: Item

    @property
    def key(self) -> Key:
        """Where its verdict stands in the results."""
        return self.benchmark, self.way, self.item.sample.id

    @property
    def sample(self) -> Sample:
        """As the judge sees it."""
        return self.item.sample if self.way == TOOLS else replace(self.item.sample, tools=())

    @property
    def digest(self) -> str:
        """Tells whether the same was asked before."""
        sample = self.sample
        images = [Path(ref.path).name for ref in sample.images]
        return hashlib.blake2b(
            repr((sample.messages, images, sample.label, sample.tools)).encode(), digest_size=8
        ).hexdigest()


def read_questions(
    benches: Sequence[tuple[str, Path]],
    folder: Path,
    *,
    tools: Sequence[str],
    ways: Sequence[str],
    both_orders: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> list[ItemQuestion]:
    """What is to be asked.

    Args:
        benches: name and file of each benchmark.
        folder: of the run: images that stand inside of files are kept there.
        tools: names of all tools.
        limit: rows of each benchmark, about: chosen by the seed, so that those of a smaller number are among those of a larger one.

    Raises:
        BenchmarkError: an unknown benchmark, or a file that cannot be used.
    """
    questions: list[ItemQuestion] = []
    for name, path in benches:
        if name not in BENCHMARKS:
            raise BenchmarkError(f"{name}: one of {', '.join(BENCHMARKS)} is needed")
        images = ImageStore((folder / "images" / name).resolve())
        items = BENCHMARKS[name].read(
            path, ReadOptions(images=images, tools=tuple(tools), seed=seed, both_orders=both_orders)
        )
        chosen = _limit_items(items, limit, seed)
        questions += [ItemQuestion(benchmark=name, way=way, item=item) for way in ways for item in chosen]
    return questions


def _limit_items(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """Return the items of random clusters until there are `limit` rows."""
    if limit is None:
        return list(items)
    rows: dict[str, set[str]] = {}
    for item in items:
        rows.setdefault(item.cluster, set()).add(item.row)
    chosen: set[str] = set()
    number = 0
    for cluster in sorted(rows, key=lambda cluster: derive_seed(seed, "limit", cluster)):
        if number >= limit:
            break
        chosen.add(cluster)
        number += len(rows[cluster])
    return [item for item in items if item.cluster in chosen]


def read_finished(questions: Sequence[ItemQuestion], folder: Path) -> dict[Key, ItemVerdict]:
    """Return the verdicts that exist already.

    Raises:
        ResultsError: the results are of other questions under the same names.
    """
    found = read_results(folder)
    for question in questions:
        judged = found.get(question.key)
        if judged is not None and judged.digest != question.digest:
            raise ResultsError(
                f"{folder}: {question.key[2]} ({question.way}) was asked in other words, with other tools or of another file: "
                "choose another --out, or remove that folder"
            )
    return {
        question.key: replace(found[question.key], row_items=question.item.row_items)
        for question in questions
        if question.key in found
    }


async def ask_all(
    backend: Backend[Any],
    questions: Sequence[ItemQuestion],
    folder: Path,
    *,
    max_broken: float,
    check: Callable[[Sample], None] | None = None,
    on_done: Callable[[ItemQuestion, ItemVerdict | None], None] = lambda question, judged: None,
) -> dict[Key, ItemVerdict]:
    """Asks what has no verdict yet.

    Args:
        max_broken: share of these sessions that may break (0..1); they have no verdict, and are asked again by the next run.
        check: Raises UserError for a sample that cannot be shown to the model. The item is then wrong without a
            session: another run would not do better.

    Returns:
        All verdicts of the questions, in their order.

    Raises:
        EvaluationStopped: more sessions broke.
        ResultsError: as `read_finished`.
    """
    known = read_finished(questions, folder)
    pending = [question for question in questions if question.key not in known]
    files, may_break, num_broken = SessionFiles(backend, folder / "trajectories"), int(max_broken * len(pending)), 0
    with JsonLines(folder / FILE) as lines:

        async def ask(question: ItemQuestion) -> None:
            nonlocal num_broken
            try:
                if check is not None:
                    await asyncio.to_thread(check, question.sample)
            except UserError as error:
                logger.warning("%s cannot be shown to the model, and is wrong: %s", "/".join(question.key), error)
                refused = known[question.key] = _make_verdict(question, end=REFUSED)
                lines.add(result_line(question.benchmark, question.way, refused))
                on_done(question, refused)
                return
            asked = await backend.ask(question.sample, "/".join(question.key))
            judged = None
            if asked.trajectory.end == "aborted":
                num_broken += 1
                if num_broken > may_break:
                    raise EvaluationStopped(
                        f"{num_broken} sessions broke, more than run.max_broken_sessions allows; what was judged is in {folder}, and "
                        f"the same command goes on from there. The last one:\n{asked.trajectory.error or ''}"
                    )
            else:
                judged = known[question.key] = judge_session(question, asked)
                lines.add(result_line(question.benchmark, question.way, judged))
            on_done(question, judged)
            stage = f"{question.benchmark}-{question.way.replace(' ', '-')}-evaluation"
            await files.add(stage, asked, _make_scored(asked.trajectory, judged))

        try:
            await for_each(pending, ask, at_a_time=backend.concurrency)
        finally:
            await files.flush()
    return {question.key: known[question.key] for question in questions if question.key in known}


def _make_scored(trajectory: Trajectory, judged: ItemVerdict | None) -> ScoredTrajectory:
    """Return the trajectory with a reward for readers: right or wrong; the height of a rating; None for a broken session."""
    if judged is None:
        return ScoredTrajectory(trajectory=trajectory, reward=None)
    reward = int(judged.verdict or 0) / 10 if judged.kind == "rating" else float(judged.correct)
    format_ok = judged.verdict is not None
    return ScoredTrajectory(trajectory=trajectory, reward=reward, correct=judged.correct, format_ok=format_ok)


def judge_session(question: ItemQuestion, asked: JudgedSession[Any]) -> ItemVerdict:
    """Return the verdict of a finished session."""
    item, trajectory = question.item, asked.trajectory
    verdict = None
    if trajectory.end == "answered" and trajectory.turns:
        verdict = read_verdict(item.kind, trajectory.turns[-1].text, item.num_options, item.sample.texts)
    events = trajectory.tool_events
    return _make_verdict(
        question,
        verdict=verdict,
        num_calls=len(events),
        num_ok_calls=sum(event.status == "ok" for event in events),
        end=trajectory.end,
        seconds=trajectory.seconds,
    )


def _make_verdict(question: ItemQuestion, *, verdict: str | None = None, **session: Any) -> ItemVerdict:
    """Return the verdict of an item with facts of its session."""
    item = question.item
    return ItemVerdict(
        id=item.sample.id,
        row=item.row,
        cluster=item.cluster,
        kind=item.kind,
        categories=dict(item.categories),
        order=item.order,
        label=item.sample.label,
        verdict=verdict,
        row_items=item.row_items,
        digest=question.digest,
        **session,
    )
