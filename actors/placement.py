"""Where the actors sit: one pure function from configuration to Ray placement groups, and the reservation of what it says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from arm_rl.core.config import PlacementConfig, RolloutConfig
from arm_rl.core.errors import UserError

# Without GPUs, actors take turns on the cores: a small share each lets a whole run fit on a laptop. Threads are set by the
# configuration, not by this.
CPU_SHARE = 0.25
RESERVE_SECONDS = 60.0  # time that the cluster is given to find the resources


class PlacementError(UserError):
    """The cluster does not have what the configuration needs; the message says what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Bundles of resources, and which actor sits in which."""

    bundles: tuple[Mapping[str, float], ...]
    learners: tuple[int, ...]  # bundle of each rank
    rollouts: tuple[int, ...]  # bundle of each engine
    learner_resources: Mapping[str, float]  # of one rank: num_cpus, num_gpus
    rollout_resources: Mapping[str, float]  # of one engine


def plan(config: PlacementConfig, num_ranks: int, rollout: RolloutConfig | None) -> Placement:
    """Lays out learner ranks and engines.

    Apart, each rank and each engine has a bundle of its own. Shared, rank i and engine i sit in one bundle and take turns on its GPU.
    """
    engines = rollout.num_actors if rollout is not None else 0
    size = rollout.tensor_parallel_size if rollout is not None else 1
    if not config.use_gpu:
        share = {"CPU": CPU_SHARE}
        resources: dict[str, float] = {"num_cpus": CPU_SHARE, "num_gpus": 0}
        ranks = range(num_ranks)
        return Placement(
            bundles=(share,) * (num_ranks + engines),
            learners=tuple(ranks),
            rollouts=tuple(range(num_ranks, num_ranks + engines)),
            learner_resources=resources,
            rollout_resources=resources,
        )
    if config.kind == "shared" and engines:
        return Placement(
            bundles=({"CPU": 2, "GPU": 1},) * num_ranks,
            learners=tuple(range(num_ranks)),
            rollouts=tuple(range(num_ranks)),
            learner_resources={"num_cpus": 1, "num_gpus": 0.5},
            rollout_resources={"num_cpus": 1, "num_gpus": 0.5},
        )
    return Placement(
        bundles=({"CPU": 1, "GPU": 1},) * num_ranks + ({"CPU": 1, "GPU": size},) * engines,
        learners=tuple(range(num_ranks)),
        rollouts=tuple(range(num_ranks, num_ranks + engines)),
        learner_resources={"num_cpus": 1, "num_gpus": 1},
        rollout_resources={"num_cpus": 1, "num_gpus": size},
    )


class Reservation:
    """A placement, reserved on the cluster until `release`."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.group: PlacementGroup = placement_group([dict(bundle) for bundle in placement.bundles], strategy="PACK")
        if not self.group.wait(RESERVE_SECONDS):
            needed = {kind: sum(bundle.get(kind, 0) for bundle in placement.bundles) for kind in ("CPU", "GPU")}
            available = {kind: ray.available_resources().get(kind, 0) for kind in needed}
            remove_placement_group(self.group)
            raise PlacementError(f"the run needs {needed} in bundles {placement.bundles}; free on the cluster: {available}")

    def learner_options(self, rank: int) -> dict[str, Any]:
        """Options of a learner rank's actor."""
        return self._options(self.placement.learners[rank], self.placement.learner_resources)

    def rollout_options(self, number: int) -> dict[str, Any]:
        """Options of an engine's actor."""
        return self._options(self.placement.rollouts[number], self.placement.rollout_resources)

    def release(self) -> None:
        """Gives the resources back."""
        remove_placement_group(self.group)

    def _options(self, bundle: int, resources: Mapping[str, float]) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        return {**resources, "scheduling_strategy": strategy}
