"""The GPUs of this machine: whether torch can use them, which driver its CUDA needs, their links, and NCCL."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from arm_rl.machine.finding import Finding, fault, ok, warning

# The oldest Linux driver that runs programs of each major version of CUDA (NVIDIA's CUDA compatibility guide, "minor
# version compatibility").
OLDEST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
QUERY_SECONDS = 20.0  # given to nvidia-smi, which hangs where a GPU has fallen off the bus
IN_USE_SHARE = 0.05  # of a GPU's memory, from which on another program is said to use it


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuDevice:
    """One GPU as nvidia-smi lists it."""

    name: str
    driver: str
    total_mib: int
    used_mib: int
    compute_mode: str = "Default"  # "Exclusive_Process": one process at a time; "Prohibited": none


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuFacts:
    """What nvidia-smi and torch report."""

    has_driver: bool  # nvidia-smi is installed
    driver_error: str = ""  # what nvidia-smi printed where it failed
    devices: tuple[GpuDevice, ...] = ()
    topology: str = ""  # output of `nvidia-smi topo -m`
    torch_cuda: str | None = None  # version of CUDA that torch was built for; None for a build without CUDA
    is_available: bool = False  # torch.cuda.is_available()
    torch_error: str = ""  # why CUDA does not start in torch
    num_visible: int = 0  # GPUs that torch sees
    nccl: str | None = None  # version of torch's NCCL; None for a build without NCCL


def read_facts() -> GpuFacts:
    """Ask nvidia-smi and torch."""
    import torch

    has_driver, error, devices = query_devices()
    topology = _output("topo", "-m")[1] if len(devices) > 1 else ""
    is_available, torch_error = torch.cuda.is_available(), ""
    if torch.version.cuda and devices and not is_available:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as failed:
            torch_error = str(failed).splitlines()[0]
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return GpuFacts(
        has_driver=has_driver,
        driver_error=error,
        devices=devices,
        topology=topology,
        torch_cuda=torch.version.cuda,
        is_available=is_available,
        torch_error=torch_error,
        num_visible=torch.cuda.device_count() if is_available else 0,
        nccl=".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
    )


def has_usable_devices() -> bool:
    """Return whether this machine has GPUs and a torch that is built for them."""
    import torch

    return torch.version.cuda is not None and bool(query_devices()[2])


def query_devices(identity: str = "") -> tuple[bool, str, tuple[GpuDevice, ...]]:
    """Return whether nvidia-smi is installed, its error where it failed, and the GPUs that it lists.

    Args:
        identity: Index or UUID of the only GPU to list; by default all are listed.
    """
    if shutil.which("nvidia-smi") is None:
        return False, "", ()
    query = ["--query-gpu=name,driver_version,memory.total,memory.used,compute_mode", "--format=csv,noheader,nounits"]
    status, output = _output(*query, *([f"--id={identity}"] if identity else []))
    if status:
        return True, output.strip().splitlines()[0] if output.strip() else f"exit status {status}", ()
    return True, "", parse_devices(output)


def parse_devices(listed: str) -> tuple[GpuDevice, ...]:
    """Return the GPUs of nvidia-smi's table (name, driver, total and used memory in MiB, compute mode)."""
    devices = []
    for line in listed.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) == 5:
            total, used = (int(value) if value.isdigit() else 0 for value in values[2:4])
            devices.append(
                GpuDevice(name=values[0], driver=values[1], total_mib=total, used_mib=used, compute_mode=values[4])
            )
    return tuple(devices)


def judge(facts: GpuFacts) -> list[Finding]:
    """Return the findings on the driver, on CUDA in torch, on the GPUs, their links and NCCL."""
    if not facts.devices:
        return [_without_devices(facts)]
    if not facts.torch_cuda:
        text = f"torch is built for CPU, so that {len(facts.devices)} x {facts.devices[0].name} are not used"
        return [warning("GPU", text, "python3 install/install.py .venv --device gpu; nothing for runs on CPU")]
    findings = [_driver(facts, facts.torch_cuda), _cuda(facts), *_memory(facts.devices), *_modes(facts.devices)]
    if len(facts.devices) > 1:
        findings.append(ok("GPU links", describe_links(facts.topology)))
    return [*findings, _nccl(facts)]


def needed_driver(cuda: str) -> str | None:
    """Return the oldest driver for a version of CUDA such as "13.0"; None for an unknown major version."""
    return OLDEST_DRIVER.get(int(cuda.split(".")[0]))


def describe_links(topology: str) -> str:
    """Return the kinds of links between GPUs and the number of pairs, from the matrix of `nvidia-smi topo -m`."""
    counts: dict[str, int] = {}
    for line in re.sub(r"\x1b\[[0-9;]*m", "", topology).splitlines():
        found = re.match(r"GPU(\d+)\s", line)
        if found:
            for link in line.split()[1 : int(found[1]) + 1]:  # the lower half of the matrix: each pair once
                counts[link] = counts.get(link, 0) + 1
    if not counts:
        return "unknown: nvidia-smi topo -m printed no matrix"
    kinds = {"SYS": "between processors", "NODE": "within a processor", "PHB": "PCIe bridge of the host"}
    kinds |= {"PXB": "several PCIe switches", "PIX": "one PCIe switch"}

    def name(link: str) -> str:
        return f"NVLink x {link[2:]}" if re.fullmatch(r"NV\d+", link) else f"PCIe, {kinds.get(link, link)}"

    return ", ".join(f"{name(link)} ({number} pairs)" for link, number in sorted(counts.items()))


def _without_devices(facts: GpuFacts) -> Finding:
    if facts.has_driver:
        text = f"nvidia-smi is installed and lists no GPU: {facts.driver_error or 'no devices were found'}"
        needed = needed_driver(facts.torch_cuda) if facts.torch_cuda else None
        return fault("GPU", text, f"load or install the NVIDIA driver{f', {needed} or newer' if needed else ''}")
    if facts.torch_cuda:
        text = f"none: nvidia-smi is not installed, and torch is built for CUDA {facts.torch_cuda}"
        needed = needed_driver(facts.torch_cuda) or f"a version for CUDA {facts.torch_cuda}"
        return warning(
            "GPU", text, f"GPUs need NVIDIA's driver {needed} or newer; in a container: docker run --gpus all"
        )
    return ok("GPU", "none; torch is built for CPU")


def _driver(facts: GpuFacts, cuda: str) -> Finding:
    driver, needed = facts.devices[0].driver, needed_driver(cuda)
    if needed is None:
        return ok("driver", f"{driver}; which one CUDA {cuda} needs is not known here")
    text = f"{driver}; torch's CUDA {cuda} needs {needed} or newer"
    if _numbers(driver) >= _numbers(needed):
        return ok("driver", text)
    if facts.is_available:
        return warning("driver", f"{text}, and CUDA starts all the same", f"install driver {needed} or newer")
    return fault("driver", text, f"install driver {needed} or newer and reboot")


def _cuda(facts: GpuFacts) -> Finding:
    if facts.is_available:
        text = f"{facts.torch_cuda} in torch; {facts.num_visible} of {len(facts.devices)} GPUs are visible"
        if facts.num_visible < len(facts.devices):
            return warning("CUDA", text, "unset CUDA_VISIBLE_DEVICES to use all of them")
        return ok("CUDA", text)
    return fault(
        "CUDA",
        f"nvidia-smi lists GPUs that torch cannot use: {facts.torch_error or 'torch.cuda.is_available() is False'}",
        "look at CUDA_VISIBLE_DEVICES and at the driver's version; machines with NVSwitch also need "
        "nvidia-fabricmanager of the driver's version; a container needs --gpus all",
    )


def _memory(devices: Sequence[GpuDevice]) -> list[Finding]:
    findings = []
    for number, device in enumerate(devices):
        free = (device.total_mib - device.used_mib) / 1024
        text = f"{device.name}, {free:.1f} of {device.total_mib / 1024:.1f} GiB free"
        if device.used_mib > IN_USE_SHARE * device.total_mib:
            advice = "end the other program that uses the GPU (nvidia-smi lists it), or leave the GPU out"
            findings.append(warning(f"GPU {number}", text, advice))
        else:
            findings.append(ok(f"GPU {number}", text))
    return findings


def _modes(devices: Sequence[GpuDevice]) -> list[Finding]:
    """Return a finding on each GPU that does not admit several processes."""
    findings = []
    for number, device in enumerate(devices):
        advice = f"sudo nvidia-smi -i {number} -c DEFAULT"
        if device.compute_mode == "Prohibited":
            findings.append(fault(f"GPU {number}", "its compute mode admits no process", advice))
        elif device.compute_mode.startswith("Exclusive"):
            text = "its compute mode admits one process at a time: placement.kind=shared fails"
            findings.append(warning(f"GPU {number}", text, advice))
    return findings


def _nccl(facts: GpuFacts) -> Finding:
    if facts.nccl is None:
        return fault("NCCL", "torch is built without NCCL, which learners on GPUs use", "make clean install")
    return ok("NCCL", f"{facts.nccl}, torch's own")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _output(*arguments: str) -> tuple[int, str]:
    """Return nvidia-smi's exit status and what it printed."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, check=False, timeout=QUERY_SECONDS
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {QUERY_SECONDS:g} seconds"
    return answer.returncode, answer.stdout + answer.stderr
