"""The progress bar of the commands that prepare data."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(description: str, total: int | None, unit: str) -> Iterator[Callable[[], None]]:
    """Show a progress bar if stderr is a terminal.

    Args:
        description: Text before the bar.
        total: Number of steps; None if it is unknown.
        unit: What is counted, such as "rows".

    Yields:
        A function that advances the bar by one step.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        *columns, *times, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)
