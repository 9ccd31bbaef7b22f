"""Section 0: the doctor's view of GPUs, versions and shared memory, and a product on the device."""

import torch

from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.scale import Proof
from arm_rl.machine import gpu, host


def run(proof: Proof) -> Report:
    """Pass where nothing is a fault and the device multiplies matrices."""
    facts = gpu.read_facts()
    versions = host.read_versions()
    findings = [
        *host.judge_versions(versions),
        *gpu.judge(facts),
        host.judge_shared_memory(host.read_shared_memory(), has_gpu=proof.on_gpu),
    ]
    problems = [f"{finding.name}: {finding.text}" for finding in findings if finding.verdict == "fault"]
    ones = torch.ones(256, 256, device=proof.device, dtype=getattr(torch, proof.scale.dtype))
    if not bool((ones @ ones == 256).all()):
        problems.append("a product of matrices is wrong on the device")
    numbers = {
        "python": versions.python,
        "versions": dict(versions.installed),
        "findings": [finding.as_json() for finding in findings],
    }
    line = f"torch {torch.__version__}"
    if not proof.on_gpu:
        return Report(line=f"{line}; driver and GPU memory: not on CPU", numbers=numbers, problems=problems)
    device = facts.devices[0]
    free, total = torch.cuda.mem_get_info()
    line += f", {device.name}, driver {device.driver}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
    return Report(line=line, numbers=numbers, problems=problems)
