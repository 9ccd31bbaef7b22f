"""The main jobs, `make demo` and `make demo-tools`: train a small judge through all its stages on this machine and show what it learned.

    data -> base model -> demonstrations, SFT -> difficulty -> GRPO stage 1 -> GRPO stage 2 -> export, server, one judgment -> report

Started again, it goes on where it was: a phase whose product is there is not done again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from arm_rl.core.errors import UserError
from arm_rl.demo import robustness
from arm_rl.demo.robustness import ARITHMETICS
from jobs.command_line import FROM_CHECKPOINT, run_guarded

if TYPE_CHECKING:
    from arm_rl.demo.demos import DemoSpec


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
    parser.add_argument(
        "--arithmetic",
        choices=list(ARITHMETICS),
        default="usual",
        help="round as another machine would; the message of a run without it names the environment variable that is needed",
    )
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="run the demo over seeds and arithmetics and print the table; takes hours, and resumes where it stopped",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds for --robustness, from --seed on")
    arguments = parser.parse_args(argv)

    def start() -> str:
        from arm_rl.demo.demos import DIGITS, THREE_TRACKS

        spec = THREE_TRACKS if arguments.tools else DIGITS
        return _measure_robustness(spec, arguments) if arguments.robustness else _run_demo(spec, arguments)

    return run_guarded(start, resume_hint=FROM_CHECKPOINT)


def _run_demo(spec: "DemoSpec", arguments: argparse.Namespace) -> str:
    from actors.cluster.connection import cluster
    from arm_rl.demo.phases import Demo

    folder = arguments.out or Path("runs", spec.name + ("-short" if arguments.short else ""))
    arithmetic = ARITHMETICS[arguments.arithmetic]
    arithmetic.require_environment(f"--arithmetic {arguments.arithmetic}")
    demo = Demo(spec, folder, arguments.seed, spec.short if arguments.short else spec.full, arithmetic)
    demo.open_folder()
    with cluster():
        demo.run()
    return ""


def _measure_robustness(spec: "DemoSpec", arguments: argparse.Namespace) -> str:
    """Run the demo over seeds and arithmetics; return the last line.

    Raises:
        UserError: If a run failed.
    """
    root = arguments.out or Path("runs", f"{spec.name}-robustness")
    options = [option for option, given in (("--tools", arguments.tools), ("--short", arguments.short)) if given]
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    console, rows, failed = Console(highlight=False, soft_wrap=True), {}, []
    for name, summary in robustness.run_all(root, seeds, list(ARITHMETICS), options):
        if summary is None:
            failed.append(name)
            console.print(f"{name}: failed; see {root / name}.log")
            continue
        rows[name] = robustness.row(summary)
        console.print(f"{name}: {', '.join(f'{column} {value:.3f}' for column, value in rows[name].items())}")
    if rows:
        console.print(robustness.table(rows))
        robustness.write(root, rows)
    if failed:
        raise UserError(f"{len(failed)} runs failed ({', '.join(failed)}); the same command runs them again")
    return f"done: {root / 'robustness.json'}"


if __name__ == "__main__":
    sys.exit(main())
