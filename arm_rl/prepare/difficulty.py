"""How hard samples are for a model: each is judged several times, and what teaches nothing is left out of the data.

    samples -> groups of rollouts -> how many of each are right -> parquet files without the rest

What training keeps of a row is what a row group's mask keeps: files are read and written a row group at a time, in order, so neither
their size nor Ray Data comes into it.
"""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from actors.cluster.connection import cluster
from actors.cluster.reservation import reserve
from arm_rl.core.atomic_file import replace_file, replace_text
from arm_rl.core.concurrency import for_each
from arm_rl.core.json_lines import JsonLines
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data.samples import file_names, sample_id
from arm_rl.prepare.progress import progress_bar
from arm_rl.run.folder import open_run
from arm_rl.run.lock import locked
from arm_rl.training.group import RunStopped
from arm_rl.training.group_runner import GroupRunner
from arm_rl.training.inputs import read_inputs
from arm_rl.training.startup import RolloutService, group_runner

NeverRight = Literal["keep", "drop"]
JUDGED, REPORT = "difficulty.jsonl", "report.json"
_AT_A_TIME = 2  # more groups than fill the engines: they are of different length


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRollouts:
    """A sample's rollouts."""

    id: str
    track: str
    num_right: int
    num_rollouts: int

    def drop_reason(self, never_right: NeverRight) -> str | None:
        """Return why the sample is dropped; None if it is kept."""
        if self.num_right == self.num_rollouts:
            return "right in all rollouts"
        return "never right" if self.num_right == 0 and never_right == "drop" else None


def filter_by_difficulty(
    config: TrainConfig,
    num_rollouts: int,
    never_right: NeverRight,
    *,
    engines: RolloutService | None = None,
    run: Callable[[Coroutine[Any, Any, dict[str, SampleRollouts]]], dict[str, SampleRollouts]] = asyncio.run,
) -> list[str]:
    """Write the samples of `config.data.train` from which the configured model can still learn.

    The model judges every sample; verdicts of an earlier run in the same folder are reused.

    Args:
        config: Configuration of a GRPO stage; the run's name gets the suffix "-difficulty".
        num_rollouts: Number of rollouts of each sample.
        never_right: Whether to keep samples that no rollout gets right.
        engines: Engines that serve the configured model; by default some are started.
        run: Runs a coroutine to its end, on the event loop of the engines.

    Returns:
        A summary, one string a line; the last line names the files that were written.
    """
    config = replace(config, run=replace(config.run, name=f"{config.run.name}-difficulty"))
    inputs = read_inputs(replace(config, data=replace(config.data, held_out=())))
    with locked(config.run.folder), JsonLines(open_run(config) / JUDGED) as lines:
        judged = known_rollouts(inputs.samples, lines, num_rollouts)
        pending = [sample for sample in inputs.samples if sample.id not in judged]
        if pending:
            with cluster():
                judged |= run(_judge_on_cluster(config, inputs.template, pending, lines, num_rollouts, engines))
    folder = config.run.folder
    names = file_names(inputs.samples.files)
    written = [write_filtered(Path(file), judged, never_right, name=name) for file, name in names.items()]
    summary = report(inputs.samples, judged, num_rollouts, never_right)
    replace_text(folder / REPORT, json.dumps(summary, indent=2))
    files = ", ".join(f"{path} ({num_rows} rows)" for path, num_rows in written)
    return [*_summary_lines(summary), f"done: {files}; {REPORT} and {JUDGED} are in {folder}"]


async def _judge_on_cluster(
    config: TrainConfig,
    template: Template,
    samples: Sequence[Sample],
    lines: JsonLines,
    num_rollouts: int,
    engines: RolloutService | None,
) -> dict[str, SampleRollouts]:
    async with (
        nullcontext(engines)
        if engines is not None
        else reserve(config.run.name, config.placement, 0, config.rollout) as place,
        group_runner(config, template, place) as runner,
    ):
        with progress_bar("judging", len(samples), "samples") as step:
            return await judge_all(
                runner,
                samples,
                lines,
                num_rollouts=num_rollouts,
                temperature=config.rollout.temperature,
                sessions_at_a_time=config.rollout.num_actors * config.rollout.max_concurrent_sessions,
                max_broken=config.run.max_broken_sessions,
                on_done=step,
            )


def known_rollouts(samples: Sequence[Sample], lines: JsonLines, num_rollouts: int) -> dict[str, SampleRollouts]:
    """Return the rollouts, by sample id, of the samples that an earlier run judged with as many rollouts."""
    known = {one.id: one for one in (SampleRollouts(**values) for values in lines.entries)}
    return {one.id: known[one.id] for one in samples if one.id in known and known[one.id].num_rollouts == num_rollouts}


async def judge_all(
    runner: GroupRunner,
    samples: Sequence[Sample],
    lines: JsonLines,
    *,
    num_rollouts: int,
    temperature: float,
    sessions_at_a_time: int,
    max_broken: float,
    on_done: Callable[[], None] = lambda: None,
) -> dict[str, SampleRollouts]:
    """Judges samples; each is written to `lines` as soon as it is judged.

    Args:
        sessions_at_a_time: that the engines take.
        max_broken: share of the samples whose sessions may break (0..1).

    Returns:
        By id: all but those whose sessions broke, which the next run judges again.

    Raises:
        RunStopped: more sessions broke than the configuration allows.
    """
    judged: dict[str, SampleRollouts] = {}
    may_break, num_broken = int(max_broken * len(samples)), 0

    async def roll_out(sample: Sample) -> None:
        nonlocal num_broken
        group = await runner.run_group(sample, f"difficulty/{sample.id}", size=num_rollouts, temperature=temperature)
        error = next((one.error for one in group.scored if one.error is not None), None)
        if error is None:
            num_right = sum(one.correct for one in group.scored)
            judged[sample.id] = SampleRollouts(
                id=sample.id, track=sample.track, num_right=num_right, num_rollouts=num_rollouts
            )
            lines.add(asdict(judged[sample.id]))
        else:
            num_broken += 1
            if num_broken > may_break:
                raise RunStopped(
                    f"sessions of {num_broken} samples broke, more than run.max_broken_sessions allows; what was judged is kept, and "
                    f"the same command goes on from there. The last one:\n{error}"
                )
        on_done()

    await for_each(samples, roll_out, at_a_time=max(1, _AT_A_TIME * sessions_at_a_time // num_rollouts))
    return judged


def write_filtered(
    path: Path, judged: Mapping[str, SampleRollouts], never_right: NeverRight, *, name: str
) -> tuple[Path, int]:
    """Write the kept rows of a file, in order, to a new file in the same folder, so that relative image paths hold.

    Args:
        name: Name of the file in the ids of its samples.

    Returns:
        The file, `NAME-filtered.parquet`, and its number of rows.
    """
    kept = {id for id, one in judged.items() if one.drop_reason(never_right) is None}
    out = path.with_name(f"{path.stem}-filtered.parquet")
    number = num_kept = 0
    with (
        pq.ParquetFile(path) as file,
        replace_file(out) as temporary,
        pq.ParquetWriter(temporary, file.schema_arrow) as writer,
    ):
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            infos = (
                table.column("extra_info").to_pylist() if "extra_info" in table.column_names else [None] * len(table)
            )
            mask = [sample_id(name, number + row, info) in kept for row, info in enumerate(infos)]
            number += len(table)
            num_kept += sum(mask)
            if any(mask):
                writer.write_table(table.filter(pa.array(mask)))
    return out, num_kept


def report(
    samples: Sequence[Sample], judged: Mapping[str, SampleRollouts], num_rollouts: int, never_right: NeverRight
) -> dict[str, Any]:
    """What was kept and why the rest was not, for JSON."""
    verdicts = Counter(one.drop_reason(never_right) or "kept" for one in judged.values())
    broken = len(samples) - len(judged)
    tracks: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for one in judged.values():
        tracks[one.track][one.num_right] += 1
    return {
        "samples": len(samples),
        "rollouts": num_rollouts,
        "kept": verdicts.pop("kept", 0),
        "left_out": {**verdicts, **({"sessions broke": broken} if broken else {})},
        "histogram": {  # samples by the number of rollouts that are right
            track: [counts[right] for right in range(num_rollouts + 1)] for track, counts in sorted(tracks.items())
        },
    }


def _summary_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = [f"{summary['kept']} of {summary['samples']} samples kept"]
    lines += [f"  left out: {reason}: {number}" for reason, number in summary["left_out"].items()]
    for track, counts in summary["histogram"].items():
        histogram = ", ".join(f"{right}: {number}" for right, number in enumerate(counts))
        lines.append(f"{track}: samples by right rollouts of {summary['rollouts']}: {histogram}")
    return lines
