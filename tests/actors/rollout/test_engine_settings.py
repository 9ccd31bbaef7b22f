"""Settings that only GPUs use: what is asked of vLLM, and the key of its compile cache."""

# ruff: noqa: F811 (fixtures of another file)

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.rollout.engine import Engine
from actors.rollout.engine_settings import OWNER_PID, engine_arguments, engine_environment
from arm_rl.core.compute_config import RolloutConfig
from arm_rl.core.config import ConfigError, ModelConfig
from tests.actors.rollout.test_engine import VIEW, environment  # noqa: F401
from tests.support import tiny

ROLLOUT = RolloutConfig(max_model_len=2048, max_num_seqs=64, max_images=4)
# A process as an engine's is: it sets its id for vLLM's worker, and asks vLLM for the key.
CONFIG_HASH = """
import os, sys
from actors.rollout.engine_settings import OWNER_PID
from tests.actors.rollout.test_engine_settings import arguments
os.environ[OWNER_PID] = str(os.getpid())
from vllm.engine.arg_utils import AsyncEngineArgs
print(AsyncEngineArgs(**arguments(sys.argv[1], max_num_seqs=int(sys.argv[2]))).create_engine_config().compute_hash())
"""


def arguments(folder: str, *, use_gpu: bool = False, **changes: Any) -> dict[str, Any]:
    rollout = RolloutConfig(**({"max_model_len": 2048, "max_num_seqs": 64, "max_images": 4} | changes))
    return engine_arguments(ModelConfig(path=folder), rollout, VIEW, seed=0, use_gpu=use_gpu, can_sleep=True)


def config_hash(folder: Path, max_num_seqs: int) -> str:
    variables = os.environ | engine_environment(use_gpu=False)
    command = [sys.executable, "-c", CONFIG_HASH, str(folder), str(max_num_seqs)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def test_a_second_engine_has_the_key_of_the_firsts_compile_cache(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path, seed=0)
    first, second, other = (config_hash(folder, size) for size in (64, 64, 32))
    assert first == second
    assert other != first, "the key depends on the settings"


def test_no_setting_of_vllms_holds_a_process_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER_PID, "4242424242")
    assert "4242424242" not in str(arguments("m")) + str(arguments("m", use_gpu=True))
    assert str(os.getpid()) not in str(arguments("m", use_gpu=True))


def test_an_engine_on_gpus_reads_as_many_tokens_in_a_pass_as_asked() -> None:
    assert arguments("m", use_gpu=True)["max_num_batched_tokens"] == 8192
    assert arguments("m", use_gpu=True, max_num_batched_tokens=16384)["max_num_batched_tokens"] == 16384
    assert arguments("m")["max_num_batched_tokens"] == 64 * 2048, "on CPU no prompt is cut"
    with pytest.raises(ConfigError, match="rollout.max_num_batched_tokens: at least 1, not 0"):
        RolloutConfig(max_num_batched_tokens=0)


class Vllm:
    """vLLM on a GPU, as far as calls go."""

    is_open = True

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.llm = self

    def __getattr__(self, method: str) -> Any:
        async def call(*_: Any, **options: Any) -> None:
            self.calls.append((method, options))

        return call

    async def answer(self, call: Any) -> Any:
        return await call

    def check(self) -> None:
        pass


async def test_an_engine_sleeps_without_weights_and_wakes_in_two_steps_around_an_update(
    tmp_path: Path, environment: None
) -> None:
    path = str(tiny.build(tmp_path, seed=0))
    engine = Engine(ModelConfig(path=path), ROLLOUT, VIEW, seed=0, use_gpu=True, can_sleep=True, transfer="ipc")
    vllm: Any = Vllm()
    engine.vllm = vllm
    for _ in range(2):
        vllm.calls.clear()
        await engine.sleep()
        await engine.wake()
        await engine.begin_update()
        await engine.receive_weights({})
        await engine.end_update(1)
        assert [(name, options) for name, options in vllm.calls if name in ("sleep", "wake_up")] == [
            ("sleep", {"level": 2, "mode": "wait"}),
            ("wake_up", {"tags": ["weights"]}),
            ("wake_up", {"tags": ["kv_cache"]}),
        ]
        names = [name for name, _ in vllm.calls]
        steps = ["sleep", "wake_up", "pause_generation", "start_weight_update", "update_weights"]
        assert names == [*steps, "finish_weight_update", "wake_up", "resume_generation"]
    vllm.calls.clear()
    await engine.begin_update()
    await engine.end_update(2)
    await engine.wake()
    assert "wake_up" not in [name for name, _ in vllm.calls], "the engine is awake"


async def test_an_engine_that_does_not_share_its_gpu_never_sleeps(tmp_path: Path, environment: None) -> None:
    engine = Engine(ModelConfig(path=str(tiny.build(tmp_path))), ROLLOUT, VIEW, seed=0, use_gpu=True)
    vllm: Any = Vllm()
    engine.vllm = vllm
    await engine.sleep()
    await engine.wake()
    assert vllm.calls == []
