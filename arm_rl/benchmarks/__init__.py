"""The published benchmarks by name. A new one is one file and one line here; `python -m jobs.evaluate MODEL NAME=FILE` runs it."""

from arm_rl.benchmarks.armbench_vl import ARMBENCH_VL
from arm_rl.benchmarks.base import Benchmark
from arm_rl.benchmarks.hrbench import HRBENCH
from arm_rl.benchmarks.reward_bench_2 import REWARD_BENCH_2
from arm_rl.benchmarks.vl_rewardbench import VL_REWARDBENCH
from arm_rl.benchmarks.vstar import VSTAR

BENCHMARKS: dict[str, Benchmark] = {
    "armbench_vl": ARMBENCH_VL,
    "vl_rewardbench": VL_REWARDBENCH,
    "reward_bench_2": REWARD_BENCH_2,
    "vstar": VSTAR,
    "hrbench_4k": HRBENCH,
    "hrbench_8k": HRBENCH,
}
