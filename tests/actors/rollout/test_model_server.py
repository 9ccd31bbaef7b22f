"""The server's process: it ends with its context, however that ends. The program is a stand-in; the real one is tested as a whole run."""

import os
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from actors.rollout import model_server
from actors.rollout.model_server import ModelServer, ServerFailed
from arm_rl.core import own_server
from arm_rl.core.own_server import PortTaken
from tests.support.http_server import LoopbackServer, send

HEALTHY = """#!{python}
import http.server, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("X-Server-Token", os.environ["ARM_RL_SERVER_TOKEN"])
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
DYING = "#!/bin/sh\necho the weights are gone >&2\nexit 3\n"
STUBBORN = "#!/bin/sh\ntrap '' TERM\nwhile true; do sleep 0.1; done\n"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server whose program is the given script."""

    def server(script):
        program = tmp_path / "program"
        program.write_text(script.format(python=sys.executable) if "{python}" in script else script)
        program.chmod(0o755)
        monkeypatch.setattr(model_server, "PROGRAM", (str(program),))
        return ModelServer(tmp_path / "model", tmp_path / "server.log", use_gpu=False)

    return server


def alive(group):
    """Whether a process of the group still runs; one that has ended may wait for its parent."""
    limit = time.monotonic() + 30  # a killed process ends a moment later
    while found := running(group):
        if time.monotonic() > limit:
            return found
        time.sleep(0.05)
    return []


def _runs(process, group):
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_it_serves_for_as_long_as_the_context_lasts(server):
    with server(HEALTHY) as running:
        assert httpx.get(running.base_url.removesuffix("/v1") + "/health").status_code == 200
        process = running._process.pid
    assert not alive(process)
    running.close()


OWNER = """
import sys, time
from pathlib import Path
from actors.rollout import model_server
model_server.PROGRAM = (sys.argv[1],)
server = model_server.ModelServer(Path("model"), Path(sys.argv[2]), use_gpu=False)
server.start()
print(server._process.pid, flush=True)
time.sleep(600)
"""


DEAF = HEALTHY.replace("import http", "import signal; signal.signal(15, signal.SIG_IGN)\nimport http", 1)


@pytest.mark.parametrize("program", [HEALTHY, DEAF])
def test_it_ends_with_its_owner(tmp_path, server, program, monkeypatch):
    """Killed hard, it closes nothing; a server that does not listen is killed as well."""
    server(program)
    owner_text = OWNER.replace("server = ", "model_server.GRACE_SECONDS = 0.5\nserver = ")
    command = [sys.executable, "-c", owner_text, str(tmp_path / "program"), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        group = int(owner.stdout.readline())
        assert running(group)
        owner.kill()
    assert not alive(group)


def running(group):
    return [process for process in psutil.process_iter() if _runs(process, group)]


def test_it_ends_with_an_error_inside(server):
    seen = []

    def use():
        with server(HEALTHY) as running:
            seen.append(running._process.pid)
            raise RuntimeError("of its user")

    with pytest.raises(RuntimeError, match="of its user"):
        use()
    assert not alive(seen[0])


def test_one_that_dies_says_why(server):
    with pytest.raises(ServerFailed, match=r"did not start .*server.log(.|\n)*the weights are gone"):
        server(DYING).start()


def test_one_that_never_serves_is_ended(server):
    stuck = server("#!/bin/sh\nsleep 60\n")
    with pytest.raises(ServerFailed, match="did not start"):
        stuck.start(timeout_seconds=0.5)
    assert stuck._process is None


def test_ctrl_c_while_it_starts_leaves_nothing_behind(server, monkeypatch):
    starting = server("#!/bin/sh\nsleep 60\n")
    seen = []

    def interrupted():
        seen.append(starting._process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(starting, "_healthy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        starting.__enter__()
    assert len(seen) == 1
    assert not alive(seen[0])


def test_a_taken_port_is_an_error_before_anything_starts(server):
    with LoopbackServer(send) as other:
        started = server(HEALTHY)
        started.port = int(other.url.rpartition(":")[2])
        with pytest.raises(PortTaken, match=f"127.0.0.1:{started.port} cannot be listened on .*in use.*--port"):
            started.start()
    assert not started.log.exists()


def test_another_program_that_takes_the_port_meanwhile_is_not_taken_for_ours(server, monkeypatch):
    monkeypatch.setattr(own_server, "require_free_port", lambda host, port: None)
    started = server("#!/bin/sh\nsleep 60\n")
    with LoopbackServer(send) as other:
        started.port = int(other.url.rpartition(":")[2])
        with pytest.raises(PortTaken, match="answered by another program"):
            started.start()
    assert started._process is None


def test_it_is_reached_where_proxies_are_set(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    with server(HEALTHY) as running:
        assert running._healthy()


def test_one_that_does_not_listen_is_killed(server, monkeypatch):
    stubborn = server(STUBBORN)
    monkeypatch.setattr(stubborn, "_healthy", lambda: True)
    monkeypatch.setattr(model_server, "GRACE_SECONDS", 0.5)
    stubborn.start()
    process = stubborn._process.pid
    stubborn.close()
    assert not alive(process)


def test_a_temporary_folder_whose_path_is_too_long_for_sockets_is_refused(server, monkeypatch, tmp_path):
    monkeypatch.setattr(model_server.tempfile, "tempdir", "/" + "x" * 71)
    with pytest.raises(ServerFailed, match="set TMPDIR to a folder with a short path"):
        server(HEALTHY).start()
