"""The lock of a run's folder."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from arm_rl.core.config import ConfigError
from arm_rl.core.config_file import load
from arm_rl.core.stage_config import SftConfig
from arm_rl.run.lock import LOCK_FILE, locked
from arm_rl.training import sft

HOLDER = """
import sys, time
from pathlib import Path
from arm_rl.run.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_who_works_there_and_takes_over_from_a_dead_one(tmp_path, holder):
    with (
        pytest.raises(ConfigError, match=f"run: process {holder.pid} on {socket.gethostname()} works in this folder"),
        locked(tmp_path / "run"),
    ):
        pytest.fail("it works there too")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "run"):
        assert f'"pid": {os.getpid()}' in (tmp_path / "run" / LOCK_FILE).read_text()


def test_a_lock_that_nobody_has_described_yet_and_one_that_was_released(tmp_path):
    with locked(tmp_path), (tmp_path / LOCK_FILE).open("w"), pytest.raises(ConfigError, match="another process works"):
        locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path):
        pass
    assert "this file system has no locks (Function not implemented)" in caplog.text


async def test_training_in_a_folder_where_another_process_works_is_refused(tmp_path, monkeypatch):
    """Before anything of the folder is read or written."""
    config = load(SftConfig, "configs/demo_sft.yaml", ["model.path=m", f"run.root={tmp_path}"])
    monkeypatch.setattr(sft, "read_template", lambda config: None)
    monkeypatch.setattr(sft, "read_demonstrations", lambda *_, **__: [])
    monkeypatch.setattr(sft, "Batches", lambda *_: SimpleNamespace(num_steps=1))
    with locked(config.run.folder):
        with pytest.raises(ConfigError, match="works in this folder"):
            await sft.train_sft(config)
        assert [file.name for file in config.run.folder.iterdir()] == [LOCK_FILE]
