"""TRL's process as the benchmark sees it: `trl_side` in TRL's own environment, which sleeps but in its turn."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from arm_rl.core.errors import UserError

ROOT = Path(__file__).parents[3]


class TrlProcess:
    """`trl_side` in TRL's environment; a context manager. It starts with it, and does steps when it is told to."""

    def __init__(self, command: Sequence[str], log: Path, num_threads: int) -> None:
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=ROOT,
                env=_trl_environment(os.environ, num_threads),
            )
        self.started: dict[str, Any] = {}

    def ready(self) -> None:
        """Waits until the trainer is there."""
        self.started = self._answer()

    def steps(self, number: int) -> dict[str, Any]:
        """Does so many steps: their seconds, their trajectories, the phases and the means that `trl_side` tells."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            end = "".join(f"    {one}\n" for one in self._log.read_text().splitlines()[-12:])
            raise UserError(f"TRL's process ended; the end of {self._log}:\n{end}")
        return json.loads(line)

    def __enter__(self) -> "TrlProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def _trl_environment(environment: Mapping[str, str], num_threads: int) -> dict[str, str]:
    kept = {name: value for name, value in environment.items() if not name.startswith(("RAY_", "VLLM_", "DS_", "OMP_"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": str(num_threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
