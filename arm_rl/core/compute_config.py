"""The sections of the configuration on engines, learners and their placement."""

import math
from dataclasses import dataclass
from typing import Literal

from arm_rl.core.config import require, require_package

Transfer = Literal["file", "nccl", "ipc"]  # how weights come to the engines


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    num_actors: int = 1  # engines
    tensor_parallel_size: int = 1  # GPUs of one engine
    temperature: float = 1.0  # of the sampling in training
    max_concurrent_sessions: int = 256  # sessions that one actor runs at a time
    max_model_len: int = 73728  # tokens of a session at most, prompt and images counted
    max_num_seqs: int = 256  # sequences that the engine decodes at a time
    # tokens that an engine on a GPU computes in one pass at most, prompts and images counted
    max_num_batched_tokens: int = 8192
    max_images: int = 16  # images in one session at most
    # threads of an engine that decode, resize and cut images; null: on GPUs, what its share of the node's cores leaves
    # free; on CPU 1
    image_threads: int | None = None
    # host memory of an engine for images that later turns show again; 0: none (vLLM's mm_processor_cache_gb)
    image_cache_gib: float = 4.0
    gpu_memory_utilization: float = 0.85  # share of a GPU's memory that the engine takes
    cpu_kv_cache_gib: int = 1  # key-value cache of an engine without a GPU
    block_size: int | None = None  # of the key-value cache; on CPU a multiple of 32
    enforce_eager: bool = False  # no CUDA graphs

    def __post_init__(self) -> None:
        for name in (
            "num_actors",
            "tensor_parallel_size",
            "max_concurrent_sessions",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_images",
            "cpu_kv_cache_gib",
        ):
            require(getattr(self, name) >= 1, f"rollout.{name}", f"at least 1, not {getattr(self, name)}")
        require(
            0 <= self.temperature <= 2,
            "rollout.temperature",
            f"from 0 to 2 (what vLLM samples at), not {self.temperature}",
        )
        require(
            self.block_size is None or self.block_size >= 1, "rollout.block_size", f"at least 1, not {self.block_size}"
        )
        require(
            self.image_threads is None or self.image_threads >= 1,
            "rollout.image_threads",
            f"null or at least 1, not {self.image_threads}",
        )
        cache = self.image_cache_gib
        require(0 <= cache < math.inf, "rollout.image_cache_gib", f"not negative and finite, not {cache}")
        share = self.gpu_memory_utilization
        require(0 < share <= 1, "rollout.gpu_memory_utilization", f"above 0 and at most 1, not {share}")


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    num_ranks: int = 1  # data-parallel learner ranks
    zero_stage: Literal[0, 1, 2, 3] = 3  # DeepSpeed ZeRO
    offload_optimizer: bool = False  # optimizer states in the host's memory
    offload_parameters: bool = False  # and the weights that are not in use (ZeRO 3)
    num_threads: int = 1  # CPU threads of a rank where there is no GPU
    # tokens of one forward pass (a packed row) at most, images counted once more; a longer trajectory is alone
    micro_batch_tokens: int = 16384
    learning_rate: float = 2e-6  # at its peak
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up
    warmup_ratio: float = 0.0  # share of the run's optimizer steps
    weight_decay: float = 0.01  # AdamW's
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's
    max_grad_norm: float = 1.0  # gradients are clipped to this norm
    freeze_vision: bool = True  # the vision tower is not trained
    freeze_projector: bool = True  # nor the layer that projects its features
    lora_rank: int = 0  # of low-rank adapters, which are trained in place of the weights; 0: the weights themselves
    lora_alpha: int = 32  # adapters count lora_alpha / lora_rank
    # their matrices
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    # a collective that takes longer takes the learners back to the last checkpoint
    collective_timeout_seconds: float = 1800.0
    call_timeout_seconds: float = 7200.0  # so does a step, a checkpoint or an export that takes longer: a rank hangs

    def __post_init__(self) -> None:
        require(self.num_ranks >= 1, "learner.num_ranks", f"at least 1, not {self.num_ranks}")
        require(
            self.micro_batch_tokens >= 1, "learner.micro_batch_tokens", f"at least 1, not {self.micro_batch_tokens}"
        )
        require(
            0 <= self.learning_rate < math.inf,
            "learner.learning_rate",
            f"not negative and finite, not {self.learning_rate}",
        )
        require(self.num_threads >= 1, "learner.num_threads", f"at least 1, not {self.num_threads}")
        require(all(0 <= beta < 1 for beta in self.betas), "learner.betas", f"each from 0 to below 1, not {self.betas}")
        require(
            0 <= self.weight_decay < math.inf,
            "learner.weight_decay",
            f"not negative and finite, not {self.weight_decay}",
        )
        for name in ("collective_timeout_seconds", "call_timeout_seconds"):
            require(0 < getattr(self, name) < math.inf, f"learner.{name}", f"above 0, not {getattr(self, name)}")
        require(0 <= self.warmup_ratio <= 1, "learner.warmup_ratio", f"between 0 and 1, not {self.warmup_ratio}")
        require(self.max_grad_norm > 0, "learner.max_grad_norm", f"above 0, not {self.max_grad_norm}")
        stage = f"not {self.zero_stage}"
        require(
            not self.offload_optimizer or self.zero_stage > 0,
            "learner.offload_optimizer",
            f"only with learner.zero_stage from 1, {stage}",
        )
        require(
            not self.offload_parameters or self.zero_stage == 3,
            "learner.offload_parameters",
            f"only with learner.zero_stage 3, {stage}",
        )
        self._check_lora()

    def _check_lora(self) -> None:
        require(self.lora_rank >= 0, "learner.lora_rank", f"not negative, not {self.lora_rank}")
        if not self.lora_rank:
            return
        require(self.lora_alpha > 0, "learner.lora_alpha", f"above 0, not {self.lora_alpha}")
        require(bool(self.lora_targets), "learner.lora_targets", "at least one name of a linear layer")
        frozen = self.freeze_vision and self.freeze_projector
        require(
            frozen,
            "learner.lora_rank",
            "only with learner.freeze_vision and learner.freeze_projector: adapters are the language model's",
        )
        require_package("peft", "learner.lora_rank")


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    # learners and engines on GPUs of their own, or taking turns on the same ones
    kind: Literal["apart", "shared"] = "apart"
    use_gpu: bool = True  # false: everything on CPU
    gpus_per_node: int = 8  # GPUs of one machine
    may_grow: bool = False  # the cluster gets more nodes (an autoscaler): what does not fit on it now is waited for
    # new weights through shared memory, or from GPU to GPU
    weight_transfer: Literal["auto", "file", "nccl", "ipc"] = "auto"

    @property
    def takes_turns(self) -> bool:
        """Whether learners and engines use the same GPUs, one after the other."""
        return self.use_gpu and self.kind == "shared"

    def __post_init__(self) -> None:
        require(self.gpus_per_node >= 1, "placement.gpus_per_node", f"at least 1, not {self.gpus_per_node}")
        fitting = {"apart": "nccl", "shared": "ipc"}[self.kind] if self.use_gpu else "file"
        require(
            self.weight_transfer in ("auto", "file", fitting),
            "placement.weight_transfer",
            f"file, or nccl on GPUs apart, or ipc on shared ones, not {self.weight_transfer}",
        )
