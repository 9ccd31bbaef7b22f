"""The main jobs, `make demo` and `make demo-tools`: train a small judge through all its stages on this machine and show what it learned.

    data -> base model -> demonstrations, SFT -> difficulty -> GRPO stage 1 -> GRPO stage 2 -> export, server, one judgment -> report

Started again, it goes on where it was: a phase whose product is there is not done again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from actors.cluster.connection import cluster
from arm_rl.demo.demos import DIGITS, THREE_TRACKS
from arm_rl.demo.phases import Demo
from jobs.command_line import FROM_CHECKPOINT, run_guarded


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.demo") -> int:
    """Runs the demo."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tools", action="store_true", help="three tracks at once, each with a tool of its own to choose"
    )
    parser.add_argument("--out", type=Path, help="run folder; by default runs/demo, or runs/demo-tools")
    parser.add_argument("--seed", type=int, default=0, help="of data, initialisation and sampling")
    parser.add_argument(
        "--short", action="store_true", help="a few steps of everything: shows that it runs, learns nothing"
    )
    arguments = parser.parse_args(argv)
    spec = THREE_TRACKS if arguments.tools else DIGITS
    folder = arguments.out or Path("runs", spec.name + ("-short" if arguments.short else ""))

    def start() -> str:
        demo = Demo(spec, folder, arguments.seed, spec.short if arguments.short else spec.full)
        demo.open_folder()
        with cluster():
            demo.run()
        return ""

    return run_guarded(start, resume_hint=FROM_CHECKPOINT)


if __name__ == "__main__":
    sys.exit(main())
