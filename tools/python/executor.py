"""Runs the judge's Python in a sandbox. What can be isolated is decided before the first program: nothing ever runs unprotected."""

import copy
import importlib.metadata
import logging
import math
import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from arm_rl.core.errors import UserError
from arm_rl.core.session import ToolResult, ToolStatus
from tools.base import ArgumentError, Execution, Tool, ToolContext
from tools.python import sandbox
from tools.python.sandbox import ProgramOutcome, SandboxLimits
from tools.python.sandbox_pool import SandboxesBusy, SandboxPool

logger = logging.getLogger(__name__)

USUAL_PACKAGES = ("numpy", "scipy", "sympy", "pandas", "scikit-learn", "pillow")  # offered where they are installed
MAX_CODE_CHARACTERS = 100_000
# every other end has failed
STATUSES: dict[sandbox.End, ToolStatus] = {"ok": "ok", "timeout": "timeout", "cpu": "timeout"}
_starting = threading.Lock()


class PythonExecutorTool(Tool):
    """Runs a program and shows what it prints, the value of its last expression and the end of its traceback."""

    name = "python_code_executor"
    description = (
        "Runs Python code in a sandbox without network and without files. Gives what the code prints, the value of its last expression, "
        "and the error where it fails."
    )

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Arguments:
        """A program and how long it may take."""

        code: Annotated[str, Field(description="The Python code.")]
        timeout: Annotated[float | None, Field(gt=0, description="Seconds after which the code is stopped.")] = None

    def __init__(
        self,
        *,
        timeout_seconds: float = 10.0,
        max_timeout_seconds: float = 30.0,
        cpu_seconds: float = 60.0,
        memory_mb: int = 1024,
        tmp_mb: int = 64,
        num_processes: int = 32,
        open_files: int = 64,
        output_kb: int = 1024,
        max_characters: int = 4000,
        packages: Sequence[str] | None = None,
        preload: Sequence[str] = (),
        prestarted: int = 0,
        keep_state: bool = False,
        max_sessions: int = 32,
    ) -> None:
        """Checks that programs can be isolated here, by running one.

        Args:
            timeout_seconds: for a program that asks for no time of its own.
            max_timeout_seconds: that a program gets at most, whatever it asks for.
            cpu_seconds: of processor time, all of a program's processes together.
            memory_mb: of a sandbox, all its processes and files together.
            tmp_mb: of /tmp, and of /dev/shm.
            num_processes: and threads, of a sandbox.
            open_files: of one process.
            output_kb: a program that prints more is ended.
            max_characters: of the output that the judge is shown; of a longer one, the middle is left out.
            packages: distributions that programs can import; by default, those of `USUAL_PACKAGES` that are installed.
            preload: modules that a sandbox imports before its program comes; pays with `prestarted` or `keep_state`.
            prestarted: sandboxes that are kept ready, so that a program need not wait for its start.
            keep_state: the programs of a session share one sandbox and its variables.
            max_sessions: sandboxes kept at a time; of more, the one that was idle for longest is ended.

        Raises:
            SandboxError: programs cannot be isolated on this machine.
            UserError: a setting that cannot be used.
        """
        _check_settings(locals())
        self.stateful = keep_state
        self._timeout, self._max_timeout, self._max_characters = timeout_seconds, max_timeout_seconds, max_characters
        limits = SandboxLimits(
            cpu_seconds=cpu_seconds,
            memory_bytes=memory_mb << 20,
            tmp_bytes=tmp_mb << 20,
            processes=num_processes,
            open_files=open_files,
            output_bytes=output_kb << 10,
        )
        packages = _installed_packages(USUAL_PACKAGES) if packages is None else packages
        self._plan = sandbox.find_plan(limits, packages=packages, preload=preload, keep=keep_state)
        self._prestarted, self._max_sessions = prestarted, max_sessions
        self._pool: SandboxPool | None = None
        longest = max_timeout_seconds + sandbox.START_SECONDS + 4 * sandbox.GRACE_SECONDS
        self.execution = Execution(
            isolation="thread", timeout_seconds=longest, concurrency=max_sessions if keep_state else None
        )
        self.set_schema(self._schema_with_settings(packages))

    def run(self, arguments: Arguments, context: ToolContext) -> ToolResult:
        """Runs a program in a sandbox of its own, or in its session's."""
        if len(arguments.code) > MAX_CODE_CHARACTERS:
            raise ArgumentError(f"code: at most {MAX_CODE_CHARACTERS} characters, not {len(arguments.code)}")
        if arguments.timeout is not None and math.isnan(arguments.timeout):
            raise ArgumentError("timeout: a number of seconds is needed, not nan")
        timeout = min(arguments.timeout or self._timeout, self._max_timeout)
        pool = self._start_pool()
        try:
            if not (self.stateful and context.session):
                return self._make_result(pool.run_once(arguments.code, timeout), timeout)
            outcome, lost_before, lost_now = pool.run_in_session(context.session, arguments.code, timeout)
        except SandboxesBusy as busy:
            return ToolResult(status="failed", text=f"Error: {busy}")
        return self._make_result(outcome, timeout, before=lost_before, after=lost_now)

    def release(self, session: str) -> None:
        """Ends the sandbox of a session that is over."""
        if self._pool is not None:
            self._pool.release(session)

    def close(self) -> None:
        """Ends all sandboxes."""
        with _starting:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _start_pool(self) -> SandboxPool:
        with _starting:
            if self._pool is None:
                self._pool = SandboxPool(self._plan, prestarted=self._prestarted, max_sessions=self._max_sessions)
            return self._pool

    def _make_result(
        self, outcome: ProgramOutcome, timeout: float, *, before: str = "", after: bool = False
    ) -> ToolResult:
        parts = [
            f"Note: the earlier variables are lost: {before}." if before else "",
            shorten(escape_control_characters(outcome.output), self._max_characters),
            self._reason(outcome, timeout),
            "The variables are lost." if after else "",
        ]
        text = "\n".join(part for part in parts if part)
        return ToolResult(status=STATUSES.get(outcome.end, "failed"), text=text or "(no output)")

    def _reason(self, outcome: ProgramOutcome, timeout: float) -> str:
        """Why a program did not come to its end; empty where it did, or where its traceback says so."""
        limits = self._plan.settings
        return {
            "ok": "",
            "error": "" if outcome.output else "Error: the code failed.",
            "exited": f"Error: the interpreter ended with {_describe_exit(outcome.code)}.",
            "timeout": f"Error: stopped after {timeout:g} seconds.",
            "cpu": f"Error: stopped after {limits['cpu_seconds']:g} seconds of processor time.",
            "memory": f"Error: stopped, more than {limits['memory_bytes'] >> 20} MB of memory.",
            "processes": f"Error: stopped, more than {limits['processes']} processes.",
            "output": f"Error: stopped, more than {limits['output_bytes'] >> 10} KB of output.",
            "leftover": "Error: a process that the code started could not be ended.",
            "lost": "Error: the sandbox ended.",
        }[outcome.end]

    def _schema_with_settings(self, packages: Sequence[str]) -> dict[str, Any]:
        """Return the schema with a description that names the settings."""
        schema = copy.deepcopy(self.schema)
        said = [self.description]
        if packages:
            said.append(f"Beside the standard library there are {', '.join(packages)}.")
        said.append("Variables are kept from call to call." if self.stateful else "Every call starts afresh.")
        schema["function"]["description"] = " ".join(said)
        timeout = schema["function"]["parameters"]["properties"]["timeout"]
        timeout["description"] += f" {self._timeout:g} where nothing is said, {self._max_timeout:g} at most."
        return schema


def escape_control_characters(text: str) -> str:
    """Replace control characters, such as terminal sequences and NULs, by escapes."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text
    ).strip("\n")


def shorten(text: str, limit: int) -> str:
    """Return a text, or its beginning and end if it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise a UserError for a setting that is out of bounds or of a wrong type."""
    for name, least in {
        "timeout_seconds": 0.1,
        "max_timeout_seconds": settings["timeout_seconds"],
        "cpu_seconds": 0.1,
        "memory_mb": 64,
        "tmp_mb": 1,
        "num_processes": 1,
        "open_files": 32,
        "output_kb": 1,
        "max_characters": 100,
        "prestarted": 0,
        "max_sessions": 1,
    }.items():
        value = settings[name]
        whole = not name.endswith("_seconds")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise UserError(f"{name}: a {'whole ' if whole else ''}number is needed, not {value!r}")
        if not (value >= least and math.isfinite(value)):
            raise UserError(f"{name}: at least {least:g}, not {value!r}")
    for name in ("packages", "preload"):
        value = settings[name]
        if value is not None and (isinstance(value, str) or not all(isinstance(item, str) for item in value)):
            raise UserError(f"{name}: a list of names is needed, not {value!r}")


def _installed_packages(names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found
