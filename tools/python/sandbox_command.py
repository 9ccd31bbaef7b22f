"""What a sandbox sees: the bubblewrap command with its namespaces, its environment and its read-only files."""

import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement

from arm_rl.core.errors import UserError

PACKAGES = "/packages"
GUEST = "/sandbox/guest.py"
# with which the guest's init takes its user id; then it gives them up
OWN_CAPABILITIES = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class SandboxError(UserError):
    """Programs cannot be isolated on this machine, so none is run."""


def bubblewrap_command(packages: Sequence[str], *, tmp_bytes: int, own_user: bool) -> list[str]:
    """Return bubblewrap's command line up to the program that it starts.

    Args:
        packages: distributions that can be imported from `PACKAGES`, with what they require.
        tmp_bytes: size of /tmp, and of /dev/shm.
        own_user: the guest takes a user id of its own; otherwise there is a user namespace.

    Raises:
        SandboxError: bubblewrap is not installed.
        UserError: a package is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError(
            "running code needs bubblewrap 0.8 or newer (Debian and Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap)"
        )
    words = [program, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if own_user:
        words += ["--cap-drop", "ALL", *(word for name in OWN_CAPABILITIES for word in ("--cap-add", name))]
    else:
        words += ["--unshare-user", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"]
    words += ["--die-with-parent", "--new-session", "--as-pid-1", "--hostname", "sandbox", "--clearenv"]
    for name, value in {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "", **dict.fromkeys(ONE_THREAD, "1")}.items():
        words += ["--setenv", name, value]
    binds = [
        *_bind_interpreter(),
        *_bind_packages(packages),
        "--ro-bind",
        str(Path(__file__).with_name("sandbox_guest.py")),
        GUEST,
    ]
    words += [*_bind_parents(binds), "--perms", "0755", "--dir", "/dev", *binds]
    for device in ("null", "zero", "full", "random", "urandom"):
        words += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for name, target in {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        words += ["--symlink", f"/proc/self/{target}", f"/dev/{name}"]
    for folder in ("/tmp", "/dev/shm"):
        words += ["--perms", "1777", "--size", str(tmp_bytes), "--tmpfs", folder]
    # All of /proc is read-only: a program whose user is the machine's root, seen from outside, could write to /proc/sys else.
    return [*words, "--proc", "/proc", "--remount-ro", "/proc", "--remount-ro", "/", "--chdir", "/tmp"]


def _bind_parents(binds: Sequence[str]) -> list[str]:
    """Make the folders above all bound paths readable: bubblewrap makes them for its own user only."""
    targets = [
        binds[place + 2] for place, word in enumerate(binds) if word in ("--ro-bind", "--ro-bind-try", "--symlink")
    ]
    above = {str(folder) for target in targets for folder in Path(target).parents}
    return [word for folder in sorted(above - {"/"}) for word in ("--perms", "0755", "--dir", folder)]


def interpreter_path() -> str:
    """Return the path of the interpreter itself, also if this process runs in a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _bind_interpreter() -> list[str]:
    """Bind the interpreter, its standard library and the system's libraries, and hide all installed packages."""
    libraries = [os.path.join(sys.base_prefix, "lib"), "/usr/lib", "/usr/lib64", "/lib", "/lib64"]
    binds: list[str] = []
    bound: list[str] = []
    for folder in libraries:
        if os.path.islink(folder):
            binds += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder) and folder not in bound:
            binds += ["--ro-bind", folder, folder]
            bound.append(folder)
    for folder in bound:
        for hidden in sorted(
            [*Path(folder).glob("python3*/site-packages"), *Path(folder).glob("python3*/dist-packages")]
        ):
            if hidden.is_dir() and not hidden.is_symlink():
                binds += ["--size", "4096", "--tmpfs", str(hidden), "--remount-ro", str(hidden)]
    binds += ["--ro-bind", interpreter_path(), interpreter_path()]
    for name in ("/etc/ld.so.cache", "/usr/share/zoneinfo"):
        binds += ["--ro-bind-try", name, name]
    return binds


def _bind_packages(names: Sequence[str]) -> list[str]:
    """Bind the files of the distributions and of their requirements, and nothing else."""
    binds: list[str] = []
    for name in _resolve_requirements(names):
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        for top in sorted(tops):
            source = os.path.realpath(str(distribution.locate_file(top)))
            if not top.endswith(".pth") and os.path.exists(source):
                binds += ["--ro-bind", source, f"{PACKAGES}/{top}"]
    return binds


def _resolve_requirements(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(f"packages: {name!r} is not installed here, or requires what is not") from error
        found.append(name)
        for requirement in map(Requirement, required):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return sorted(found)
