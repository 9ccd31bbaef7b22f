"""The verdicts of an evaluation on disk, a line each, written as they come: what is there is not asked again."""

from pathlib import Path
from typing import Any

from arm_rl.benchmarks.base import ItemVerdict
from arm_rl.core.errors import UserError
from arm_rl.core.json_lines import read_json_lines

FILE = "results.jsonl"
Key = tuple[str, str, str]  # benchmark, way of asking, item


class ResultsError(UserError):
    """Results that cannot be used; the message names the file and the line."""


def read_results(folder: Path) -> dict[Key, ItemVerdict]:
    """Return the verdicts in a run's folder. A last line that was cut off is skipped.

    Raises:
        LinesError: If a line is no JSON object.
        ResultsError: If a line is not a verdict.
    """
    found: dict[Key, ItemVerdict] = {}
    for number, values in enumerate(read_json_lines(folder / FILE)[0], 1):
        try:
            judged = ItemVerdict.from_dict(values["judged"])
            found[values["benchmark"], values["way"], judged.id] = judged
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"{folder / FILE}: line {number}: not a verdict ({error!r}); without it, it is asked again"
            ) from error
    return found


def result_line(benchmark: str, way: str, judged: ItemVerdict) -> dict[str, Any]:
    """Return the line of a verdict."""
    return {"benchmark": benchmark, "way": way, "judged": judged.as_dict()}
