"""Section 3: the longest session that the shipped configurations allow, forward and backward."""

from dataclasses import replace

from arm_rl.gpu_proof import learner_process as process
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.samples import TokenIds, random_samples
from arm_rl.gpu_proof.scale import NOT_ON_CPU, Proof
from arm_rl.plan import memory
from arm_rl.plan.hardware import GIB
from arm_rl.plan.shapes import ModelShape


def run(proof: Proof) -> Report:
    """Pass where it fits and is finite."""
    config, ids, tokens = proof.learner_config(), TokenIds.of(proof.model_folder), proof.scale.long_session
    samples, images = random_samples(3, ids, proof.view, number=1, num_tokens=tokens, side=proof.scale.large_side)
    batch = process.rank_batch(samples, config.micro_batch_tokens)
    with process.learner(proof, proof.model_folder, config) as rank:
        process.reset_peak(proof)
        seconds, problems = process.train_steps(rank, batch, images, 1)
        peak = process.peak_bytes(proof)
    counted = process.passes(batch)
    numbers: dict = {"seconds": seconds[0], "tokens": counted.tokens}
    line = f"{counted.tokens:,} tokens, {batch.num_loss_tokens:,} with loss, in {seconds[0]:.1f} s"
    if peak is None:
        return Report(line=f"{line}; memory: {NOT_ON_CPU}", numbers=numbers, problems=problems)
    budget = replace(config, micro_batch_tokens=int(counted.tokens + counted.image_tokens))
    shape = ModelShape.of(str(proof.model_folder))
    planned = process.allocated(memory.learner(shape, budget, **process.shares(batch)))
    numbers |= {"peak_bytes": peak, "planned_bytes": planned}
    return Report(
        line=f"{line}; {peak / GIB:.1f} GiB at most, planned {planned / GIB:.1f}", numbers=numbers, problems=problems
    )
