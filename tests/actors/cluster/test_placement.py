"""Where the actors sit: the plan alone, on thousands of clusters."""

import dataclasses
import itertools
from collections import Counter
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.cluster.placement import CPU_SHARE, Node, PlacementError, plan
from arm_rl.core.compute_config import PlacementConfig, RolloutConfig

APART = PlacementConfig(kind="apart")
SHARED = PlacementConfig(kind="shared")
CPU = PlacementConfig(use_gpu=False)


def cluster(*nodes: dict[str, float]) -> list[Node]:
    """Nodes of these resources, named a, b, c, ..."""
    return [
        Node(id=chr(ord("a") + number), resources={"memory": 1e9, **resources})
        for number, resources in enumerate(nodes)
    ]


def machines(number: int, cpus: float = 96, gpus: float = 8) -> list[Node]:
    """Equal nodes."""
    return [Node(id=f"node {index:04}", resources={"CPU": cpus, "GPU": gpus}) for index in range(number)]


def used(planned):
    """What the actors of each bundle take of it together."""
    taken = [Counter() for _ in planned.bundles]
    for bundles, resources in (
        (planned.learners, planned.learner_resources),
        (planned.rollouts, planned.rollout_resources),
    ):
        for bundle in bundles:
            taken[bundle].update({"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]})
    return taken


def assert_whole(planned, num_ranks: int, num_engines: int) -> None:
    """Every actor has a place, no bundle holds more than it has, and none is reserved for nothing."""
    assert len(planned.learners) == num_ranks
    assert len(planned.rollouts) == num_engines
    for bundle, taken in zip(planned.bundles, used(planned), strict=True):
        assert taken.total() > 0
        assert {kind: amount for kind, amount in taken.items() if amount > bundle.get(kind, 0)} == {}


def packs(bundles: list[dict], nodes: list[dict]) -> bool:
    """Whether the bundles fit, by trying everything: slow, and of another make than what it checks."""
    units = [tuple(round(bundle.get(kind, 0) * 4) for kind in ("CPU", "GPU")) for bundle in bundles]
    units.sort(reverse=True)

    @cache
    def fits(index: int, free: tuple[tuple[int, int], ...]) -> bool:
        if index == len(units):
            return True
        cpus, gpus = units[index]
        for number, (have_cpus, have_gpus) in enumerate(free):
            if have_cpus >= cpus and have_gpus >= gpus and free[number] not in free[:number]:
                left = sorted((*free[:number], (have_cpus - cpus, have_gpus - gpus), *free[number + 1 :]))
                if fits(index + 1, tuple(left)):
                    return True
        return False

    return fits(0, tuple(sorted(tuple(round(node[kind] * 4) for kind in ("CPU", "GPU")) for node in nodes)))


requests = st.one_of(
    st.tuples(
        st.just(APART),
        st.integers(0, 6),
        st.builds(RolloutConfig, num_actors=st.integers(1, 5), tensor_parallel_size=st.integers(1, 4)),
    ),
    st.tuples(st.sampled_from([APART, SHARED, CPU]), st.integers(1, 8), st.none()),
    st.integers(1, 8).map(lambda number: (SHARED, number, RolloutConfig(num_actors=number))),
    st.tuples(st.just(CPU), st.integers(0, 8), st.builds(RolloutConfig, num_actors=st.integers(1, 8))),
)
nodes = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 8), "GPU": st.integers(0, 8)}), max_size=4)


@settings(max_examples=3000)
@given(request=requests, resources=nodes)
def test_what_fits_is_placed_and_what_cannot_is_refused_with_what_is_missing(request, resources):
    config, num_ranks, rollout = request
    num_engines = rollout.num_actors if rollout else 0
    wanted = plan(dataclasses.replace(config, may_grow=True), num_ranks, rollout, [])
    assert_whole(wanted, num_ranks, num_engines)
    if packs(list(wanted.bundles), resources):
        assert plan(config, num_ranks, rollout, cluster(*resources)).bundles == wanted.bundles
        return
    with pytest.raises(PlacementError) as refused:
        plan(config, num_ranks, rollout, cluster(*resources))
    short = {
        kind: sum(one.get(kind, 0) for one in wanted.bundles) - sum(node[kind] for node in resources)
        for kind in ("CPU", "GPU")
    }
    missing = ", ".join(f"{amount:g} {kind}" for kind, amount in short.items() if amount > 0)
    assert (f"missing: {missing}." if missing else "there is room for") in str(refused.value)


@settings(max_examples=500)
@given(request=requests, where=st.lists(st.sampled_from("abcd"), min_size=16, max_size=16))
def test_ranks_of_a_node_are_neighbours_and_every_actor_keeps_its_kind_of_bundle(request, where):
    config, num_ranks, rollout = request
    planned = plan(dataclasses.replace(config, may_grow=True), num_ranks, rollout, [])
    arranged = planned.arrange(where[: len(planned.bundles)])
    assert_whole(arranged, num_ranks, rollout.num_actors if rollout else 0)
    assert arranged.bundles == planned.bundles
    assert (arranged.learners == arranged.rollouts) == (planned.learners == planned.rollouts)
    on = [where[bundle] for bundle in arranged.learners]
    changes = sum(one != other for one, other in itertools.pairwise(on))
    assert changes == max(len(set(on)) - 1, 0), "a node's ranks are in one row"


def test_ranks_take_as_few_nodes_as_they_can():
    planned = plan(APART, 4, RolloutConfig(num_actors=4), machines(2))
    arranged = planned.arrange(["x", "y", "x", "y", "y", "x", "y", "x"])
    assert arranged.learners == (0, 2, 5, 7)
    assert arranged.rollouts == (1, 3, 4, 6)


def test_apart_an_engine_has_its_gpus_on_one_node():
    planned = plan(APART, 2, RolloutConfig(num_actors=2, tensor_parallel_size=4), machines(2))
    assert [bundle["GPU"] for bundle in planned.bundles] == [1, 1, 4, 4]
    assert (planned.learners, planned.rollouts) == ((0, 1), (2, 3))
    assert (planned.learner_resources["num_gpus"], planned.rollout_resources["num_gpus"]) == (1, 4)


def test_shared_a_rank_and_an_engine_take_turns_on_one_gpu():
    planned = plan(SHARED, 4, RolloutConfig(num_actors=4), machines(1))
    assert [bundle["GPU"] for bundle in planned.bundles] == [1] * 4
    assert planned.learners == planned.rollouts == (0, 1, 2, 3)
    assert planned.learner_resources["num_gpus"] + planned.rollout_resources["num_gpus"] <= 1


def test_without_engines_there_is_nothing_to_share():
    assert plan(SHARED, 3, None, machines(1)) == plan(APART, 3, None, machines(1))


def test_without_gpus_a_run_fits_on_two_cores():
    planned = plan(CPU, 2, RolloutConfig(num_actors=2), machines(1, cpus=2, gpus=0))
    assert sum(bundle["CPU"] for bundle in planned.bundles) == 4 * CPU_SHARE <= 2
    assert not any("GPU" in bundle for bundle in planned.bundles)
    assert len(set(planned.learners + planned.rollouts)) == 4


def test_tools_run_where_no_gpu_is():
    nodes = cluster({"CPU": 64, "GPU": 8}, {"CPU": 32}, {"CPU": 0}, {"CPU": 16, "GPU": 0})
    assert plan(APART, 2, None, nodes).cpu_nodes == ("b", "d")
    assert plan(APART, 2, None, machines(2)).cpu_nodes == ()


def test_the_papers_run_needs_two_nodes_of_eight():
    rollout = RolloutConfig(num_actors=16)
    assert len(plan(SHARED, 16, rollout, machines(2)).bundles) == 16
    with pytest.raises(
        PlacementError,
        match=r"16 learner ranks and 16 engines need 32 CPU, 16 GPU, the cluster has 1 x .*; missing: 8 GPU\.",
    ):
        plan(SHARED, 16, rollout, machines(1))


@pytest.mark.parametrize(
    ("config", "num_ranks", "rollout", "nodes", "message"),
    [
        (APART, 1, None, [], "the cluster has no node; missing: 1 CPU, 1 GPU."),
        (
            APART,
            0,
            RolloutConfig(tensor_parallel_size=4),
            machines(4, gpus=2),
            "there is room for 0 of 1 x 1 CPU, 4 GPU, each on one node",
        ),
        (
            APART,
            3,
            RolloutConfig(num_actors=2, tensor_parallel_size=3),
            cluster({"CPU": 9, "GPU": 4}, {"CPU": 9, "GPU": 3}, {"CPU": 1, "GPU": 2}),
            "there is room for 2 of 3 x 1 CPU, 1 GPU beside 2 x 1 CPU, 3 GPU, each on one node",
        ),
        (APART, 8, None, machines(1, cpus=4), "missing: 4 CPU."),
        (CPU, 5, RolloutConfig(num_actors=4), machines(1, cpus=2, gpus=0), "missing: 0.25 CPU."),
    ],
)
def test_a_refusal_says_what_is_missing(config, num_ranks, rollout, nodes, message):
    with pytest.raises(PlacementError) as refused:
        plan(config, num_ranks, rollout, nodes)
    assert message in str(refused.value)


def test_a_cluster_that_may_grow_is_never_too_small():
    assert len(plan(PlacementConfig(may_grow=True), 64, None, machines(1)).bundles) == 64


def test_a_thousand_gpus_are_planned_too():
    rollout = RolloutConfig(num_actors=192, tensor_parallel_size=4)
    assert len(plan(APART, 256, rollout, machines(128)).bundles) == 448
    with pytest.raises(PlacementError, match=r"missing: 1 GPU"):
        plan(APART, 257, rollout, machines(128))
