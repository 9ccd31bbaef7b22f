"""The designs that are compared, in one table: which reward stage 2 has, and which stage comes before it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """One way to train; all else is equal."""

    title: str
    reward: str  # `reward.name` of stage 2, at the values of configs/findings.yaml
    staged: bool = False  # after a stage 1, the same for all
    ways: bool = False  # judged with the tool forced and forbidden as well


DESIGNS: dict[str, Design] = {
    "accuracy": Design(title="accuracy only", reward="accuracy"),
    "accuracy_staged": Design(title="accuracy only, after stage 1", reward="accuracy", staged=True),
    "call_bonus": Design(title="fixed bonus a call", reward="call_bonus"),
    "sample_bonus": Design(title="fixed bonus a sample", reward="fixed_bonus"),
    "adaptive": Design(title="adaptive", reward="stage2"),
    "adaptive_staged": Design(title="adaptive, after stage 1 (the paper's)", reward="stage2", staged=True, ways=True),
}
PAPER = "adaptive_staged"  # what the others are compared with
