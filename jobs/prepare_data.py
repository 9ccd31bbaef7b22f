"""Prepare training data from raw questions. Each command is a module of `jobs.prepare`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from jobs.command_line import Commands, run_guarded
from jobs.prepare.audit import add_audit_command
from jobs.prepare.difficulty import add_difficulty_command
from jobs.prepare.documents import add_documents_command
from jobs.prepare.formats import add_convert_command
from jobs.prepare.labelled import add_labelled_command
from jobs.prepare.pairs import add_pairs_command
from jobs.prepare.sources import add_questions_command, add_synthetic_command
from jobs.prepare.trajectories import add_trajectories_command

COMMANDS: tuple[Callable[[Commands], None], ...] = (
    add_questions_command,
    add_synthetic_command,
    add_labelled_command,
    add_pairs_command,
    add_difficulty_command,
    add_trajectories_command,
    add_documents_command,
    add_convert_command,
    add_audit_command,
)


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.prepare_data") -> int:
    """Runs the command that is asked for and prints its last line."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    argv = sys.argv[1:] if argv is None else list(argv)
    command = commands.choices.get(argv[0]) if argv else None
    # options between key=value too
    arguments = parser.parse_args(argv) if command is None else command.parse_intermixed_args(argv[1:])
    return run_guarded(lambda: arguments.run(arguments))


if __name__ == "__main__":
    sys.exit(main())
