"""Programs that try to get out of the sandbox, to bring the machine down or to confuse who waits for them; and what must become of each.

A program that gets what it wants prints ESCAPED, by hand or through `attempt`. @NAMES@ are filled in by the test: a planted SECRET's file
and variable, servers of the host, system calls' numbers.
"""

from dataclasses import dataclass

PREAMBLE = """
import os, sys
def attempt(action, *arguments):
    try:
        result = action(*arguments)
    except Exception as error:
        print("refused:", type(error).__name__, error)
    else:
        print("ESCAPED", repr(result)[:200])
def call(number, *arguments):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *[a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments])
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


@dataclass(frozen=True, slots=True)
class Hostile:
    """A program, and what the tool must answer."""

    name: str
    program: str
    status: str = "ok"  # several, divided by |, where it depends on who wins a race
    says: str = ""  # a part of the text
    timeout: float = 20.0


# Too much of something.
GREEDY = [
    Hostile(
        "fork bomb",
        """
        while True:
            try: os.fork()
            except OSError: pass
        """,
        "failed|timeout",
        "Error: stopped",
        timeout=2,
    ),
    Hostile(
        "fork bomb of sleepers",
        """
        import time
        for _ in range(10000):
            try:
                if os.fork() == 0: time.sleep(100)
            except OSError: pass
        time.sleep(100)
        """,
        "failed|timeout",
        timeout=2,
    ),
    Hostile(
        "fork bomb that leaves",
        """
        while True:
            try:
                if os.fork(): os._exit(0)
            except OSError: pass
        """,
        "failed|timeout",
        timeout=2,
    ),
    Hostile(
        "vfork bomb through a spawn",
        """
        import sys
        while True:
            try: os.posix_spawn(sys.executable, ['x', '-c', 'while True: pass'], {})
            except OSError: pass
        """,
        "failed|timeout",
        timeout=2,
    ),
    Hostile(
        "thread bomb",
        """
        import threading, time
        for _ in range(10000):
            threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        """,
        "failed",
    ),
    Hostile(
        "memory in one list",
        """
        x = []
        while True: x.append(bytearray(1 << 24))
        """,
        "failed",
        "MemoryError",
    ),
    Hostile("memory at once", "x = bytearray(1 << 40)", "failed", "MemoryError"),
    Hostile(
        "memory in many processes",
        """
        import time
        for _ in range(12):
            if os.fork() == 0:
                x = [bytearray(b'x' * (1 << 20)) for _ in range(90)]
                time.sleep(100)
        time.sleep(100)
        """,
        "failed",
        "more than 256 MB of memory",
    ),
    Hostile(
        "memory shared by mmap",
        """
        import mmap
        m = mmap.mmap(-1, 1 << 30)
        for i in range(0, 1 << 30, 4096): m[i] = 1
        """,
        "failed",
        "more than 256 MB of memory",
    ),
    Hostile(
        "memory in /tmp",
        """
        attempt(lambda: [open(f'/tmp/{i}', 'wb').write(b'x' * (1 << 20)) for i in range(1000)])
        """,
        says="No space left",
    ),
    Hostile(
        "memory in /dev/shm",
        """
        attempt(lambda: [open(f'/dev/shm/{i}', 'wb').write(b'x' * (1 << 20)) for i in range(1000)])
        """,
        says="No space left",
    ),
    Hostile("memory in memfd", "attempt(os.memfd_create, 'x')", says="refused: PermissionError"),
    Hostile("memory in SysV segments", "attempt(call, @shmget@, 0, 1 << 30, 0o1666)", says="refused: PermissionError"),
    Hostile(
        "a map of terabytes",
        """
        import mmap
        attempt(mmap.mmap, -1, 1 << 44)
        """,
        says="refused: OSError",
    ),
    Hostile(
        "page tables",
        """
        import mmap
        maps = []
        for _ in range(1000):
            try: m = mmap.mmap(-1, 1 << 30, prot=mmap.PROT_READ)
            except OSError: break
            maps.append(m)
            sum(m[i] for i in range(0, 1 << 30, 1 << 21))
        print(len(maps) < 8)
        """,
        says="True",
    ),
    Hostile(
        "a huge file",
        """
        f = open('/tmp/x', 'wb')
        attempt(f.truncate, 1 << 40)
        """,
        says="refused: OSError",
    ),
    Hostile(
        "a sparse file",
        """
        f = open('/tmp/x', 'wb')
        attempt(lambda: (f.seek(1 << 35), f.write(b'x'), f.flush()))
        """,
        says="refused: OSError",
    ),
    Hostile(
        "files without end",
        """
        i = 0
        while True:
            i += 1
            os.close(os.open(f'/tmp/{i}', os.O_CREAT | os.O_WRONLY))
        """,
        "failed|timeout",
        "Error",
        timeout=8,
    ),
    Hostile(
        "folders without end",
        """
        while True:
            os.mkdir('d'); os.chdir('d')
        """,
        "failed|timeout",
        "Error",
        timeout=3,
    ),
    Hostile(
        "descriptors without end",
        """
        x = []
        while True: x.append(open('/dev/null'))
        """,
        "failed",
        "Too many open files",
    ),
    Hostile(
        "pipes filled",
        """
        x = []
        try:
            while True:
                r, w = os.pipe(); os.set_blocking(w, False); x.append((r, w)); os.write(w, b'x' * (1 << 16))
        except OSError as e: print(e)
        """,
        says="Too many open files",
    ),
    Hostile(
        "a server whose clients fill its buffers and leave",
        """
        import socket
        server = socket.socket(socket.AF_UNIX)
        attempt(server.bind, '/tmp/s')
        attempt(server.bind, '\\0s')
        attempt(server.listen, 4096)
        attempt(socket.socket(socket.AF_UNIX).connect, '/tmp/s')
        """,
        says="refused: PermissionError",
    ),
    Hostile(
        "larger buffers",
        """
        import fcntl, socket
        one, _ = socket.socketpair()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF, 32, 33):
            attempt(one.setsockopt, socket.SOL_SOCKET, option, 1 << 24)
        attempt(fcntl.fcntl, os.pipe()[1], 1031, 1 << 20)
        """,
        says="refused: PermissionError",
    ),
    Hostile(
        "socket pairs of many processes, filled",
        """
        import socket, time
        for _ in range(20):
            if os.fork() == 0:
                pairs = []
                try:
                    while True:
                        pairs.append(socket.socketpair())
                        for end in pairs[-1]:
                            end.setblocking(False)
                            try:
                                while True: end.send(bytes(4096))
                            except BlockingIOError: pass
                except OSError: time.sleep(100)
        time.sleep(100)
        """,
        "failed",
        "MB of memory",
    ),
    Hostile("watches without end", "attempt(call, @inotify@, 0)", says="refused: PermissionError"),
    Hostile(
        "processor time in many processes",
        """
        import time
        for _ in range(8):
            if os.fork() == 0:
                while True: pass
        time.sleep(100)
        """,
        "timeout",
        "processor time",
        timeout=60,
    ),
    Hostile("a loop", "while True: pass", "timeout", "stopped after 1 seconds", timeout=1),
    Hostile("a loop in C", "sum(range(10 ** 12))", "timeout", timeout=1),
    Hostile("a power tower", "9 ** 9 ** 9", "timeout|failed", timeout=1),
    Hostile(
        "a regex that backtracks",
        """
        import re
        re.match('(a+)+$', 'a' * 40 + 'b')
        """,
        "timeout",
        timeout=1,
    ),
    Hostile("a sleep", "import time; time.sleep(1000)", "timeout", timeout=1),
    Hostile(
        "a zip bomb",
        """
        import zlib
        d = zlib.compressobj(1); data = b''.join(d.compress(bytes(1 << 20)) for _ in range(300)) + d.flush()
        len(zlib.decompress(data))
        """,
        "failed",
        "MemoryError",
    ),
    Hostile(
        "deep recursion",
        """
        f = lambda: f()
        f()
        """,
        "failed",
        "RecursionError",
    ),
    Hostile(
        "a stack that overflows",
        """
        sys.setrecursionlimit(10 ** 9)
        class A:
            def __repr__(self): return repr(self)
        repr(A())
        """,
        "failed|timeout",
        timeout=3,
    ),
    Hostile("code nested too deeply", "eval('(' * 10 ** 5)", "failed"),
    Hostile("a string of gigabytes as an error", "raise ValueError('x' * (200 << 20))", "failed", "ValueError"),
    Hostile("a repr of gigabytes", "'x' * (60 << 20)", "failed", "KB of output"),
]

# Output, and how a program ends.
NOISY = [
    Hostile("output without end", "while True: print('x' * 1000)", "failed", "KB of output"),
    Hostile("output without end, no newline", "while True: sys.stdout.write('x' * 1000)", "failed", "KB of output"),
    Hostile("errors without end", "while True: os.write(2, b'x' * 1000)", "failed", "KB of output"),
    Hostile("both without end", "while True: os.write(1, b'o'); os.write(2, b'e')", "failed", "KB of output"),
    Hostile(
        "output of many processes",
        """
        for _ in range(4): os.fork()
        while True: os.write(1, b'x' * 4096)
        """,
        "failed",
        "Error: stopped",
    ),
    Hostile("output after closing", "os.close(1); os.close(2); print('x' * 10)", "failed"),
    Hostile(
        "output, then silence",
        """
        print('first', flush=True); os.close(1); os.close(2)
        import time; time.sleep(100)
        """,
        "timeout",
        "first",
        timeout=1,
    ),
    Hostile("bytes that are no text", r"os.write(1, bytes(range(256)) + b'\xff\xfe\xed\xa0\x80')", says="\\u0000"),
    Hostile("lone surrogates", r"print('\ud800', chr(0xdfff), '\x00')", says="\\ud800"),
    Hostile("terminal sequences", r"print('\x1b]0;title\x07\x1b[2J\x1bc')", says="\\u001b]0;title"),
    Hostile("exit code 7", "sys.exit(7)", "failed", "SystemExit: 7"),
    Hostile("exit with a huge text", "sys.exit('x' * (10 << 20))", "failed", "xxx"),
    Hostile(
        "exit with an odd object",
        """
        class A:
            def __str__(self): raise ValueError
        sys.exit(A())
        """,
        "failed",
    ),
    Hostile("an exit without goodbye", "os._exit(0)", "failed", "exit code 0"),
    Hostile("abort", "os.abort()", "failed", "SIGABRT"),
    Hostile("a segmentation fault", "import ctypes; ctypes.string_at(0)", "failed", "SIGSEGV"),
    Hostile("an illegal instruction", "os.kill(os.getpid(), 4)", "failed", "SIGILL"),
    Hostile(
        "a BaseException",
        """
        class E(BaseException): pass
        raise E('bad')
        """,
        "failed",
        "bad",
    ),
    Hostile(
        "an error that cannot be shown",
        """
        class E(Exception):
            def __str__(self): os._exit(3)
        raise E
        """,
        "failed",
        "exit code 3",
    ),
    Hostile(
        "an error whose text never ends",
        """
        class E(Exception):
            def __str__(self):
                while True: pass
        raise E
        """,
        "timeout",
        timeout=1,
    ),
    Hostile("a KeyboardInterrupt", "raise KeyboardInterrupt", "failed", "KeyboardInterrupt"),
    Hostile("reading stdin", "input()", "failed", "EOFError"),
    Hostile("a fifo nobody writes", "os.mkfifo('/tmp/f'); open('/tmp/f').read()", "timeout", timeout=1),
    Hostile(
        "a lock that is held",
        """
        import fcntl
        a, b = open('/tmp/l', 'w'), open('/tmp/l', 'w')
        fcntl.flock(a, 2); fcntl.flock(b, 2)
        """,
        "timeout",
        timeout=1,
    ),
    Hostile(
        "signals ignored",
        """
        import signal
        for s in range(1, 32):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: pass
        """,
        "timeout",
        timeout=1,
    ),
    Hostile("stopping itself", "os.kill(os.getpid(), 19)", "timeout", timeout=1),
    Hostile(
        "an atexit hook that hangs",
        """
        import atexit, time
        atexit.register(time.sleep, 1000); print('end')
        """,
        says="end",
    ),
    Hostile(
        "a thread that never ends",
        """
        import threading, time
        threading.Thread(target=time.sleep, args=(1000,)).start(); print('end')
        """,
        says="end",
    ),
    Hostile(
        "a __del__ that hangs",
        """
        import time
        class A:
            def __del__(self): time.sleep(1000)
        a = A(); print('end')
        """,
        says="end",
    ),
    Hostile(
        "a child that goes on",
        """
        import time
        if os.fork() == 0:
            time.sleep(1000)
        print('end')
        """,
        says="end",
    ),
    Hostile("a child that comes to the end too", "os.fork(); print('end')", says="end"),
    Hostile(
        "a daemon",
        """
        import time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for fd in range(64):
                    try: os.close(fd)
                    except OSError: pass
                time.sleep(1000)
            os._exit(0)
        os.wait(); print('end')
        """,
        says="end",
    ),
    Hostile(
        "a daemon that ignores all",
        """
        import signal, time
        if os.fork() == 0:
            os.setsid()
            for s in (1, 2, 3, 15): signal.signal(s, signal.SIG_IGN)
            while True: pass
        print('end')
        """,
        says="end",
    ),
    Hostile(
        "children that fork on and on",
        """
        if os.fork() == 0:
            while True:
                if os.fork(): os._exit(0)
        print('end')
        """,
        "ok|failed",
    ),
]

# What is none of its business.
CURIOUS = [
    Hostile(
        "the environment",
        "print(sorted(os.environ)); attempt(lambda: os.environ['@VARIABLE@'])",
        says="refused: KeyError",
    ),
    Hostile(
        "the init's environment", "attempt(lambda: open('/proc/1/environ').read())", says="refused: PermissionError"
    ),
    Hostile(
        "the init's memory",
        """
        attempt(os.open, '/proc/1/mem', os.O_RDONLY); attempt(os.open, '/proc/1/maps', os.O_RDONLY)
        """,
        says="refused: PermissionError",
    ),
    Hostile(
        "the init's pipes",
        """
        for fd in range(10): attempt(os.readlink, f'/proc/1/fd/{fd}'); attempt(open, f'/proc/1/fd/{fd}', 'wb')
        """,
        says="refused: PermissionError",
    ),
    Hostile(
        "other processes' roots",
        """
        for p in os.listdir('/proc'):
            if p.isdigit() and int(p) != os.getpid(): attempt(lambda: os.listdir(f'/proc/{p}/root/'))
        """,
        says="refused: PermissionError",
    ),
    Hostile(
        "processes of the host",
        """
        pids = [p for p in os.listdir('/proc') if p.isdigit()]
        print(len(pids) == 2)
        """,
        says="True",
    ),
    Hostile("the planted file", "attempt(lambda: open('@FILE@').read())", says="refused: FileNotFoundError"),
    Hostile(
        "the planted file, by a symbolic link",
        """
        os.symlink('@FILE@', '/tmp/l'); attempt(lambda: open('/tmp/l').read())
        """,
        says="refused: FileNotFoundError",
    ),
    Hostile(
        "the planted file, by a hard link", "attempt(os.link, '@FILE@', '/tmp/l')", says="refused: FileNotFoundError"
    ),
    Hostile(
        "the planted file, by dots",
        """
        attempt(lambda: open('/tmp/' + '../' * 30 + '@FILE@').read())
        """,
        says="refused: FileNotFoundError",
    ),
    Hostile(
        "/etc/shadow",
        """
        attempt(lambda: open('/etc/shadow').read()); attempt(lambda: open('/etc/passwd').read()); print(os.listdir('/etc'))
        """,
        says="['ld.so.cache']",
    ),
    Hostile(
        "keys and homes",
        """
        for p in ('/root/.ssh', '/root/.bashrc', '/home', '/opt', '/srv', '/var', '/mnt', '/sys', '/run', '/boot'): attempt(os.stat, p)
        """,
        says="refused",
    ),
    Hostile(
        "programs of the host",
        """
        import subprocess
        for p in ('/bin/sh', '/usr/bin/env', 'ls'): attempt(subprocess.run, [p])
        """,
        says="refused: FileNotFoundError",
    ),
    Hostile(
        "a shell through C",
        """
        import ctypes
        if ctypes.CDLL(None).system(b'echo ESCAPED') == 0: print('ESCAPED')
        print('end')
        """,
        says="end",
    ),
    Hostile(
        "the project's own modules",
        """
        attempt(__import__, 'arm_rl'); attempt(__import__, 'torch')
        """,
        says="refused: ModuleNotFoundError",
    ),
    Hostile(
        "another sandbox's files",
        """
        print(os.listdir('/tmp'), os.listdir('/dev/shm'))
        open('/tmp/mine', 'w').write('x')
        """,
        says="[] []",
    ),
    Hostile(
        "the internet",
        """
        import socket
        attempt(socket.create_connection, ('1.1.1.1', 53), 2)
        """,
        says="refused: OSError",
    ),
    Hostile(
        "names of the internet",
        """
        import socket
        attempt(socket.getaddrinfo, 'localhost.localdomain.example', 80)
        """,
        says="refused: gaierror",
    ),
    Hostile(
        "a server on the host's loopback",
        """
        import socket
        attempt(socket.create_connection, ('127.0.0.1', @PORT@), 2)
        """,
        says="refused: OSError",
    ),
    Hostile(
        "a server on the host's abstract socket",
        r"""
        import socket
        attempt(socket.socket(socket.AF_UNIX).connect, '\x00@ABSTRACT@')
        attempt(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto, b'x', '\x00@ABSTRACT@')
        """,
        says="refused: ConnectionRefusedError",
    ),
    Hostile(
        "a server on the host's unix socket",
        """
        import socket
        attempt(socket.socket(socket.AF_UNIX).connect, '@UNIX@')
        attempt(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto, b'x', '@UNIX@')
        """,
        says="refused: FileNotFoundError",
    ),
    Hostile(
        "sockets of every family",
        """
        import socket
        for family in range(2, 46):
            attempt(socket.socket, family, 1)
            attempt(socket.socket, family, 2)
            attempt(socket.socket, family, 3)
        """,
        says="Address family not supported",
    ),
    Hostile(
        "the kernel's log",
        """
        attempt(call, @syslog@, 3, bytes(1000), 1000)
        attempt(lambda: open('/dev/kmsg').read(1)); attempt(lambda: open('/proc/kmsg').read(1))
        """,
        says="refused",
    ),
    Hostile(
        "the kernel's memory",
        """
        for p in ('/proc/kcore', '/dev/mem', '/dev/kmem', '/dev/vda', '/dev/sda'): attempt(open, p, 'rb')
        """,
        says="refused",
    ),
]

# What would change something outside.
MEDDLING = [
    Hostile("kill -9 1", "os.kill(1, 9); os.kill(1, 15); os.kill(1, 2); print('end')", says="end"),
    Hostile("stopping the init", "os.kill(1, 19); os.kill(1, 20); print('end')", says="end"),
    Hostile("kill -9 -1", "attempt(os.kill, -1, 9); print('end')", says="refused: ProcessLookupError"),
    Hostile("killing the parent", "print(os.getppid()); os.kill(os.getppid(), 9); print('end')", says="end"),
    Hostile("killing the group", "os.killpg(0, 9)", "failed", "SIGKILL"),
    Hostile(
        "killing every number",
        """
        for p in range(2, 40000):
            if p != os.getpid():
                try: os.kill(p, 9); print('ESCAPED', p)
                except ProcessLookupError: pass
        print('end')
        """,
        says="end",
    ),
    Hostile(
        "the init's limits",
        """
        import resource
        attempt(resource.prlimit, 1, resource.RLIMIT_NOFILE, (0, 0))
        """,
        says="refused: PermissionError",
    ),
    Hostile(
        "the init's priority",
        """
        attempt(os.setpriority, os.PRIO_PROCESS, 1, 19)
        attempt(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))
        """,
        says="refused: PermissionError",
    ),
    Hostile(
        "its own priority",
        "attempt(os.nice, -5); attempt(os.sched_setaffinity, 0, {0})",
        says="refused: PermissionError",
    ),
    Hostile(
        "its own limits",
        """
        import resource
        for name in (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
            attempt(resource.setrlimit, name, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        """,
        says="refused: ValueError",
    ),
    Hostile(
        "its oom score",
        """
        attempt(os.open, '/proc/self/oom_score_adj', os.O_WRONLY); print(open('/proc/self/oom_score_adj').read())
        """,
        says="1000",
    ),
    Hostile(
        "another user",
        """
        attempt(os.setuid, 0); attempt(os.setresuid, 0, 0, 0); attempt(os.setgroups, [0]); print(os.getuid() != 0)
        """,
        says="True",
    ),
    Hostile(
        "capabilities",
        r"""
        s = open('/proc/self/status').read()
        for name in ('CapPrm', 'CapEff', 'CapBnd', 'CapAmb'):
            assert f'{name}:\t' + '0' * 16 in s, s
        assert 'NoNewPrivs:\t1' in s and 'Seccomp:\t2' in s
        print('none')
        """,
        says="none",
    ),
    Hostile(
        "all system calls that are refused",
        """
        for name, number in @REFUSED@.items():
            try:
                call(number, 0, 0, 0, 0, 0, 0)
                print('ESCAPED', name)
            except OSError as error:
                if error.errno != 1: print('ESCAPED', name, error)
        print('end')
        """,
        says="end",
    ),
    Hostile(
        "x32's system calls",
        """
        import platform
        if platform.machine() == 'x86_64': attempt(call, 0x40000000 + 39)
        print('end')
        """,
        says="end",
    ),
    Hostile(
        "32-bit system calls",
        """
        import ctypes, mmap, platform
        if platform.machine() != 'x86_64': os.kill(os.getpid(), 31)
        m = mmap.mmap(-1, 4096, prot=7)
        m.write(bytes.fromhex('b814000000cd80c3'))
        print('ESCAPED', ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())
        """,
        "failed",
        "SIGSYS",
    ),
    Hostile(
        "clone into namespaces",
        """
        for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            attempt(call, @clone@, flag | 17, 0, 0, 0, 0)
        """,
        says="refused: PermissionError",
    ),
    Hostile("clone3", "attempt(call, @clone3@, bytes(88), 88)", says="refused: OSError"),
    Hostile(
        "mknod",
        """
        attempt(os.mknod, '/tmp/d', 0o60666, os.makedev(254, 0)); attempt(os.mknod, '/tmp/c', 0o20666, os.makedev(1, 1))
        """,
        says="refused: PermissionError",
    ),
    Hostile(
        "a set-uid program",
        """
        import shutil
        shutil.copy(sys.executable, '/tmp/p') if os.path.getsize(sys.executable) < 1 << 24 else open('/tmp/p', 'w').close()
        os.chmod('/tmp/p', 0o6755)
        print(os.stat('/tmp/p').st_uid != 0)
        """,
        says="True",
    ),
    Hostile(
        "ways out of a chroot",
        """
        attempt(os.chroot, '/tmp'); os.chdir('/'); os.chdir('..'); print(sorted(os.listdir('.'))); attempt(os.stat, '/var')
        """,
        says="refused",
    ),
    Hostile(
        "typing into the terminal",
        """
        import fcntl
        for fd in (0, 1, 2): attempt(fcntl.ioctl, fd, 0x5412, b'x')
        attempt(open, '/dev/tty', 'w'); attempt(os.openpty)
        """,
        says="refused: PermissionError",
    ),
    Hostile(
        "writing to the interpreter",
        """
        attempt(open, sys.executable, 'r+b')
        attempt(open, os.__file__, 'a')
        attempt(open, os.path.dirname(os.__file__) + '/evil.py', 'w')
        attempt(os.chmod, os.__file__, 0o777)
        attempt(os.unlink, os.__file__)
        """,
        says="Read-only file system",
    ),
    Hostile(
        "writing to the packages",
        """
        for p in sys.path[-2:] + ['/', '/packages', '/sandbox/guest.py', '/etc', '/dev', '/usr/lib']:
            attempt(open, p + '/evil.py', 'w')
        attempt(open, '/sandbox/guest.py', 'a')
        """,
        says="Read-only file system",
    ),
    Hostile(
        "settings of the kernel",
        """
        for p in ('kernel/core_pattern', 'kernel/hostname', 'vm/overcommit_memory', 'net/ipv4/ip_forward'):
            attempt(os.open, '/proc/sys/' + p, os.O_WRONLY)
        for p in ('sysrq-trigger', 'irq/default_smp_affinity'):
            attempt(os.open, '/proc/' + p, os.O_WRONLY)
        """,
        says="refused",
    ),
    Hostile(
        "a new name for the host",
        "import socket; attempt(socket.sethostname, 'x'); print(socket.gethostname())",
        says="sandbox",
    ),
    Hostile(
        "the protocol's pipes",
        r"""
        for fd in range(3, 64):
            try: os.write(fd, b'\x00\x00\x00\x10' + b'{"end": "ok", "output": "ESC" "APED"}' * 50)
            except OSError: pass
        """,
        "ok|failed",
    ),
    Hostile(
        "a forged end, then a loop",
        """
        for fd in range(3, 64):
            try: os.write(fd, b'o')
            except OSError: pass
        while True: pass
        """,
    ),
    Hostile("every descriptor closed", "os.closerange(0, 64)", "failed", "exit code"),
    Hostile(
        "every descriptor replaced",
        """
        os.closerange(0, 64)
        for _ in range(50): os.open('/dev/zero', os.O_RDWR)
        """,
        "timeout",
        timeout=1,
    ),
    Hostile(
        "reading its own pipes",
        """
        for fd in range(3, 20):
            try:
                os.set_blocking(fd, False); print(fd, os.read(fd, 100))
            except OSError: pass
        print('end')
        """,
        "ok|failed",
        "end",
    ),
    Hostile(
        "the driver patched",
        """
        import builtins, traceback, time
        os.write = os.read = print
        builtins.exec = builtins.eval = builtins.compile = None
        traceback.TracebackException = None
        1 / 0
        """,
        "failed|timeout",
        timeout=1,
    ),
    Hostile(
        "the driver's frames",
        """
        frame = sys._getframe()
        while frame: frame.f_locals.clear(); frame.f_globals.clear() if frame.f_back else None; frame = frame.f_back
        """,
        "ok|failed|timeout",
        timeout=1,
    ),
    Hostile(
        "the driver's objects",
        """
        import gc
        for thing in gc.get_objects():
            if type(thing).__name__ == 'Worker':
                thing._state = thing._code = 1
                thing._settings = {}
                thing._execute = lambda *a: True
        print('end')
        """,
        "ok|failed|timeout",
        "end",
        timeout=1,
    ),
    Hostile(
        "modules replaced",
        """
        class Nothing: pass
        for name in list(sys.modules): sys.modules[name] = Nothing()
        """,
        "ok|failed",
    ),
    Hostile(
        "sys.stdout replaced",
        """
        class Bad:
            def write(self, t): raise ValueError
            def flush(self): raise KeyError
        sys.stdout = sys.stderr = Bad()
        1
        """,
        "failed",
    ),
    Hostile(
        "a trace function",
        """
        def t(*a):
            while True: pass
        sys.settrace(t)
        (lambda: 1)()
        """,
        "timeout",
        timeout=1,
    ),
    Hostile(
        "an audit hook that raises",
        """
        def hook(*a): raise SystemExit(3)
        sys.addaudithook(hook)
        open('/tmp/x', 'w')
        """,
        "failed",
    ),
]

PROGRAMS = [*GREEDY, *NOISY, *CURIOUS, *MEDDLING]
