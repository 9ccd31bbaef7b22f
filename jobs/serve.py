"""Serve a judge over HTTP. Requests run the complete session loop, tools included; --model-only serves the bare model."""

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from arm_rl.core.errors import UserError
from arm_rl.core.text_file import read_text
from jobs.command_line import run_guarded
from jobs.judge_options import add_judge_options, read_judge_setup, require_model


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
    parser.add_argument("--max-body-mb", type=int, default=16, help="of a request, its images included")
    parser.add_argument("--replicas", type=int, default=1, help="judges that share the requests")
    parser.add_argument("--token-file", type=Path, help="file with a token that each request has to bear")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--model-only", action="store_true", help="only vLLM's OpenAI-compatible server, without sessions and tools"
    )
    arguments = parser.parse_args(argv)
    return run_guarded(lambda: _serve_model(arguments) if arguments.model_only else _serve_judge(arguments))


def _serve_judge(arguments: argparse.Namespace) -> str:
    require_model(arguments.folder)
    setup = read_judge_setup(arguments)
    token = _read_token(arguments.token_file)
    from actors.cluster.connection import cluster
    from arm_rl.export.model_check import check_files
    from arm_rl.judge.deployment import deploy_judge
    from arm_rl.judge.service import ServiceLimits

    check_files(str(arguments.folder), a_folder=True)
    with (
        cluster(),
        deploy_judge(
            arguments.folder,
            setup,
            limits=ServiceLimits(max_requests=arguments.max_requests, max_body_bytes=arguments.max_body_mb << 20),
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
        _wait_for_signal()
    return "done: the service has ended"


def _serve_model(arguments: argparse.Namespace) -> str:
    require_model(arguments.folder)
    from actors.rollout.model_server import ModelServer
    from arm_rl.export.model_check import check_files

    check_files(str(arguments.folder), a_folder=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with ModelServer(arguments.folder, log, use_gpu=arguments.gpu, port=arguments.port) as server:
            sys.stdout.write(f"serving the model 'judge' at {server.base_url}; Ctrl-C ends it\n")
            sys.stdout.flush()
            _wait_for_signal()
    return "done: the server has ended"


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = read_text(file).strip()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from error
    if not token:
        raise UserError(f"{file}: it is empty, and a token is needed")
    return token


def _wait_for_signal() -> None:
    """Wait for SIGTERM or Ctrl-C."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(1.0):
        pass


if __name__ == "__main__":
    sys.exit(main())
