"""Errors of collectives: torch's and NCCL's, which report the loss of a peer as a failure of their own."""

import torch.distributed as dist

from arm_rl.core.errors import EngineDied


def is_of_collective(cause: BaseException) -> bool:
    """Return whether a collective failed for what may be the loss of a peer; NCCL's errors of usage come again."""
    text = str(cause).lower()
    if isinstance(cause, EngineDied):  # its message may cite the collective in which the engine was missed
        return False
    return isinstance(cause, dist.DistError) or "gloo" in text or ("nccl error" in text and "invalid" not in text)
