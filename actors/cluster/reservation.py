"""A placement, taken on the Ray cluster for as long as a run's actors need it, and the options that put each actor into its place."""

import asyncio
import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.cluster.placement import Node, Placement, Resources, format_resources, plan, total_resource
from arm_rl.core.compute_config import PlacementConfig, RolloutConfig

logger = logging.getLogger(__name__)

_FIRST_TOLD_SECONDS, _TELL_EVERY_SECONDS = 5, 30  # that resources are waited for

_names: Counter[str] = Counter()  # given so far: a dead actor's name is free again only some time later


class Reservation:
    """Bundles that are there, and the options of the actors in them."""

    def __init__(self, run: str, placement: Placement, bundles: PlacementGroup) -> None:
        self.placement, self._run, self._bundles = placement, run, bundles

    def learner_options(self, rank: int) -> dict[str, Any]:
        """Options of a learner rank's actor."""
        return self._options("learner", rank, self.placement.learners[rank], self.placement.learner_resources)

    def rollout_options(self, number: int) -> dict[str, Any]:
        """Options of an engine's actor."""
        return self._options("rollout", number, self.placement.rollouts[number], self.placement.rollout_resources)

    def light_options(self, kind: str, number: int) -> dict[str, Any]:
        """Options of an actor that works beside the engines: on a node without GPUs, as long as there is one."""
        options: dict[str, Any] = {
            "name": actor_name(self._run, kind, number),
            "num_cpus": 0,
            "max_restarts": -1,
            "max_concurrency": 100_000,  # or a pulse would wait behind many calls
        }
        nodes = self.placement.cpu_nodes
        if nodes:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(nodes[number % len(nodes)], soft=True)
            options["memory"] = 1  # byte: what needs nothing at all Ray puts anywhere
        return options

    def _options(self, kind: str, number: int, bundle: int, resources: Resources) -> dict[str, Any]:
        strategy = PlacementGroupSchedulingStrategy(self._bundles, placement_group_bundle_index=bundle)
        return {**resources, "name": actor_name(self._run, kind, number), "scheduling_strategy": strategy}


def actor_name(run: str, kind: str, number: int) -> str:
    """RUN/KIND-NUMBER, as Ray's dashboard shows it; successors of an actor that died have a number more."""
    name = f"{run}/{kind}-{number}"
    _names[name] += 1
    return name if _names[name] == 1 else f"{name}.{_names[name]}"


@contextlib.asynccontextmanager
async def reserve(
    run: str, config: PlacementConfig, num_ranks: int, rollout: RolloutConfig | None
) -> AsyncIterator[Reservation]:
    """Reserve the resources of a run, wait for them if need be, and release them at the end.

    Args:
        run: its name, with which the actors' names begin.

    Raises:
        PlacementError: the cluster can never have them.
    """
    nodes = [Node(id=node["NodeID"], resources=node["Resources"]) for node in ray.nodes() if node["Alive"]]
    placement = plan(config, num_ranks, rollout, nodes)
    bundles = placement_group([dict(bundle) for bundle in placement.bundles], strategy="PACK")
    try:
        for seconds in itertools.count(1):
            if await asyncio.to_thread(bundles.wait, 1):
                break
            if seconds % _TELL_EVERY_SECONDS == _FIRST_TOLD_SECONDS:
                _log_waiting(placement)
        where = placement_group_table(bundles)["bundles_to_node_id"]
        watching = asyncio.create_task(_watch_bundles(bundles, placement))
        try:
            yield Reservation(
                run, placement.arrange([where[number] for number in range(len(placement.bundles))]), bundles
            )
        finally:
            watching.cancel()
    finally:
        remove_placement_group(bundles)


async def _watch_bundles(bundles: PlacementGroup, placement: Placement) -> None:
    """Log when a node was lost and its bundles have no other node: their actors wait for one."""
    while True:
        await asyncio.sleep(_TELL_EVERY_SECONDS)
        if (await asyncio.to_thread(placement_group_table, bundles))["state"] != "CREATED":
            _log_waiting(placement)


def _log_waiting(placement: Placement) -> None:
    kinds = {kind for bundle in placement.bundles for kind in bundle}
    free = ray.available_resources()
    logger.warning(
        "waiting for resources: the run needs %s; free on the cluster are %s",
        format_resources({kind: total_resource(placement.bundles, kind) for kind in kinds}),
        format_resources({kind: free.get(kind, 0) for kind in kinds}),
    )
