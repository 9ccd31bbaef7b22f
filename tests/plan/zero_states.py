"""A rank of a small DeepSpeed run that tells how many bytes of tensors live before and after its steps: `RANK RANKS PORT`."""

import gc
import json
import logging
import os
import sys
from collections.abc import Iterator

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from actors.learner.settings import deepspeed_config
from arm_rl.core.compute_config import LearnerConfig

WIDTH, LAYERS = 128, 32
CASES = [
    ("float32", 0),
    ("float32", 2),
    ("float32", 3),
    ("bfloat16", 0),
    ("bfloat16", 1),
    ("bfloat16", 2),
    ("bfloat16", 3),
]
# kept, so that nothing of an earlier case goes while a later one is measured
ENGINES: list[deepspeed.DeepSpeedEngine] = []


def tensors() -> Iterator[Tensor]:
    for found in gc.get_objects():
        if type(found) in (Tensor, nn.Parameter):
            yield found
            of_it = [
                found.grad if found.is_leaf else None,
                *(getattr(found, name, None) for name in ("ds_tensor", "grad_accum")),
            ]
            yield from (one for one in of_it if isinstance(one, Tensor))


def live_bytes() -> int:
    """Of all storages, each once."""
    gc.collect()
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors()}.values())


def measure(dtype: str, stage: int, ranks: int) -> dict:
    before = live_bytes()  # what the case before left behind
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))).to(getattr(torch, dtype))
    model[0].requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    counts = [sum(parameter.numel() for parameter in many) for many in (list(model.parameters()), trained)]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    config = LearnerConfig(num_ranks=ranks, zero_stage=stage)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=deepspeed_config(config, dtype, counts[0], False)
    )

    ENGINES.append(engine)
    at_most = 0
    for _ in range(2):
        for last in (False, True):
            engine.set_gradient_accumulation_boundary(last)
            engine.backward(engine(torch.ones(2, WIDTH, dtype=getattr(torch, dtype))).float().mean())
            at_most = max(at_most, live_bytes() - before)
        engine.step()
    return {
        "dtype": dtype,
        "stage": stage,
        "parameters": counts[0],
        "trained": counts[1],
        "before_step": at_most,
        "after_step": live_bytes() - before,
    }


if __name__ == "__main__":
    rank, ranks, port = map(int, sys.argv[1:])
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    dist.init_process_group(
        "gloo", store=dist.TCPStore("127.0.0.1", port, ranks, is_master=rank == 0), rank=rank, world_size=ranks
    )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    gc.freeze()  # what the imports made need not be looked through again and again
    for case in CASES:
        measured = measure(*case, ranks)
        if rank == 0:
            sys.stdout.write(json.dumps(measured) + "\n")
            sys.stdout.flush()
