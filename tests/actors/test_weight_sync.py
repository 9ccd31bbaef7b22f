"""A version of the weights as a file: whole or not there, tied tensors once, carried to another node, old ones deleted."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.weight_sync import place, read_bytes, remove_versions, weights_folder, write_weights


def test_a_version_reads_back_as_it_was(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(4, 3).T, "c": torch.randn(2).to(torch.bfloat16)}
    file = write_weights(tensors, tmp_path, 7)
    read = load_file(file.path)
    assert file.version == 7
    assert file.num_bytes == file.path.stat().st_size
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["7.safetensors"]


def test_tied_tensors_are_written_once_and_pieces_of_one_buffer_each(tmp_path: Path) -> None:
    weight, flat = torch.randn(4, 4), torch.randn(6)
    tensors = {"embedding": weight, "head": weight, "transposed": weight.T, "first": flat[:3], "second": flat[3:]}
    read = load_file(write_weights(tensors, tmp_path, 0).path)
    assert sorted(read) == ["embedding", "first", "second", "transposed"]
    assert all(torch.equal(read[name], tensors[name]) for name in read)


def test_the_bytes_make_the_same_file_on_another_node(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    file = write_weights({"a": torch.arange(10.0)}, here, 3)
    for _ in range(2):  # two engines of that node
        placed = place(read_bytes(file), there, 3)
    assert placed.path == there / "3.safetensors"
    assert (placed.version, placed.num_bytes) == (file.version, file.num_bytes)
    assert torch.equal(load_file(placed.path)["a"], torch.arange(10.0))


def test_old_versions_go_and_nothing_else(tmp_path: Path) -> None:
    for version in (9, 10, 11):
        write_weights({"a": torch.zeros(1)}, tmp_path, version)
    (tmp_path / "other.txt").write_text("")
    assert remove_versions(tmp_path, below=11) == [9, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["11.safetensors", "other.txt"]
    assert remove_versions(tmp_path, below=11) == []


def test_shared_memory_is_left_alone_where_it_is_missing_or_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, temporary = tmp_path / "shm", tmp_path / "tmp"
    shared.mkdir(), temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert weights_folder("run", 1, shared).is_relative_to(shared)
    assert weights_folder("run", 2**62, shared).is_relative_to(temporary)
    assert weights_folder("run", 1, tmp_path / "missing").is_relative_to(temporary)
    assert weights_folder("run", 1, shared) != weights_folder("other", 1, shared)
