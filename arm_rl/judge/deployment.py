"""The judge's HTTP service on Ray Serve."""

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import serve

from arm_rl.core import own_server
from arm_rl.core.errors import UserError
from arm_rl.export.judge_config import JudgeSetup
from arm_rl.judge.judge import Judge
from arm_rl.judge.service import ServiceLimits, build_app

NAME = "judge"  # of the application and its deployment
MAX_ONGOING = (
    100_000  # for Ray Serve: the service itself refuses, so that a connection that sends nothing takes no slot
)
HEALTH_SECONDS = 10.0  # until the service answers at its port
GRACE_SECONDS = 30.0  # that running requests are given when the service ends


@contextlib.contextmanager
def deploy_judge(
    folder: Path,
    setup: JudgeSetup,
    *,
    limits: ServiceLimits | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    num_gpus: float = 0.0,
    **judge_settings: Any,
) -> Iterator[str]:
    """Deploy a judge on the connected Ray cluster and remove it when the context ends.

    Requests that run at the end have `GRACE_SECONDS` to finish.

    Args:
        folder: Hugging Face folder of the judge.
        setup: Tools, template and limits of the judge's sessions.
        limits: Limits of each replica.
        token: Token that every request must bear; None accepts all requests.
        host: Interface to listen on.
        port: Port to listen on.
        replicas: Number of judges that share the requests.
        num_gpus: GPUs of each replica.
        judge_settings: Further arguments of `Judge.load`.

    Yields:
        The URL of the service.

    Raises:
        UserError: If the cluster serves something already, or another program has the port.
    """
    limits = limits or ServiceLimits()
    folder = folder.absolute()
    health_token = secrets.token_hex(16)
    if served := serve.status().applications:
        raise UserError(f"Ray Serve of this cluster serves {', '.join(served)} already: use another cluster")
    _require_on_head(_check_port, host, port)

    def build() -> Any:
        return build_app(
            Judge.load(folder, setup=setup, use_gpu=num_gpus > 0, **judge_settings), limits, token, health_token
        )

    ray_options = {"num_cpus": 0.25, "num_gpus": num_gpus}
    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options=ray_options,
        graceful_shutdown_timeout_s=GRACE_SECONDS,
        health_check_timeout_s=60,
    )(serve.ingress(build)())
    try:
        serve.start(http_options={"host": host, "port": port, "request_timeout_s": None})
        serve.run(deployment.bind(), name=NAME, route_prefix="/")
        _require_on_head(_check_health, host, port, health_token)
        yield f"http://{host}:{port}"
        serve.delete(NAME)  # waits for running requests; the shutdown alone would close their connections
    finally:
        serve.shutdown()


def _require_on_head(check: Any, *arguments: Any) -> None:
    """Run a check on the node whose port the service has; raise UserError with the problem that the check returns."""
    problem = ray.get(check.options(num_cpus=0, resources={"node:__internal_head__": 0.001}).remote(*arguments))
    if problem is not None:
        raise UserError(problem)


@ray.remote
def _check_port(host: str, port: int) -> str | None:
    try:
        own_server.require_free_port(host, port)
    except UserError as error:
        return str(error)
    return None


@ray.remote
def _check_health(host: str, port: int, token: str) -> str | None:
    url, problem = own_server.server_url(host, port), ""
    deadline = time.monotonic() + HEALTH_SECONDS
    while time.monotonic() < deadline:  # Ray's proxy learns of a new service a moment after the service runs
        try:
            if own_server.is_healthy(url, token):
                return None
            problem = f"{url}: the service does not answer"
        except UserError as error:
            problem = str(error)
        time.sleep(0.1)
    return problem
