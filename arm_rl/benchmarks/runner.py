"""Asks a backend the items of benchmarks: many at a time, each once, verdicts and trajectories written as they come."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arm_rl.benchmarks import BENCHMARKS
from arm_rl.benchmarks.base import Item, ItemVerdict, ReadOptions
from arm_rl.benchmarks.files import BenchmarkError, ImageStore
from arm_rl.benchmarks.results import Key, ResultsError, ResultsWriter, read_results
from arm_rl.benchmarks.verdicts import read_verdict
from arm_rl.core.errors import UserError
from arm_rl.core.seeding import derive_seed
from arm_rl.core.types import Sample, ScoredTrajectory
from arm_rl.judge.backends import Backend, JudgedSession

TOOLS, NO_TOOLS = "tools", "no tools"  # ways of asking
SESSIONS_PER_FILE = 64


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
    on_done: Callable[[ItemQuestion, ItemVerdict | None], None] = lambda question, judged: None,
) -> dict[Key, ItemVerdict]:
    """Asks what has no verdict yet.

    Args:
        max_broken: share of these sessions that may break (0..1); they have no verdict, and are asked again by the next run.

    Returns:
        All verdicts of the questions, in their order.

    Raises:
        EvaluationStopped: more sessions broke.
        ResultsError: as `read_finished`.
    """
    known = read_finished(questions, folder)
    pending = [question for question in questions if question.key not in known]
    asker = _Asker(backend, folder, int(max_broken * len(pending)), on_done)
    with ResultsWriter(folder) as writer:
        try:
            async with asyncio.TaskGroup() as tasks:
                waiting = iter(pending)
                for _ in range(min(backend.concurrency, len(pending))):
                    tasks.create_task(asker.work(waiting, writer))
        except* EvaluationStopped as stopped:
            raise stopped.exceptions[0] from None
        finally:
            await asker.record_rest()
    known |= asker.judged
    return {question.key: known[question.key] for question in questions if question.key in known}


class _Asker:
    """The state of an evaluation that runs."""

    def __init__(
        self,
        backend: Backend[Any],
        folder: Path,
        may_break: int,
        on_done: Callable[[ItemQuestion, ItemVerdict | None], None],
    ) -> None:
        self._backend, self._folder, self._may_break, self._on_done = backend, folder, may_break, on_done
        self.judged: dict[Key, ItemVerdict] = {}
        self._num_broken = 0
        self._unwritten: dict[str, list[tuple[JudgedSession[Any], ScoredTrajectory]]] = {}  # by stage
        self._steps: dict[str, int] = {}  # the next file's number, by stage

    async def work(self, questions: Iterator[ItemQuestion], writer: ResultsWriter) -> None:
        """Asks one question after the other."""
        for question in questions:
            asked = await self._backend.ask(question.sample, "/".join(question.key))
            judged = None
            if asked.trajectory.end == "aborted":
                self._count_broken(asked.trajectory.error or "")
            else:
                judged = judge_session(question, asked)
                self.judged[question.key] = judged
                writer.add(question.benchmark, question.way, judged)
            scored = ScoredTrajectory(
                trajectory=asked.trajectory,
                reward=None if judged is None else _display_reward(judged),
                correct=judged is not None and judged.correct,
                format_ok=judged is not None and judged.verdict is not None,
            )
            stage = f"{question.benchmark}-{question.way.replace(' ', '-')}-evaluation"
            unwritten = self._unwritten.setdefault(stage, [])
            unwritten.append((asked, scored))
            self._on_done(question, judged)
            if len(unwritten) == SESSIONS_PER_FILE:
                await self._record(stage)

    def _count_broken(self, error: str) -> None:
        self._num_broken += 1
        if self._num_broken > self._may_break:
            raise EvaluationStopped(
                f"{self._num_broken} sessions broke, more than run.max_broken_sessions allows; what was judged is in {self._folder}, and "
                f"the same command goes on from there. The last one:\n{error}"
            )

    async def record_rest(self) -> None:
        """Writes what is not in a file yet."""
        for stage in list(self._unwritten):
            await self._record(stage)

    async def _record(self, stage: str) -> None:
        step = self._steps.get(stage)
        if step is None:  # an earlier run's files stay
            numbers = [
                int(path.stem.rpartition("-")[2]) for path in (self._folder / "trajectories").glob(f"{stage}-*.parquet")
            ]
            step = max(numbers, default=-1) + 1
        self._steps[stage] = step + 1
        await self._backend.record(stage, step, self._unwritten.pop(stage))


def _display_reward(judged: ItemVerdict) -> float:
    """Return a reward for looking at the trajectory only: right or wrong; of a rating, its height."""
    return int(judged.verdict or 0) / 10 if judged.kind == "rating" else float(judged.correct)


def judge_session(question: ItemQuestion, asked: JudgedSession[Any]) -> ItemVerdict:
    """Return the verdict of a finished session."""
    item, trajectory = question.item, asked.trajectory
    answered = trajectory.end == "answered" and trajectory.turns
    events = trajectory.tool_events
    return ItemVerdict(
        id=item.sample.id,
        row=item.row,
        cluster=item.cluster,
        kind=item.kind,
        categories=dict(item.categories),
        order=item.order,
        label=item.sample.label,
        verdict=read_verdict(item.kind, trajectory.turns[-1].text, item.num_options) if answered else None,
        num_calls=len(events),
        num_ok_calls=sum(event.status == "ok" for event in events),
        end=trajectory.end,
        seconds=trajectory.seconds,
        row_items=item.row_items,
        digest=question.digest,
    )
