"""Serve a judge over HTTP. Requests run the complete session loop, tools included; --model-only serves the bare model."""

import argparse
import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray import serve

from actors.cluster.connection import cluster
from actors.rollout.model_server import ModelServer
from arm_rl.core.errors import UserError
from arm_rl.export.judge_config import JudgeSetup
from arm_rl.export.model_check import check_files
from arm_rl.judge.judge import Judge
from arm_rl.judge.service import ServiceLimits, build_app
from jobs.command_line import guarded
from jobs.judge_options import add_judge_options, judge_setup

NAME = "judge"  # of the application and its deployment
GRACE_SECONDS = 30.0  # that running requests are given when the service ends


@contextlib.contextmanager
def service(
    folder: Path,
    setup: JudgeSetup,
    *,
    takes: ServiceLimits | None = None,
    token: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    num_gpus: float = 0.0,
    **judging: Any,
) -> Iterator[str]:
    """The service on Ray Serve, for as long as the context lasts; its address. Wants a Ray cluster.

    At the end, requests that run are given `GRACE_SECONDS`.

    Args:
        setup: how the judge is asked.
        judging: further settings of the judge.
    """
    limits = takes or ServiceLimits()
    folder = folder.absolute()

    def build() -> Any:
        return build_app(Judge.load(folder, setup=setup, use_gpu=num_gpus > 0, **judging), limits, token)

    ray_options = {"num_cpus": 0.25, "num_gpus": num_gpus}
    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=2 * limits.max_requests,  # beyond its own limit: the service says 429 itself
        ray_actor_options=ray_options,
        graceful_shutdown_timeout_s=GRACE_SECONDS,
        health_check_timeout_s=60,
    )(serve.ingress(build)())
    try:
        serve.start(http_options={"host": host, "port": port, "request_timeout_s": None})
        serve.run(deployment.bind(), name=NAME, route_prefix="/")
        yield f"http://{host}:{port}"
        serve.delete(NAME)  # waits for running requests; the shutdown alone would close their connections
    finally:
        serve.shutdown()


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.serve") -> int:
    """Serves until Ctrl-C, or until it is told to end."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    add_judge_options(parser)
    parser.add_argument(
        "--both-orders", action="store_true", help="judge pairs in both orders, so that places cancel out"
    )
    parser.add_argument("--votes", type=int, default=1, help="sessions of each order")
    parser.add_argument("--concurrency", type=int, default=16, help="sessions at a time of each replica")
    parser.add_argument(
        "--max-requests", type=int, default=64, help="at a time of each replica; more are answered with 429"
    )
    parser.add_argument("--replicas", type=int, default=1, help="judges that share the requests")
    parser.add_argument("--token-file", type=Path, help="file with a token that each request has to bear")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--model-only", action="store_true", help="only vLLM's OpenAI-compatible server, without sessions and tools"
    )
    arguments = parser.parse_args(argv)
    return guarded(lambda: _serve_model(arguments) if arguments.model_only else _serve_judge(arguments))


def _serve_judge(arguments: argparse.Namespace) -> str:
    setup = judge_setup(arguments)
    token = _token(arguments.token_file)
    check_files(str(arguments.folder), a_folder=True)
    with (
        cluster(),
        service(
            arguments.folder,
            setup,
            takes=ServiceLimits(max_requests=arguments.max_requests),
            token=token,
            host=arguments.host,
            port=arguments.port,
            replicas=arguments.replicas,
            num_gpus=1.0 if arguments.gpu else 0.0,
            both_orders=arguments.both_orders,
            votes=arguments.votes,
            temperature=arguments.temperature,
            concurrency=arguments.concurrency,
        ) as url,
    ):
        sys.stdout.write(f"serving the judge at {url} (its requests: /docs); Ctrl-C ends it\n")
        sys.stdout.flush()
        _wait_for_the_end()
    return "done: the service has ended"


def _serve_model(arguments: argparse.Namespace) -> str:
    check_files(str(arguments.folder), a_folder=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with ModelServer(arguments.folder, log, use_gpu=arguments.gpu, port=arguments.port) as server:
            sys.stdout.write(f"serving the model 'judge' at {server.base_url}; Ctrl-C ends it\n")
            sys.stdout.flush()
            _wait_for_the_end()
    return "done: the server has ended"


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text().strip()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    if not token:
        raise UserError(f"{file}: it is empty, and a token is needed")
    return token


def _wait_for_the_end() -> None:
    """Returns at SIGTERM or Ctrl-C."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(1.0):
        pass


if __name__ == "__main__":
    sys.exit(main())
