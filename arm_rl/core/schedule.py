"""The learning rate at each optimizer step."""

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "linear"]


def learning_rate(step: int, *, num_steps: int, peak: float, schedule: Schedule, warmup_ratio: float = 0.0) -> float:
    """The rate for optimizer step `step`, counted from 0.

    It rises linearly over the first ceil(warmup_ratio * num_steps) steps, to the peak at the last of them, and then stays
    (constant), or falls to 0 at step `num_steps` on a half cosine (cosine) or a line (linear). No step before has the rate 0.

    Raises:
        ValueError: a negative step, or no steps at all.
    """
    if step < 0 or num_steps < 1:
        raise ValueError(f"there is no step {step} in a run of {num_steps} steps")
    num_warmup = math.ceil(warmup_ratio * num_steps)
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    if schedule == "constant":
        return peak
    # a run that goes on longer than planned stays at 0
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return peak * (0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress)
