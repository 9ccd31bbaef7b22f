"""What a learner's ranks are started with: their specification, environment variables and DeepSpeed's configuration."""

from dataclasses import dataclass
from typing import Any

from transformers.utils import is_flash_attn_2_available

from arm_rl.core.compute_config import LearnerConfig, Transfer
from arm_rl.core.config import ModelConfig
from arm_rl.core.resize import ViewSize


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerSpec:
    """What all ranks of a learner are made of."""

    model: ModelConfig
    config: LearnerConfig
    view: ViewSize
    num_steps: int  # optimizer steps of the run, for the learning-rate schedule
    never_sampled_ids: tuple[int, ...] = ()  # tokens that the engine never samples
    call_token_id: int | None = None  # the call's first token: not sampled where `TrainingSample.call_forbidden`
    with_reference: bool = False  # keep a frozen copy of the model as it is loaded, for a KL penalty
    use_gpu: bool = True
    transfer: Transfer = "file"  # how weights go to the engines
    seed: int = 0


def attention(model: ModelConfig, use_gpu: bool) -> str | None:
    """Return the attention of the vision tower by transformers' name, or None for its default; text takes `packed_attention`."""
    if model.attention is None and use_gpu and model.dtype == "bfloat16" and is_flash_attn_2_available():
        return "flash_attention_2"
    return model.attention


def learner_environment(config: LearnerConfig, use_gpu: bool, transfer: Transfer = "file") -> dict[str, str]:
    """Environment variables of the ranks' processes; all that are set."""
    environment = {
        "DS_ACCELERATOR": "cuda" if use_gpu else "cpu",
        "LOCAL_RANK": "0",  # Ray shows each rank its own GPU alone
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    if use_gpu:
        # Memory in expandable segments cannot be handed to another process in a container (pytorch issue 165685).
        return environment | ({} if transfer == "ipc" else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})
    # Threads that wait for one another must not spin: beside a busy engine, two spinning threads took ten times as long as one.
    return environment | {"OMP_NUM_THREADS": str(config.num_threads), "OMP_WAIT_POLICY": "PASSIVE"}


def deepspeed_config(config: LearnerConfig, dtype: str, num_parameters: int, use_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's own configuration, for a model of `num_parameters`."""
    bucket = min(500_000_000, num_parameters)  # buffers of that many elements are made anew in each step
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": use_gpu,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "stage3_prefetch_bucket_size": min(50_000_000, num_parameters),
        # norms and biases are not worth a gathering
        "stage3_param_persistence_threshold": min(100_000, num_parameters // 1000),
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": use_gpu}
    if config.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": use_gpu}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed wants a number; the loss is scaled here, not there
        "gradient_accumulation_steps": 1,  # the boundary is set by hand
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
    }
    if dtype == "bfloat16":
        settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if config.zero_stage:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    elif not config.zero_stage:
        settings["gradient_clipping"] = 0.0  # done here: DeepSpeed would neither tell the norm nor look at it first
    return settings
