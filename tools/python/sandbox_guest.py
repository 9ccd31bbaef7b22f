"""What runs inside a sandbox: an init, which guards, and under it a worker, which runs the programs. Knows nothing of the project.

The init is process 1 of the sandbox: nothing in there can kill, stop or trace it, and when it ends the kernel ends all others. It alone
holds the pipes to the outside. What a program prints is read by the init from a pipe; how a program ended, it learns from a byte in
another. A program may forge its own output and its own byte, and nothing else.
"""

import ast
import contextlib
import ctypes
import importlib
import json
import linecache
import os
import resource
import select
import signal
import struct
import sys
import time
import traceback
import types
from collections.abc import Iterator
from typing import Any, NoReturn

READY, OK, ERROR = b"r", b"o", b"e"
SAMPLE_SECONDS = 0.02  # between two looks at what the sandbox uses
INODE_BYTES = 1536  # of kernel memory, for each file in a tmpfs
SOCKET_BYTES = 256 << 10  # of kernel memory, at most, for what waits in one socket; programs cannot change it
PIPE_BYTES = 64 << 10  # the same for a pipe
FILE_SYSTEMS = ("/tmp", "/dev/shm")
ADDRESS_SPACE = 4 << 30  # beyond the memory limit: libraries, stacks and what is reserved but not used
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
CAPABILITY_VERSION = 0x20080522
LENGTH = struct.Struct("!I")


def main() -> None:
    """Gives up every right, starts the worker and serves requests until the other side closes the pipe."""
    settings = json.loads(sys.argv[1])
    prctl = ctypes.CDLL(None).prctl
    if settings["uid"] is not None:
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups([])
        os.setresgid(*[settings["uid"]] * 3)
        # so that bubblewrap, of user 0 and as powerless, may still end this process
        os.setresuid(settings["uid"], settings["uid"], 0)
        ctypes.CDLL(None).capset(struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24))
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user id has cleared it
    prctl(PR_SET_DUMPABLE, 0)  # /proc/1/mem, /proc/1/fd and the like are closed to programs of the same user
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as process 1, it gets no signal that it has no handler for
    Init(settings).serve()


class Init:
    """Takes requests, passes them to the worker, and ends everything when a limit is passed."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._requests, self._replies = os.dup(0), os.dup(1)
        nothing = os.open("/dev/null", os.O_RDWR)
        code_end, self._code = os.pipe()
        self._output, output_end = os.pipe()
        self._state, state_end = os.pipe()
        self._worker = os.fork()
        if self._worker == 0:
            for own in (self._requests, self._replies, self._code, self._output, self._state):
                os.close(own)
            Worker(settings, code_end, output_end, state_end).serve()
        for fd in (code_end, output_end, state_end):
            os.close(fd)
        if os.read(self._state, 1) != READY:  # no program has run yet: this byte is the worker's own
            os.write(2, self._drain(bytearray())[0] + b"\n")
            os._exit(1)
        for fd in (0, 1, 2):
            os.dup2(nothing, fd)
        for fd in (self._output, self._state, self._code):
            os.set_blocking(fd, False)
        self._mounted = [os.open(path, os.O_RDONLY) for path in FILE_SYSTEMS]

    def serve(self) -> NoReturn:
        """One request after the other. A reply after which the sandbox cannot go on is its last."""
        while True:
            (length,) = LENGTH.unpack(self._receive(LENGTH.size))
            request = json.loads(self._receive(length))
            end, output, code = self._run(request["code"].encode("utf-8", "backslashreplace"), request["timeout"])
            reply = json.dumps({"end": end, "output": output.decode("utf-8", "replace"), "code": code}).encode()
            with contextlib.suppress(BrokenPipeError):
                _write_all(self._replies, LENGTH.pack(len(reply)) + reply)

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = os.read(self._requests, count - len(data))
            if not chunk:
                os._exit(0)  # the other side is gone, and so is everything in here
            data += chunk
        return data

    def _run(self, source: bytes, timeout: float) -> tuple[str, bytes, int]:
        """Runs a program: how it ended, what it printed, and the exit code or signal (negative) where the worker died."""
        self._drain(bytearray())  # what came after the last program's end belongs to nobody
        with contextlib.suppress(BlockingIOError):
            os.read(self._state, 1 << 16)
        _send_signal(self._worker, signal.SIGCONT)
        deadline = time.monotonic() + timeout
        spent = sum(usage.cpu_seconds for usage in self._usages())
        end, output, code = self._watch(LENGTH.pack(len(source)) + source, deadline, spent)
        if end in ("ok", "error"):
            output, too_much = self._drain(output)
            end = "output" if too_much else end
        if end in ("ok", "error") and self._settings["keep"] and not self._kill_all_but_worker():
            end = "leftover"
        if end not in ("ok", "error") or not self._settings["keep"]:
            _send_signal(-1, signal.SIGKILL)
        return end, bytes(output[: self._settings["output_bytes"]]), code

    def _watch(self, unsent: bytes, deadline: float, spent: float) -> tuple[str, bytearray, int]:
        """Waits for the end of the program or for a limit."""
        poll = select.poll()
        for fd, events in (
            (self._requests, 0),
            (self._output, select.POLLIN),
            (self._state, select.POLLIN),
            (self._code, select.POLLOUT),
        ):
            poll.register(fd, events)
        output, next_sample = bytearray(), time.monotonic() + SAMPLE_SECONDS
        while True:
            ready = dict(poll.poll(SAMPLE_SECONDS * 1000))
            if self._requests in ready:
                os._exit(0)
            if self._output in ready:
                chunk = os.read(self._output, 1 << 16)
                output += chunk
                if not chunk:
                    poll.unregister(self._output)
            if len(output) > self._settings["output_bytes"]:
                return "output", output, 0
            if self._state in ready:
                state = os.read(self._state, 1)
                if state:
                    return "ok" if state == OK else "error", output, 0
                poll.unregister(self._state)
            if self._code in ready:
                with contextlib.suppress(BrokenPipeError):
                    unsent = unsent[os.write(self._code, unsent[: select.PIPE_BUF]) :]
                if not unsent or ready[self._code] & select.POLLERR:
                    poll.unregister(self._code)
            now = time.monotonic()
            if now >= deadline:
                return "timeout", output, 0
            if now >= next_sample:
                next_sample = now + SAMPLE_SECONDS
                code = self._reap()
                if code is not None:
                    return "exited", self._drain(output)[0], code
                if over := self._exceeded_limit(spent):
                    return over, output, 0

    def _drain(self, output: bytearray) -> tuple[bytearray, bool]:
        """Read what the pipe still holds; return the output, and whether it is more than the limit."""
        os.set_blocking(self._output, False)
        with contextlib.suppress(BlockingIOError):
            while len(output) <= self._settings["output_bytes"] and (chunk := os.read(self._output, 1 << 16)):
                output += chunk
        return output, len(output) > self._settings["output_bytes"]

    def _reap(self) -> int | None:
        """Buries orphans; the worker's exit code, or minus its signal, once it is dead."""
        code = None
        with contextlib.suppress(ChildProcessError):
            while (waited := os.waitpid(-1, os.WNOHANG))[0] != 0:
                if waited[0] == self._worker:
                    code = os.waitstatus_to_exitcode(waited[1])
        return code

    def _exceeded_limit(self, spent: float) -> str | None:
        """Return the name of the limit that the sandbox as a whole has exceeded, if any."""
        # Counted before anything is read about each: there may be very many.
        if sum(name.isdigit() for name in os.listdir("/proc")) - 1 > self._settings["processes"]:
            return "processes"
        usages = list(self._usages())
        files = sum(_tmpfs_bytes(fd) for fd in self._mounted) + _buffer_bytes([usage.pid for usage in usages])
        limit = self._settings["memory_bytes"]
        # Resident sizes count shared pages once for each process; the exact sum costs more, and is taken only where it matters.
        if (
            files + sum(usage.resident for usage in usages) > limit
            and files + sum(_proportional_bytes(usage) for usage in usages) > limit
        ):
            return "memory"
        if sum(usage.tasks for usage in usages) > self._settings["processes"]:
            return "processes"
        if sum(usage.cpu_seconds for usage in usages) - spent > self._settings["cpu_seconds"]:
            return "cpu"
        return None

    def _usages(self) -> Iterator["Usage"]:
        """What each process but this one uses."""
        for name in os.listdir("/proc"):
            if name.isdigit() and name != "1":
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    yield Usage(int(name))

    def _kill_all_but_worker(self) -> bool:
        """Stop the worker until its next program and kill whatever it started; return whether that succeeded."""
        _send_signal(self._worker, signal.SIGSTOP)
        for _ in range(200):
            others = [usage.pid for usage in self._usages() if usage.pid != self._worker and usage.state != b"Z"]
            if not others:
                return self._reap() is None
            for pid in others:
                _send_signal(pid, signal.SIGKILL)
            time.sleep(0.005)
        return False


def _send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Usage:
    """What one process uses, from /proc/PID/stat."""

    def __init__(self, pid: int) -> None:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # a process may call itself anything, brackets too
        self.pid, self.state = pid, fields[0]
        # its own and that of children it waited for
        self.cpu_seconds = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        self.tasks = int(fields[17])
        self.resident = int(fields[21]) * resource.getpagesize()


def _proportional_bytes(usage: Usage) -> int:
    """Return the bytes of a process, with shared pages divided among their users if the kernel reports that."""
    with contextlib.suppress(OSError), open(f"/proc/{usage.pid}/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return usage.resident


def _tmpfs_bytes(fd: int) -> int:
    status = os.fstatvfs(fd)
    return (status.f_blocks - status.f_bfree) * status.f_frsize + (status.f_files - status.f_ffree) * INODE_BYTES


def _buffer_bytes(pids: list[int]) -> int:
    """Return the most kernel memory that the sandbox's sockets and the pipes of these processes can hold.

    The kernel lists a namespace's sockets, those on their way in a message included; pipes are found by their open ends.
    """
    with open("/proc/net/unix", "rb") as file:
        sockets = sum(1 for _ in file) - 1  # without the heading
    pipes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    link = os.readlink(f"/proc/{pid}/fd/{name}")
                    if link.startswith("pipe:"):
                        pipes.add(link)
    return sockets * SOCKET_BYTES + len(pipes) * PIPE_BYTES


class Worker:
    """Runs programs in one namespace. A program may do to it what it likes: the init believes nothing it says but how the program ended."""

    def __init__(self, settings: dict[str, Any], code: int, output: int, state: int) -> None:
        self._settings, self._code, self._state = settings, code, state
        self._pid, self._count = os.getpid(), 0
        for target, source in ((0, os.open("/dev/null", os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(source, target)
        os.close(output)
        if settings["uid"] is not None:
            os.setresuid(*[settings["uid"]] * 3)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.nice(10)  # the init comes first, however many processes a program starts
        _set_limits(settings)

    def serve(self) -> NoReturn:
        """Tells that it is ready, then runs what it is given, until it is killed."""
        try:
            sys.path.append(self._settings["packages"])
            for name in self._settings["preload"]:
                importlib.import_module(name)
            for stream in (sys.stdout, sys.stderr):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
            module = sys.modules["__main__"] = types.ModuleType("__main__")
            os.write(self._state, READY)
            while True:
                (length,) = LENGTH.unpack(_read_all(self._code, LENGTH.size))
                succeeded = self._execute(_read_all(self._code, length).decode(), module.__dict__)
                if os.getpid() != self._pid:
                    os._exit(0)  # a child that the program forked, and that came to the program's end
                os.write(self._state, OK if succeeded else ERROR)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode()[:1000])
            os._exit(1)

    def _execute(self, source: str, namespace: dict[str, Any]) -> bool:
        """Runs a program and shows the value of its last expression, or the end of its traceback."""
        self._count += 1
        name = "<program>" if self._count == 1 else f"<program {self._count}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        try:
            tree: Any = compile(source, name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, name, "exec", dont_inherit=True), namespace)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
                if value is not None:
                    sys.stdout.write(f"{value!r}\n")
            self._flush()
            return True
        except SystemExit as error:
            self._flush()
            if error.code is None or error.code == 0:
                return True
            self._show(f"SystemExit: {error.code}")
        except BaseException as error:
            self._flush()
            self._show(_format_error(error, self._settings["traceback_bytes"]))
        return False

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()

    def _show(self, text: str) -> None:
        with contextlib.suppress(OSError):
            _write_all(1, (text[-self._settings["traceback_bytes"] :] + "\n").encode("utf-8", "backslashreplace"))


def _format_error(error: BaseException, limit: int) -> str:
    """Return the end of a traceback: the last frames of the program, without those of this file."""
    try:
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_filename == __file__:
            frame = frame.tb_next
        described = traceback.TracebackException(type(error), error, frame, limit=-6, compact=True)
        return "".join(described.format()).rstrip()[-limit:]
    except BaseException:  # a message that is too large, or a __str__ that raises
        return type(error).__name__


def _set_limits(settings: dict[str, Any]) -> None:
    """Set the limits of each process; the init watches the limits of the whole sandbox."""
    memory = settings["memory_bytes"]
    limits = {
        resource.RLIMIT_DATA: memory,  # a MemoryError in the program, before the init has to kill it
        resource.RLIMIT_AS: memory + ADDRESS_SPACE,  # page tables of what is mapped and only read count nowhere else
        resource.RLIMIT_FSIZE: settings["tmp_bytes"],
        # counted for the sandbox's own user, or in its own user namespace
        resource.RLIMIT_NPROC: settings["processes"],
        resource.RLIMIT_NOFILE: settings["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 256,
    }
    for name, limit in limits.items():
        hard = resource.getrlimit(name)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(name, (limit, limit))
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stack = 8 << 20 if stack == resource.RLIM_INFINITY else min(stack, 8 << 20)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))


def _read_all(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = os.read(fd, count - len(data))
        if not chunk:
            os._exit(0)
        data += chunk
    return data


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main()
