"""Checkpoints of a run: folders by step, written aside, put on disk and then renamed; the newest few kept, the newest good one found.

checkpoints/STEP/   what the learners and the driver wrote
                    state.json       what the driver knows
                    checksums.json   SHA-256 of every file
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arm_rl.core.errors import UserError

logger = logging.getLogger(__name__)

_STATE, _CHECKSUMS = "state.json", "checksums.json"
_NUM_THREADS = 8  # that read files at a time


class CheckpointError(UserError):
    """A checkpoint that cannot be used or written; the message names it."""


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
def write_checkpoint(root: Path, step: int, state: Mapping[str, Any], keep: int) -> Iterator[Path]:
    """Open a folder to write a checkpoint into; it gets its name only when it is complete.

    Raises:
        CheckpointError: it cannot be written; those before it stand.
    """
    aside = root / f"{step}.partial"
    try:
        for broken_off in root.glob("*.partial"):
            shutil.rmtree(broken_off)
        aside.mkdir(parents=True)
        yield aside
        (aside / _STATE).write_text(json.dumps(state))
        (aside / _CHECKSUMS).write_text(json.dumps(_checksums(aside), indent=1))
        _flush_to_disk(aside)
        _rename(aside, root / str(step))
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk has room again for the rest of the run's last words
        raise CheckpointError(
            f"{root / str(step)}: the checkpoint could not be written: {_first_line(error)}; the ones before it stand: "
            "once this is mended, the same command goes on from there"
        ) from error
    kept = [number for number in steps(root) if number <= step][-keep:]
    for number in steps(root):
        if number not in kept:  # older, or of a time that the run has gone back from because it was broken
            shutil.rmtree(root / str(number))


def latest(root: Path) -> Checkpoint | None:
    """The newest good checkpoint; None where there is none at all. Broken ones are logged, each with its file and the reason.

    Raises:
        CheckpointError: there are some, and all of them are broken.
    """
    broken: CheckpointError | None = None
    for step in reversed(steps(root)):
        try:
            return _verify(root / str(step))
        except CheckpointError as error:
            logger.warning("a checkpoint is passed over: %s", error)
            broken = broken or error
    if broken is not None:
        raise CheckpointError(f"{broken}; there is no other one that is whole: remove {root} to begin anew")
    return None


def steps(root: Path) -> list[int]:
    """The steps of all complete checkpoints, good or not, in order."""
    return sorted(
        int(folder.name) for folder in root.glob("*") if folder.name.isdigit() and (folder / _STATE).is_file()
    )


def read_state(root: Path, step: int) -> dict[str, Any]:
    """Return the driver's state of a checkpoint, even if its other files are broken.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = root / str(step) / _STATE
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable: {error}") from error


def _verify(folder: Path) -> Checkpoint:
    try:
        expected = json.loads((folder / _CHECKSUMS).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / _CHECKSUMS}: not readable: {error}") from error
    missing = sorted(name for name in expected if not (folder / name).is_file())
    if missing:
        raise CheckpointError(f"{folder / missing[0]}: missing")
    try:
        found = _checksums(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: not readable: {error}") from error
    for name, checksum in expected.items():
        if found[name] != checksum:
            raise CheckpointError(f"{folder / name}: its content is not what was written (SHA-256 differs)")
    return Checkpoint(folder, read_state(folder.parent, int(folder.name)))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS)


def _checksums(folder: Path) -> dict[str, str]:
    def checksum(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # without the interpreter's lock: threads are enough

    paths = _files(folder)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return {
            str(path.relative_to(folder)): found for path, found in zip(paths, pool.map(checksum, paths), strict=True)
        }


def _flush_to_disk(folder: Path) -> None:
    """Wait until the disk holds all files: otherwise the rename could outlive them."""
    for path in (*_files(folder), folder / _CHECKSUMS, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(path)


def _rename(aside: Path, final: Path) -> None:
    """Gives the folder its name; one that has it, which the run has gone back from, makes way at the last moment."""
    old = final.with_name(f"{final.name}.old.partial")
    if final.exists():
        final.rename(old)
    aside.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: OSError) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
