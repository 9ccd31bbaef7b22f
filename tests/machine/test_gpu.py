"""The verdicts on GPUs, from what nvidia-smi and torch would report."""

from dataclasses import replace

import pytest

from arm_rl.machine import gpu
from arm_rl.machine.gpu import GpuDevice, GpuFacts, describe_links, judge, parse_devices

DEVICE = GpuDevice(name="NVIDIA H200", driver="580.95.05", total_mib=143771, used_mib=4)
GOOD = GpuFacts(has_driver=True, devices=(DEVICE,), torch_cuda="13.0", is_available=True, num_visible=1, nccl="2.28.9")
TOPOLOGY = """\
\x1b[4m\tGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-47\t0
GPU1\tNV18\t X \tPHB\tNODE\t0-47\t0
GPU2\tSYS\tPHB\t X \tSYS\t48-95\t1
NIC0\tPIX\tNODE\tSYS\t X \t\t
"""


def verdicts(facts: GpuFacts) -> dict[str, str]:
    """Return the verdict of each finding by its name."""
    return {finding.name: finding.verdict for finding in judge(facts)}


def finding(facts: GpuFacts, name: str) -> tuple[str, str, str]:
    """Return verdict, text and advice of a finding."""
    (found,) = (one for one in judge(facts) if one.name == name)
    return found.verdict, found.text, found.advice


def test_a_good_machine_has_nothing_but_ok():
    assert verdicts(GOOD) == {"driver": "ok", "CUDA": "ok", "GPU 0": "ok", "NCCL": "ok"}
    assert finding(GOOD, "GPU 0")[1] == "NVIDIA H200, 140.4 of 140.4 GiB free"


@pytest.mark.parametrize(
    ("driver", "cuda", "needed"),
    [("570.133.20", "13.0", "580.65.06"), ("580.65.05", "13.2", "580.65.06"), ("520.61.05", "12.8", "525.60.13")],
)
def test_a_driver_that_is_too_old_for_torchs_cuda_is_a_fault_that_names_the_driver_needed(driver, cuda, needed):
    facts = replace(GOOD, devices=(replace(DEVICE, driver=driver),), torch_cuda=cuda, is_available=False)
    verdict, text, advice = finding(facts, "driver")
    assert (verdict, advice) == ("fault", f"install driver {needed} or newer and reboot")
    assert driver in text
    assert cuda in text


def test_an_old_driver_under_which_cuda_starts_is_a_warning():
    """NVIDIA's compatibility packages bring a newer CUDA to an old driver."""
    facts = replace(GOOD, devices=(replace(DEVICE, driver="550.54.14"),))
    assert verdicts(facts) | {"driver": "warning"} == verdicts(facts)
    assert "CUDA starts all the same" in finding(facts, "driver")[1]


def test_a_cuda_that_is_not_known_here_is_no_fault():
    assert finding(replace(GOOD, torch_cuda="14.1"), "driver")[0] == "ok"


def test_cuda_that_torch_cannot_use_although_nvidia_smi_lists_gpus_is_a_fault_with_torchs_reason():
    facts = replace(GOOD, is_available=False, num_visible=0, torch_error="CUDA error 802: system not yet initialized")
    verdict, text, advice = finding(facts, "CUDA")
    assert verdict == "fault"
    assert "CUDA error 802" in text
    assert "nvidia-fabricmanager" in advice


def test_gpus_under_a_torch_for_cpu_are_one_warning_with_what_to_do():
    (found,) = judge(replace(GOOD, torch_cuda=None, is_available=False, nccl=None))
    assert (found.name, found.verdict) == ("GPU", "warning")
    assert found.text == "torch is built for CPU, so that 1 x NVIDIA H200 are not used"
    assert "--device gpu" in found.advice


@pytest.mark.parametrize(
    ("mode", "verdict", "words"),
    [("Exclusive_Process", "warning", "placement.kind=shared fails"), ("Prohibited", "fault", "admits no process")],
)
def test_a_gpu_that_does_not_admit_several_processes_is_reported(mode, verdict, words):
    found = judge(replace(GOOD, devices=(DEVICE, replace(DEVICE, compute_mode=mode)), num_visible=2))
    (mode_found,) = (one for one in found if "compute mode" in one.text)
    assert (mode_found.name, mode_found.verdict, mode_found.advice) == (
        "GPU 1",
        verdict,
        "sudo nvidia-smi -i 1 -c DEFAULT",
    )
    assert words in mode_found.text


def test_hidden_gpus_are_a_warning():
    facts = replace(GOOD, devices=(DEVICE, DEVICE), num_visible=1, topology=TOPOLOGY)
    assert finding(facts, "CUDA")[0] == "warning"


def test_a_gpu_that_another_program_uses_is_a_warning():
    facts = replace(GOOD, devices=(replace(DEVICE, used_mib=70_000),))
    assert finding(facts, "GPU 0")[0] == "warning"


def test_a_torch_without_nccl_is_a_fault():
    assert finding(replace(GOOD, nccl=None), "NCCL")[0] == "fault"


@pytest.mark.parametrize(
    ("facts", "verdict", "words"),
    [
        (GpuFacts(has_driver=False), "ok", "built for CPU"),
        (GpuFacts(has_driver=False, torch_cuda="13.0"), "warning", "580.65.06 or newer"),
        (GpuFacts(has_driver=True, driver_error="Driver/library version mismatch"), "fault", "version mismatch"),
        (GpuFacts(has_driver=True, torch_cuda="12.8"), "fault", "525.60.13 or newer"),
    ],
)
def test_a_machine_without_gpus_is_told_apart(facts, verdict, words):
    (found,) = judge(facts)
    assert (found.name, found.verdict) == ("GPU", verdict)
    assert words in f"{found.text} {found.advice}"


def test_links_are_counted_once_a_pair():
    assert describe_links(TOPOLOGY) == (
        "NVLink x 18 (1 pairs), PCIe, PCIe bridge of the host (1 pairs), PCIe, between processors (1 pairs)"
    )
    assert describe_links("not supported").startswith("unknown")


def test_nvidia_smis_table_is_read():
    listed = "NVIDIA H200, 580.95.05, 143771, 4, Default\nNVIDIA GB10, 580.95.05, [N/A], [N/A], Exclusive_Process\n"
    other = GpuDevice(name="NVIDIA GB10", driver="580.95.05", total_mib=0, used_mib=0, compute_mode="Exclusive_Process")
    assert parse_devices(listed) == (DEVICE, other)


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'NVIDIA H200, 580.95.05, 143771, 4, Default'", (True, "", (DEVICE,))),
        ("echo 'NVIDIA-SMI has failed'; exit 9", (True, "NVIDIA-SMI has failed", ())),
        ("exec sleep 60", (True, "no answer within 0.2 seconds", ())),
        (None, (False, "", ())),
    ],
)
def test_nvidia_smi_is_asked(script, found, tmp_path, monkeypatch):
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu, "QUERY_SECONDS", 0.2 if script and "sleep" in script else 20)
    assert gpu.query_devices() == found


def test_one_gpu_alone_can_be_asked_for(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "$3, 1, 2, 3, Default"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.query_devices("GPU-ab12")[2][0].name == "--id=GPU-ab12"
