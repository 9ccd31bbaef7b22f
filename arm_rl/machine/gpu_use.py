"""GPUs in use: a sum over all of them with NCCL, a computation on each, and the compiler that Triton needs.

The checks return no finding where torch has no GPU; `gpu` says why.
"""

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from datetime import timedelta

from arm_rl.core.owner import die_with_parent
from arm_rl.machine.finding import Finding, fault, ok

SIDE = 1024  # rows and columns of the matrices of the computation; their product is exact in bfloat16
SUM_VALUES = 1 << 22  # of one rank: 16 MiB, more than NCCL's buffers hold at once
SUM_SECONDS = 60.0  # given to the ranks to meet, and to the sum


def check_use() -> list[Finding]:
    """Use all GPUs that torch sees: a sum with a process on each, as learners do, and then a computation on each.

    The two never run at the same time: a GPU in exclusive mode admits one process.
    """
    number = _num_gpus()
    if not number:
        return []
    summed = sum_over_ranks(number, "nccl")
    return [*judge_computation({name: compute(name) for name in (f"cuda:{one}" for one in range(number))}), summed]


def compute(device: str) -> str:
    """Multiply matrices on a device of torch; return what is wrong, or an empty text."""
    import torch

    try:
        ones = torch.ones(SIDE, SIDE, device=device, dtype=torch.bfloat16)
        is_right = bool((ones @ ones == SIDE).all())
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return "" if is_right else "a product of matrices is wrong"


def judge_computation(errors: Mapping[str, str]) -> list[Finding]:
    """Return the findings on the computations, given the error of each device."""
    advice = "look for the GPU's errors in dmesg (Xid) and nvidia-smi -q; leave it out with CUDA_VISIBLE_DEVICES"
    wrong = [fault(name, f"cannot compute: {error}", advice) for name, error in errors.items() if error]
    return wrong or ([ok("computation", f"right on {len(errors)} GPUs")] if errors else [])


def sum_over_ranks(num_ranks: int, backend: str) -> Finding:
    """Start ranks that sum a tensor, and return what came of it.

    Args:
        num_ranks: Number of processes, each with the GPU of its number.
        backend: Backend of `torch.distributed`; "gloo" sums on CPU.
    """
    from torch import multiprocessing
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_ranks, backend, f"file://{folder}/ranks", os.getpid())
        try:
            multiprocessing.spawn(_add_ranks, arguments, nprocs=num_ranks)
        except (ProcessRaisedException, ProcessExitedException) as error:
            last = str(error).strip().splitlines()[-1]
            return fault(
                "NCCL sum",
                f"{num_ranks} GPUs cannot sum: {last:.300}",
                "NCCL_DEBUG=INFO python -m arm_rl.machine.doctor compute shows the link; where NCCL_P2P_DISABLE=1 helps, the "
                "GPUs cannot reach each other (IOMMU, container), where NCCL_SHM_DISABLE=1 helps, /dev/shm is too small",
            )
    return ok("NCCL sum", f"right over {num_ranks} GPUs")


def _add_ranks(rank: int, num_ranks: int, backend: str, meeting: str, parent: int) -> None:
    """Sum ones over the ranks, as one of them.

    Raises:
        ValueError: If the sum is wrong.
    """
    import torch
    import torch.distributed as dist

    die_with_parent(parent)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(
        backend, init_method=meeting, world_size=num_ranks, rank=rank, timeout=timedelta(seconds=SUM_SECONDS)
    )
    ones = torch.ones(SUM_VALUES, device=device)
    dist.all_reduce(ones)
    if not bool((ones == num_ranks).all()):
        raise ValueError(f"the sum over {num_ranks} ranks is wrong on rank {rank}")
    dist.destroy_process_group()


def check_compiler() -> list[Finding]:
    """Compile a line that includes Python.h, as Triton does when vLLM starts."""
    return [judge_compiler(os.environ.get("CC"))] if _num_gpus() else []


def judge_compiler(chosen: str | None) -> Finding:
    """Return the finding on the C compiler.

    Args:
        chosen: Compiler that the environment names (CC); by default gcc or clang.
    """
    version = sysconfig.get_python_version()
    advice = f"sudo apt-get install gcc python{version}-dev"
    compiler = shutil.which(chosen) if chosen else shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return fault("compiler", f"{chosen or 'gcc or clang'} is missing, and Triton's kernels need it", advice)
    include = sysconfig.get_path("include")
    answer = subprocess.run(
        [compiler, "-fsyntax-only", f"-I{include}", "-x", "c", "-"],
        input="#include <Python.h>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        first = (answer.stderr.strip() or f"status {answer.returncode}").splitlines()[0]
        return fault("compiler", f"{compiler} cannot compile with Python.h, which Triton needs: {first:.200}", advice)
    return ok("compiler", f"{compiler}, with Python.h")


def _num_gpus() -> int:
    """Return the number of GPUs that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
