"""A version of the weights as one safetensors file in a node's shared memory.

Learner rank 0 writes the file, and engines of the same node read it. The file's bytes travel to other nodes through Ray's object
store; on each of these, one engine writes them for all engines of the node (`place_weights`). Names are Hugging Face's; vLLM maps
them to its own parameters (`vllm_worker`). With LoRA the file holds the adapters only.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """One version of the weights on this node."""

    path: Path
    version: int
    is_adapter: bool = False  # LoRA adapters only, for the base model that the engine has
    is_copy: bool = False  # of a file on another node


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights:
    """A version that engines can load: its file, and the file's bytes for engines of other nodes."""

    file: WeightFile
    node_id: str  # the node of the file
    # reference to the file's bytes in Ray's object store, uint8 [bytes]; None where every engine is on that node
    data: Any


def weights_folder(run_id: str, num_bytes: int = 0, shared_memory: Path = SHARED_MEMORY) -> Path:
    """Make this node's folder for the weights of a run.

    Args:
        run_id: Tells runs on one machine apart.
        num_bytes: Free space that is needed.
        shared_memory: Preferred place; the temporary folder is taken where it is missing or has less free space.
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


def write_weights(tensors: Mapping[str, Tensor], folder: Path, version: int, *, is_adapter: bool = False) -> WeightFile:
    """Write a version; the file appears under its name only when it is complete, and older versions are removed.

    Tensors that share all of their memory (a tied head) are written once, under the first name, as in a Hugging Face checkpoint.

    Raises:
        OSError: If the file cannot be written, for example because the disk or the shared memory is full.
    """
    partial = folder / f"{version}.partial"
    with system_errors():
        save_file({name: tensor.contiguous() for name, tensor in _once(tensors).items()}, partial)
    file = WeightFile(path=partial.rename(folder / f"{version}.safetensors"), version=version, is_adapter=is_adapter)
    remove_versions(folder, below=version)
    return file


def place_weights(data: bytes | memoryview, folder: Path, version: int) -> Path:
    """Write the bytes of another node's file to this node, and remove older versions; return the file's path."""
    partial = folder / f"{version}.partial-{os.getpid()}"  # an engine may have died while it wrote
    partial.write_bytes(data)
    path = partial.rename(folder / f"{version}.safetensors")
    remove_versions(folder, below=version)
    return path


def remove_versions(folder: Path, *, below: int) -> None:
    """Delete the versions older than `below`; a reader that has one open keeps it."""
    for path in folder.glob("*.safetensors"):
        if int(path.stem) < below:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Raise the system's errors as OSError: safetensors wraps them, and keeps their text."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    written: dict[str, Tensor] = {}
    places: set[tuple] = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in places:
            places.add(place)
            written[name] = tensor
    return written
