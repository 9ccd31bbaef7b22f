"""Prepares what training reads: `python -m jobs.prepare_data COMMAND …`; its commands, each from a module of its own."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jobs.command_line import Commands, guarded
from jobs.prepare.audit import audit
from jobs.prepare.difficulty import difficulty
from jobs.prepare.documents import documents
from jobs.prepare.formats import convert
from jobs.prepare.pairs import pairs
from jobs.prepare.sources import questions, synthetic
from jobs.prepare.trajectories import trajectories

COMMANDS: tuple[Callable[[Commands], None], ...] = (
    questions,
    synthetic,
    pairs,
    difficulty,
    trajectories,
    documents,
    convert,
    audit,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that is asked for and prints its last line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare_data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    argv = sys.argv[1:] if argv is None else list(argv)
    command = commands.choices.get(argv[0]) if argv else None
    arguments = (
        parser.parse_args(argv) if command is None else command.parse_intermixed_args(argv[1:])
    )  # options between key=value too
    return guarded(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
