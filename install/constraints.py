"""Write the constraints files of a reproducible install: `python install/constraints.py cpu gpu`.

Resolves the requirements and extras of setup.cfg to their newest versions for Linux on x86-64, once for each supported Python,
with `uv pip compile` (`pip install uv`). No GPU is needed. A pin that differs between Pythons carries a marker.

Not every index has torch's CPU build for every Python. Its requirements are therefore read from the environment that runs this
script; for `cpu` it must be the project's own: `.venv/bin/python install/constraints.py cpu`.
"""

import argparse
import configparser
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from install import CPU_TORCH, ROOT, constraints_file

PYTHONS = ("3.11", "3.12", "3.13")
PLATFORM = "x86_64-manylinux_2_28"
DEVICES = ("cpu", "gpu")

HEADER = """\
# Versions of a reproducible {device} install, for Linux on x86-64 with Python {pythons}. install/install.py uses them.
# Made by: .venv/bin/python install/constraints.py {device}
"""


class ConstraintsError(Exception):
    """The versions cannot be resolved; the message says what to do."""


def main() -> int:
    """Write the files of the devices that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("devices", nargs="+", choices=DEVICES)
    arguments = parser.parse_args()
    try:
        for device in arguments.devices:
            path = constraints_file(device)
            path.write_text(render(device, {python: resolve(device, python) for python in PYTHONS}))
            print(f"{path.relative_to(ROOT)}: {len(path.read_text().splitlines())} lines")
    except ConstraintsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def requirements(device: str) -> list[str]:
    """Return the requirements of setup.cfg and of all its extras but the other device's."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = [value for name, value in setup["options.extras_require"].items() if name == device or name not in DEVICES]
    listed = "\n".join([setup["options"]["install_requires"], *extras])
    return list(dict.fromkeys(line.strip() for line in listed.splitlines() if line.strip()))


def resolve(device: str, python: str) -> dict[str, str]:
    """Return the version of every package that an install on one Python brings, by package name.

    Raises:
        ConstraintsError: If uv is missing or finds no solution.
    """
    uv = shutil.which("uv") or shutil.which(Path(sys.executable).with_name("uv"))
    if uv is None:
        raise ConstraintsError("uv is not installed: pip install uv")
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", python]
    with tempfile.TemporaryDirectory() as folder:
        if device == "cpu":
            write_torch_wheel(Path(folder))
        answer = subprocess.run(
            [*command, "--python-platform", PLATFORM, "--find-links", folder, "-"],
            input="\n".join(requirements(device)),
            capture_output=True,
            text=True,
            check=False,
        )
    if answer.returncode != 0:
        raise ConstraintsError(f"uv finds no versions for {device} on Python {python}:\n{answer.stderr}")
    return dict(line.split("==") for line in answer.stdout.splitlines())


def write_torch_wheel(folder: Path) -> None:
    """Write a wheel for any Python that has no content but the requirements of the installed CPU build of torch.

    Raises:
        ConstraintsError: If the environment has no CPU build of torch, or another version.
    """
    name, _, version = CPU_TORCH.partition("==")
    try:
        torch = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConstraintsError(f"{CPU_TORCH} is not installed: run this by the project's .venv/bin/python") from error
    if torch.version != version:
        raise ConstraintsError(f"{name} {torch.version} is installed, and {CPU_TORCH} is needed")
    needed = "".join(f"Requires-Dist: {requirement}\n" for requirement in torch.requires or [])
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def render(device: str, versions: Mapping[str, Mapping[str, str]]) -> str:
    """Return the text of a constraints file.

    Args:
        device: `cpu` or `gpu`.
        versions: by Python version, then by package name.
    """
    lines = [HEADER.format(device=device, pythons=", ".join(versions))]
    for name in sorted({name for resolved in versions.values() for name in resolved}):
        of_python = {python: resolved[name] for python, resolved in versions.items() if name in resolved}
        for version in dict.fromkeys(of_python.values()):
            valid = [python for python in of_python if of_python[python] == version]
            marker = " or ".join(f'python_version == "{python}"' for python in valid)
            lines.append(f"{name}=={version}\n" if len(valid) == len(versions) else f"{name}=={version} ; {marker}\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
