"""What the reward service costs beside sampling: clients over HTTP against a bare engine that samples the same sessions.

    ours: clients -> Ray Serve -> judge: sessions with tools -> vLLM's server -> verdicts
    bare: the same prompts with ready images -> vLLM, turn after turn

Both ask greedily, in turn, each of its own engine, while the other one is idle. Then more clients come than the service takes: each is
answered or told to come again.
"""

import asyncio
import base64
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from arm_rl.core.config import TrainConfig
from arm_rl.core.config_file import load
from arm_rl.core.images import Image
from arm_rl.core.types import Sample
from arm_rl.demo import dataset
from arm_rl.experiments.bench.result import Result
from arm_rl.experiments.bench.rollout import CONFIG, started
from arm_rl.training.inputs import read_inputs

GOAL = 0.5
TOO_MANY = 429


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured, and with which judge."""

    model: str  # folder of a judge that calls its tool
    clients: int = 64  # at once; as many sessions the service runs, and as many requests it takes, at a time
    requests: int = 256  # of one measurement
    repeats: int = 5
    crowd: int = 256  # clients at once, of the measurement of too many

    def quick(self) -> "Settings":
        """To try it."""
        return replace(self, requests=64, repeats=2, crowd=128)

    def config(self, folder: Path) -> TrainConfig:
        """The demo's, with questions in a folder."""
        data = folder / "train.parquet"
        return load(
            TrainConfig,
            CONFIG,
            [f"run.root={folder}", f"model.path={self.model}", f"data.train=[{data}]", "data.held_out=[]"],
        )


@dataclass(slots=True)
class Load:
    """What clients met with."""

    seconds: list[float] = field(default_factory=list)  # of each request that was answered
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)  # what was said where a request was lost
    calls: int = 0  # of tools
    turns: int = 0

    def quantile(self, share: float) -> float:
        """Seconds below which this share of the answers came."""
        return sorted(self.seconds)[max(0, math.ceil(share * len(self.seconds)) - 1)] if self.seconds else math.nan

    @property
    def lost(self) -> int:
        """Requests that were neither answered nor told to come again."""
        return sum(number for status, number in self.statuses.items() if status not in (httpx.codes.OK, TOO_MANY))


def measure(settings: Settings, url: str) -> Result:
    """Sessions a second, both ways. Wants a Ray cluster, and the service of that judge at `url`."""
    with TemporaryDirectory() as folder:
        dataset.write(Path(folder) / "train.parquet", seed=0, split="train", num_samples=settings.requests)
        return asyncio.run(_measure(settings.config(Path(folder)), settings, url))


async def _measure(config: TrainConfig, settings: Settings, url: str) -> Result:
    samples = read_inputs(config).samples
    bodies = [await asyncio.to_thread(_body, sample) for sample in samples]
    ours: list[float] = []  # sessions a second
    bare: list[float] = []
    whole = Load()
    async with (
        started(config) as (runner, actor),
        httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as client,
    ):
        groups = await runner.run(samples, "service", size=1, temperature=0.0)  # shows what the engine will be asked
        images: dict[str, Image] = {}
        for found in await asyncio.gather(*(group.images for group in groups)):
            images |= found
        await actor.prepare.remote(
            [one.trajectory for group in groups for one in group.scored], images, config.run.seed
        )
        await actor.bare.remote("vllm", 0.0)
        await _ask(client, bodies, settings.clients, Load())  # warms up
        for _ in range(settings.repeats):
            started_at = time.perf_counter()
            await _ask(client, bodies, settings.clients, whole)
            ours.append(len(bodies) / (time.perf_counter() - started_at))
            await actor.clear.remote()
            seconds, _ = await actor.bare.remote("vllm", 0.0)
            bare.append(len(bodies) / seconds)
        crowd = Load()
        await _ask(client, [bodies[number % len(bodies)] for number in range(settings.crowd)], settings.crowd, crowd)
    answered = sum(whole.statuses.values())
    return Result.of(
        key="service",
        what="judgments a second over HTTP, tools included, over the bare engine sampling the same sessions",
        goal=GOAL,
        unit="sessions/s",
        ours=ours,
        other=bare,
        notes=[
            f"{settings.clients} clients at once: p50 {whole.quantile(0.5):.2f} s, p99 {whole.quantile(0.99):.2f} s, "
            f"{whole.lost} of {answered} requests lost; {whole.turns / answered:.2f} turns, {whole.calls / answered:.2f} calls a session",
            f"{settings.crowd} clients at once where {settings.clients} requests are taken: {crowd.statuses[httpx.codes.OK]} answered, "
            f"{crowd.statuses[TOO_MANY]} told to come again, {crowd.lost} lost",
        ],
        details={
            "statuses": {str(status): number for status, number in whole.statuses.items()},
            "seconds": {
                "mean": statistics.mean(whole.seconds),
                "p50": whole.quantile(0.5),
                "p99": whole.quantile(0.99),
            },
            "errors": dict(whole.errors + crowd.errors),
            "crowd": {str(status): number for status, number in crowd.statuses.items()},
        },
    )


async def _ask(client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]], num_clients: int, load: Load) -> None:
    """All requests, by clients that each ask one after the other."""
    waiting = iter(bodies)

    async def one() -> None:
        for body in waiting:
            started_at = time.perf_counter()
            try:
                answer = await client.post("/v1/judge", json=body)
            except httpx.TransportError as error:
                load.statuses[0] += 1
                load.errors[repr(error)] += 1
                continue
            load.statuses[answer.status_code] += 1
            if answer.status_code not in (httpx.codes.OK, TOO_MANY):
                load.errors[answer.text[-200:]] += 1
            if answer.status_code == httpx.codes.OK:
                load.seconds.append(time.perf_counter() - started_at)
                for opinion in answer.json()["opinions"]:
                    load.calls += len(opinion["calls"])
                    load.turns += len(opinion["turns"])

    await asyncio.gather(*(one() for _ in range(num_clients)))


def _body(sample: Sample) -> dict[str, Any]:
    """The request for a sample of the demo, which words its own question as the demo's judge is asked through the service."""
    task, _ = dataset.parse_sample_id(sample.id)
    assert task.image is not None  # all of these are scenes
    return {
        "question": task.question,
        "answers": [str(claim) for claim in task.claims],
        "images": [base64.b64encode(Image.from_pil(task.image).data).decode()],
    }
