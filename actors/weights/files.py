"""How a version of the weights travels from the learners to the engines: one safetensors file in the node's shared memory.

The learner's rank 0 has a `WeightWriter`; engines of the same node read the file. For other nodes `read_bytes` and `place` carry it
through Ray's object store. Names are Hugging Face's; vLLM maps them to its own parameters (`vllm_worker.py`). Of a model that is trained
with LoRA the file holds the adapters alone.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from actors.weights.shared_file import WeightBuffer, header_of
from arm_rl.core.compute_config import Transfer

SHARED_MEMORY = Path("/dev/shm")
# names in vLLM's registry
BACKENDS: dict[Transfer, str] = {"file": "weights_file", "nccl": "weights_nccl", "ipc": "weights_ipc"}
WORKER_EXTENSION = "actors.rollout.vllm_worker.WorkerExtension"
OWNER_PID = "owner_pid"  # key, in vLLM's additional configuration, of the process without which vLLM's must not live


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """One version of the weights on this node."""

    path: Path
    version: int
    num_bytes: int
    is_adapter: bool = False  # LoRA's adapters alone, for the base model that the engine has


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A version that engines can load: where its file is, and its bytes for engines that are elsewhere."""

    file: WeightFile
    node_id: str  # the node of the file
    data: Any  # reference to the file's bytes in Ray's object store; None where every engine is on that node


def weights_folder(run_id: str, num_bytes: int = 0, shared_memory: Path = SHARED_MEMORY) -> Path:
    """Makes this node's folder for the weights of a run.

    Args:
        run_id: tells runs on one machine apart.
        num_bytes: that must fit.
        shared_memory: preferred place; where it is missing or has less than `num_bytes` left, the temporary folder is taken.
    """
    fits = (
        shared_memory.is_dir()
        and os.access(shared_memory, os.W_OK)
        and shutil.disk_usage(shared_memory).free >= num_bytes
    )
    root = shared_memory if fits else Path(tempfile.gettempdir())
    folder = root / f"arm_rl-{os.getuid()}" / run_id
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class WeightWriter:
    """Writes version after version into one folder, by turns into two files.

    A file that was replaced is written anew where nobody reads it any more: making new shared memory takes longer than filling it. A
    reader that still has one keeps it as it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._current: WeightBuffer | None = None
        self._spare: WeightBuffer | None = None

    def write(self, tensors: Mapping[str, Tensor], version: int, *, is_adapter: bool = False) -> WeightFile:
        """Writes a version; under its name it appears only when it is whole, and the one written before it is gone.

        Tensors that are one in memory (a tied head) are written once, under the first name, as in a Hugging Face checkpoint.
        """
        tensors = _in_order(_once(tensors))
        header, num_bytes = header_of(tensors)
        path = self.folder / f"{version}.safetensors"
        buffer = self._empty_buffer(self.folder / f"{version}.partial", num_bytes)
        buffer.write(header, tensors)
        before, self._current = self._current, buffer.rename(path)
        if before is not None and before.path != path:  # else it is gone already
            self._spare = _renamed(before, self.folder / "spare")
        return WeightFile(path=path, version=version, num_bytes=num_bytes, is_adapter=is_adapter)

    def _empty_buffer(self, path: Path, num_bytes: int) -> WeightBuffer:
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.num_bytes == num_bytes and not spare.is_read() and _renamed(spare, path):
                return spare
            spare.path.unlink(missing_ok=True)
        return WeightBuffer(path, num_bytes)


def write_weights(tensors: Mapping[str, Tensor], folder: Path, version: int) -> WeightFile:
    """Writes a single version, as `WeightWriter` does."""
    return WeightWriter(folder).write(tensors, version)


def _once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    written: dict[str, Tensor] = {}
    places: set[tuple] = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in places:
            places.add(place)
            written[name] = tensor
    return written


def _in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices of one block side by side, vectors after them: engines that merge matrices find them merged already."""
    blocks: dict[str, int] = {}
    keys = {
        name: (blocks.setdefault(".".join(name.split(".")[:-2]), len(blocks)), tensor.ndim < 2)
        for name, tensor in tensors.items()
    }
    return {name: tensors[name] for name in sorted(tensors, key=keys.__getitem__)}


def _renamed(buffer: WeightBuffer, path: Path) -> WeightBuffer | None:
    """None where the file has been deleted."""
    try:
        return buffer.rename(path)
    except FileNotFoundError:
        return None


def read_bytes(file: WeightFile) -> bytes:
    """The whole file, to be put into the object store for other nodes."""
    return file.path.read_bytes()


def place(data: bytes, folder: Path, version: int) -> WeightFile:
    """Writes the bytes of another node's file to this node."""
    partial = folder / f"{version}.partial-{os.getpid()}"  # several engines of a node may do this at once
    partial.write_bytes(data)
    return _publish(partial, folder, version)


def remove_versions(folder: Path, *, below: int) -> list[int]:
    """Deletes the versions older than `below` and says which. A reader that has one open keeps it."""
    old = sorted(int(path.stem) for path in folder.glob("*.safetensors") if int(path.stem) < below)
    for version in old:
        (folder / f"{version}.safetensors").unlink(missing_ok=True)
    return old


def _publish(partial: Path, folder: Path, version: int) -> WeightFile:
    path = partial.rename(folder / f"{version}.safetensors")
    return WeightFile(path=path, version=version, num_bytes=path.stat().st_size)
