"""The wheel: what it holds and what it says of itself."""

import configparser
import re
import shutil
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import arm_rl

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "arm_rl", "jobs", "rewards", "tools")
ONLY_IN_A_CHECKOUT = {"jobs/submit.sh"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> ZipFile:
    """Return a wheel built from a copy of the sources, since setuptools writes into the folder that it builds."""
    copy, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(built),
        ".",
    ]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (file,) = built.glob("*.whl")
    return ZipFile(file)


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    (file,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(file).decode())


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    files = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - set(wheel.namelist()) == ONLY_IN_A_CHECKOUT
    assert {"arm_rl/py.typed", "arm_rl/report/page.html", "arm_rl/demo/chat_template.jinja"} <= files


def test_the_wheel_holds_the_licence(wheel, metadata):
    (file,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    text = wheel.read(file).decode()
    assert "Apache License" in text
    assert "Copyright 2026 The arm_rl authors" in text
    assert metadata["License"] == "Apache-2.0"
    assert "License :: OSI Approved :: Apache Software License" in metadata.get_all("Classifier", [])


def test_the_version_has_one_source(metadata):
    assert metadata["Version"] == arm_rl.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == arm_rl.__version__
    assert f"## [{arm_rl.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_command_is_installed(wheel):
    (file,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(file).decode())
    assert dict(scripts["console_scripts"]) == {"arm-rl": "jobs.cli:main"}


def test_the_named_python_versions_are_those_of_the_workflow(metadata):
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(metadata.get_all("Classifier", [])), re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    tested = workflow["jobs"]["checks"]["strategy"]["matrix"]["python"]
    assert [tested[0], tested[-1]] == [named[0], named[-1]]
    assert metadata["Requires-Python"] == f">={named[0]}"
