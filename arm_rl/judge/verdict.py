"""What a judge says: a verdict with its evidence, how sure it is, and how much the order of the answers mattered."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from arm_rl.core.parsing import parse_judgment
from arm_rl.core.session import Session
from arm_rl.core.template import Template
from arm_rl.core.types import Trajectory, Turn

_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_DECISION = re.compile(r"<answer>\s*Overall Judgment:\s*(?:Answer )?")  # what follows it decides


@dataclass(frozen=True, kw_only=True, slots=True)
class Opinion:
    """One session's judgment."""

    # "1".."N" in the order in which the answers were shown, "true" or "false"; None: no judgment that can be read
    label: str | None
    # of the tokens that decide, under the distribution they were sampled from; None where it is not known
    probability: float | None
    session: Session

    @classmethod
    def of(cls, session: Session, template: Template) -> "Opinion":
        """Reads a finished session."""
        turns = session.trajectory.turns
        if not turns:
            return cls(label=None, probability=None, session=session)
        label = parse_judgment(turns[-1].text)
        return cls(
            label=label,
            probability=None if label is None else _decision_probability(turns[-1], template),
            session=session,
        )

    @property
    def reasoning(self) -> str:
        """The thoughts, turn by turn."""
        return "\n".join(
            thought.strip() for turn in self.session.trajectory.turns for thought in _THOUGHT.findall(turn.text)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the judge decided about one question. Answers count from 1, in the caller's order."""

    # the better answer, or whether the one answer is right; None: no judgment, or a tie of opposed ones
    choice: int | bool | None
    # 0 to 1: the share of the sessions' weight that is behind the choice; None where there is no choice
    confidence: float | None
    opinions: tuple[Opinion, ...]  # one a session; each names the answers in the order in which it saw them
    # of each session: the answers' numbers as it saw them; empty for a single answer
    orders: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, opinions: Sequence[Opinion], orders: Sequence[tuple[int, ...]]) -> "Verdict":
        """Weighs the opinions. One that tells its probability p weighs p, and what is left is shared by the other answers."""
        weights: dict[int | bool, float] = {}
        for opinion, order in zip(opinions, orders, strict=True):
            chosen = _original_choice(opinion, order)
            if chosen is None:
                continue
            others = [answer for answer in (order or (True, False)) if answer != chosen]
            probability = 1.0 if opinion.probability is None else opinion.probability
            for answer in (chosen, *others):
                weight = probability if answer == chosen else (1.0 - probability) / len(others)
                weights[answer] = weights.get(answer, 0.0) + weight
        best = sorted(weights.items(), key=lambda item: -item[1])[:2]
        tied = len(best) == 2 and math.isclose(best[0][1], best[1][1])
        if not best or tied:
            return cls(choice=None, confidence=None, opinions=tuple(opinions), orders=tuple(orders))
        share = best[0][1] / sum(weights.values())
        return cls(choice=best[0][0], confidence=share, opinions=tuple(opinions), orders=tuple(orders))

    @property
    def choices(self) -> tuple[int | bool | None, ...]:
        """What each session chose, in the caller's order of the answers."""
        return tuple(
            _original_choice(opinion, order) for opinion, order in zip(self.opinions, self.orders, strict=True)
        )

    @property
    def consistent(self) -> bool:
        """Whether all sessions chose the same, whatever the order in which they saw the answers."""
        return None not in self.choices and len(set(self.choices)) == 1

    @property
    def reasoning(self) -> str:
        """The thoughts of the first session that chose what was decided, else of the first one."""
        agreeing = (
            opinion for opinion, choice in zip(self.opinions, self.choices, strict=True) if choice == self.choice
        )
        return next(agreeing, self.opinions[0]).reasoning

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """Of all sessions."""
        return tuple(opinion.session.trajectory for opinion in self.opinions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The best answer, found by comparisons of two: each one that is beaten is out."""

    best: int  # counts from 1
    comparisons: tuple[tuple[tuple[int, int], Verdict], ...]  # who met whom, and the verdict: 1 is the first of the two

    @property
    def num_wins(self) -> Counter[int]:
        """Number of comparisons won, by answer."""
        return Counter(pair[verdict.choice - 1] for pair, verdict in self.comparisons if verdict.choice is not None)


def position_bias(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """How much the place of an answer decides, over comparisons.

    Returns:
        `first_share`: sessions that chose what they saw first, of those that chose at all.
        `inconsistent`: verdicts of several sessions that did not all choose the same.
    """
    opinions = [
        opinion
        for verdict in verdicts
        for opinion, order in zip(verdict.opinions, verdict.orders, strict=True)
        if order
    ]
    chose = [opinion.label for opinion in opinions if opinion.label is not None]
    several = [verdict for verdict in verdicts if len(verdict.opinions) > 1]
    return {
        "first_share": sum(label == "1" for label in chose) / len(chose) if chose else math.nan,
        "inconsistent": sum(not verdict.consistent for verdict in several) / len(several) if several else math.nan,
    }


def _original_choice(opinion: Opinion, order: Sequence[int]) -> int | bool | None:
    if opinion.label in (None, "true", "false"):
        return {None: None, "true": True, "false": False}[opinion.label] if not order else None
    place = int(opinion.label or 0)
    return order[place - 1] if place <= len(order) else None


def _decision_probability(turn: Turn, template: Template) -> float | None:
    """Return the probability of the first token that tells this judgment from the others."""
    start = _DECISION.search(turn.text)
    if start is None or len(turn.logprobs) != len(turn.token_ids):
        return None
    for number in range(len(turn.token_ids)):
        if len(template.decode(turn.token_ids[: number + 1])) > start.end():
            return math.exp(turn.logprobs[number])
    return None
