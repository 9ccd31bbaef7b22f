"""A version of the weights as a file: whole or not there, tied tensors once, carried to another node, old ones deleted."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.weights.files import WeightWriter, place, read_bytes, remove_versions, weights_folder, write_weights
from actors.weights.shared_file import map_weights


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


def test_shared_memory_is_left_alone_where_it_is_missing_or_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, temporary = tmp_path / "shm", tmp_path / "tmp"
    shared.mkdir(), temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert weights_folder("run", 1, shared).is_relative_to(shared)
    assert weights_folder("run", 2**62, shared).is_relative_to(temporary)
    assert weights_folder("run", 1, tmp_path / "missing").is_relative_to(temporary)
    assert weights_folder("run", 1, shared) != weights_folder("other", 1, shared)


def test_a_writer_uses_a_file_anew_only_when_nobody_reads_it(tmp_path: Path) -> None:
    writer = WeightWriter(tmp_path)

    def write(version: int) -> int:
        file = writer.write({"a": torch.full((3, 4), float(version))}, version)
        assert file.path == tmp_path / f"{version}.safetensors"
        assert torch.equal(load_file(file.path)["a"], torch.full((3, 4), float(version)))
        assert [path.name for path in tmp_path.glob("*.safetensors")] == [file.path.name]
        return file.path.stat().st_ino

    files = [write(version) for version in (1, 2, 3, 4)]
    assert files[0] == files[2]
    assert files[1] == files[3]
    assert files[0] != files[1]
    read = map_weights(tmp_path / "4.safetensors").tensors["a"]
    write(5)
    assert write(6) not in files  # file 4 is being read
    assert torch.equal(read, torch.full((3, 4), 4.0))
    assert write(7) == files[0]


def test_a_writer_goes_on_when_its_files_are_deleted_or_the_version_is_written_again(tmp_path: Path) -> None:
    writer = WeightWriter(tmp_path)
    for version in (1, 2, 3):
        writer.write({"a": torch.zeros(2)}, version)
    for path in tmp_path.iterdir():
        path.unlink()
    for value in (1.0, 2.0, 3.0):
        file = writer.write({"a": torch.full((2,), value)}, 3)
        assert load_file(file.path)["a"].tolist() == [value, value]
    file = writer.write({"a": torch.ones(5)}, 4)  # of another size
    assert load_file(file.path)["a"].tolist() == [1.0] * 5


def test_matrices_that_engines_merge_lie_side_by_side(tmp_path: Path) -> None:
    names = [
        "norm.weight",
        "0.attention.q.weight",
        "0.attention.q.bias",
        "0.attention.k.weight",
        "0.attention.k.bias",
        "1.up.weight",
    ]
    tensors = {name: torch.randn(2) if "bias" in name or "norm" in name else torch.randn(3, 2) for name in names}
    weights = map_weights(write_weights(tensors, tmp_path, 0).path)
    assert list(weights.tensors) == [names[0], names[1], names[3], names[2], names[4], names[5]]
    merged = torch.cat([tensors["0.attention.q.weight"], tensors["0.attention.k.weight"]])
    start = weights.tensors["0.attention.q.weight"].data_ptr() - weights.data.data_ptr()
    assert torch.equal(weights.data[start : start + merged.nbytes].view(torch.float32).view(6, 2), merged)


def test_types_of_all_sizes_are_read_wherever_they_lie(tmp_path: Path) -> None:
    tensors = {
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(5, dtype=torch.bfloat16),
        "double": torch.randn(3, dtype=torch.float64),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(3),
    }
    path = write_weights(tensors, tmp_path, 0).path
    for read in (map_weights(path).tensors, load_file(path)):
        assert read.keys() == tensors.keys()
        assert all(
            torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items()
        )
    own = {"a": torch.randn(2, 3), "b": torch.randn(2)}
    save_file(own, tmp_path / "other.safetensors", metadata={"format": "pt"})
    assert all(
        torch.equal(tensor, own[name]) for name, tensor in map_weights(tmp_path / "other.safetensors").tensors.items()
    )
