"""A Ray that does not start: one line that says what to do."""

import os
import subprocess
import sys

import pytest
import ray

from actors.cluster import connection
from actors.cluster.connection import ClusterError, cluster

PROGRAM = """
import sys
from actors.cluster.connection import cluster
from jobs.command_line import run_guarded

def start():
    with cluster():
        return "started"

sys.exit(run_guarded(start))
"""


def test_a_long_temporary_folder(tmp_path):
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    environment.pop("RAY_TMPDIR", None)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert str(folder) in line
    assert "set TMPDIR (or RAY_TMPDIR)" in line
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            "",
            Exception("The current node timed out during startup. This could happen"),
            "timed out .* same command again",
        ),
        (
            "10.0.0.1:6379",
            ConnectionError("no cluster at 10.0.0.1:6379\nmore"),
            r"RAY_ADDRESS\) cannot be used: no cluster",
        ),
    ],
)
def test_a_start_that_fails(no_ray, monkeypatch, address, error, message):
    def fail(**_):
        raise error

    monkeypatch.setattr(connection.ray, "init", fail)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=message) as raised, cluster():
        pytest.fail("it started")
    assert "\n" not in str(raised.value)
    assert not ray.is_initialized()
