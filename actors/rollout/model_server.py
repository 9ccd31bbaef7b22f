"""vLLM's OpenAI-compatible server for an exported folder, as a process of its own."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from actors.rollout.engine_settings import engine_environment
from arm_rl.core import own_server
from arm_rl.core.errors import UserError
from arm_rl.core.owner import tie_group_to_owner

SERVED_NAME = "judge"  # under which the model is offered
MAX_FOLDER_BYTES = (
    107 - len("/") - 36
)  # of the temporary folder: vLLM names sockets there by UUIDs, and Linux allows 107 bytes
GRACE_SECONDS = 10.0  # that the server is given to end by itself
PROGRAM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
# What a model's generation_config.json says of these would be applied to requests that do not mention them: the policy was not trained so.
NEUTRAL = {"repetition_penalty": 1.0, "temperature": 1.0, "top_p": 1.0, "top_k": 0}


ROOT = Path(__file__).parent.parent.parent  # where the server's process finds the middleware


class ServerFailed(UserError):
    """The server ended before it served; the message holds the end of its log."""


class ModelServer:
    """Serves a folder on the loopback interface for as long as the context lasts, and no longer than this process."""

    def __init__(
        self, folder: Path, log: Path, *, use_gpu: bool, port: int | None = None, max_model_len: int | None = None
    ) -> None:
        """Prepares.

        Args:
            folder: of the model, as `export` writes it.
            log: file for the server's output.
            port: by default a free one.
            max_model_len: tokens of a session at most; by default the model's own limit.
        """
        self.folder, self.log = folder, log
        self.port = port or own_server.free_port()
        self._token = secrets.token_hex(16)
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._environment = {**os.environ, **engine_environment(use_gpu), "PYTHONPATH": paths}
        self._environment[own_server.VARIABLE] = self._token
        self._arguments = [] if max_model_len is None else ["--max-model-len", str(max_model_len)]
        if not use_gpu:
            self._arguments += ["--enforce-eager", "--kv-cache-memory-bytes", str(2**30)]
        self._process: subprocess.Popen | None = None

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return f"{self._url}/v1"

    @property
    def _url(self) -> str:
        return f"http://{own_server.LOOPBACK}:{self.port}"

    def __enter__(self) -> "ModelServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, timeout_seconds: float = 300.0) -> None:
        """Start the server and return when it serves.

        Raises:
            PortTaken: If another program listens on the port.
            ServerFailed: If the server ended, or did not serve in time.
        """
        own_server.require_free_port(own_server.LOOPBACK, self.port)
        if len(os.fsencode(tempfile.gettempdir())) > MAX_FOLDER_BYTES:
            raise ServerFailed(
                f"vLLM's sockets lie in {tempfile.gettempdir()}, whose path is too long for a socket's name: "
                "set TMPDIR to a folder with a short path on a local disk, such as /tmp"
            )
        command = [*PROGRAM, "--model", str(self.folder), "--served-model-name", SERVED_NAME]
        command += [
            "--host",
            own_server.LOOPBACK,
            "--port",
            str(self.port),
            "--middleware",
            "arm_rl.core.own_server.HealthToken",
            "--enable-auto-tool-choice",
            "--tool-call-parser",
            "hermes",
        ]
        command += ["--override-generation-config", json.dumps(NEUTRAL)]
        with self.log.open("w") as output:
            self._process = subprocess.Popen(
                tie_group_to_owner([*command, *self._arguments], GRACE_SECONDS),
                stdin=subprocess.PIPE,  # held as long as this process lives
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        try:
            self._wait(self._process, time.monotonic() + timeout_seconds)
        except BaseException:  # Ctrl-C too: the server has a session of its own and would stay behind
            self.close()
            raise

    def close(self) -> None:
        """Ends the server and every process that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(GRACE_SECONDS)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        assert process.stdin is not None
        process.stdin.close()

    def _wait(self, process: subprocess.Popen, limit: float) -> None:
        while not self._healthy():
            if process.poll() is not None or time.monotonic() > limit:
                raise ServerFailed(f"the server did not start ({self.log}):\n{self.log.read_text()[-2000:]}")
            time.sleep(0.2)

    def _healthy(self) -> bool:
        return own_server.is_healthy(self._url, self._token)
