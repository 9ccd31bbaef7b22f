"""The judge as an object and as a service, and the clients that other trainers use.

`Judge` is imported on first use, so that the light clients of this package import without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arm_rl.judge.judge import Judge

__all__ = ["Judge"]


def __getattr__(name: str) -> Any:
    """Import `Judge` when it is asked for."""
    if name == "Judge":
        from arm_rl.judge.judge import Judge

        return Judge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
