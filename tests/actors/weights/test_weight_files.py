"""A version of the weights as a file: whole or not there, tied tensors once, carried to another node, old ones deleted."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.weights.files import place_weights, remove_versions, weights_folder, write_weights


def test_a_version_reads_back_as_it_was(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "transposed": torch.randn(4, 3).T,
        "half": torch.randn(2).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 4),
        "one": torch.tensor(3),
    }
    file = write_weights(tensors, tmp_path, 7)
    read = load_file(file.path)
    assert (file.version, file.is_adapter) == (7, False)
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
    for version in (2, 3):
        file = write_weights({"a": torch.arange(10.0) + version}, here, version)
        for _ in range(2):  # two engines of that node
            path = place_weights(file.path.read_bytes(), there, version)
        assert path == there / f"{version}.safetensors"
        assert torch.equal(load_file(path)["a"], torch.arange(10.0) + version)
        assert [path.name for path in there.iterdir()] == [f"{version}.safetensors"]


def test_old_versions_go_and_nothing_else_and_a_reader_keeps_what_it_reads(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("")
    read = load_file(write_weights({"a": torch.full((3,), 9.0)}, tmp_path, 9).path)
    for version in (10, 11, 11):
        write_weights({"a": torch.full((3,), float(version))}, tmp_path, version)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["11.safetensors", "other.txt"]
    assert read["a"].tolist() == [9.0] * 3
    remove_versions(tmp_path, below=11)
    assert (tmp_path / "11.safetensors").exists()


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


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed: it makes the small disk")
def test_a_folder_without_room_is_an_error_of_the_system_and_no_crash(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from pathlib import Path; from actors.weights.files import write_weights; "
        "write_weights({'a': torch.zeros(10 << 18)}, Path(sys.argv[1]), 1)"
    )
    sandbox = ["bwrap", "--dev-bind", "/", "/", "--size", "1000000", "--tmpfs", str(tmp_path), "--die-with-parent"]
    ran = subprocess.run([*sandbox, sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 1, "of an exception"
    last_line = ran.stderr.strip().splitlines()[-1]
    assert last_line.startswith("OSError: ")
    assert os.strerror(errno.ENOSPC) in last_line
