"""A run's main metrics as gauges, which Ray's agents export to Prometheus beside Ray's own."""

from collections.abc import Mapping

from ray.util.metrics import Gauge

# Our name -> the gauge's; each has the tag `run`.
EXPORTED = {
    "reward/mean": "arm_rl_reward_mean",
    "rollout/accuracy": "arm_rl_rollout_accuracy",
    "tools/calls": "arm_rl_tool_calls",
    "evaluation/accuracy": "arm_rl_evaluation_accuracy",
    "learner/loss": "arm_rl_learner_loss",
    "learner/grad_norm": "arm_rl_learner_grad_norm",
    "time/step": "arm_rl_step_seconds",
}
_STEP = "arm_rl_step"


class Gauges:
    """The gauges of one run, made as their metrics come."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a step's metrics from now on, those that are exported."""
        self._show(_STEP, step)
        for name, exported in EXPORTED.items():
            if name in metrics:
                self._show(exported, metrics[name])

    def _show(self, name: str, value: float) -> None:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, tag_keys=("run",))
        self._gauges[name].set(value, tags={"run": self._run})
