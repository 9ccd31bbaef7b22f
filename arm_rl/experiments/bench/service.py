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
from dataclasses import dataclass, field
from typing import Any

import httpx

from arm_rl.core.http_clients import make_async_client
from arm_rl.core.images import Image
from arm_rl.core.own_server import free_port
from arm_rl.core.stage_config import TrainConfig
from arm_rl.core.types import Sample
from arm_rl.demo import dataset
from arm_rl.experiments.bench import sessions
from arm_rl.experiments.bench.benchmark import Measurement, SpeedBenchmark, Workspace
from arm_rl.experiments.bench.rollout import prepare, started
from arm_rl.export.judge_config import JudgeSetup
from arm_rl.judge.deployment import deploy_judge
from arm_rl.judge.service import ServiceLimits
from arm_rl.training.inputs import read_inputs

TOO_MANY = 429


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Numbers of clients, requests and repeats."""

    clients: int = 64  # at once; as many sessions the service runs, and as many requests it takes, at a time
    requests: int = 256  # of one measurement
    repeats: int = 5
    crowd: int = 256  # clients at once, of the measurement of too many


@dataclass(slots=True)
class ClientOutcomes:
    """The answers that all clients of one measurement got."""

    seconds: list[float] = field(default_factory=list)  # of each request that was answered
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)  # messages of lost requests
    calls: int = 0  # of tools
    turns: int = 0

    def quantile(self, share: float) -> float:
        """Return the seconds within which this share of the answers came."""
        return sorted(self.seconds)[max(0, math.ceil(share * len(self.seconds)) - 1)] if self.seconds else math.nan

    @property
    def lost(self) -> int:
        """Number of requests that were neither answered nor told to come again."""
        return sum(number for status, number in self.statuses.items() if status not in (httpx.codes.OK, TOO_MANY))


def measure(settings: ServiceSettings, workspace: Workspace) -> Measurement:
    """Measure sessions a second through the service and through a bare engine."""
    judge = sessions.judge(workspace)
    config = sessions.demo_config(workspace, judge, num_samples=settings.requests)
    limits = ServiceLimits(max_requests=settings.clients)
    with deploy_judge(
        judge, JudgeSetup.from_config(config), limits=limits, port=free_port(), concurrency=settings.clients
    ) as url:
        return asyncio.run(_measure(config, settings, url))


BENCHMARK = SpeedBenchmark(
    key="service",
    what="judgments a second over HTTP, tools included, over the bare engine sampling the same sessions",
    unit="sessions/s",
    goal=0.5,
    settings=ServiceSettings(),
    quick=ServiceSettings(requests=64, repeats=2, crowd=128),
    measure=measure,
)


async def _measure(config: TrainConfig, settings: ServiceSettings, url: str) -> Measurement:
    samples = read_inputs(config).samples
    bodies = [await asyncio.to_thread(_body, sample) for sample in samples]
    ours: list[float] = []  # sessions a second
    bare: list[float] = []
    outcomes = ClientOutcomes()
    async with (
        started(config) as (runner, actor),
        make_async_client(base_url=url, timeout=600) as client,
    ):
        groups = await runner.run_all(
            samples, "service", size=1, temperature=0.0
        )  # shows what the engine will be asked
        await prepare(actor, groups, config.run.seed)
        await actor.bare.remote("vllm", 0.0)
        await _ask(client, bodies, settings.clients, ClientOutcomes())  # warms up
        for _ in range(settings.repeats):
            started_at = time.perf_counter()
            await _ask(client, bodies, settings.clients, outcomes)
            ours.append(len(bodies) / (time.perf_counter() - started_at))
            await actor.clear.remote()
            seconds, _ = await actor.bare.remote("vllm", 0.0)
            bare.append(len(bodies) / seconds)
        crowd = ClientOutcomes()
        await _ask(client, [bodies[number % len(bodies)] for number in range(settings.crowd)], settings.crowd, crowd)
    answered = sum(outcomes.statuses.values())
    return Measurement(
        ours=ours,
        other=bare,
        notes=[
            f"{settings.clients} clients at once: p50 {outcomes.quantile(0.5):.2f} s, p99 {outcomes.quantile(0.99):.2f} s, "
            f"{outcomes.lost} of {answered} requests lost; {outcomes.turns / answered:.2f} turns, "
            f"{outcomes.calls / answered:.2f} calls a session",
            f"{settings.crowd} clients at once where {settings.clients} requests are taken: {crowd.statuses[httpx.codes.OK]} answered, "
            f"{crowd.statuses[TOO_MANY]} told to come again, {crowd.lost} lost",
        ],
        details={
            "statuses": {str(status): number for status, number in outcomes.statuses.items()},
            "seconds": {
                "mean": statistics.mean(outcomes.seconds),
                "p50": outcomes.quantile(0.5),
                "p99": outcomes.quantile(0.99),
            },
            "errors": dict(outcomes.errors + crowd.errors),
            "crowd": {str(status): number for status, number in crowd.statuses.items()},
        },
    )


async def _ask(
    client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]], num_clients: int, outcomes: ClientOutcomes
) -> None:
    """Send all requests, by clients that each send one after the other."""
    waiting = iter(bodies)

    async def one() -> None:
        for body in waiting:
            started_at = time.perf_counter()
            try:
                answer = await client.post("/v1/judge", json=body)
            except httpx.TransportError as error:
                outcomes.statuses[0] += 1
                outcomes.errors[repr(error)] += 1
                continue
            outcomes.statuses[answer.status_code] += 1
            if answer.status_code not in (httpx.codes.OK, TOO_MANY):
                outcomes.errors[answer.text[-200:]] += 1
            if answer.status_code == httpx.codes.OK:
                outcomes.seconds.append(time.perf_counter() - started_at)
                for opinion in answer.json()["opinions"]:
                    outcomes.calls += len(opinion["calls"])
                    outcomes.turns += len(opinion["turns"])

    await asyncio.gather(*(one() for _ in range(num_clients)))


def _body(sample: Sample) -> dict[str, Any]:
    """Return the request for a sample of the demo; the service words the question itself."""
    task, _ = dataset.parse_sample_id(sample.id)
    assert task.image is not None  # all of these are scenes
    return {
        "question": task.question,
        "answers": [str(claim) for claim in task.claims],
        "images": [base64.b64encode(Image.from_pil(task.image).data).decode()],
    }
