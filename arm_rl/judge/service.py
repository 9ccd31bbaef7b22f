"""The judge as an HTTP service: requests in, verdicts out. Knows no Ray: `deployment` puts it on Ray Serve.

POST /v1/judge    a question and its answers; a single one is checked
POST /v1/rank     the best of many
POST /get_reward  as OpenRLHF's trainers ask a remote reward model
GET  /health      GET /metrics (Prometheus)      GET /docs (OpenAPI)
"""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from arm_rl.core.images import Image
from arm_rl.core.images import check as check_image
from arm_rl.core.own_server import HealthToken
from arm_rl.judge.admission import Admission
from arm_rl.judge.judge import Judge, JudgeError, SessionBroke
from arm_rl.judge.openrlhf_reward import RemoteRewardError, RewardRequest, reward_answer
from arm_rl.judge.verdict import Opinion, Ranking, Verdict
from arm_rl.judge.wire import Texts, WireError, WireModel

logger = logging.getLogger(__name__)

MessageT = TypeVar("MessageT", bound=WireModel)

DECODINGS = 2  # images decoded at a time: each takes up to 3 bytes a pixel, and more in formats of 16 bits
CLOSED_BY_CLIENT = 499  # for the metrics: nobody is left to be told


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceLimits:
    """What a service takes."""

    max_requests: int = 64  # at a time; of more, the client is told to come again
    max_body_bytes: int = 16 << 20
    body_seconds: float = 30.0  # in which a body has to arrive
    max_answers: int = 32
    max_rows: int = 1024  # of a request to /get_reward, which trainers make for a batch
    max_pixels: int = 128_000_000  # of all images of a request
    max_characters: int = 200_000  # of one text


class _StrictModel(WireModel):
    model_config = ConfigDict(extra="forbid")


class JudgeRequest(_StrictModel):
    """What is to be judged."""

    question: str
    answers: Annotated[Texts, Field(min_length=1, description="Several are compared, a single one is checked.")]
    images: Annotated[Texts, Field(default_factory=list, description="Each as base64, or as a data URL.")]


class OpinionAnswer(BaseModel):
    """One session behind a verdict."""

    choice: int | bool | None
    probability: float | None
    reasoning: str
    calls: list[dict[str, Any]]  # tool, arguments, status, seconds
    turns: list[str]


class VerdictAnswer(BaseModel):
    """A verdict. Answers count from 1."""

    choice: int | bool | None
    confidence: float | None
    consistent: bool
    reasoning: str
    opinions: list[OpinionAnswer]

    @classmethod
    def from_verdict(cls, verdict: Verdict) -> "VerdictAnswer":
        """Return the verdict as the service sends it."""
        told = [
            _opinion_answer(opinion, choice) for opinion, choice in zip(verdict.opinions, verdict.choices, strict=True)
        ]
        return cls(
            choice=verdict.choice,
            confidence=verdict.confidence,
            consistent=verdict.consistent,
            reasoning=verdict.reasoning,
            opinions=told,
        )


class RankAnswer(BaseModel):
    """The best answer, and who met whom."""

    best: int
    comparisons: list[dict[str, Any]]

    @classmethod
    def from_ranking(cls, ranking: Ranking) -> "RankAnswer":
        """Return the ranking as the service sends it."""
        return cls(
            best=ranking.best,
            comparisons=[
                {"answers": list(pair), "verdict": VerdictAnswer.from_verdict(verdict).model_dump()}
                for pair, verdict in ranking.comparisons
            ],
        )


def build_app(
    judge: Judge | AbstractContextManager[Judge],
    limits: ServiceLimits,
    token: str | None = None,
    health_token: str | None = None,
) -> FastAPI:
    """Return the service around a judge, which is opened and closed with the service.

    Args:
        judge: Judge that answers the requests.
        limits: Limits of the service.
        token: Token that every request must bear; None accepts all requests.
        health_token: Token that answers to /health carry, so that whoever started the service knows its answers.
    """
    meter = _Meter()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = await asyncio.to_thread(judge.__enter__)
        app.state.judge = opened
        yield
        await asyncio.to_thread(judge.__exit__, None, None, None)

    app = FastAPI(title="arm_rl judge", lifespan=lifespan)
    app.add_middleware(Admission, token=token, max_body_bytes=limits.max_body_bytes, body_seconds=limits.body_seconds)
    if health_token is not None:
        app.add_middleware(HealthToken, token=health_token)
    described = [Depends(HTTPBearer(auto_error=False))]  # for /docs: `Admission` checks the token
    decoding = asyncio.Semaphore(DECODINGS)

    async def read_images(asked: JudgeRequest) -> list[Image]:
        async with decoding:
            return await asyncio.to_thread(_read_images, asked, limits)

    async def run_request(name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        with meter.request(name, limits.max_requests):
            try:
                return await work()
            except SessionBroke as error:
                logger.warning("%s", error)  # its traceback is nothing for clients
                raise HTTPException(502, f"a session broke: {str(error).strip().splitlines()[-1]}") from error
            except (JudgeError, WireError) as error:
                raise HTTPException(422, str(error)) from error

    @app.post("/v1/judge", dependencies=described, openapi_extra=_describe_body(JudgeRequest))
    async def judge_one(request: Request) -> VerdictAnswer:
        """The better answer; of a single one, whether it is right."""

        async def work() -> Verdict:
            asked = await _read_message(JudgeRequest, request)
            images = await read_images(asked)
            one: Judge = request.app.state.judge
            if len(asked.answers) == 1:
                return await one.averify(asked.question, images, asked.answers[0])
            return await one.acompare(asked.question, images, asked.answers)

        verdict = await run_request("judge", work)
        meter.count_calls(verdict.opinions)
        return VerdictAnswer.from_verdict(verdict)

    @app.post("/v1/rank", dependencies=described, openapi_extra=_describe_body(JudgeRequest))
    async def rank(request: Request) -> RankAnswer:
        """The best of many answers."""

        async def work() -> Ranking:
            asked = await _read_message(JudgeRequest, request)
            return await request.app.state.judge.arank(asked.question, await read_images(asked), asked.answers)

        ranking = await run_request("rank", work)
        meter.count_calls([opinion for _, verdict in ranking.comparisons for opinion in verdict.opinions])
        return RankAnswer.from_ranking(ranking)

    @app.post("/get_reward", dependencies=described, openapi_extra=_describe_body(RewardRequest))
    async def get_reward(request: Request) -> dict[str, Any]:
        """The probability that each answer is right: 0 to 1; 0.5 where the judge gives no judgment, or cannot judge."""

        async def work() -> list[Verdict | None]:
            asked = await _read_message(RewardRequest, request)
            if len(asked.query) > limits.max_rows:
                raise HTTPException(422, f"query: {limits.max_rows} at most, not {len(asked.query)}")
            try:
                pairs = await asyncio.to_thread(asked.pairs)
            except RemoteRewardError as error:
                raise HTTPException(422, str(error)) from error
            one: Judge = request.app.state.judge
            return await asyncio.gather(
                *(verify(one, f"row {number} of a batch of {len(pairs)}", pair) for number, pair in enumerate(pairs))
            )

        verdicts = await run_request("get_reward", work)
        meter.count_calls([opinion for verdict in verdicts if verdict is not None for opinion in verdict.opinions])
        return reward_answer(verdicts)

    async def verify(one: Judge, row: str, pair: tuple[str, str] | RemoteRewardError) -> Verdict | None:
        """Return the verdict of a row, or None for a row that cannot be judged: the others keep their rewards."""
        try:
            if isinstance(pair, RemoteRewardError):
                raise pair
            _check_lengths(limits, *pair)
            return await one.averify(pair[0], [], pair[1])
        except SessionBroke:
            raise
        except (HTTPException, RemoteRewardError, JudgeError) as error:
            reason = error.detail if isinstance(error, HTTPException) else error
            logger.warning("%s cannot be judged: %s", row, reason)
            return None

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether it serves."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(meter.registry), media_type="text/plain; version=0.0.4")

    return app


class _Meter:
    """Counts what goes on, and refuses what is too much."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._running = Gauge("judge_requests_running", "Requests that are worked on.", registry=self.registry)
        self._requests = Counter(
            "judge_requests", "Requests, by how they ended.", ["endpoint", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "judge_request_seconds", "Seconds of a request.", ["endpoint"], registry=self.registry
        )
        self._calls = Counter("judge_tool_calls", "Calls of tools.", ["tool", "status"], registry=self.registry)
        self._number = 0

    def request(self, endpoint: str, most: int) -> "_RequestContext":
        """A request, for as long as the context lasts."""
        return _RequestContext(self, endpoint, most)

    def count_calls(self, opinions: "list[Opinion] | tuple[Opinion, ...]") -> None:
        """Count the tool calls of these sessions."""
        for opinion in opinions:
            for event in opinion.session.trajectory.tool_events:
                known = event.status != "unknown_tool"  # what a model makes up is no name of a metric
                self._calls.labels(event.call.name if known else "unknown", event.status).inc()


class _RequestContext:
    def __init__(self, meter: _Meter, endpoint: str, most: int) -> None:
        self._meter, self._endpoint, self._most = meter, endpoint, most

    def __enter__(self) -> None:
        if self._meter._number >= self._most:
            self._meter._requests.labels(self._endpoint, 429).inc()
            raise HTTPException(
                429,
                f"{self._most} requests are worked on, which is as many as this service takes",
                {"Retry-After": "1"},
            )
        self._meter._number += 1
        self._meter._running.set(self._meter._number)
        self._started = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        self._meter._number -= 1
        self._meter._running.set(self._meter._number)
        if isinstance(error, HTTPException):
            status = error.status_code
        elif isinstance(error, asyncio.CancelledError):
            status = CLOSED_BY_CLIENT
        else:
            status = 200 if error is None else 500
        self._meter._requests.labels(self._endpoint, status).inc()
        self._meter._seconds.labels(self._endpoint).observe(time.perf_counter() - self._started)


async def _read_message(kind: type[MessageT], request: Request) -> MessageT:
    """Return the message in a request's body. A thread reads it: a body may hold millions of values."""
    return await asyncio.to_thread(kind.parse, await request.body())


def _describe_body(kind: type[WireModel]) -> dict[str, Any]:
    """Return OpenAPI's description of a body, which FastAPI does not parse itself: that would precede the limits."""
    content = {"application/json": {"schema": kind.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def _read_images(asked: JudgeRequest, limits: ServiceLimits) -> list[Image]:
    """Return the images of a request; refuse a request that is too large, and what is no image."""
    if len(asked.answers) > limits.max_answers:
        raise HTTPException(422, f"answers: {limits.max_answers} at most, not {len(asked.answers)}")
    _check_lengths(limits, asked.question, *asked.answers)
    images, num_pixels = [], 0
    for number, written in enumerate(asked.images):
        data = written.partition("base64,")[2] if written.startswith("data:") else written
        try:
            image = Image.from_bytes(base64.b64decode(data, validate=True))
            width, height = image.size
            num_pixels += width * height
            if num_pixels > limits.max_pixels:
                raise HTTPException(422, f"images: {limits.max_pixels:,} pixels at most in a request")
            check_image(image.data)
            image.pil()
        except ValueError as error:  # no base64, or no image
            raise HTTPException(422, f"images[{number}]: {error}") from error
        images.append(image)
    return images


def _check_lengths(limits: ServiceLimits, *texts: str) -> None:
    longest = max(map(len, texts), default=0)
    if longest > limits.max_characters:
        raise HTTPException(422, f"a text has {longest} characters, {limits.max_characters} at most")


def _opinion_answer(opinion: Opinion, choice: int | bool | None) -> OpinionAnswer:
    trajectory = opinion.session.trajectory
    return OpinionAnswer(
        choice=choice,
        probability=opinion.probability,
        reasoning=opinion.reasoning,
        calls=[
            {
                "tool": event.call.name,
                "arguments": event.call.arguments,
                "status": event.status,
                "seconds": event.seconds,
            }
            for event in trajectory.tool_events
        ],
        turns=[turn.text for turn in trajectory.turns],
    )
