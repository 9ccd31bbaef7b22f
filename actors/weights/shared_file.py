"""A safetensors file in memory that processes share: written in place, read where it lies, no copy in between.

8 bytes: length of the header | header: JSON, name -> dtype, shape, first and last byte | the tensors, end to end
"""

import fcntl
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 64  # of the first tensor


@dataclass(frozen=True, slots=True)
class MappedWeights:
    """A file as its reader sees it. The file stays in memory, under whatever name, as long as one of the tensors lives."""

    header: bytes  # equal headers mean equal names, shapes and places
    tensors: dict[str, Tensor]  # views of `data`
    data: Tensor  # uint8 [bytes of all tensors]


def map_weights(path: Path) -> MappedWeights:
    """Maps a file; its bytes are read as they are used."""
    with path.open("rb") as file:
        head = file.read(8)
        header = head + file.read(int.from_bytes(head, "little"))
    everything = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    data = everything[len(header) :]
    return MappedWeights(header, dict(_views(header, data)), data)


class WeightBuffer:
    """A file that is written over and over, under changing names: its memory is there already when the next version comes."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path = path
        self.num_bytes = num_bytes
        self._file = path.open("w+b")
        # an error where there is no room; a write into the map would kill
        os.posix_fallocate(self._file.fileno(), 0, num_bytes)
        self._bytes = torch.frombuffer(mmap.mmap(self._file.fileno(), num_bytes), dtype=torch.uint8)

    def rename(self, path: Path) -> Self:
        """Moves the file within its folder.

        Raises:
            FileNotFoundError: somebody has deleted it.
        """
        self.path = self.path.rename(path)
        return self

    def is_read(self) -> bool:
        """Whether any other process or mapping has the file open, as far as the system can tell."""
        try:  # the kernel gives a lease to write to none but the only one who has the file open
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(self._file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return True
        return False

    def write(self, header: bytes, tensors: Mapping[str, Tensor]) -> None:
        """Writes the tensors that the header names, from whatever device."""
        self._bytes[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        for name, dtype, shape, place in _entries(header, self._bytes[len(header) :]):
            tensor = tensors[name].detach()
            if _is_aligned(place, dtype):
                place.view(dtype).view(shape).copy_(tensor)
            else:
                place.copy_(tensor.cpu().contiguous().flatten().view(torch.uint8))


def header_of(tensors: Mapping[str, Tensor]) -> tuple[bytes, int]:
    """The header of a file with these tensors in this order, and the size of the whole file in bytes."""
    entries, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def _views(header: bytes, data: Tensor) -> Iterator[tuple[str, Tensor]]:
    for name, dtype, shape, place in _entries(header, data):
        yield name, (place if _is_aligned(place, dtype) else place.clone()).view(dtype).view(shape)


def _entries(header: bytes, data: Tensor) -> Iterator[tuple[str, torch.dtype, list[int], Tensor]]:
    """Each tensor's name, type, shape and bytes."""
    for name, entry in json.loads(header[8:]).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield name, _DTYPES[entry["dtype"]], entry["shape"], data[start:end]


def _is_aligned(place: Tensor, dtype: torch.dtype) -> bool:
    return place.data_ptr() % dtype.itemsize == 0
