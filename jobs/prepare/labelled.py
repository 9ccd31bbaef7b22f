"""The command `labelled`: training data out of answers that were compared or scored by whoever published them."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config_file import describe, load
from arm_rl.core.question_template import read_phrase
from arm_rl.data.image_store import ImageFolder
from arm_rl.data.parquet_rows import DataError, require_files
from arm_rl.data.samples import file_names
from arm_rl.prepare.pairs.choices import AnsweredQuestion, ScoredAnswer
from arm_rl.prepare.pairs.labelled import LabelledConfig, collect, write_labelled
from arm_rl.prepare.pairs.report import describe_files, file_lines
from arm_rl.prepare.progress import progress_bar
from arm_rl.prepare.sources import LABELLED_SOURCES
from arm_rl.prepare.sources.skipped import SkippedRow
from jobs.command_line import Commands

REPORT = "report.json"
_ENDINGS = (".parquet", ".json", ".jsonl")


def add_labelled_command(commands: Commands) -> None:
    """Add the command that reads labelled answers."""
    parser = commands.add_parser(
        "labelled",
        help="training data out of answers that are labelled already",
        description="Reads a data set that says which of two answers is better, or scores single ones, in the files as they\n"
        "are published. No language model is asked. Two answers become pair.parquet, single ones point.parquet; labels are\n"
        "balanced, and what place, length and form tell apart is left out. Rows that cannot be used are skipped and counted\n"
        "by their reason.",
        epilog=f"keys:\n{describe(LabelledConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        choices=[*LABELLED_SOURCES],
        help="the data set; jsonl: one's own (question, images, chosen, rejected; or question, images, answer, right)",
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="its files, or folders of them; also key=value of the configuration"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="of the files, images and report")
    parser.add_argument("--config", default="configs/prepare/labelled.yaml", help="(default: %(default)s)")
    parser.set_defaults(run=_run_labelled)


def _run_labelled(arguments: argparse.Namespace) -> str:
    overrides = [one for one in arguments.files if "=" in one and not Path(one).exists()]
    config = load(LabelledConfig, arguments.config, overrides)
    phrase = read_phrase(config.question)
    given = [Path(one) for one in arguments.files if one not in overrides]
    require_files(given)
    files = _expand_folders(given)
    labelled = collect(_read(arguments.source, files, ImageFolder(arguments.out / "images")), config)
    made = write_labelled(labelled, config, phrase, arguments.out)
    found = {
        "source": arguments.source,
        "compared": len(labelled.pairs),
        "scored": len(labelled.points),
        "skipped": dict(labelled.skipped.most_common()),
        "files": describe_files(made),
    }
    replace_text(arguments.out / REPORT, json.dumps(found, indent=2, ensure_ascii=False))
    lines = [f"skipped: {number} rows: {reason}" for reason, number in labelled.skipped.most_common()]
    names = ", ".join(one.path.name for one in made)
    look = f"`python -m jobs.prepare_data audit {arguments.out}` looks for what is wrong with them"
    done = f"done: {names} and {REPORT} are in {arguments.out}; {look}"
    return "\n".join([*lines, *file_lines(describe_files(made)), done])


def _expand_folders(paths: Sequence[Path]) -> list[Path]:
    """Return the files, with each folder replaced by the data files in and below it.

    Raises:
        DataError: A folder has none.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(one for one in path.rglob("*") if one.suffix in _ENDINGS) if path.is_dir() else [path]
        if not found:
            raise DataError(f"{path}: a folder without files that end with {', '.join(_ENDINGS)}")
        files += found
    return files


def _read(
    source: str, files: Sequence[Path], images: ImageFolder
) -> Iterator[AnsweredQuestion | ScoredAnswer | SkippedRow]:
    names = file_names(files)
    with progress_bar("reading answers", None, "rows") as step:
        for path in files:
            for found in LABELLED_SOURCES[source](path, images, names[str(path)]):
                step()
                yield found
