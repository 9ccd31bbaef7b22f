"""The Python executor: what it answers, what it keeps, and that no hostile program gets out, stays behind or takes the tool with it."""

import contextlib
import copy
import dataclasses
import json
import os
import pickle
import platform
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from arm_rl.core.errors import UserError
from tests.tools.python.hostile_programs import PREAMBLE, PROGRAMS
from tools.base import ToolContext
from tools.python import sandbox, seccomp
from tools.python.executor import PythonExecutorTool, escape_control_characters, shorten
from tools.python.sandbox_command import SandboxError

needs_isolation = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
SMALL = {"memory_mb": 256, "tmp_mb": 16, "cpu_seconds": 4, "output_kb": 256, "max_timeout_seconds": 60, "packages": ()}


def context(session=""):
    return ToolContext(session=session, images={}, texts={}, image_names=[])


def run(tool, code, session="", **arguments):
    """Status and text of a call."""
    result = tool.call({"code": code, **arguments}, context(session))
    assert result.images == ()
    return result.status, result.text


@pytest.fixture
def make():
    """Makes tools, and closes them."""
    made = []

    def make(**config):
        made.append(PythonExecutorTool(**{**SMALL, **config}))
        return made[-1]

    yield make
    for tool in made:
        tool.close()


@pytest.fixture(scope="module")
def tool():
    tool = PythonExecutorTool(**SMALL)
    yield tool
    tool.close()


def marked(tool):
    """The tool, and what only its sandboxes' command lines contain."""
    mark = uuid.uuid4().hex
    tool = copy.copy(tool)
    tool._plan = dataclasses.replace(tool._plan, settings={**tool._plan.settings, "mark": mark})
    tool._pool = None
    return tool, mark


def processes(mark):
    """Return the processes of a tool's sandboxes, bubblewrap's included."""
    # A zombie has no command line.
    return [one for one in psutil.process_iter(["cmdline"]) if mark in " ".join(one.info["cmdline"] or ())]


def gone(mark):
    """Whether the processes have ended, or end soon."""
    return psutil.wait_procs(processes(mark), timeout=20)[1] == []


# What a program gets


@needs_isolation
@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("print(1 + 1)", "ok", "2"),
        ("x = 3\nx * 2", "ok", "6"),
        ("print('a')\n'b'", "ok", "a\n'b'"),
        ("x = 1", "ok", "(no output)"),
        ("None", "ok", "(no output)"),
        ("", "ok", "(no output)"),
        ("import sys\nprint('out')\nprint('err', file=sys.stderr)", "ok", "out\nerr"),
        ("print('no newline', end='')", "ok", "no newline"),
        ("exit()", "ok", "(no output)"),
        ("raise SystemExit(0)", "ok", "(no output)"),
        ("def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nf(15)", "ok", "610"),
        ("if __name__ == '__main__':\n    print(__name__)", "ok", "__main__"),
        ("from __future__ import annotations\ndef f(x: Nowhere): pass\nf.__annotations__", "ok", "{'x': 'Nowhere'}"),
        ("from dataclasses import dataclass\n@dataclass\nclass A:\n    b: int\nA(1)", "ok", "A(b=1)"),
        ("import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A", "ok", "True"),
        ("print('é中🙂')", "ok", "é中🙂"),
        ("import zoneinfo, sqlite3, ssl, decimal, lzma, bz2, ctypes\n'all'", "ok", "'all'"),
        ("import asyncio\nasync def f(): return 5\nasyncio.run(f())", "ok", "5"),
        (
            "from multiprocessing import Pool\ndef f(x): return x * x\nwith Pool(2) as p: print(p.map(f, range(4)))",
            "ok",
            "[0, 1, 4, 9]",
        ),
        ("open('/tmp/a', 'w').write('x')\nopen('a').read()", "ok", "'x'"),
        ("print('before')\n1 / 0", "failed", "ZeroDivisionError: division by zero"),
        ("x = (", "failed", "SyntaxError: '(' was never closed"),
        ("'\x00'", "failed", "SyntaxError: source code string cannot contain null bytes"),
        ("import sys; sys.exit('why')", "failed", "SystemExit: why"),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('second') from e",
            "failed",
            "ValueError: second",
        ),
    ],
)
def test_what_a_program_gets(tool, code, status, text):
    answered = run(tool, code)
    assert answered[0] == status
    assert answered[1] == text if status == "ok" else answered[1].endswith(text)


@needs_isolation
def test_a_traceback_shows_the_program_and_nothing_else(tool):
    text = run(tool, "def f():\n    return 1 / 0\n\nprint('before')\nf()")[1]
    assert text.startswith("before\nTraceback (most recent call last):\n")
    assert 'File "<program>", line 5, in <module>\n    f()' in text
    assert 'File "<program>", line 2, in f\n    return 1 / 0' in text
    assert "guest" not in text


@needs_isolation
def test_a_long_output_loses_its_middle(make):
    tool = make(max_characters=200)
    status, text = run(tool, "print('start', 'x' * 5000, 'end')")
    assert status == "ok"
    assert text.startswith("start x")
    assert text.endswith("x end")
    assert "... 4810 characters left out ..." in text
    assert run(tool, "print('x' * 5000)\n1 / 0")[1].endswith("division by zero")


def test_shortened_keeps_what_fits():
    assert shorten("x" * 10, 10) == "x" * 10
    assert shorten("abcdefghij" * 2, 10) == "abcde\n... 10 characters left out ...\nfghij"


def test_printable_shows_what_cannot_be_seen():
    assert escape_control_characters("a\tb\r\nc\rd") == "a\tb\nc\nd"
    assert escape_control_characters("\x1b[2J\x00\x9b\u2028") == "\\u001b[2J\\u0000\\u009b\\u2028"
    assert escape_control_characters("\nkept é\n") == "kept é"


@needs_isolation
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"code": "1", "timeout": 0}, "timeout"),
        ({"code": "1", "timeout": -1}, "timeout"),
        ({"code": "1", "timeout": float("nan")}, "timeout"),
        ({"code": "1", "timeout": "5"}, "timeout: '5' is not"),
        ({"code": 1}, "code: 1 is not of type 'string'"),
        ({}, "'code' is a required property"),
        ({"code": "1", "language": "c"}, "'language' was unexpected"),
        ({"code": "#" * 100_001}, "code: at most 100000 characters, not 100001"),
    ],
)
def test_arguments_that_cannot_be_used(tool, arguments, text):
    result = tool.call(arguments, context())
    assert result.status == "bad_arguments"
    assert text in result.text


@needs_isolation
def test_the_time_limit_is_the_programs_choice_up_to_the_maximum(make):
    tool = make(timeout_seconds=1, max_timeout_seconds=1.5)
    sleep = "import time\nprint('before')\ntime.sleep(600)"
    assert run(tool, sleep) == ("timeout", "before\nError: stopped after 1 seconds.")
    assert run(tool, sleep, timeout=0.5) == ("timeout", "before\nError: stopped after 0.5 seconds.")
    assert run(tool, sleep, timeout=1e308) == ("timeout", "before\nError: stopped after 1.5 seconds.")
    assert tool.execution.isolation == "thread"
    assert tool.execution.timeout_seconds > 1.5 + sandbox.START_SECONDS + sandbox.GRACE_SECONDS


@needs_isolation
def test_packages_are_those_named_and_what_they_require(make):
    tool = make(packages=["scikit-learn"], memory_mb=1024)
    assert run(tool, "import sklearn.linear_model, numpy, scipy.stats, joblib\nsklearn.__name__", timeout=60) == (
        "ok",
        "'sklearn'",
    )
    assert run(tool, "import sympy")[1].endswith("ModuleNotFoundError: No module named 'sympy'")
    assert run(make(), "import numpy")[1].endswith("No module named 'numpy'")


@needs_isolation
def test_the_judge_is_told_what_there_is(make):
    function = make(packages=["numpy"], timeout_seconds=7).schema["function"]
    assert "there are numpy." in function["description"]
    assert "Every call starts afresh." in function["description"]
    assert "7 where nothing is said, 60 at most" in function["parameters"]["properties"]["timeout"]["description"]
    assert "Variables are kept" in make(keep_state=True).schema["function"]["description"]
    assert "numpy" not in PythonExecutorTool.schema["function"]["description"], "the class stays as it was"


@needs_isolation
def test_a_prestarted_sandbox_serves_one_program(make):
    tool, mark = marked(make(prestarted=2))
    for number in range(5):
        assert (
            run(tool, "import os\nprint(os.listdir('/tmp'), 'x' in globals())\nx = open('/tmp/x', 'w')")[1]
            == "[] False"
        ), number
    killed = processes(mark)
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):  # it went with another one
            process.kill()
    psutil.wait_procs(killed, timeout=20)
    assert run(tool, "6 * 7") == ("ok", "42"), "sandboxes that died while they stood ready are replaced"
    tool.close()
    assert gone(mark)


# Sessions


@needs_isolation
def test_a_session_keeps_its_variables_and_its_files(make):
    tool = make(keep_state=True)
    assert tool.stateful
    assert run(tool, "x = 41\nopen('/tmp/f', 'w').write('mine')", "a")[0] == "ok"
    assert run(tool, "x + 1, open('/tmp/f').read()", "a") == ("ok", "(42, 'mine')")
    assert run(tool, "1 / 0", "a")[0] == "failed"
    assert run(tool, "x", "a") == ("ok", "41"), "an exception loses nothing"
    assert "NameError" in run(tool, "x", "b")[1]
    assert "NameError" in run(tool, "x", "")[1], "no session, no state"
    tool.release("a")
    tool.release("nobody")
    assert "NameError" in run(tool, "x", "a")[1]


@needs_isolation
def test_without_keep_state_nothing_is_kept(tool):
    assert not tool.stateful
    run(tool, "x = 1", "a")
    assert "NameError" in run(tool, "x", "a")[1]


@needs_isolation
def test_a_lost_session_is_told(make):
    tool = make(keep_state=True)
    run(tool, "x = 1", "a")
    assert run(tool, "while True: pass", "a", timeout=0.5) == (
        "timeout",
        "Error: stopped after 0.5 seconds.\nThe variables are lost.",
    )
    assert "NameError" in run(tool, "x", "a")[1]
    status, text = run(tool, "import os; os._exit(0)", "a")
    assert (status, text) == ("failed", "Error: the interpreter ended with exit code 0.\nThe variables are lost.")


@needs_isolation
def test_the_longest_idle_session_makes_place(make):
    tool = make(keep_state=True, max_sessions=2)
    for session in "abac":  # b is idle for longest
        run(tool, f"x = {session!r}", session)
    assert run(tool, "x", "a") == ("ok", "'a'")
    assert run(tool, "x", "c") == ("ok", "'c'")
    status, text = run(tool, "x", "b")
    assert status == "failed"
    assert text.startswith("Note: the earlier variables are lost: the session was idle for too long.\n")
    assert "NameError" in text
    assert not run(tool, "1", "b")[1].startswith("Note")
    assert tool.execution.concurrency == 2


@needs_isolation
def test_more_busy_sessions_than_places(make):
    tool = make(keep_state=True, max_sessions=1)
    run(tool, "1", "a")
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(run, tool, "import time\ntime.sleep(600)", "a", timeout=5)
        while not tool._pool._sessions["a"].lock.locked():
            time.sleep(0.01)
        assert run(tool, "1", "b") == ("failed", "Error: all 1 sessions that may keep variables are busy; try again")
        tool.release("a")  # ends it in the middle of its program
        assert busy.result()[1].startswith("Error: the sandbox ended.")
    assert run(tool, "1", "b") == ("ok", "1")


@needs_isolation
def test_what_a_program_started_ends_with_it_and_the_variables_stay(make):
    tool, mark = marked(make(keep_state=True))
    run(
        tool,
        "import os, threading, time\nn = 0\ndef count():\n    global n\n    while True: n += 1; time.sleep(0.001)",
        "a",
    )
    run(tool, "threading.Thread(target=count, daemon=True).start()\nif os.fork() == 0: time.sleep(1000)", "a")
    assert len(processes(mark)) == 3, "bubblewrap, the init and the worker"
    before = int(run(tool, "n", "a")[1])
    time.sleep(0.3)
    assert int(run(tool, "n", "a")[1]) < before + 100, "between calls, its threads stand still"
    tool.close()
    assert gone(mark)


@needs_isolation
def test_a_forged_end_reaches_no_other_call(make):
    tool = make(keep_state=True)
    forge = "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'ooooo')\n    except OSError: pass\n1 / 0"
    run(tool, forge, "a")
    assert run(tool, "print(5)", "b") == ("ok", "5")
    status, text = run(tool, "raise ValueError('own')", "b")
    assert status == "failed"
    assert "own" in text


@needs_isolation
def test_calls_in_parallel_do_not_mix(make):
    tool = make(keep_state=True, prestarted=2)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda name: run(tool, f"x = {name!r}", name), "abcdef"))
        assert list(threads.map(lambda name: run(tool, "x", name)[1], "abcdef")) == [repr(name) for name in "abcdef"]
        fresh = threads.map(lambda number: run(tool, f"print({number}, 'x' in globals())")[1], range(12))
        assert list(fresh) == [f"{number} False" for number in range(12)]


# Its end


@needs_isolation
def test_it_pickles_before_its_first_call(make):
    tool = pickle.loads(pickle.dumps(make()))
    assert run(tool, "6 * 7") == ("ok", "42")
    tool.close()
    tool.close()


HOLDER = """
import sys, threading
from tests.tools.python.test_executor import SMALL, marked, run
from tools.python.executor import PythonExecutorTool
tool, mark = marked(PythonExecutorTool(**SMALL, keep_state=True, prestarted=1))
def start():
    run(tool, "x = 1", "a")
    threading.Thread(target=run, args=(tool, "while True: pass", "b"), kwargs={"timeout": 60}, daemon=True).start()
thread = threading.Thread(target=start)
thread.start()
thread.join()
assert run(tool, "x", "a") == ("ok", "1"), "a sandbox outlives the thread that asked for it"
sys.stdout.write(mark + "\\n")
sys.stdout.flush()
sys.stdin.read()
"""


@needs_isolation
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None], ids=["killed", "terminated", "exits"])
def test_sandboxes_end_with_the_process_that_made_them(how):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    mark = holder.stdout.readline().strip()
    assert len(mark) == 32
    give_up = time.monotonic() + 20
    while len(processes(mark)) < 6:  # two sandboxes; the second may still be starting
        assert time.monotonic() < give_up
        time.sleep(0.01)
    if how is None:
        holder.stdin.close()
    else:
        holder.send_signal(how)
    holder.wait(30)
    assert gone(mark)


@needs_isolation
def test_a_sandbox_whose_bubblewrap_is_killed_ends(make):
    tool, mark = marked(make(keep_state=True))
    run(tool, "x = 1", "a")
    psutil.Process(tool._pool._sessions["a"].sandbox.pid).kill()
    assert gone(mark)
    status, text = run(tool, "x", "a")
    assert text.startswith("Note: the earlier variables are lost: the sandbox ended.\n")
    assert status == "failed"
    tool.close()


@needs_isolation
def test_an_init_that_does_not_answer_does_not_hang_the_call(make, monkeypatch):
    monkeypatch.setattr(sandbox, "START_SECONDS", 0.5)
    monkeypatch.setattr(sandbox, "GRACE_SECONDS", 0.5)
    tool, mark = marked(make(keep_state=True))
    run(tool, "x = 1", "a")
    bubblewrap = psutil.Process(tool._pool._sessions["a"].sandbox.pid)
    bubblewrap.children()[0].suspend()
    assert run(tool, "x", "a", timeout=0.1) == ("failed", "Error: the sandbox ended.\nThe variables are lost.")
    assert gone(mark)
    tool.close()


# Where programs cannot be isolated


def test_it_refuses_without_bubblewrap(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    sandbox._find_plan.cache_clear()
    with pytest.raises(SandboxError, match=r"needs bubblewrap.*apt-get install bubblewrap"):
        PythonExecutorTool()


@pytest.mark.parametrize(
    "script", ["echo 'No permissions to create new namespace' >&2; exit 1", "exit 0", "exec sleep 60"]
)
def test_it_refuses_where_bubblewrap_may_not_isolate(monkeypatch, tmp_path, script):
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(fake))
    monkeypatch.setattr(sandbox, "START_SECONDS", 0.5)
    monkeypatch.setattr(sandbox, "GRACE_SECONDS", 0.5)
    sandbox._find_plan.cache_clear()
    with pytest.raises(SandboxError, match=r"cannot be isolated.*sysctl") as refused:
        PythonExecutorTool()
    assert "echo" not in script or "No permissions to create new namespace" in str(refused.value)
    sandbox._find_plan.cache_clear()


def test_it_refuses_where_processes_cannot_be_counted(monkeypatch):
    monkeypatch.setattr(sandbox, "_may_take_own_ids", lambda: False)
    monkeypatch.setattr(sandbox, "_kernel_release", lambda: (5, 13))
    sandbox._find_plan.cache_clear()
    with pytest.raises(SandboxError, match="before Linux 5.14"):
        PythonExecutorTool()


def test_an_architecture_whose_calls_are_not_known():
    with pytest.raises(UserError, match="x86_64 and aarch64, not of riscv64"):
        seccomp.build_filter("riscv64")


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_the_filter_fits_what_the_kernel_takes(machine):
    assert len(seccomp.build_filter(machine)) % 8 == 0
    assert len(seccomp.build_filter(machine)) // 8 < 4096
    column = seccomp.ARCHITECTURES[machine][0]
    numbers = [both[column] for both in seccomp.REFUSED.values()]
    assert len(set(numbers)) == len(numbers)


@needs_isolation
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"memory_mb": 1}, "memory_mb: at least 64, not 1"),
        ({"memory_mb": "1 GB"}, "memory_mb: a whole number is needed, not '1 GB'"),
        ({"num_processes": 2.5}, "num_processes: a whole number is needed"),
        ({"timeout_seconds": 0}, "timeout_seconds: at least 0.1, not 0"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds: at least"),
        ({"timeout_seconds": 60, "max_timeout_seconds": 30}, "max_timeout_seconds: at least 60, not 30"),
        ({"prestarted": True}, "prestarted: a whole number is needed, not True"),
        ({"packages": "numpy"}, "packages: a list of names is needed, not 'numpy'"),
        ({"packages": ["no-such-package"]}, "packages: 'no-such-package' is not installed here"),
        ({"preload": ["no_such_module"], "packages": []}, "No module named 'no_such_module'"),
    ],
)
def test_a_wrong_setting_is_named(config, message):
    with pytest.raises(UserError, match=message):
        PythonExecutorTool(**config)


# The hostile programs

MODES = ["fresh", "kept"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A secret file, a secret variable and servers on this machine; gives the values of the programs' @NAMES@ and the secret."""
    secret, abstract = f"SECRET{uuid.uuid4().hex}", uuid.uuid4().hex
    folder = tmp_path_factory.mktemp("planted")
    (folder / "secret.txt").write_text(secret)
    os.environ["ARM_RL_PLANTED"] = secret
    servers = [socket.create_server(("127.0.0.1", 0)), *(socket.socket(socket.AF_UNIX) for _ in range(2))]
    servers[1].bind(f"\0{abstract}")
    servers[2].bind(str(folder / "s"))
    for server in servers[1:]:
        server.listen()
    column = seccomp.ARCHITECTURES[platform.machine()][0]
    refused = {name: numbers[column] for name, numbers in seccomp.REFUSED.items()}
    values = {
        "FILE": str(folder / "secret.txt"),
        "VARIABLE": "ARM_RL_PLANTED",
        "PORT": str(servers[0].getsockname()[1]),
        "ABSTRACT": abstract,
        "UNIX": str(folder / "s"),
        "REFUSED": json.dumps(refused),
        "shmget": str(refused["shmget"]),
        "inotify": str(refused["inotify_init1"]),
        "syslog": str(refused["syslog"]),
        "clone": str(seccomp.CLONE[column]),
        "clone3": str(seccomp.CLONE3[column]),
    }
    yield values, secret
    del os.environ["ARM_RL_PLANTED"]
    for server in servers:
        server.close()


def attacked(tool, hostile, values, session):
    """What a hostile program got, how long it took, what is left of it, and what the session's next program gets."""
    program = PREAMBLE + textwrap.dedent(hostile.program)
    for name, value in values.items():
        program = program.replace(f"@{name}@", value)
    tool, mark = marked(tool)
    try:
        started = time.monotonic()
        result = run(tool, program, session, timeout=hostile.timeout)
        seconds = time.monotonic() - started
        following = run(tool, "print(6 * 7)", session, timeout=1) if session else ("ok", "")
        tool.release(session)
        return result, seconds, not gone(mark), following
    finally:
        tool.close()


@pytest.fixture(scope="module")
def answers(planted):
    """The results of all hostile programs in each mode, of several at a time."""
    fresh, kept = PythonExecutorTool(**SMALL), PythonExecutorTool(**SMALL, keep_state=True)
    with ThreadPoolExecutor(8) as threads:
        futures = {
            (mode, hostile.name): threads.submit(attacked, tool, hostile, planted[0], session)
            for mode, tool, session in zip(MODES, (fresh, kept), ("", "s"), strict=True)
            for hostile in PROGRAMS
        }
        return {key: future.result() for key, future in futures.items()}


@needs_isolation
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hostile", PROGRAMS, ids=lambda hostile: hostile.name)
def test_a_hostile_program_is_contained(answers, planted, hostile, mode):
    (status, text), seconds, left, following = answers[mode, hostile.name]
    assert status in hostile.status.split("|"), text
    assert hostile.says in text
    assert "ESCAPED" not in text
    assert planted[1] not in text
    assert len(text) < 5000
    assert seconds < hostile.timeout + sandbox.START_SECONDS + 4 * sandbox.GRACE_SECONDS
    assert not left, "a process outlived the call"
    assert following[0] in ("ok", "failed", "timeout"), (
        "it may have spoilt its own session; it is answered all the same"
    )
    assert planted[1] not in following[1]


@needs_isolation
def test_what_waits_in_pipes_counts_as_memory():
    """A thousand full pipes hold 64 MB that no process has."""
    tool = PythonExecutorTool(**{**SMALL, "memory_mb": 64, "open_files": 2100})
    fill = "import os, time\nfor _ in range(1000):\n    os.write(os.pipe()[1], bytes(1 << 16))\n"
    try:
        status, text = run(tool, fill + "time.sleep(3)", timeout=30)
    finally:
        tool.close()
    assert (status, "MB of memory" in text) == ("failed", True), text


@needs_isolation
def test_the_machine_keeps_its_memory():
    """A server and thousands of clients that fill its buffers and leave: the machine's available memory is measured."""
    tool = PythonExecutorTool(**{**SMALL, "cpu_seconds": 20})
    attack = """
        import socket, time
        server = socket.socket(socket.AF_UNIX)
        server.bind("/tmp/s")
        server.listen(4096)
        for _ in range(3000):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            try:
                client.connect("/tmp/s")
                while True: client.send(bytes(1 << 16))
            except BlockingIOError: pass
            client.close()
        time.sleep(3)
    """
    before = psutil.virtual_memory().available
    lowest = [before]
    ended = threading.Event()

    def measure():
        while not ended.wait(0.02):
            lowest.append(psutil.virtual_memory().available)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(measure)
        try:
            status, text = run(tool, textwrap.dedent(attack), timeout=20)
        finally:
            ended.set()
            tool.close()
    assert (status, "PermissionError" in text) == ("failed", True), text
    assert before - min(lowest) < 1 << 30, "other processes of the machine may take some meanwhile"


def test_the_table_is_what_it_says():
    assert len({hostile.name for hostile in PROGRAMS}) == len(PROGRAMS) >= 60
    assert threading.active_count() < 200
