"""The checks that use GPUs, with CPUs in their place."""

import sys

import pytest
import torch

from arm_rl.machine import gpu_use
from arm_rl.machine.doctor import CHECKS
from arm_rl.machine.finding import fault, ok
from arm_rl.machine.gpu_use import compute, judge_compiler, judge_computation, sum_over_ranks


def test_a_computation_that_is_right_has_no_error():
    assert compute("cpu") == ""


def test_a_device_that_cannot_compute_has_an_error_of_one_line():
    error = compute("xpu:0" if torch.cuda.is_available() else "cuda:0")
    assert error
    assert "\n" not in error


def test_a_wrong_product_is_an_error(monkeypatch):
    monkeypatch.setattr(torch, "ones", torch.zeros)
    assert compute("cpu") == "a product of matrices is wrong"


def test_each_gpu_that_cannot_compute_is_a_fault_and_good_ones_are_one_line():
    assert judge_computation({"cuda:0": "", "cuda:1": ""}) == [ok("computation", "right on 2 GPUs")]
    (found,) = judge_computation({"cuda:0": "", "cuda:1": "CUDA error: an illegal memory access"})
    assert (found.name, found.verdict) == ("cuda:1", "fault")
    assert "Xid" in found.advice


@pytest.mark.timeout(180)
def test_ranks_sum():
    assert sum_over_ranks(2, "gloo") == ok("NCCL sum", "right over 2 GPUs")


@pytest.mark.timeout(180)
def test_ranks_that_cannot_sum_are_a_fault_with_the_reason():
    found = sum_over_ranks(1, "no such backend")
    assert (found.name, found.verdict) == ("NCCL sum", "fault")
    assert "no such backend" in found.text.lower()
    assert "NCCL_DEBUG=INFO" in found.advice


def test_the_sum_is_done_before_the_computation(monkeypatch):
    """A GPU in exclusive mode admits one process at a time."""
    calls = []
    monkeypatch.setattr(gpu_use, "_num_gpus", lambda: 2)
    monkeypatch.setattr(
        gpu_use, "sum_over_ranks", lambda number, backend: calls.append((number, backend)) or ok("NCCL sum", "right")
    )
    monkeypatch.setattr(gpu_use, "compute", lambda name: calls.append(name) or "")
    assert [one.name for one in gpu_use.check_use()] == ["computation", "NCCL sum"]
    assert calls == [(2, "nccl"), "cuda:0", "cuda:1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
@pytest.mark.parametrize("name", ["compute", "compiler"])
def test_a_machine_without_gpus_has_no_line_of_them(name):
    assert list(CHECKS[name].run()) == []


@pytest.mark.parametrize(
    ("program", "verdict", "words"),
    [
        ("grep -q Python.h", "ok", "cc, with Python.h"),
        ("echo 'fatal error: Python.h: No such file' >&2; exit 1", "fault", "Python.h: No such file"),
        (None, "fault", "cc is missing"),
    ],
)
def test_the_compiler_must_find_python(program, verdict, words, tmp_path):
    compiler = tmp_path / "cc"
    if program is not None:
        compiler.write_text(f"#!/bin/sh\n{program}\n")
        compiler.chmod(0o755)
    found = judge_compiler(str(compiler))
    assert found.verdict == verdict
    assert words in found.text
    version = ".".join(map(str, sys.version_info[:2]))
    assert found.advice == ("" if verdict == "ok" else f"sudo apt-get install gcc python{version}-dev")


def test_without_a_chosen_compiler_gcc_or_clang_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert judge_compiler(None) == fault(
        "compiler", "gcc or clang is missing, and Triton's kernels need it", judge_compiler(None).advice
    )
