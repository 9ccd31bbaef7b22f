"""A rank's DeepSpeed engine: the ranks meet, and the model is loaded and sharded."""

import contextlib
import dataclasses
import datetime
import logging
import math
import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from actors.learner.policy_model import PolicyModel
from actors.learner.pretrained import sharded_as_loaded
from actors.learner.settings import LearnerSpec, attention, deepspeed_config
from arm_rl.core.errors import NonFiniteError


def open_store(spec: LearnerSpec, address: str, port: int = 0, *, is_master: bool = False) -> dist.TCPStore:
    """Return the store through which the ranks meet; rank 0 is the master, which chooses a free port."""
    timeout = datetime.timedelta(seconds=spec.config.collective_timeout_seconds)
    return dist.TCPStore(
        address, port, spec.config.num_ranks, is_master=is_master, wait_for_workers=not is_master, timeout=timeout
    )


def join_ranks(spec: LearnerSpec, rank: int, store: dist.TCPStore) -> None:
    """Join the other ranks in torch's default process group, and prepare DeepSpeed and this process for the run."""
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not spec.use_gpu:
        torch.set_num_threads(spec.config.num_threads)
    timeout = datetime.timedelta(seconds=spec.config.collective_timeout_seconds)
    backend = "nccl" if spec.use_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=spec.config.num_ranks, timeout=timeout)
    # DeepSpeed 0.19 would compile its shared-memory collectives for CPUs, which takes a compiler and a minute, and has no
    # setting for it: gloo does without them.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
    random.seed(spec.seed)
    np.random.seed(spec.seed)
    torch.manual_seed(spec.seed)


def start_engine(spec: LearnerSpec) -> Any:
    """Load the model that is trained; return its DeepSpeed engine, whose `module` is a `PolicyModel`."""
    import deepspeed

    config = spec.config
    policy = _load_model(spec).make_trainable(config)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    engine, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=_settings(spec, policy))
    _move_buffers(policy, engine.device)
    return engine


def load_reference(spec: LearnerSpec, device: torch.device) -> nn.Module:
    """Load the frozen model that a KL penalty refers to, sharded where the policy's parameters are."""
    model = _load_model(spec).requires_grad_(False).eval()
    if spec.config.zero_stage < 3:
        return model.to(device)
    import deepspeed

    engine, *_ = deepspeed.initialize(model=model, config=_settings(spec, model))
    _move_buffers(model, device)
    engine.eval()
    return engine


def clip_and_step(engine: Any, max_grad_norm: float, zero_stage: int) -> float:
    """Clip the gradient and update the weights; return the gradient's norm before clipping.

    Raises:
        NonFiniteError: If the gradient is not finite; the weights stay as they are.
    """
    norm = None
    if not zero_stage and not engine.bfloat16_enabled():
        norm = float(nn.utils.clip_grad_norm_(engine.module.parameters(), max_grad_norm))
        _require_finite(norm)
    engine.step()
    if norm is None:
        norm = float(engine.get_global_grad_norm())
    if not engine.was_step_applied():  # DeepSpeed skips the step where the gradient is not finite
        norm = math.inf
    _require_finite(norm)
    return norm


def _require_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise NonFiniteError("the gradient is not finite")


def _load_model(spec: LearnerSpec) -> PolicyModel:
    """Load the model; with ZeRO-3 its parameters are shards from the beginning."""
    model = dataclasses.replace(spec.model, attention=attention(spec.model, spec.use_gpu))
    sharding: contextlib.AbstractContextManager = contextlib.nullcontext()
    if spec.config.zero_stage == 3:
        sharding = sharded_as_loaded(on_cpu=spec.config.offload_parameters, pin_memory=spec.use_gpu)
    with sharding:
        return PolicyModel.load(model, never_sampled_ids=spec.never_sampled_ids, call_token_id=spec.call_token_id)


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move the buffers to the device: DeepSpeed leaves a model that it finds sharded where it is."""
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def _settings(spec: LearnerSpec, policy: nn.Module) -> dict[str, Any]:
    num_parameters = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in policy.parameters())
    return deepspeed_config(spec.config, spec.model.dtype, num_parameters, spec.use_gpu)
