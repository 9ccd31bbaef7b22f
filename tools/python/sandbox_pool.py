"""The sandboxes of one tool: those that stand ready for a program, and those that keep a session's variables."""

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from tools.python.sandbox import ProgramOutcome, Sandbox, SandboxPlan

logger = logging.getLogger(__name__)


class SandboxesBusy(Exception):
    """As many sessions as may have a sandbox are running a program."""


class SessionSandbox:
    """A session's sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.lock = threading.Lock()  # held while a program runs
        self.last_used = time.monotonic()


class SandboxPool:
    """Starts sandboxes, hands them out and ends them. Called from several threads."""

    def __init__(self, plan: SandboxPlan, *, prestarted: int, max_sessions: int) -> None:
        self._plan, self._prestarted, self._max_sessions = plan, prestarted, max_sessions
        # lives as long as the pool, as the maker of sandboxes must
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="sandbox")
        self._lock = threading.Lock()
        self._ready: deque[Future[Sandbox]] = deque()
        self._sessions: dict[str, SessionSandbox] = {}
        self._lost: dict[str, str] = {}  # sessions whose variables are gone, and why; said with their next program
        self._running: set[Sandbox] = set()  # those of single programs
        self._closed = False
        self._refill()

    def run_once(self, code: str, timeout: float) -> ProgramOutcome:
        """Runs a program in a sandbox that nothing has used before and nothing uses after."""
        sandbox = self._take()
        with self._lock:
            self._running.add(sandbox)
        try:
            return sandbox.run(code, timeout)
        finally:
            with self._lock:
                self._running.discard(sandbox)
            sandbox.close()
            self._refill()  # only now: its start would slow the program down

    def run_in_session(self, session: str, code: str, timeout: float) -> tuple[ProgramOutcome, str, bool]:
        """Run a program in the session's sandbox.

        Returns:
            What became of it; why the session's earlier variables were lost, empty where they were not; whether they are lost now.

        Raises:
            SandboxesBusy: there is no sandbox for another session.
        """
        entry = self._acquire(session)
        try:
            outcome = entry.sandbox.run(code, timeout)
        finally:
            entry.last_used = time.monotonic()
            entry.lock.release()
        with self._lock:
            before = self._lost.pop(session, "")
        lost = outcome.end not in ("ok", "error")
        if lost:
            self._forget(session, entry)
        return outcome, before, lost

    def release(self, session: str) -> None:
        """Ends the session's sandbox, also in the middle of a program."""
        with self._lock:
            entry = self._sessions.pop(session, None)
            self._lost.pop(session, None)
        if entry is not None:
            entry.sandbox.close()

    def close(self) -> None:
        """Ends all sandboxes; programs that still run end as `lost`."""
        with self._lock:
            self._closed = True
            ready, entries, running = list(self._ready), list(self._sessions.values()), list(self._running)
            self._ready.clear()
            self._sessions.clear()
        for sandbox in [
            *(entry.sandbox for entry in entries),
            *running,
            *(future.result() for future in ready),
        ]:
            sandbox.close()
        self._maker.shutdown()

    def _take(self) -> Sandbox:
        """A fresh sandbox: one that stands ready, or a new one."""
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the tool is closed")
                future = self._ready.popleft() if self._ready else self._maker.submit(Sandbox, self._plan)
            sandbox = future.result()
            if sandbox.is_alive():
                return sandbox
            sandbox.close()  # it was ended while it stood ready, by a machine out of memory for one

    def _refill(self) -> None:
        with self._lock:
            while len(self._ready) < self._prestarted and not self._closed:
                self._ready.append(self._maker.submit(Sandbox, self._plan))

    def _acquire(self, session: str) -> SessionSandbox:
        """The session's sandbox, locked; a new one where there is none, in the place of the one that was idle for longest."""
        while True:
            with self._lock:
                entry = self._sessions.get(session)
            if entry is None:
                self._add(session)
                continue
            entry.lock.acquire()
            with self._lock:
                if self._sessions.get(session) is entry:
                    if entry.sandbox.is_alive():
                        return entry
                    self._sessions.pop(session)
                    self._lost[session] = "the sandbox ended"
            entry.lock.release()
            entry.sandbox.close()

    def _add(self, session: str) -> None:
        sandbox = self._take()
        ended = []
        try:
            with self._lock:
                if session in self._sessions or self._closed:
                    ended.append(sandbox)
                    return
                while len(self._sessions) >= self._max_sessions:
                    ended.append(self._evict().sandbox)
                self._sessions[session] = SessionSandbox(sandbox)
        except SandboxesBusy:
            ended.append(sandbox)
            raise
        finally:
            for old in ended:
                old.close()
            self._refill()

    def _evict(self) -> SessionSandbox:
        """Remove the session that was idle for longest; its next program reports that."""
        idle = [session for session, entry in self._sessions.items() if not entry.lock.locked()]
        if not idle:
            raise SandboxesBusy(f"all {self._max_sessions} sessions that may keep variables are busy; try again")
        oldest = min(idle, key=lambda session: self._sessions[session].last_used)
        self._lost[oldest] = "the session was idle for too long"
        return self._sessions.pop(oldest)

    def _forget(self, session: str, entry: SessionSandbox) -> None:
        with self._lock:
            if self._sessions.get(session) is entry:
                self._sessions.pop(session)
        entry.sandbox.close()
