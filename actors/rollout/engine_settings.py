"""vLLM's settings, as measured: the environment of an engine's process, and the engine's arguments on CPU and on GPU."""

import os
from typing import Any

from arm_rl.core.compute_config import RolloutConfig, Transfer
from arm_rl.core.config import ModelConfig
from arm_rl.core.resize import ViewSize

# vLLM's name of each transfer's receiving side; `vllm_worker`, which the worker's process imports for its extension, adds the first.
BACKENDS: dict[Transfer, str] = {"file": "weights_file", "nccl": "nccl", "ipc": "ipc"}
WORKER_EXTENSION = "actors.rollout.vllm_worker.WorkerExtension"
OWNER_PID = "ARM_RL_ENGINE_OWNER"  # environment variable: the process without which vLLM's processes must not live

CPU_BLOCK_SIZE = 32  # best for short prompts; on CPU the key-value cache's blocks are multiples of it


def engine_environment(use_gpu: bool, transfer: Transfer = "file") -> dict[str, str]:
    """Environment variables of a process with an engine in it; to be set before vLLM is imported there."""
    common = {
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # On CPU vLLM's threads fight over few cores: 20 times slower without. On GPUs images have threads of their own.
        "OMP_NUM_THREADS": "1",
    }
    if transfer == "ipc":
        # for handles of GPU memory, from this process to vLLM's own on this machine
        common["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if use_gpu:
        return common | {"VLLM_LOGGING_LEVEL": "WARNING"}
    return common | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker stays in the engine's process: half the start-up time
        "TORCHDYNAMO_DISABLE": "1",  # compiling a helper of the log-probabilities takes longer than it will ever save
        "VLLM_LOGGING_LEVEL": "ERROR",  # on CPU its warnings are about settings chosen here on purpose
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # as are torch's ...
        "PYTHONWARNINGS": "ignore::FutureWarning",  # ... and those of its imports
    }


def spare_threads(share: float) -> int:
    """Return the number of threads that may prepare images for an engine: cores but two, which vLLM's processes keep busy.

    Args:
        share: The engine's share of its node's cores.
    """
    return max(1, int(share * len(os.sched_getaffinity(0))) - 2)


def engine_arguments(
    model: ModelConfig,
    rollout: RolloutConfig,
    view: ViewSize,
    *,
    seed: int,
    use_gpu: bool,
    can_sleep: bool,
    transfer: Transfer = "file",
) -> dict[str, Any]:
    """Arguments of vLLM's `AsyncEngineArgs`; the parameters are those of `Engine`."""
    common = {
        "model": model.path,
        "dtype": model.dtype,
        "seed": seed,
        "max_model_len": rollout.max_model_len,
        "max_num_seqs": rollout.max_num_seqs,
        "enable_prefix_caching": True,
        "mm_processor_cache_gb": rollout.image_cache_gib,
        "limit_mm_per_prompt": {"image": rollout.max_images, "video": 0},
        # Images come as views, never to be resized again; the largest view decides what vLLM makes room for.
        "mm_processor_kwargs": {
            "do_resize": False,
            "size": {"shortest_edge": view.min_pixels, "longest_edge": view.max_pixels},
        },
        "logprobs_mode": "processed_logprobs",  # of the distribution sampled from
        "generation_config": "auto",  # all of the model's end tokens
        "weight_transfer_config": {"backend": BACKENDS[transfer]},
        "worker_extension_cls": WORKER_EXTENSION,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if use_gpu:
        return common | {
            "block_size": rollout.block_size,
            "max_num_batched_tokens": rollout.max_num_batched_tokens,  # vLLM's own is 2,048
            "gpu_memory_utilization": rollout.gpu_memory_utilization,
            "tensor_parallel_size": rollout.tensor_parallel_size,
            # In a placement group vLLM would choose Ray, and wait for ever for GPUs that the actor around it has.
            "distributed_executor_backend": "mp" if rollout.tensor_parallel_size > 1 else None,
            "enforce_eager": rollout.enforce_eager,
            "enable_sleep_mode": can_sleep,
        }
    return common | {
        # vLLM 0.32 dies of a seeded request whose prompt it computes in pieces (it rewinds the request's generator, which a CPU's
        # cannot do): with room for all prompts that can be there at once it never has to.
        "max_num_batched_tokens": rollout.max_num_seqs * rollout.max_model_len,
        "block_size": rollout.block_size or CPU_BLOCK_SIZE,
        "kv_cache_memory_bytes": rollout.cpu_kv_cache_gib * 2**30,
        "enforce_eager": True,
        "distributed_executor_backend": "uni",
        "skip_mm_profiling": True,
    }
