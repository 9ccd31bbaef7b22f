"""What was written: each file's rows, labels, and what place, length and form give away, for JSON and as lines of text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arm_rl.prepare.pairs.audit import CUES, Audit


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsFile:
    """A file that was written, and what was found about it."""

    path: Path
    audit: Audit
    num_dropped: int  # questions left out because their answers could be told apart, or to balance labels


def describe_files(made: Sequence[PairsFile]) -> dict[str, Any]:
    """Return the facts of each file by its name, for JSON."""
    return {
        one.path.name: {
            "rows": one.audit.num_rows,
            "labels": one.audit.labels,
            "questions_dropped_for_balance": one.num_dropped,
            "cues": ["place", *CUES],
            "accuracy_by_cues": one.audit.accuracy,
            "chance": one.audit.chance,
            "may_be_chance_up_to": one.audit.highest,
            "at_chance": None if one.audit.accuracy is None else one.audit.at_chance,
            "right_answer_is_longest": one.audit.longest,
        }
        for one in made
    }


def file_lines(files: Mapping[str, Any]) -> list[str]:
    """Return what `describe_files` found, a line or two for each file."""
    lines = []
    for name, file in files.items():
        labels = ", ".join(f"{label}: {number}" for label, number in file["labels"].items())
        lines.append(f"{name}: {file['rows']} rows (labels {labels}); {_describe_cues(file)}")
        if file["questions_dropped_for_balance"]:
            lines.append(
                f"  {file['questions_dropped_for_balance']} questions left out whose answers place, length and form told apart"
            )
    return lines


def _describe_cues(file: Mapping[str, Any]) -> str:
    if file["at_chance"] is None:
        return "too few to tell whether place, length and form give anything away"
    verdict = "chance" if file["at_chance"] else "MORE THAN CHANCE: do not train on it as it is"
    return f"by place, length and form alone {file['accuracy_by_cues']:.1%} can be judged right, {verdict}"
