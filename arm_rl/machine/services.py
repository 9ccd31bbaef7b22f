"""What a run talks to: Ray, bubblewrap, Weights & Biases and the hub. Each check tries the service itself."""

import os
from collections.abc import Mapping

from arm_rl.core.errors import UserError
from arm_rl.core.http_clients import ProxyError, make_client
from arm_rl.machine.finding import Finding, ok, warning

HUB = "https://huggingface.co"
HUB_SECONDS = 5.0
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def check_ray() -> Finding:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine and end it."""
    from actors.cluster.connection import cluster, describe_cluster

    address = os.environ.get("RAY_ADDRESS")
    with cluster():
        resources = describe_cluster()
    return ok("Ray", f"{f'the cluster at {address} has' if address else 'starts here, with'} {resources}")


def check_sandbox() -> Finding:
    """Run a program in the sandbox of the Python executor."""
    from tools.python.executor import PythonExecutorTool

    try:
        PythonExecutorTool()
    except UserError as error:
        return warning("bubblewrap", str(error), "needed for the tool python_executor alone; other tools run without")
    return ok("bubblewrap", "runs programs apart from the machine")


def check_wandb() -> Finding:
    """Look for a key of Weights & Biases, without printing it."""
    from arm_rl.run.wandb_log import has_key

    if has_key():
        return ok("W&B", "a key is present")
    return warning("W&B", "no key: runs are recorded offline", "wandb login, or metrics.wandb=disabled")


def check_hub(environment: Mapping[str, str] = os.environ) -> Finding:
    """Ask the hub for an answer, unless the environment says to stay offline; proxies of the environment are used."""
    import httpx

    offline = [name for name in OFFLINE if environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if offline:
        return ok("hub", f"not asked: {offline[0]} is set; models are folders, or in the hub's cache")
    url = environment.get("HF_ENDPOINT") or HUB
    advice = "set model.path to a folder; behind a proxy set HTTPS_PROXY; a mirror goes into HF_ENDPOINT"
    try:
        with make_client(timeout=HUB_SECONDS, follow_redirects=True) as client:
            status = client.head(url).status_code
    except (httpx.HTTPError, httpx.InvalidURL, ProxyError) as error:
        return warning("hub", f"{url} does not answer: {error or type(error).__name__}", advice)
    if status >= 400:
        return warning("hub", f"{url} answers with status {status}", advice)
    return ok("hub", f"{url} answers")
