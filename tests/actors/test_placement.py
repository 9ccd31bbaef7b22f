"""Where the actors sit: the plan alone, and what a cluster that is too small says."""

import time
from collections import Counter

import pytest
import ray

from actors import placement
from actors.cluster import cluster
from actors.placement import CPU_SHARE, PlacementError, Reservation, plan
from arm_rl.core.config import PlacementConfig, RolloutConfig

APART = PlacementConfig(kind="apart")
SHARED = PlacementConfig(kind="shared")
CPU = PlacementConfig(use_gpu=False)


def used(planned):
    """What the actors of each bundle take of it together."""
    taken = [Counter() for _ in planned.bundles]
    for bundles, resources in ((planned.learners, planned.learner_resources), (planned.rollouts, planned.rollout_resources)):
        for bundle in bundles:
            taken[bundle].update({"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]})
    return taken


PLANS = [
    (config, num_ranks, rollout)
    for num_ranks in (1, 2, 8)
    for config, rollout in [
        (APART, None),
        (APART, RolloutConfig()),
        (APART, RolloutConfig(num_actors=3, tensor_parallel_size=2)),
        (SHARED, None),
        (SHARED, RolloutConfig(num_actors=num_ranks)),
        (CPU, None),
        (CPU, RolloutConfig(num_actors=2)),
    ]
]


@pytest.mark.parametrize(("config", "num_ranks", "rollout"), PLANS)
def test_every_actor_has_a_place_and_the_bundles_hold_them(config, num_ranks, rollout):
    planned = plan(config, num_ranks, rollout)
    assert len(planned.learners) == num_ranks
    assert len(planned.rollouts) == (rollout.num_actors if rollout else 0)
    for bundle, taken in zip(planned.bundles, used(planned), strict=True):
        assert taken.total() > 0, "no bundle is reserved for nothing"
        for kind, amount in taken.items():
            assert amount <= bundle.get(kind, 0)
    assert all(resources["num_gpus"] == 0 for resources in (planned.learner_resources, planned.rollout_resources)) == (config is CPU)


def test_apart_each_has_gpus_of_its_own():
    planned = plan(APART, 2, RolloutConfig(num_actors=2, tensor_parallel_size=4))
    assert [bundle["GPU"] for bundle in planned.bundles] == [1, 1, 4, 4]
    assert (planned.learners, planned.rollouts) == ((0, 1), (2, 3))
    assert (planned.learner_resources["num_gpus"], planned.rollout_resources["num_gpus"]) == (1, 4)


def test_shared_a_rank_and_an_engine_take_turns_on_one_gpu():
    planned = plan(SHARED, 4, RolloutConfig(num_actors=4))
    assert [bundle["GPU"] for bundle in planned.bundles] == [1] * 4
    assert planned.learners == planned.rollouts == (0, 1, 2, 3)
    assert planned.learner_resources["num_gpus"] + planned.rollout_resources["num_gpus"] <= 1


def test_without_engines_there_is_nothing_to_share():
    assert plan(SHARED, 3, None) == plan(APART, 3, None)


def test_without_gpus_a_run_fits_on_two_cores():
    planned = plan(CPU, 2, RolloutConfig(num_actors=2))
    assert sum(bundle["CPU"] for bundle in planned.bundles) == 4 * CPU_SHARE <= 2
    assert not any("GPU" in bundle for bundle in planned.bundles)
    assert len(set(planned.learners + planned.rollouts)) == 4


@pytest.fixture(scope="module")
def local_ray():
    with cluster():
        yield


@pytest.mark.ray
def test_a_reservation_places_actors_and_is_given_back(local_ray):
    class Where:
        def resources(self):
            return ray.get_runtime_context().get_assigned_resources()

    before = ray.available_resources()["CPU"]
    reservation = Reservation(plan(CPU, 1, RolloutConfig()))
    places = (reservation.learner_options(0), reservation.rollout_options(0))
    actors = [ray.remote(Where).options(**options).remote() for options in places]
    resources = ray.get([actor.resources.remote() for actor in actors])
    assert [one["CPU"] for one in resources] == [CPU_SHARE, CPU_SHARE]
    for actor in actors:
        ray.kill(actor)
    reservation.release()
    _until(lambda: ray.available_resources().get("CPU") == before)


@pytest.mark.ray
def test_a_cluster_that_is_too_small_says_so_and_keeps_nothing(local_ray, monkeypatch):
    monkeypatch.setattr(placement, "RESERVE_SECONDS", 0.5)
    before = ray.available_resources()["CPU"]
    with pytest.raises(PlacementError, match=r"the run needs \{'CPU': 2, 'GPU': 2\} .* free on the cluster: \{'CPU': .*'GPU': 0"):
        Reservation(plan(APART, 1, RolloutConfig()))
    _until(lambda: ray.available_resources().get("CPU") == before)


@pytest.mark.ray
def test_a_cluster_inside_a_cluster_is_the_same_one(local_ray):
    node = ray.get_runtime_context().get_node_id()
    with cluster():
        assert ray.get_runtime_context().get_node_id() == node
    assert ray.is_initialized(), "the inner one does not end the outer one"


def _until(condition, seconds=20.0):
    """Ray frees resources a moment later."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)
