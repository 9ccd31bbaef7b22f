"""Prepares what training reads: `python -m jobs.prepare_data COMMAND …`; its commands, each from a module of its own."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jobs.command_line import guarded
from jobs.prepare.audit import audit
from jobs.prepare.commands import Commands
from jobs.prepare.documents import documents
from jobs.prepare.formats import convert
from jobs.prepare.sources import questions, synthetic

COMMANDS: tuple[Callable[[Commands], None], ...] = (documents, questions, synthetic, convert, audit)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that is asked for and prints its last line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.prepare_data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    arguments = parser.parse_args(argv)
    return guarded(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
