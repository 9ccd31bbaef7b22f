"""The report's tables of where a step's time went, from the timelines of a run's stages."""

import contextlib
from html import escape
from pathlib import Path

from arm_rl.run import timeline
from arm_rl.run.step_times import StepTimes, TimeRow, step_times


def find_timelines(folder: Path) -> list[Path]:
    """Return the run folders that have a timeline: the folder itself, and those in it."""
    runs = (folder, *sorted(path for path in folder.iterdir() if path.is_dir()))
    return [run for run in runs if (run / timeline.FILE).exists()]


def read_times(runs: list[Path]) -> dict[Path, StepTimes]:
    """Return the step times of the runs that finished a step."""
    times = {}
    for run in runs:
        with contextlib.suppress(ValueError):  # a stage that has just begun
            times[run] = step_times(timeline.read(run))
    return times


def render_times(folder: Path) -> str:
    """Return a table for each stage as HTML."""
    return "".join(_table(run.name, times) for run, times in read_times(find_timelines(folder)).items())


def _table(name: str, times: StepTimes) -> str:
    rows = "".join(_row(row) for row in (*times.phases, *times.waits))
    overlap = f"Engines and learners work at the same time during {times.overlap:.0%} of the shorter of both."
    return (
        f'<details class="times"><summary>{escape(name)}: where the time of a step goes, in the mean of {times.num_steps}</summary>'
        '<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">actor</th><th scope="col" class="first">phase</th>'
        '<th scope="col">seconds a step</th><th scope="col">share</th><th scope="col">times a step</th></tr></thead>'
        f'<tbody>{rows}</tbody></table></div><p class="hint">{overlap}</p></details>'
    )


def _row(row: TimeRow) -> str:
    count = f"{row.count:.4g}" if row.count else ""
    return (
        f'<tr><th scope="row">{escape(row.actor)}</th><td class="first">{escape(row.phase)}</td><td>{row.seconds:.3f}</td>'
        f'<td class="share" style="--share:{min(max(row.share, 0.0), 1.0):.4f}">{row.share:.1%}</td><td>{count}</td></tr>'
    )
