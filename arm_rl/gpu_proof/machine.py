"""Section 0: the doctor's view of GPUs, versions, compiler and shared memory, and a product on the device."""

import torch

from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.scale import Proof
from arm_rl.machine import gpu, gpu_use, host


def run(proof: Proof) -> Report:
    """Pass where the doctor finds no fault and the device multiplies matrices."""
    facts = gpu.read_facts()
    versions = host.read_versions()
    findings = [
        *host.judge_versions(versions),
        *gpu.judge(facts),
        *gpu_use.check_compiler(),
        host.judge_shared_memory(host.read_shared_memory(), has_gpu=proof.on_gpu),
    ]
    problems = [f"{finding.name}: {finding.text}" for finding in findings if finding.verdict == "fault"]
    if error := gpu_use.compute(proof.device):
        problems.append(f"the device cannot compute: {error}")
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
