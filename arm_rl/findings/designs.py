"""The designs that are compared, in one table: which reward stage 2 has, and whether stage 1 comes before it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """One way to train; all else is equal."""

    title: str
    reward: str  # `reward.name` of stage 2, at the values of configs/findings.yaml
    stage1: bool = False  # GRPO on the reward of stage 1 first
    ways: bool = False  # judged with the tool forced and forbidden as well


DESIGNS: dict[str, Design] = {
    "accuracy": Design(title="accuracy only", reward="accuracy"),
    "accuracy_staged": Design(title="accuracy only, after stage 1", reward="accuracy", stage1=True),
    "call_bonus": Design(title="fixed bonus a call", reward="call_bonus"),
    "sample_bonus": Design(title="fixed bonus a sample", reward="fixed_bonus"),
    "adaptive": Design(title="adaptive", reward="stage2"),
    "adaptive_staged": Design(title="adaptive, after stage 1 (the paper's)", reward="stage2", stage1=True, ways=True),
    "need": Design(title="by the group's need", reward="need", ways=True),
}
PAPER = "adaptive_staged"  # what the others are compared with
