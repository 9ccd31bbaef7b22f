"""Processes end with their owners; what a launcher runs gets its arguments, and its exit status comes back."""

import signal
import subprocess
import sys
import time

import pytest

from arm_rl.core.owner import tie_group_to_owner, tie_to_parent
from arm_rl.experiments.processes import is_alive

WATCHING = """
import sys, time
from arm_rl.core.owner import die_with
die_with(int(sys.argv[1]))
print("watching", flush=True)
time.sleep(float(sys.argv[2]))
"""
SHOWS = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", "a b", ""]


def watching(owner, seconds=600.0):
    return subprocess.Popen([sys.executable, "-c", WATCHING, str(owner), str(seconds)], stdout=subprocess.PIPE)


@pytest.fixture
def owner():
    """A process that is no parent of those that watch it."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_process_dies_with_one_that_is_not_its_parent(owner):
    with watching(owner.pid) as process:
        assert process.stdout.readline() == b"watching\n"
        time.sleep(0.1)
        assert process.poll() is None
        owner.kill()
        assert process.wait(20) == -signal.SIGKILL


def test_a_process_dies_at_once_where_its_owner_has_ended(owner):
    owner.kill()
    owner.wait()
    with watching(owner.pid) as process:
        assert process.wait(20) == -signal.SIGKILL


def test_a_process_does_not_watch_itself():
    program = WATCHING.replace("int(sys.argv[1])", "__import__('os').getpid()")
    assert subprocess.run([sys.executable, "-c", program, "0", "0.1"], capture_output=True).returncode == 0


@pytest.mark.parametrize("launch", [tie_to_parent, lambda command: tie_group_to_owner(command, 1.0)])
def test_a_launcher_passes_arguments_and_the_exit_status(launch, tmp_path):
    (tmp_path / "types.py").write_text("raise SystemExit('imported from the current folder')")
    command = launch(SHOWS)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout.read() == "['a b', '']\n"
        assert process.wait(20) == 3


def test_a_command_that_cannot_run_is_named():
    finished = subprocess.run(tie_to_parent(["/no/such/program"]), capture_output=True, text=True)
    assert (finished.stderr, finished.returncode) == ("/no/such/program: No such file or directory\n", 1)


def test_a_command_that_starts_too_late_ends_at_once():
    """Its owner has ended: the id is that of another process."""
    command = tie_to_parent(["sleep", "600"])
    command[4] = "1"
    assert subprocess.run(command).returncode == 1


GROUP = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def test_a_group_ends_when_its_standard_input_is_closed():
    """The command ignores SIGTERM, so that it gets SIGKILL; this process is in another group and lives on."""
    command = tie_group_to_owner([sys.executable, "-c", GROUP], 0.5)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as launcher:
        processes = [launcher.pid, *map(int, launcher.stdout.readline().split())]
        assert all(is_alive(process) for process in processes)
        launcher.stdin.close()
        assert launcher.wait(20) == -signal.SIGKILL
    until = time.monotonic() + 20
    while any(is_alive(process) for process in processes):
        assert time.monotonic() < until
        time.sleep(0.02)
