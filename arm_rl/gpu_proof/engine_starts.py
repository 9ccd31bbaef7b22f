"""Section 5: an engine is started alongside the learner, twice, with equal caches and nothing compiled again."""

import asyncio
import os
import shutil
import time
from pathlib import Path

from actors.cluster.connection import cluster
from arm_rl.gpu_proof.frame import Report
from arm_rl.gpu_proof.scale import NOT_ON_CPU, Proof
from arm_rl.gpu_proof.stage import EngineFacts, engine_alongside, learner_alone, stage_config


def run(proof: Proof) -> Report:
    """Pass where both starts give an equal key-value cache and the second start adds nothing to the compile cache."""
    cache = proof.folder / "vllm_cache"
    shutil.rmtree(cache, ignore_errors=True)
    if proof.on_gpu:  # an empty cache, so that the first start compiles; Ray's processes inherit it
        os.environ["VLLM_CACHE_ROOT"] = str(cache)
    with cluster():
        return asyncio.run(_run(proof, cache))


async def _run(proof: Proof, cache: Path) -> Report:
    config = stage_config(proof, "engine-starts", transfer="ipc", enforce_eager=False)
    facts: list[EngineFacts] = []
    seconds: list[float] = []
    compiled: list[set[str]] = []
    async with learner_alone(config) as (template, reservation, learners):
        for _ in range(2):
            started = time.perf_counter()
            async with engine_alongside(config, template, reservation, learners) as stage:
                seconds.append(time.perf_counter() - started)
                facts.append(await stage.facts())
            compiled.append(compiled_files(cache))
    first, second = facts
    problems = []
    if first.kv_tokens != second.kv_tokens:
        problems.append(f"the key-value cache holds {first.kv_tokens:,} tokens, and then {second.kv_tokens:,}")
    if first.config_hash != second.config_hash:
        problems.append("the hash of vLLM's settings changed, so the compile cache cannot be hit")
    line = f"{first.kv_tokens:,} tokens of keys and values, started in {seconds[0]:.0f} and {seconds[1]:.0f} s"
    numbers = {"kv_tokens": [one.kv_tokens for one in facts], "seconds_to_start": seconds}
    if not proof.on_gpu:
        return Report(line=f"{line}; compilation: {NOT_ON_CPU}", numbers=numbers, problems=problems)
    added = compiled[1] - compiled[0]
    if not compiled[0]:
        problems.append(f"the first start compiled nothing into {cache}")
    if added:
        problems.append(f"the second start compiled again: {len(added)} new files, {min(added)} among them")
    return Report(
        line=f"{line}; {len(compiled[0])} compiled files, {len(added)} more", numbers=numbers, problems=problems
    )


def compiled_files(cache: Path) -> set[str]:
    """Return the files of vLLM's compile cache."""
    return {str(path.relative_to(cache)) for path in cache.glob("torch_compile_cache/**/*") if path.is_file()}
