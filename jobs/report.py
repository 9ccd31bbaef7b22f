"""Write the report of a run and print its ledger.

With `--serve`, serve all its trajectories to a browser; with `--time`, only print where the time of its steps went.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from arm_rl.core.errors import UserError
from arm_rl.report import MAX_MB
from jobs.command_line import run_guarded

if TYPE_CHECKING:
    from arm_rl.report import server
    from arm_rl.run.step_times import StepTimes, TimeRow


class NothingToReport(UserError):
    """The folder holds nothing of a run."""


def show_times(folder: Path, console: Console) -> str:
    """Prints the table of a run, or of each stage in its folder; gives the last line.

    Raises:
        NothingToReport: there is no timeline, or no finished step in one.
    """
    from arm_rl.report.times import find_timelines, read_times
    from arm_rl.run import timeline

    runs = find_timelines(folder)
    if not runs:
        raise NothingToReport(
            f"{folder}: no {timeline.FILE}: runs write it as they go, but with metrics.timeline=false"
        )
    tables = [_times_table(str(run), times) for run, times in read_times(runs).items()]
    if not tables:
        raise NothingToReport(f"{runs[-1] / timeline.FILE}: no step was finished")
    console.print(*tables, sep="\n")
    return f"done: Perfetto (https://ui.perfetto.dev) or chrome://tracing shows {runs[-1] / timeline.FILE} itself"


def show_ledgers(folder: Path, console: Console) -> None:
    """Prints what became of every trajectory, as of the newest checkpoint of the run, or of each stage in its folder."""
    from arm_rl.run import checkpoint
    from arm_rl.training.ledger import Ledger

    for run in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        written = checkpoint.steps(run / "checkpoints")
        collector = checkpoint.read_state(run / "checkpoints", written[-1]).get("collector") if written else None
        if collector is not None:  # a cold start has demonstrations and no ledger
            console.print(
                _ledger_table(f"{run}: trajectories at step {written[-1]}", Ledger.of(collector["ledger"]).table())
            )


def _ledger_table(title: str, rows: Mapping[int, Mapping[str, int]]) -> Table:
    from arm_rl.training.ledger import MEANINGS

    table = Table("", *(f"epoch {epoch}" for epoch in rows), "all", "", title=title)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for name in ("drawn", *MEANINGS):
        numbers = [row[name] for row in rows.values()]
        table.add_row(name, *map(str, numbers), str(sum(numbers)), MEANINGS.get(name, ""))
    return table


def _times_table(title: str, times: "StepTimes") -> Table:
    table = Table(
        "actor", "phase", "seconds a step", "share", "times a step", title=f"{title}: {times.num_steps} steps"
    )
    for column in table.columns[2:]:
        column.justify = "right"
    for rows in (times.phases, times.waits):
        before = ""
        for row in rows:
            table.add_row("" if row.actor == before else row.actor, *_format_times(row))
            before = row.actor
        table.add_section()
    table.add_row("overlap", "of the shorter of engines' and learners' work", "", f"{times.overlap:.1%}", "")
    return table


def _format_times(row: "TimeRow") -> tuple[str, ...]:
    return row.phase, f"{row.seconds:.3f}", f"{row.share:.1%}", f"{row.count:.4g}" if row.count else ""


def serve_report(report: "server.Report", port: int, run: Path) -> str:
    """Answer browsers on this machine until Ctrl-C.

    Raises:
        NothingToReport: the port is taken.
    """
    from arm_rl.report import server

    try:
        serving = server.make_server(report, port)
    except OSError as error:
        raise NothingToReport(f"port {port} of {server.HOST}: {error.strerror}; --port chooses another") from error
    with serving:
        sys.stderr.write(f"{run}: http://{server.HOST}:{serving.server_port} (Ctrl-C ends it)\n")
        serving.serve_forever()
    return "done"


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.report") -> int:
    """Writes the report, or prints the table."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, or one with a folder for each stage")
    parser.add_argument("--time", action="store_true", help="print where the time of a step went, by actor and phase")
    parser.add_argument(
        "--serve", action="store_true", help="show the page, with all trajectories, to browsers on this machine"
    )
    parser.add_argument("--port", type=int, default=8090, help="of --serve (%(default)s)")
    parser.add_argument("--max-mb", type=float, default=MAX_MB, help="how large report.html may become (%(default)g)")
    parser.add_argument(
        "--tokenizer", type=Path, help="folder of the model whose tokens they are, where the run does not lead to it"
    )
    arguments = parser.parse_args(argv)

    def start() -> str:
        if not arguments.run.is_dir():
            raise NothingToReport(f"{arguments.run}: there is no such folder")
        if arguments.time:
            return show_times(arguments.run, Console(width=120, soft_wrap=True))
        from arm_rl.report import server, tokens
        from arm_rl.report.static_report import write_report

        tokenizer = tokens.find_tokenizer(arguments.run, arguments.tokenizer)
        if arguments.serve:
            return serve_report(server.Report(arguments.run, tokenizer), arguments.port, arguments.run)
        show_ledgers(arguments.run, Console(width=120, soft_wrap=True))
        return f"done: the report is {write_report(arguments.run, max_mb=arguments.max_mb, tokenizer=tokenizer)}"

    return run_guarded(start)


if __name__ == "__main__":
    sys.exit(main())
