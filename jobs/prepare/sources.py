"""The commands `questions` and `synthetic`: questions out of published data sets, and the demos' tasks at any size."""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from arm_rl.data.image_store import ImageFolder
from arm_rl.data.parquet_rows import DataError, require_files
from arm_rl.data.samples import file_names
from arm_rl.prepare.progress import progress_bar
from arm_rl.prepare.questions import Question, write_questions
from arm_rl.prepare.sources import SOURCES
from arm_rl.prepare.sources.skipped import SkippedRow
from jobs.command_line import Commands


def add_questions_command(commands: Commands) -> None:
    """Add the command that reads published data sets."""
    parser = commands.add_parser(
        "questions",
        help="questions out of published data sets",
        description="Reads a data set in the files as they are published, and writes questions with their right answers, one JSON object a "
        "line, with their images beside it, each content once. What is skipped is counted by its reason.",
    )
    parser.add_argument(
        "source", choices=[*SOURCES], help="the data set; jsonl: questions of one's own, which are checked and joined"
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL of questions")
    parser.set_defaults(run=_run_questions)


def _run_questions(arguments: argparse.Namespace) -> str:
    require_files(arguments.files)
    counts: Counter[str] = Counter()
    folder, names = ImageFolder(arguments.out.parent / "images"), file_names(arguments.files)

    def read_questions() -> Iterator[Question]:
        number = 0
        with progress_bar("reading questions", None, "rows") as step:
            for found in itertools.chain.from_iterable(
                SOURCES[arguments.source](path, folder, names[str(path)]) for path in arguments.files
            ):
                step()
                if isinstance(found, SkippedRow):
                    counts[found.reason] += 1
                else:
                    number += 1
                    yield found
        if not number:
            raise DataError(f"no question could be made: {_format_skipped(counts) or 'there are no rows'}")

    number = write_questions(arguments.out, read_questions())
    return "\n".join(
        [
            *([f"skipped: {_format_skipped(counts)}"] if counts else []),
            f"done: {number} questions are in {arguments.out}",
        ]
    )


def _format_skipped(skipped: Counter[str]) -> str:
    return "; ".join(f"{number} rows: {reason}" for reason, number in skipped.most_common())


def add_synthetic_command(commands: Commands) -> None:
    """Add the command that writes the demos' data."""
    parser = commands.add_parser(
        "synthetic",
        help="the demos' tasks, as many as wanted",
        description="Writes training data of the demos: tiles with digits, or with --tools also pages of documents and texts, what their "
        "tools read, and the file that lists these. Equal arguments give equal files.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the files")
    parser.add_argument("--train", type=int, default=3600, help="training samples (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=480, help="held-out samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tools", action="store_true", help="three tracks, each with a tool of its own")
    parser.set_defaults(run=_run_synthetic)


def _run_synthetic(arguments: argparse.Namespace) -> str:
    from arm_rl.demo import dataset
    from arm_rl.demo.demos import DIGITS, THREE_TRACKS, write_tool_file

    spec, folder = THREE_TRACKS if arguments.tools else DIGITS, arguments.out
    for track in spec.tracks:
        track.prepare(folder, arguments.seed)
    write_tool_file(spec, folder, folder / "tools.yaml")
    dataset.write(
        folder / "train.parquet", seed=arguments.seed, split="train", num_samples=arguments.train, tracks=spec.tracks
    )
    dataset.write(
        folder / "held_out.parquet",
        seed=arguments.seed,
        split="held_out",
        num_samples=arguments.held_out,
        tracks=spec.tracks,
    )
    return f"done: {arguments.train} training and {arguments.held_out} held-out samples are in {folder}"
