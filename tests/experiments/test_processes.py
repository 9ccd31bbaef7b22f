"""The processes below another one: found through those between, with their commands and their time; ended ones are not."""

import os
import subprocess
import sys

from arm_rl.experiments.processes import find_descendants, is_alive

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "sum(range(10_000_000)); print(1, flush=True); input()", "the child"])
child.wait()
"""


def test_descendants_are_found_with_their_commands_and_their_time():
    command = [sys.executable, "-c", PARENT, "the parent"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        found = {
            one.command.rpartition(" the ")[2]: one for one in find_descendants(os.getpid()) if " the " in one.command
        }
        assert found.keys() == {"parent", "child"}
        assert found["parent"].pid == process.pid
        assert found["child"].cpu_seconds > 0
        assert [one.pid for one in find_descendants(process.pid)] == [found["child"].pid]
        assert is_alive(found["child"].pid)
        process.communicate("\n")
    assert not is_alive(found["child"].pid)
    assert find_descendants(process.pid) == []


def test_a_zombie_is_neither_alive_nor_below():
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its exit status stays
    assert not is_alive(process.pid)
    assert process.pid not in {one.pid for one in find_descendants(os.getpid())}
    assert process.wait() == 0
