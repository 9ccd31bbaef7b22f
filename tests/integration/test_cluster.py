"""A cluster that was started by hand: jobs through the dashboard's API, a node lost and one added in mid-run, a stop and a second start."""

import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors

from actors.cluster.placement import CPU_SHARE
from arm_rl.core import trajectory_file
from arm_rl.run import checkpoint
from arm_rl.run.metrics_log import read_lines
from tests.support import small_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SOON_DEAD = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}


def own_copy(number: int) -> dict[str, str]:
    """Where a node unpacks the job's files: all nodes lie in one session folder here, where each would replace what others read."""
    return {"runtime_env_dir_name": f"runtime_resources_{number}"}


@dataclass
class Machines:
    """A head that runs nothing but the jobs' drivers, and nodes with room for one actor each: the learner and the engine sit apart."""

    cluster: Cluster
    client: JobSubmissionClient

    def __post_init__(self) -> None:
        self.blockers: list[ray.actor.ActorHandle] = []

    def add(self) -> None:
        """One more node, whose cores are taken but for a single actor's share."""

        class Blocker:
            def node_id(self) -> str:
                return ray.get_runtime_context().get_node_id()

        node = self.cluster.add_node(num_cpus=1, object_store_memory=100 << 20, **own_copy(len(self.blockers)))
        place = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        blocker = ray.remote(Blocker).options(num_cpus=1 - CPU_SHARE, scheduling_strategy=place).remote()
        assert ray.get(blocker.node_id.remote()) == node.node_id
        self.blockers.append(blocker)

    def remove(self, node_id: str) -> None:
        """Pulls its plug."""
        (node,) = [node for node in self.cluster.list_all_nodes() if node.node_id == node_id]
        self.cluster.remove_node(node, allow_graceful=False)

    def submit(self, *arguments: str) -> str:
        """Starts a training."""
        return self.client.submit_job(
            entrypoint=" ".join([sys.executable, "-m", "jobs.train", "configs/demo.yaml", *arguments]),
            runtime_env={"working_dir": str(ROOT), "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "240"}},
        )

    def until(self, job: str, condition: Callable[[], object], what: str, seconds: float = 240) -> None:
        """Waits for what the job brings about."""
        limit = time.monotonic() + seconds
        while not condition():
            log = self.client.get_job_logs(job)
            assert not self.client.get_job_status(job).is_terminal(), f"ended before {what}:\n{log}"
            assert time.monotonic() < limit, f"not {what} in time:\n{log}"
            time.sleep(0.5)

    def ended(self, job: str) -> tuple[JobStatus, str]:
        """How it ended, and its log."""
        limit = time.monotonic() + 300
        while not (status := self.client.get_job_status(job)).is_terminal():
            assert time.monotonic() < limit, self.client.get_job_logs(job)
            time.sleep(0.5)
        return status, self.client.get_job_logs(job)

    def node_of(self, actor: str) -> str | None:
        """Where the actor of that name, or its successor, lives, if it does."""
        actors = list_actors(address=self.client._address, filters=[("state", "=", "ALIVE")], limit=1000, detail=True)
        return next((one.node_id for one in actors if one.name.split(".")[0] == actor), None)


@pytest.fixture(scope="module")
def machines(no_ray) -> Iterator[Machines]:
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    ports = {"dashboard_port": 0, "dashboard_agent_listen_port": 0}  # any that is free: jobs are taken at the second
    head = {"num_cpus": 0, "include_dashboard": True, **ports, "object_store_memory": 100 << 20, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": SOON_DEAD})
    try:
        # as `ray start` does, or jobs may join another test's Ray
        Path(folder, "ray_current_cluster").write_text(cluster.address)
        ray.init(address=cluster.address, log_to_driver=False)
        machines = Machines(cluster, JobSubmissionClient(f"http://{cluster.head_node.webui_url}"))
        machines.add()
        machines.add()
        yield machines
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, judge_folder) -> list[str]:
    folder = tmp_path_factory.mktemp("shared")
    small_run.write_data(folder, 64)
    keys = ("run.name=job", "algorithm.samples_per_step=2", "algorithm.group_size=2", "checkpoint.every=1000")
    return small_run.overrides(folder, judge_folder, *keys)


def test_a_job_lives_through_a_lost_node_and_a_stop(machines, settings):
    run = Path(settings[0].partition("=")[2]) / "job"

    def steps() -> list[dict]:
        return read_lines(run / "metrics.jsonl")

    job = machines.submit(*settings, "num_steps=1000")
    machines.until(job, lambda: len(steps()) >= 2, "two steps were done")
    learner, engine = machines.node_of("job/learner-0"), machines.node_of("job/rollout-0")
    assert learner != engine, "the weights travel"
    assert all(line["learner/logprob_gap"] < 1e-4 for line in steps()), "the engine samples from the learner's weights"
    assert machines.node_of("job/tools-0") in (learner, engine)
    machines.until(job, lambda: "arm_rl_reward_mean" in exported(), "metrics were exported")

    machines.remove(engine)
    machines.until(
        job,
        lambda: "waiting for resources: the run needs 0.5 CPU" in machines.client.get_job_logs(job),
        "it waited for a node",
    )
    machines.add()
    done = len(steps())
    machines.until(job, lambda: len(steps()) >= done + 2, "two more steps were done")
    assert sum(line["recovery/rollout"] + line["recovery/learner"] for line in steps()) >= 1
    assert machines.node_of("job/rollout-0") not in (None, learner, engine)

    machines.client.stop_job(job)
    status, log = machines.ended(job)
    assert status == JobStatus.STOPPED, log
    assert "stopped as asked" in log
    assert "Traceback" not in log
    assert re.search(r"^job 2/1000  loss", log, re.MULTILINE), "plain lines, a step each"
    stopped = checkpoint.latest(run / "checkpoints")
    assert stopped is not None
    assert stopped.step == len(steps()) >= done + 2

    job = machines.submit(*settings, f"num_steps={stopped.step + 2}")
    status, log = machines.ended(job)
    assert status == JobStatus.SUCCEEDED, log
    assert f"going on from step {stopped.step}" in log
    assert [line["step"] for line in steps()] == list(range(1, stopped.step + 3))
    assert (run / "export" / "model.safetensors").is_file()
    last = trajectory_file.read(run / "trajectories" / f"job-{stopped.step + 2:06d}.parquet")
    assert {turn.policy_version for one in last.scored for turn in one.trajectory.turns} == {stopped.step + 1}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rollout.num_actors=99",
            "error: the run can never fit on this cluster: 1 learner ranks and 99 engines need 25 CPU",
        ),
        ("run.root=runs", "error: run.root: runs/never would lie in the job's copy of the working folder"),
    ],
)
def test_what_cannot_run_ends_at_once(machines, settings, override, message):
    job = machines.submit(*settings, "run.name=never", override, "num_steps=1")
    status, log = machines.ended(job)
    assert status == JobStatus.FAILED
    assert message in log
    assert "Traceback" not in log


def exported() -> str:
    """What Prometheus reads of all nodes."""
    agents = [(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in ray.nodes() if node["Alive"]]
    return "".join(urllib.request.urlopen(f"http://{address}:{port}").read().decode() for address, port in agents)
