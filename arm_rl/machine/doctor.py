"""The doctor: every check in a process of its own with a time limit, so that no check can end or hold up the command.

doctor -> python -m arm_rl.machine.doctor CHECK, all checks at once -> findings as JSON -> one line each
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from arm_rl.core.owner import tie_to_parent
from arm_rl.machine import gpu, gpu_use, host, services
from arm_rl.machine.finding import Finding, fault, warning

_RESULT = "ARM_RL_DOCTOR: "  # begins the line with the findings; libraries print what they like before it


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check, or several that read the same facts."""

    run: Callable[[], Iterable[Finding]]
    seconds: float  # limit
    is_needed: bool = True  # whether a run fails where the check cannot be finished


CHECKS = {
    "versions": Check(run=lambda: host.judge_versions(host.read_versions()), seconds=20),
    "gpu": Check(run=lambda: gpu.judge(gpu.read_facts()), seconds=90),
    "compute": Check(run=gpu_use.check_use, seconds=240),
    "compiler": Check(run=gpu_use.check_compiler, seconds=60),
    "shm": Check(
        run=lambda: [host.judge_shared_memory(host.read_shared_memory(), has_gpu=gpu.has_usable_devices())],
        seconds=60,
    ),
    "files": Check(run=lambda: [host.judge_open_files(*host.read_open_files())], seconds=10),
    "ray": Check(run=lambda: [services.check_ray()], seconds=90),
    "sandbox": Check(run=lambda: [services.check_sandbox()], seconds=60, is_needed=False),
    "wandb": Check(run=lambda: [services.check_wandb()], seconds=30, is_needed=False),
    "hub": Check(run=lambda: [services.check_hub()], seconds=20, is_needed=False),
}


def examine(names: Sequence[str] = (), checks: Sequence[str] | None = None) -> list[Finding]:
    """Run checks at the same time, each in a process of its own, and return their findings in the checks' order.

    Args:
        names: Checks to run; by default all.
        checks: Command that runs one check when its name is appended; by default this module.
    """
    chosen = list(names) or list(CHECKS)
    command = list(checks) if checks is not None else [sys.executable, "-m", __name__]
    with ThreadPoolExecutor(max_workers=len(chosen)) as pool:
        found = list(pool.map(lambda name: _examine_apart(name, [*command, name]), chosen))
    return [finding for findings in found for finding in findings]


def _examine_apart(name: str, command: Sequence[str]) -> list[Finding]:
    """Run one check in a process; a check that hangs, crashes or raises is a finding too."""
    check = CHECKS[name]
    unfinished = fault if check.is_needed else warning
    again = f"{' '.join(command)} shows where it stops"
    # A file, not a pipe: processes that a killed check leaves behind would hold the pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            tie_to_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
        try:
            status = process.wait(check.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return [unfinished(name, f"no answer within {check.seconds:g} seconds", again)]
        output.seek(0)
        lines = output.read().splitlines()
    for line in reversed(lines):
        if line.startswith(_RESULT):
            return [Finding(**finding) for finding in json.loads(line.removeprefix(_RESULT))]
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return [unfinished(name, f"the check ended with status {status}: {last.strip():.300}", again)]


def main(name: str) -> None:
    """Run one check in this process and print its findings."""
    findings = list(CHECKS[name].run())
    sys.stdout.write(f"\n{_RESULT}{json.dumps([finding.as_json() for finding in findings])}\n")


if __name__ == "__main__":
    main(sys.argv[1])
