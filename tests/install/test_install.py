"""The installer's decisions, without installing anything."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "install" / "install.py"


@pytest.fixture
def installer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("installer", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_old_python_can_read_it_and_be_told():
    ast.parse(PATH.read_text(), feature_version=(3, 7))


def test_an_old_python_is_refused(installer, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(installer.InstallError, match=r"Python 3\.11 or newer is needed.*make PYTHON="):
        installer.check_machine()


def test_a_python_without_venv_is_told_the_package(installer, monkeypatch):
    monkeypatch.setattr(installer, "find_spec", lambda name: None)
    with pytest.raises(installer.InstallError, match=r"apt-get install python3\.\d+-venv"):
        installer.check_machine()


def test_this_machine_will_do(installer):
    installer.check_machine()


@pytest.mark.parametrize(
    ("script", "device"),
    [
        ("echo 'GPU 0: NVIDIA H200'", "gpu"),
        ("echo 'driver not loaded'; exit 9", "cpu"),
        ("echo 'No devices found'", "cpu"),
        (None, "cpu"),
    ],
)
def test_the_device_is_what_the_driver_says(installer, tmp_path, monkeypatch, capsys, script, device):
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert installer.find_device() == device
    assert ("--device gpu" in capsys.readouterr().out) == (device == "cpu" and script is not None)


def test_the_stamp_changes_with_the_device_and_with_each_deciding_file(installer, tmp_path, monkeypatch):
    for name in installer.DECIDING_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(installer, "ROOT", tmp_path)
    digests = {installer.digest("cpu"), installer.digest("gpu")}
    for name in installer.DECIDING_FILES:
        (tmp_path / name).write_text(name + " changed")
        digests.add(installer.digest("cpu"))
    assert len(digests) == 2 + len(installer.DECIDING_FILES)


def test_an_installation_that_stands_is_left_alone(installer, tmp_path, monkeypatch):
    (tmp_path / "installed").write_text(installer.digest("cpu"))
    monkeypatch.setattr(installer, "create", lambda venv: pytest.fail("nothing is to be done"))
    installer.install(tmp_path, "cpu")


class RecordedPip:
    """A pip that installs nothing; `calls` holds the arguments of each run."""

    def __init__(self, *, has_cpu_torch: bool = True) -> None:
        self.calls: list[tuple[str, ...]] = []
        self._has_cpu_torch = has_cpu_torch

    def finds(self, requirement: str) -> bool:
        return self._has_cpu_torch

    def run(self, *arguments: str) -> None:
        self.calls.append(arguments)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_packages_are_installed_with_the_constraints_of_the_device(installer, tmp_path, monkeypatch, device):
    pip = RecordedPip()
    monkeypatch.setattr(installer.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(installer, "Pip", lambda venv: pip)
    for name in ("create", "install_hook", "check_imports", "check_gpus"):
        monkeypatch.setattr(installer, name, lambda venv: None)
    installer.install(tmp_path, device)
    (call,) = (call for call in pip.calls if "--editable" in call)
    file = installer.ROOT / "install" / f"constraints-{device}.txt"
    assert call == ("install", "--constraint", str(file), "--editable", f"{installer.ROOT}[{device},test]")
    assert f"install/constraints-{device}.txt" in installer.DECIDING_FILES
    assert (tmp_path / "installed").read_text() == installer.digest(device)


def test_the_constraints_are_for_the_processor_that_they_were_resolved_for(installer, monkeypatch):
    monkeypatch.setattr(installer.platform, "machine", lambda: "aarch64")
    assert installer.constraints("gpu") == []


@pytest.mark.parametrize("has_cpu_torch", [True, False])
def test_no_other_package_comes_with_torchs_cpu_build(installer, has_cpu_torch):
    """The index of torch's CPU build has older versions of what torch requires than the constraints allow."""
    pip = RecordedPip(has_cpu_torch=has_cpu_torch)
    installer.install_cpu_torch(pip)
    (call,) = pip.calls
    assert call[:3] == ("install", "--no-deps", installer.CPU_TORCH)
    assert ("--index-url" in call) == (not has_cpu_torch)


def test_a_failing_pip_ends_with_what_it_said(installer, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\necho 'No matching distribution'; exit 1\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    pip = installer.Pip(tmp_path)
    assert not pip.finds("torch==2.13.0+cpu")
    with pytest.raises(installer.InstallError, match=r"(?s)pip install failed:.*No matching distribution.*df -h"):
        pip.run("install", "something")
    assert "No matching distribution" in (tmp_path / "install.log").read_text()


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Downloading ray-2.60.0-cp311-cp311-manylinux2014_x86_64.whl (79.3 MB)", "Downloading ray 2.60.0, 79 MB"),
        (
            "Downloading https://host/whl/cpu/torch-2.13.0%2Bcpu-cp311-linux.whl (1.2 GB)",
            "Downloading torch 2.13.0%2Bcpu, 1 GB",
        ),
        ("Downloading six-1.17.0-py2.py3-none-any.whl (11 kB)", ""),
        ("Downloading pillow-13.0.0-cp311-cp311-manylinux_2_27_x86_64.whl (7.1 MB)", ""),
        ("Installing collected packages: a, b, c", "Installing 3 packages"),
        ("Requirement already satisfied: ray in somewhere", ""),
    ],
)
def test_large_steps_are_shown_in_short(installer, line, shown):
    assert installer.large_step(line) == shown


def environment_with_a_doctor(folder: Path, script: str) -> Path:
    """Return a virtual environment whose Python runs a script in place of the doctor."""
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "python").chmod(0o755)
    return folder


def test_after_a_gpu_install_the_doctor_is_asked_about_the_gpus(installer, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(installer, "Pip", lambda venv: RecordedPip())
    monkeypatch.setattr(installer, "install_cpu_torch", lambda pip: None)
    for name in ("create", "install_hook", "check_imports"):
        monkeypatch.setattr(installer, name, lambda venv: None)
    monkeypatch.setattr(installer, "check_gpus", asked.append)
    for device in ("cpu", "gpu"):
        (tmp_path / device).mkdir()
        installer.install(tmp_path / device, device)
    assert asked == [tmp_path / "gpu"]


def test_faults_of_the_gpus_are_printed_with_what_to_do_and_do_not_stop_the_installation(installer, tmp_path, capsys):
    venv = environment_with_a_doctor(
        tmp_path, 'echo "fault driver 550, asked: $*"; echo "-> install driver 580"; exit 1'
    )
    installer.check_gpus(venv)
    shown = capsys.readouterr().out
    assert "fault driver 550, asked: -m jobs.doctor gpu compute compiler shm" in shown
    assert "-> install driver 580" in shown
    assert "will fail until the faults above are mended" in shown


def test_usable_gpus_are_printed_without_a_warning(installer, tmp_path, capsys):
    installer.check_gpus(environment_with_a_doctor(tmp_path, "echo ok driver 590"))
    assert capsys.readouterr().out == "GPUs:\n  ok driver 590\n"
