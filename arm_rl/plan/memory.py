"""Memory of a GPU by part, in bytes: a learner's rank, and an engine.

Model states are those of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1: 2 + 2 + 12 bytes a parameter in mixed precision,
each part divided by the ranks from its stage on), with what DeepSpeed 0.19 does beside it: gradients are added up in float32. Activations
are counted as Korthikanti et al. count them (2022, arXiv 2205.05198, section 4), for Qwen's blocks as transformers writes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from arm_rl.core.compute_config import LearnerConfig, RolloutConfig
from arm_rl.plan.hardware import GIB, Gpu
from arm_rl.plan.shapes import Blocks, ModelShape

MAX_LOGITS = 1 << 27  # logits that actors/learner/policy_model.py holds at a time
_BUCKET = 500_000_000  # elements of DeepSpeed's buckets (actors/learner/settings.py)
_PREFETCH = 50_000_000  # elements that ZeRO-3 gathers ahead
_LIVE = 1_000_000_000  # elements that ZeRO-3 keeps gathered (stage3_max_live_parameters)
_CONTEXT = int(1.5 * GIB)  # of a process on a GPU: CUDA, cuBLAS, NCCL. An assumption
_SLEEPING = 2 * GIB  # what an engine keeps while it sleeps: its context and its CUDA graphs. An assumption
_FRAGMENTS = 0.05  # of a learner's own memory, that the allocator cannot use. An assumption
_WORKSPACES = GIB // 2  # of an engine's kernels. An assumption
_GRAPHS = 2 * GIB  # of an engine: CUDA graphs and the workspaces of its kernels. An assumption
# of what an engine measures at its start (activations, graphs, context): by so much it may measure more. An assumption
_VARIANCE = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class States:
    """What a model's training keeps between two passes."""

    weights: int
    gradients: int  # at their most, before a step
    optimizer: int  # float32 weights, where the model's are not, and AdamW's two moments
    host: int = 0  # of these, in the host's memory


def model_states(
    parameters: int, trainable: int, *, ranks: int, zero_stage: int, element: int = 2, offload: bool = False
) -> States:
    """Weights, gradients and optimizer states of one rank.

    ZeRO's table with Psi parameters of which T are trained, N ranks and bfloat16 (element 2):

        stage   weights   gradients               optimizer
        0       2 Psi     2 T                     12 T
        1       2 Psi     2 T + 4 T               12 T / N    (float32 sums of all gradients beside the bfloat16 ones)
        2       2 Psi     4 T / N                 12 T / N
        3       2 Psi/N   4 T / N                 12 T / N

    In float32 (element 4) the weights are their own masters: 4, 4 and 8 bytes at stage 0, and at the others 4 bytes more, for ZeRO's flat
    copy of a rank's share.

    Args:
        element: bytes of a weight.
        offload: the optimizer's states, and the gradients it reads, lie in the host's memory (ZeRO-Offload, arXiv 2101.06840).
    """
    share = ranks if zero_stage else 1
    optimizer = (12 if element == 2 or zero_stage else 8) * trainable // share
    gradients = {0: element * trainable, 1: (element + (4 if element == 2 else 0)) * trainable}.get(
        zero_stage, 4 * trainable // ranks
    )
    weights = element * (parameters // ranks if zero_stage == 3 else parameters)
    if not offload:
        return States(weights=weights, gradients=gradients, optimizer=optimizer)
    host = optimizer + 4 * trainable // ranks
    return States(weights=weights, gradients=0 if zero_stage > 1 else gradients, optimizer=0, host=host)


def zero_buffers(shape: ModelShape, trainable: int, *, zero_stage: int, element: int = 2) -> int:
    """What DeepSpeed brings together while it works: buckets of gradients (two, one travels while the other fills), and at stage 3 the
    modules at work, those gathered ahead and the gradient of the largest one."""
    bucket = min(_BUCKET, trainable)
    if zero_stage == 3:
        gathered = min(_LIVE + _PREFETCH, shape.parameters) + shape.largest
        return element * (gathered + bucket)
    return (2 if zero_stage else 1) * element * bucket


def block_bytes(blocks: Blocks, *, element: int = 2) -> int:
    """Bytes that the backward pass of one block needs of its forward pass, for each token (or patch).

    With hidden width H, query width Q, key and value width K, feed-forward width I, A heads and b bytes an element:

        two RMS norms         2 (4 H + b H + 4)     the input in float32, the normalised values, a scale (layer norms: 2 (b H + 2 b))
        inputs of products    b 2 H                 of queries, keys and values; of the feed-forward part
        attention             b (3 Q + 2 K) + 4 A   queries, keys, values and results; the row of results, which the output reads; log-sums
        feed-forward part     4 b I                 gate, its SiLU, the other half, their product (without a gate: 2 b I)

    No matrix of attention's probabilities is kept (FlashAttention, arXiv 2205.14135). What branches copy of their prompts is counted by
    `activations`. A vision tower's queries, keys and values come of one product, which is kept whole with its last part (b 2 Q more).
    Qwen3's norms of queries and keys count as the others.
    """
    hidden, query, key_value = blocks.hidden, blocks.query, blocks.key_value
    gated = blocks.gated
    norms = 2 * ((4 + element) * hidden + 4) if gated else 2 * element * (hidden + 2)
    if blocks.query_key_norm:
        norms += (4 + element) * (query + key_value) + 4 * (blocks.heads + blocks.key_value_heads)
    products = element * 2 * hidden
    attention = element * (3 * query + 2 * key_value) + 4 * blocks.heads
    fused = 2 * element * query if blocks.fused else 0
    return norms + products + attention + fused + (4 if gated else 2) * element * blocks.intermediate


def activations(blocks: Blocks, tokens: int, *, checkpointing: bool, element: int = 2, copied: float = 0.0) -> int:
    """Return the bytes of a stack of blocks at their most, for so many tokens of one forward pass.

    With checkpointing only the input of each block is kept, and one block is computed again at a time (Chen et al. 2016, arXiv 1604.06174).
    To both, the backward pass of the feed-forward part adds gradients of its widest values.

    Args:
        blocks: Sizes of the blocks.
        tokens: Tokens (or patches) of the pass.
        checkpointing: Whether blocks are computed again in the backward pass.
        element: Bytes of an activation.
        copied: Keys and values that branches of the packed row copy (`Workload.copied`), as a multiple of `tokens`.
    """
    one = block_bytes(blocks, element=element) + int(copied * 2 * element * blocks.key_value)
    kept = blocks.layers * element * blocks.hidden + one if checkpointing else blocks.layers * one
    backward = element * (3 * blocks.intermediate + blocks.hidden)
    return tokens * (kept + backward)


def logits(vocabulary: int, tokens: int) -> int:
    """Of the head at its most: a chunk of logits is there five times in float32 (divided by the temperature, masked, their logarithms, and
    for the entropies these again and their exponentials), and once as a mask."""
    return min(MAX_LOGITS, tokens * vocabulary) * (5 * 4 + 1)


def learner(
    shape: ModelShape,
    config: LearnerConfig,
    *,
    element: int = 2,
    image_share: float = 0.25,
    loss_share: float = 0.2,
    copied: float = 0.0,
    reference: bool = False,
) -> Mapping[str, int]:
    """A rank's memory by part, at its most; "host" is the host's and counts for no GPU.

    Args:
        image_share: of a micro-batch's tokens, that are the vision tower's (`learner.micro_batch_tokens` counts them once more).
        loss_share: of the other tokens, that carry loss.
        copied: keys and values that branches copy, as a multiple of the other tokens.
        reference: a frozen copy of the model for a KL penalty.
    """
    trained = shape.trained(config)
    states = model_states(
        shape.parameters,
        trained,
        ranks=config.num_ranks,
        zero_stage=config.zero_stage,
        element=element,
        offload=config.offload_optimizer,
    )
    image_tokens = int(config.micro_batch_tokens * image_share)
    tokens = config.micro_batch_tokens - image_tokens
    patches = image_tokens * shape.patches_per_token
    frozen = config.freeze_vision and config.freeze_projector
    tower = (
        patches * block_bytes(shape.tower, element=element)
        if frozen
        else activations(shape.tower, patches, checkpointing=config.gradient_checkpointing, element=element)
    )
    parts = {
        "weights": states.weights * (1 + reference),
        "gradients": states.gradients,
        "optimizer": states.optimizer,
        "ZeRO buffers": zero_buffers(shape, trained, zero_stage=config.zero_stage, element=element),
        "activations": activations(
            shape.text, tokens, checkpointing=config.gradient_checkpointing, element=element, copied=copied
        ),
        "vision activations": tower + patches * shape.patch_values * element,
        "logits": logits(shape.vocabulary, int(tokens * loss_share)),
    }
    parts["fragments"] = int(_FRAGMENTS * sum(parts.values()))
    return parts | {"context": _CONTEXT, "host": states.host}


def on_gpu(parts: Mapping[str, int]) -> int:
    """Their sum without the host's."""
    return sum(size for name, size in parts.items() if name != "host")


def key_value_bytes(shape: ModelShape, *, tensor_parallel: int = 1, element: int = 2) -> int:
    """Of a token's keys and values in one GPU of an engine; heads are divided, and repeated where there are fewer than GPUs."""
    text = shape.text
    heads = max(1, text.key_value_heads // tensor_parallel)
    return 2 * text.layers * heads * text.head * element


def engine(shape: ModelShape, rollout: RolloutConfig, gpu: Gpu, *, element: int = 2) -> Mapping[str, int]:
    """An engine's memory by part in each of its GPUs; "key-value cache" is what is left of `rollout.gpu_memory_utilization`.

    What vLLM measures at its start is reckoned here: the activations of its longest pass without gradients (of the widest layer alone), the
    vision tower's for as many tokens, and the logits of all sequences in float32 three times. "variance" is what one start may measure
    beyond another, so that the cache is not smaller than it is said to be.
    """
    size = rollout.tensor_parallel_size
    text, tower = shape.text, shape.tower
    widest = element * (2 * text.intermediate // size + 4 * text.hidden + text.query // size)
    vision = (
        rollout.max_num_batched_tokens
        * shape.patches_per_token
        * (element * (3 * tower.intermediate + 6 * tower.hidden) + 4 * tower.hidden)
    )
    used = {
        "weights": element * shape.parameters // size,
        "activations": rollout.max_num_batched_tokens * widest
        + vision
        + 3 * 4 * rollout.max_num_seqs * shape.vocabulary,
        "graphs": _WORKSPACES if rollout.enforce_eager else _GRAPHS,
        "context": _CONTEXT,
    }
    used["variance"] = int(_VARIANCE * (used["activations"] + used["graphs"] + used["context"]))
    budget = int(rollout.gpu_memory_utilization * gpu.memory_gib * GIB)
    return used | {"key-value cache": budget - sum(used.values())}


def sleeping_engine() -> int:
    """What an engine that sleeps keeps of the GPU: its weights lie in the host's memory, its cache is gone."""
    return _SLEEPING


def idle_learner(parts: Mapping[str, int]) -> int:
    """What a learner keeps of the GPU between its steps: DeepSpeed's buffers of gradients stay. Activations, and what the allocator
    holds free, count as given back."""
    return sum(parts[name] for name in ("weights", "gradients", "optimizer", "ZeRO buffers", "context"))
