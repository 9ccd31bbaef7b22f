"""What a finished demo shows, in words and as marks that its numbers should keep."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arm_rl.core import trajectory_file
from arm_rl.demo.dataset import parse_sample_id

MIN_GAIN = 0.02  # smaller differences of an accuracy are reported as none


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """Bounds of one number of the held-out evaluation."""

    title: str
    stage: str  # key of the summary
    metric: str
    at_least: float = 0.0
    at_most: float = 1.0

    def value(self, summary: Mapping[str, Mapping[str, float]]) -> float | None:
        """Return the number in a summary, or None if it was not measured."""
        return summary.get(self.stage, {}).get(self.metric)

    def is_met(self, summary: Mapping[str, Mapping[str, float]]) -> bool:
        """Return whether the number was measured and is within the bounds."""
        value = self.value(summary)
        return value is not None and self.at_least <= value <= self.at_most


def mark_entries(marks: Sequence[Mark], summary: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Return each mark with its number and whether it was met, for `summary.json`."""
    return [
        {
            "title": mark.title,
            "at_least": mark.at_least,
            "at_most": mark.at_most,
            "value": mark.value(summary),
            "met": mark.is_met(summary),
        }
        for mark in marks
    ]


def describe_outcome(summary: Mapping[str, Mapping[str, float]], tracks: Sequence[str]) -> Iterator[str]:
    """Yield sentences on what the demo shows.

    Args:
        summary: Metrics by stage: `base`, `sft`, `stage1` and `stage2`.
        tracks: Names of the tracks.
    """
    sft, trained = summary["sft"], summary["stage2"]
    with_tools, without = trained["accuracy"], trained["accuracy_without_tools"]
    tools = "The tool alone" if len(tracks) == 1 else "The tools alone"
    change = f"from {without:.2f} to {with_tools:.2f}"
    samples = f"the same judge, without and with, on {trained['num_samples']:.0f} held-out samples"
    if with_tools - without >= MIN_GAIN:
        yield f"{tools} lift{'s' if len(tracks) == 1 else ''} accuracy {change}: {samples}."
    elif without - with_tools >= MIN_GAIN:
        yield f"{tools} lower{'s' if len(tracks) == 1 else ''} accuracy {change}: {samples}."
    else:
        yield f"Tools do not change accuracy ({without:.2f} without, {with_tools:.2f} with): {samples}."
    yield (
        f"From SFT to stage 2, accuracy {_change(sft['accuracy'], with_tools)}, "
        f"the share of samples with a tool call {_change(sft['tool_rate'], trained['tool_rate'])}, "
        f"and the share of boxes on the right place {_change(sft['box_hit'], trained['box_hit'])}."
    )
    if len(tracks) > 1:
        keys = {track: f"accuracy/{track}" for track in tracks}
        changes = (f"{track} {_change(sft.get(key, 0.0), trained.get(key, 0.0))}" for track, key in keys.items())
        yield f"Accuracy by track: {', '.join(changes)}."


def describe_marks(marks: Sequence[Mark], summary: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Yield a warning for each mark that was missed, or one line if all were met."""
    missed = [mark for mark in marks if not mark.is_met(summary)]
    for mark in missed:
        value = mark.value(summary)
        measured = "was not measured" if value is None else f"is {value:.3f}"
        yield f"WARNING: mark missed: {mark.title} {measured}; {_describe_bounds(mark)} is expected"
    if marks and not missed:
        yield f"All {len(marks)} marks are met."


def describe_skills(skills: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a warning for each skill of the base model that did not reach its mark.

    Args:
        skills: Entries of the skills, by name (`arm_rl.demo.skills`).
    """
    for name, entry in skills.items():
        if not entry["reached"]:
            yield (
                f"WARNING: the base model's training ended at its limit: {name} is {entry['value']:.3f}; at least "
                f"{entry['mark']:.2f} is expected"
            )


def accuracy_by_pair(file: Path) -> dict[str, float]:
    """Return the accuracy of an evaluation for each pair of claims in their order, by "CLAIM 1 or CLAIM 2".

    Args:
        file: Trajectories of the evaluation, of the demos' samples.
    """
    rights: defaultdict[str, list[bool]] = defaultdict(list)
    for scored in trajectory_file.read(file).scored:
        first, second = parse_sample_id(scored.trajectory.sample_id)[0].claims
        rights[f"{first} or {second}"].append(scored.correct)
    return {pair: sum(rights[pair]) / len(rights[pair]) for pair in sorted(rights)}


def _change(before: float, after: float) -> str:
    if abs(after - before) < MIN_GAIN:
        return f"stays at {after:.2f}"
    return f"{'rises' if after > before else 'falls'} from {before:.2f} to {after:.2f}"


def _describe_bounds(mark: Mark) -> str:
    if mark.at_least > 0 and mark.at_most < 1:
        return f"{mark.at_least:.2f} to {mark.at_most:.2f}"
    return f"at least {mark.at_least:.2f}" if mark.at_least > 0 else f"at most {mark.at_most:.2f}"
