"""Loading of a pretrained model: from the files that its index names, and for ZeRO-3 straight into shards.

plain   all weights are loaded, on the CPU
ZeRO-3  a tensor of the files -> registered as a parameter -> this rank's part of it is kept -> the next tensor

A rank of ZeRO-3 thus holds its shards and one whole tensor at a time, and the ranks send each other nothing: each maps the same
files into memory and reads its own part. `deepspeed.zero.Init`, entered as a context, would gather and broadcast every tensor, and
compute buffers such as the frequencies of rotary embeddings in the training dtype.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoModelForImageTextToText

from actors.weights.model_files import INDEX
from arm_rl.core.config import ModelConfig

_ONE_AT_A_TIME = "HF_DEACTIVATE_ASYNC_LOAD"  # without it, transformers' threads read tensors ahead


def load_pretrained(model: ModelConfig) -> Any:
    """Load a Hugging Face folder, or a model of the hub.

    Raises:
        ValueError: If the files lack a weight of the model.
    """
    config = AutoConfig.from_pretrained(model.path)
    if Path(model.path, INDEX).is_file():  # transformers prefers a single file, even one that the index does not name
        config.transformers_weights = INDEX
    loaded, report = AutoModelForImageTextToText.from_pretrained(
        model.path,
        config=config,
        dtype=getattr(torch, model.dtype),
        attn_implementation=model.attention,
        output_loading_info=True,
    )
    if missing := sorted(report["missing_keys"]):  # transformers has drawn them at random
        raise ValueError(f"model.path: {model.path}: no weights for {len(missing)} parameters, {missing[0]} among them")
    return loaded


@contextlib.contextmanager
def sharded_as_loaded(*, on_cpu: bool, pin_memory: bool) -> Iterator[None]:
    """Keep only this rank's ZeRO-3 shard of each parameter that is loaded meanwhile; all ranks load the same model.

    Args:
        on_cpu: Whether shards are stored in the host's memory (`learner.offload_parameters`), not on the rank's device.
        pin_memory: Whether that memory is pinned.

    Raises:
        ValueError: If the files hold two different tensors for weights that the model's configuration ties.
    """
    import deepspeed

    # The empty module makes DeepSpeed replace `functional.linear` by its own, which does not keep gathered weights for backward.
    zero = deepspeed.zero.Init(module=nn.Module(), remote_device="cpu" if on_cpu else None, pin_memory=pin_memory)

    def own_part(parameter: Any) -> torch.Tensor:
        size = parameter.ds_tensor.numel()
        return parameter.ds_tensor[: max(parameter.ds_numel - zero.rank * size, 0)]  # without padding

    def shard(module: nn.Module, name: str, parameter: Any) -> None:
        if parameter.is_meta:
            return
        if not hasattr(parameter, "ds_id"):
            zero._convert_to_deepspeed_param(parameter)
            parameter.partition()
            parameter.data = parameter.data.to(zero.local_device)  # empty: where it will be gathered
            return
        before = module._parameters.get(name)  # transformers compares tied weights, but sees empty ones
        if hasattr(before, "ds_id") and not torch.equal(own_part(before), own_part(parameter)):
            raise ValueError(
                f"model.path: config.json ties {name} to another weight, but the files hold both, and they differ"
            )

    asynchronous = os.environ.get(_ONE_AT_A_TIME)
    os.environ[_ONE_AT_A_TIME] = "1"
    handle = register_module_parameter_registration_hook(shard)
    try:
        yield
    finally:
        handle.remove()
        del os.environ[_ONE_AT_A_TIME]
        if asynchronous is not None:
            os.environ[_ONE_AT_A_TIME] = asynchronous
