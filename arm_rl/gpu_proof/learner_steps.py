"""Section 1: two optimizer steps of full micro-batches with images, in bfloat16 under ZeRO-3 with NCCL."""

from dataclasses import replace

from arm_rl.gpu_proof import learner_process as process
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.samples import TokenIds, random_samples
from arm_rl.gpu_proof.scale import NOT_ON_CPU, Proof
from arm_rl.plan import memory
from arm_rl.plan.hardware import GIB
from arm_rl.plan.shapes import ModelShape

STEPS, MICRO_BATCHES = 2, 2
ROWS = 4  # of a micro-batch
TOLERANCE = 0.15  # of the plan's memory


def run(proof: Proof) -> Report:
    """Pass where everything is finite and the peak of the memory is the plan's."""
    config, ids = proof.learner_config(), TokenIds.of(proof.model_folder)
    row_tokens = _row_tokens(proof)
    samples, images = random_samples(
        1, ids, proof.view, number=ROWS * MICRO_BATCHES, num_tokens=row_tokens, side=proof.scale.image_side
    )
    batch = process.rank_batch(samples, config.micro_batch_tokens)
    with process.learner(proof, proof.model_folder, config) as rank:
        process.reset_peak(proof)
        seconds, problems = process.train_steps(rank, batch, images, STEPS)
        peak = process.peak_bytes(proof)
    counted = process.passes(batch)
    rate = counted.tokens / seconds[-1]
    numbers: dict = {"seconds": seconds, "tokens": counted.tokens, "tokens_per_second": rate}
    line = f"{rate:,.0f} tokens/s in {len(batch.micro_batches)} micro-batches of {ROWS} x {row_tokens} tokens"
    if peak is None:
        return Report(line=f"{line}; memory and MFU: {NOT_ON_CPU}", numbers=numbers, problems=problems)
    shape = ModelShape.of(str(proof.model_folder))
    planned = process.allocated(memory.learner(shape, config, **process.shares(batch)))
    numbers |= {"peak_bytes": peak, "planned_bytes": planned}
    line += f"; {peak / GIB:.1f} GiB at most, planned {planned / GIB:.1f}"
    if abs(peak - planned) > TOLERANCE * planned:
        problems.append(f"the peak of the memory is {peak / planned - 1:+.0%} off the plan")
    gpu = process.planned_gpu()
    if gpu is None:
        return Report(line=f"{line}; MFU: the plan does not know this GPU", numbers=numbers, problems=problems)
    done = process.operations(shape, config, counted)
    useful = process.operations(shape, replace(config, gradient_checkpointing=False), counted)
    efficiency = {"matmul": done / seconds[-1] / gpu.flops}
    mfu = useful / seconds[-1] / gpu.flops
    numbers |= {"mfu": mfu, "efficiency": efficiency}
    return Report(line=f"{line}; MFU {mfu:.1%}", numbers=numbers, problems=problems)


def _row_tokens(proof: Proof) -> int:
    """Return the tokens of a row, so that the rows of a micro-batch and their images fill its budget."""
    image_tokens = proof.view.num_tokens(proof.scale.image_side, proof.scale.image_side)
    return proof.scale.micro_batch_tokens // ROWS - image_tokens
