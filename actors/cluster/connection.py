"""The connection to a Ray cluster: the one the job was submitted to, or a local one that ends with the process."""

import asyncio
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from arm_rl.core.errors import UserError

# Ray reads these when a local cluster starts; they decide nothing about a run.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # else a page for the second result of a call that failed, though the first one told
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}


class ClusterError(UserError):
    """The cluster cannot run this; the message says why."""


@contextmanager
def cluster() -> Iterator[None]:
    """Connects for as long as the context lasts; nested contexts use the outer one's connection.

    RAY_ADDRESS names the cluster, as in a job that was submitted to one. Without it a local one is started: Ray by itself would join any
    that it finds on the machine, such as another run's, and wait long for one that has died.

    Raises:
        ClusterError: If Ray does not start, or the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        ray.shutdown()  # ends what was started
        raise ClusterError(_start_problem(address, error)) from error
    _silence_death_messages()
    try:
        yield
    finally:
        ray.shutdown()


def _start_problem(address: str, error: Exception) -> str:
    """Return why Ray did not start or could not be reached, and what to do."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    if "AF_UNIX" in reason:
        return (
            f"Ray's sockets lie below {tempfile.gettempdir()}, whose path is too long for a socket's name: "
            "set TMPDIR (or RAY_TMPDIR) to a folder with a short path on a local disk, such as /tmp"
        )
    if address != "local":
        return f"the Ray cluster at {address} (RAY_ADDRESS) cannot be used: {reason}"
    return (
        f"Ray does not start on this machine: {reason} Is the machine busy, or short of memory or of disk? "
        "Run the same command again; `arm-rl doctor` looks for the cause, and Ray's logs are in session_latest/logs of its folder"
    )


def describe_cluster() -> str:
    """Return the nodes, CPUs and GPUs of the connected cluster in words."""
    resources = ray.cluster_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return f"{nodes} node(s), {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"


def _silence_death_messages() -> None:
    """Keep Ray from printing a page for each process that dies: our own log says who died and why.

    Ray 2.60 has no setting for it; to be removed when it has.
    """
    ray._private.worker.print_to_stdstream = lambda *_, **__: None


async def require_shared(folder: Path) -> None:
    """Looks whether every node sees the run's folder, since learners on any of them write their part of a checkpoint there.

    Raises:
        ClusterError: one does not, or the folder is gone when the job ends.
    """
    if ray.get_runtime_context().runtime_env.get("working_dir") and not folder.is_absolute():
        raise ClusterError(
            f"run.root: {folder} would lie in the job's copy of the working folder, which Ray deletes: "
            "give the absolute path of a folder that all nodes share"
        )
    own = ray.get_runtime_context().get_node_id()
    nodes = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != own and node["Resources"].get("CPU")
    ]
    places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    seen = await asyncio.gather(*(_can_see.options(scheduling_strategy=place).remote(folder) for place in places))
    blind = [node for node, sees in zip(nodes, seen, strict=True) if not sees]
    if blind:
        raise ClusterError(
            f"run.root: node {blind[0]} does not see {folder.absolute()}: give a folder that all nodes share"
        )


@ray.remote(num_cpus=0)
def _can_see(folder: Path) -> bool:
    return folder.is_dir()
