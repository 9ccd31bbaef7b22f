"""Section 7: the rounds of section 6 with weights by file, and with LoRA, whose adapters the engine merges."""

import asyncio

from actors.cluster.connection import cluster
from arm_rl.gpu_proof import transfer
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.scale import Proof
from arm_rl.gpu_proof.stage import stage_config

LORA_RANK = 16


def run(proof: Proof) -> Report:
    """Pass where the engine changes with each update and has the learner's log-probabilities."""
    configs = {
        "file": stage_config(proof, "by-file", transfer="file"),
        "LoRA": stage_config(proof, "lora", transfer="file", lora_rank=LORA_RANK),
    }
    if not proof.on_gpu:
        del configs["file"]  # section 6 sends weights by file there
    with cluster():
        found = {name: asyncio.run(transfer.measure(proof, config, 1)) for name, config in configs.items()}
    return Report(
        line="; ".join(f"{name}: {transfer.describe(rounds)}" for name, rounds in found.items()),
        numbers={name: transfer.numbers(rounds) for name, rounds in found.items()},
        problems=[f"{name}: {problem}" for name, rounds in found.items() for problem in rounds.problems],
    )
