"""Checkpoints of a run: folders by step, written aside and then renamed, the newest few kept."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arm_rl.core.errors import UserError

_STATE = "state.json"


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path  # what the learners wrote lies here
    state: dict[str, Any]  # what the driver wrote

    @property
    def step(self) -> int:
        """Steps done when it was written."""
        return int(self.folder.name)


@contextmanager
def writing(root: Path, step: int, state: dict[str, Any], keep: int) -> Iterator[Path]:
    """A folder to write a checkpoint into; under its name it appears only when everything is there."""
    for broken_off in root.glob("*.partial"):
        shutil.rmtree(broken_off)
    aside = root / f"{step}.partial"
    aside.mkdir(parents=True)
    yield aside
    (aside / _STATE).write_text(json.dumps(state))
    final = root / str(step)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    for old in _complete(root)[:-keep]:
        shutil.rmtree(old)


def latest(root: Path) -> Checkpoint | None:
    """The newest checkpoint; None where there is none.

    Raises:
        CheckpointError: its state cannot be read.
    """
    folders = _complete(root)
    if not folders:
        return None
    try:
        return Checkpoint(folders[-1], json.loads((folders[-1] / _STATE).read_text()))
    except ValueError as error:
        raise CheckpointError(f"{folders[-1] / _STATE}: not readable: {error}; remove the folder to go on from an older one") from error


def _complete(root: Path) -> list[Path]:
    folders = [folder for folder in root.glob("*") if folder.name.isdigit() and (folder / _STATE).is_file()]
    return sorted(folders, key=lambda folder: int(folder.name))
