"""Where the actors sit: one pure function from configuration and nodes to bundles of a Ray placement group. `reservation` takes them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from arm_rl.core.compute_config import PlacementConfig, RolloutConfig
from arm_rl.core.errors import UserError

Resources = Mapping[str, float]  # by Ray's names: CPU, GPU, memory (bytes)

# Without GPUs, actors take turns on the cores: a small share each lets a whole run fit on a laptop. Threads are set by the
# configuration, not by this.
CPU_SHARE = 0.25
_UNIT = 10_000  # Ray counts resources in ten-thousandths


class PlacementError(UserError):
    """The cluster can never have what the configuration needs; the message says what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A machine of the cluster."""

    id: str
    resources: Resources  # all that it has, whoever uses it now


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Bundles of resources, each on one node, and which actor sits in which."""

    bundles: tuple[Resources, ...]
    learners: tuple[int, ...]  # bundle of each rank
    rollouts: tuple[int, ...]  # bundle of each engine
    learner_resources: Resources  # of one rank: num_cpus, num_gpus
    rollout_resources: Resources  # of one engine
    # ids of nodes for tool executors and scorers, which need no bundle; none: wherever Ray puts them
    cpu_nodes: tuple[str, ...] = ()

    def arrange(self, node_ids: Sequence[str]) -> "Placement":
        """Return the placement with the ranks of a node next to each other, on as few nodes as possible.

        Args:
            node_ids: where Ray has put each bundle.
        """
        shape = self.bundles[self.learners[0]] if self.learners else None
        alike = [number for number, bundle in enumerate(self.bundles) if bundle == shape]
        number_on = Counter(node_ids[bundle] for bundle in alike)
        alike.sort(key=lambda bundle: (-number_on[node_ids[bundle]], node_ids[bundle]))
        learners = tuple(alike[: len(self.learners)])
        if self.learners == self.rollouts:
            return replace(self, learners=learners, rollouts=learners)
        rest = [number for number in range(len(self.bundles)) if number not in learners]
        return replace(self, learners=learners, rollouts=tuple(rest))


def plan(config: PlacementConfig, num_ranks: int, rollout: RolloutConfig | None, nodes: Sequence[Node]) -> Placement:
    """Lays out learner ranks and engines.

    Apart, each rank and each engine has a bundle of its own. Shared, rank i and engine i sit in one bundle and take turns on its GPU.
    An engine's GPUs are one bundle and so on one node. Tool executors and scorers go to nodes without a GPU, where there are any.

    Args:
        nodes: the whole cluster, taken as empty: a busy one is waited for.

    Raises:
        PlacementError: it can never fit, and the cluster does not grow (`config.may_grow`).
    """
    laid_out = _lay_out(config, num_ranks, rollout)
    if not config.may_grow:
        _require_room(laid_out, nodes)
    without_gpu = [node.id for node in nodes if node.resources.get("CPU", 0) >= 1 and not node.resources.get("GPU", 0)]
    return replace(laid_out, cpu_nodes=tuple(sorted(without_gpu)))


def _lay_out(config: PlacementConfig, num_ranks: int, rollout: RolloutConfig | None) -> Placement:
    engines = rollout.num_actors if rollout is not None else 0
    size = rollout.tensor_parallel_size if rollout is not None else 1
    if config.use_gpu and config.kind == "shared" and engines:
        half = {"num_cpus": 1, "num_gpus": 0.5}
        pairs = tuple(range(num_ranks))
        bundles = ({"CPU": 2, "GPU": 1},) * num_ranks
        return Placement(
            bundles=bundles, learners=pairs, rollouts=pairs, learner_resources=half, rollout_resources=half
        )
    rank, engine = (
        ({"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": size}) if config.use_gpu else ({"CPU": CPU_SHARE}, {"CPU": CPU_SHARE})
    )
    return Placement(
        bundles=(rank,) * num_ranks + (engine,) * engines,
        learners=tuple(range(num_ranks)),
        rollouts=tuple(range(num_ranks, num_ranks + engines)),
        learner_resources={"num_cpus": rank["CPU"], "num_gpus": rank.get("GPU", 0)},
        rollout_resources={"num_cpus": engine["CPU"], "num_gpus": engine.get("GPU", 0)},
    )


def _require_room(placement: Placement, nodes: Sequence[Node]) -> None:
    """Bundles come in two shapes at most, so that whether they fit is found exactly: how many of the first beside some of the second."""
    shapes = Counter(tuple(sorted(bundle.items())) for bundle in placement.bundles)
    wanted = [(dict(shape), number) for shape, number in shapes.items()]
    for shape, number in wanted:
        most = sum(_max_bundles(node.resources, shape) for node in nodes)
        if most < number:
            raise PlacementError(
                _refusal_message(placement, nodes, f"there is room for {most} of {number} x {format_resources(shape)}")
            )
    if len(wanted) < 2:
        return
    (first, num_first), (second, num_second) = wanted
    # of the first shape, beside so many of the second: -inf where those alone do not fit
    most_beside = [0.0] + [-math.inf] * num_second
    for node in nodes:
        here = [
            _max_bundles(node.resources, first, [second] * number)
            for number in range(_max_bundles(node.resources, second) + 1)
        ]
        most_beside = [
            max(most_beside[number - more] + here[more] for more in range(min(number + 1, len(here))))
            for number in range(num_second + 1)
        ]
    if most_beside[num_second] < num_first:
        fitting = f"{max(most_beside[num_second], 0):g} of {num_first} x {format_resources(first)}"
        beside = f"{fitting} beside {num_second} x {format_resources(second)}"
        raise PlacementError(_refusal_message(placement, nodes, f"there is room for {beside}"))


def _max_bundles(have: Resources, shape: Resources, beside: Sequence[Resources] = ()) -> int:
    """Return how many bundles of a shape fit on a node alongside the others."""
    left = {
        kind: round(have.get(kind, 0) * _UNIT) - sum(round(other.get(kind, 0) * _UNIT) for other in beside)
        for kind in shape
    }
    return min(left[kind] // round(amount * _UNIT) for kind, amount in shape.items())


def _refusal_message(placement: Placement, nodes: Sequence[Node], why: str) -> str:
    kinds = sorted({kind for bundle in placement.bundles for kind in bundle})
    short = {
        kind: total_resource(placement.bundles, kind) - total_resource([node.resources for node in nodes], kind)
        for kind in kinds
    }
    missing = {kind: amount for kind, amount in short.items() if amount > 0}
    machines = Counter(format_resources({kind: node.resources.get(kind, 0) for kind in kinds}) for node in nodes)
    has = ", ".join(f"{number} x ({machine})" for machine, number in machines.most_common()) or "no node"
    return (
        f"the run can never fit on this cluster: {len(placement.learners)} learner ranks and {len(placement.rollouts)} engines need "
        f"{format_resources({kind: total_resource(placement.bundles, kind) for kind in kinds})}, the cluster has {has}; "
        + (f"missing: {format_resources(missing)}" if missing else f"{why}, each on one node")
        + ". placement.may_grow=true waits for nodes that an autoscaler brings"
    )


def total_resource(bundles: Sequence[Resources], kind: str) -> float:
    """Return the amount of one kind over all bundles."""
    return math.fsum(bundle.get(kind, 0) for bundle in bundles)


def format_resources(resources: Resources) -> str:
    """Return resources as text, such as "8 CPU, 1 GPU"."""
    return ", ".join(f"{amount:g} {kind}" for kind, amount in sorted(resources.items()))
