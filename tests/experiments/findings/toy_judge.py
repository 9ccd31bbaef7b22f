"""A judge of a handful of numbers, trained by the project's own rewards and advantages: what a reward design leads to, within a second.

It has a wish to call (in common, and for each kind of sample), a chance that its box is right, a chance to read a plain digit at once, and
a chance to call again. Everything else is as on the mixed task: a look at the right place tells the answer, anything else is a guess.
"""

from dataclasses import dataclass, field

import numpy as np

from arm_rl.core.advantage import group_advantages
from arm_rl.core.config import RewardConfig
from rewards import REWARDS
from rewards.outcome import Outcome

ENGRAVED, PLAIN = 0, 1
MAX_CALLS, SAMPLES, GROUP = 3, 12, 8
RATE = 2.0  # of learning
VALUES = RewardConfig()
SHARED = 0.7  # of a change of the wish to call goes to both kinds


def _logit(share: float) -> float:
    return float(np.log(share / (1 - share)))


def _chance(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


@dataclass
class ToyJudge:
    """As after the cold start: it calls rarely, and mostly looks at the wrong place."""

    rng: np.random.Generator
    common: float = _logit(0.14)  # wish to call ...
    own: np.ndarray = field(default_factory=lambda: np.zeros(2))  # ... and what each kind adds to it
    box: float = _logit(0.33)
    read: float = _logit(0.95)
    again: float = _logit(0.1)

    def train(self, reward: str, steps: int) -> "ToyJudge":
        """Takes steps of GRPO."""
        for _ in range(steps):
            gradient = np.zeros(6)
            for _ in range(SAMPLES):
                kind = int(self.rng.integers(2))
                outcomes, gradients = zip(*(self._session(kind) for _ in range(GROUP)), strict=True)
                rewards = [sum(REWARDS[reward](one, VALUES).values()) for one in outcomes]
                advantages = [advantage or 0.0 for advantage in group_advantages(rewards)]
                gradient += np.array(advantages) @ np.array(gradients)
            change = RATE * gradient / (SAMPLES * GROUP)
            self.common += change[0]
            self.own += change[1:3]
            self.box, self.read, self.again = self.box + change[3], self.read + change[4], self.again + change[5]
        return self

    def judged(self, kind: int, number: int = 400) -> tuple[float, float]:
        """Accuracy and calls a sample."""
        outcomes = [self._session(kind)[0] for _ in range(number)]
        return float(np.mean([one.correct for one in outcomes])), float(np.mean([one.num_calls for one in outcomes]))

    def _session(self, kind: int) -> tuple[Outcome, np.ndarray]:
        """What happened, and the gradient of its log-probability."""
        gradient, rng = np.zeros(6), self.rng
        wish = _chance(self.common + self.own[kind])
        calls, hit = int(rng.random() < wish), False
        gradient[0], gradient[1 + kind] = SHARED * (calls - wish), 2 * (1 - SHARED) * (calls - wish)
        if calls:
            box, again = _chance(self.box), _chance(self.again)
            while True:
                hit = rng.random() < box
                gradient[3] += hit - box
                if calls == MAX_CALLS:
                    break
                more = rng.random() < again
                gradient[5] += more - again
                if not more:
                    break
                calls += 1
        elif kind == PLAIN:
            read = _chance(self.read)
            hit = rng.random() < read
            gradient[4] = 0.3 * (hit - read)
        correct = bool(rng.random() < (0.97 if hit else 0.5))
        return Outcome(
            format_ok=True, correct=correct, num_calls=calls, num_successful_calls=calls, num_fitting_calls=calls
        ), gradient
