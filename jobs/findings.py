"""The findings job, `make findings`: reward designs side by side on a mixed task, over several seeds, with intervals.

Started again, it goes on where it was, with more seeds or other designs if asked; the summary is of all runs that are finished. It may be
stopped at any time, and a folder is for one process at a time.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.errors import UserError
from arm_rl.experiments.findings.designs import DESIGNS
from jobs.command_line import run_guarded


def write(root: Path) -> Path:
    """Writes `summary.json`, `table.md` and `plot.svg` of the runs that are finished; gives the summary's path."""
    from arm_rl.experiments.findings import results
    from arm_rl.experiments.findings.plot import plot
    from arm_rl.experiments.findings.tables import markdown

    found = results.read(root)
    replace_text(root / "table.md", markdown(found))
    replace_text(root / "plot.svg", plot(found))
    path = root / "summary.json"
    replace_text(path, json.dumps(results.summary(found), indent=2, allow_nan=False))
    return path


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.findings") -> int:
    """Runs what is left and writes the summary."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of all runs; by default runs/findings, or runs/findings-quick")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2, 3, 4],
        help="of cold starts and all that follows; by default 0 to 4",
    )
    parser.add_argument(
        "--designs", nargs="+", default=list(DESIGNS), metavar="NAME", help=f"of {', '.join(DESIGNS)}; by default all"
    )
    parser.add_argument(
        "--validation",
        action="store_true",
        help="judge on validation samples, to seek settings; into runs/findings-validation",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few steps of everything: shows that it runs, learns nothing"
    )
    parser.add_argument("--summary", action="store_true", help="train nothing, only write the summary of what is there")
    arguments = parser.parse_args(argv)
    suffix = "-quick" if arguments.quick else "-validation" if arguments.validation else ""
    root: Path = arguments.out or Path(f"runs/findings{suffix}")
    console = Console(highlight=False, soft_wrap=True)

    def start() -> str:
        unknown = [name for name in arguments.designs if name not in DESIGNS]
        if unknown:
            raise UserError(f"--designs: there is no {unknown[0]!r}; there are {', '.join(DESIGNS)}")
        if not arguments.summary:
            from actors.cluster.connection import cluster
            from arm_rl.experiments.findings.runs import QUICK, Findings, FindingsSize
            from arm_rl.experiments.findings.setting import JudgedSplit

            split: JudgedSplit = "validation" if arguments.validation else "test"
            with cluster():
                Findings(root, QUICK if arguments.quick else FindingsSize(), split=split, log=console.print).run(
                    arguments.seeds, arguments.designs
                )
        elif not root.is_dir():
            raise UserError(f"--summary: there is no folder {root}")
        path = write(root)
        console.print((root / "table.md").read_text(), markup=False)
        return f"done: {path}, with the tables in table.md and the plot in plot.svg beside it"

    return run_guarded(start)


if __name__ == "__main__":
    sys.exit(main())
