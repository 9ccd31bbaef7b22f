"""The command `convert`: training data from one format to another."""

import argparse
from pathlib import Path

from arm_rl.data.image_store import FetchLimits, ImageSource
from arm_rl.data.parquet_rows import BrokenRows, DataError
from arm_rl.prepare.conversion import convert as convert_file
from arm_rl.prepare.formats import EMBEDDED, FORMATS, guess_format
from arm_rl.prepare.formats.sharegpt import LlamaFactoryNotes
from arm_rl.prepare.progress import progress_bar
from arm_rl.prepare.records import Record
from jobs.command_line import Commands
from tools import load_tools


def add_convert_command(commands: Commands) -> None:
    """Add the command that converts data."""
    parser = commands.add_parser(
        "convert",
        help="training data from one format to another",
        description="Reads and writes verl's RL parquet (and demonstrations in parquet), ShareGPT JSON as LLaMA-Factory reads it, and "
        "OpenAI's chat JSON lines with tools. What a format has no place for is kept beside it, so that a way back loses nothing.",
    )
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument("target", type=Path, metavar="OUT")
    parser.add_argument("--to", choices=[*FORMATS], help="format of OUT (default: by its name)")
    parser.add_argument(
        "--read-as", choices=[*FORMATS], help="format of IN (default: by its name: .parquet, .jsonl, .json)"
    )
    parser.add_argument(
        "--images",
        choices=("embed", "files"),
        help="in OUT itself, or as files in the folder images beside it, each content once (default: files for sharegpt)",
    )
    parser.add_argument(
        "--image-root", type=Path, help="folder that images of IN may not leave (default: the folder of IN)"
    )
    parser.add_argument("--fetch", action="store_true", help="fetch images that are given as URLs")
    parser.add_argument(
        "--max-image-mb", type=int, default=32, metavar="MB", help="of one that is fetched (default: %(default)s)"
    )
    parser.add_argument(
        "--tools",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files that list the tools, for formats that hold schemas",
    )
    parser.add_argument("--skip", action="store_true", help="leave out rows that cannot be used, and count them")
    parser.set_defaults(run=_run_convert)


def _run_convert(arguments: argparse.Namespace) -> str:
    source, target = arguments.source, arguments.target
    write_as = arguments.to or guess_format(target)
    embedded = EMBEDDED[write_as] if arguments.images is None else arguments.images == "embed"
    limits = FetchLimits(fetch=arguments.fetch, max_bytes=arguments.max_image_mb << 20)
    notes = LlamaFactoryNotes()

    def note(record: Record) -> None:
        notes.add(record)
        step()

    try:
        with progress_bar(f"reading {source.name}", None, "rows") as step:
            number = convert_file(
                source,
                target,
                arguments.read_as or guess_format(source),
                write_as,
                images=ImageSource(source.parent, arguments.image_root, limits),
                image_folder=None if embedded else target.parent / "images",
                schemas={name: tool.schema for name, tool in load_tools(arguments.tools).items()},
                broken=BrokenRows(skip=arguments.skip),
                on_row=note,
            )
    except DataError as error:
        if arguments.skip:
            raise
        raise DataError(f"{error}; --skip leaves out rows that cannot be used") from error
    told = notes.lines(target) if write_as == "sharegpt" else []
    return "\n".join([*told, f"done: {number} rows are in {target}"])
