"""The judge as a Python object: compares answers, checks one, finds the best of many. Every judgment is a session with tools.

    with Judge.load("runs/demo/export") as judge:
        verdict = judge.compare("Which digit is on the red tile?", ["scene.png"], ["4", "7"])

Each method has an asynchronous twin whose name begins with `a`.
"""

import asyncio
import logging
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import track

from actors.rollout.model_server import SERVED_NAME, ModelServer
from arm_rl.core import session
from arm_rl.core.config import SessionConfig, TemplateConfig
from arm_rl.core.errors import UserError
from arm_rl.core.images import Image, ImageError
from arm_rl.core.loop_thread import LoopThread
from arm_rl.core.parsing import replace_surrogates
from arm_rl.core.placeholders import count_images, escape_images, split_at_images
from arm_rl.core.question_template import Phrase, read_phrase
from arm_rl.core.seeding import derive_seed
from arm_rl.core.session import Memory, Policy, Start, Tools
from arm_rl.core.template import Template
from arm_rl.core.types import ImagePart, Message, Sample
from arm_rl.export.judge_config import JudgeSetup
from arm_rl.judge.pictures import Picture, read_pictures
from arm_rl.judge.remote_policy import ServerPolicy
from arm_rl.judge.verdict import Opinion, Ranking, Verdict
from tools.execution.local import LocalTools

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_ANSWERS = 99
TURN_SECONDS = 600.0  # of an own server, which may have many sessions before this one


class JudgeError(UserError):
    """What was asked cannot be judged; the message says why."""


class SessionBroke(JudgeError):
    """A session ended by no fault of the question, for example because the model's server failed; the message holds the traceback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A question with answers to compare; with a single one, to check."""

    question: str
    answers: Sequence[str]
    images: Sequence[Picture] = ()


class Judge:
    """A model that judges with tools. A context manager; entered, it can be asked from any thread."""

    def __init__(
        self,
        policy: AbstractAsyncContextManager[Policy],
        template: Template,
        tools: Tools,
        *,
        limits: SessionConfig | None = None,
        phrase: Phrase | None = None,
        both_orders: bool = False,
        votes: int = 1,
        concurrency: int = 16,
        seed: int = 0,
    ) -> None:
        """Prepares. `load` and `connect` make one of a folder and of a server.

        Args:
            policy: the model; entered with the judge.
            template: of the same model, with the tools' schemas.
            tools: that are offered, all of them in every session; closed by who made them.
            limits: of a session; by default, the usual ones of training.
            phrase: words a question and its answers, as the judge was trained to read them; by default as configs/prompts/question.jinja.
            both_orders: answers are compared once as they are given and once reversed, so that their places cancel out.
            votes: sessions of each order; more than one is of use where the policy samples at a temperature above 0.
            concurrency: sessions at a time.
            seed: of all sessions.
        """
        self._opened = policy
        self._template, self._tools, self._limits = template, tools, limits or SessionConfig()
        self._phrase = phrase or read_phrase(TemplateConfig().question)
        self._both_orders, self._votes, self._seed, self._concurrency = both_orders, votes, seed, concurrency
        self._loop: LoopThread | None = None
        self._policy: Policy | None = None
        self._stack = AsyncExitStack()

    @classmethod
    def connect(
        cls,
        base_url: str,
        model: str,
        *,
        folder: str | Path,
        setup: JudgeSetup | None = None,
        temperature: float = 0.0,
        api_key: str | None = None,
        timeout_seconds: float = 300.0,
        num_retries: int = 5,
        with_logprobs: bool = False,
        **settings: Any,
    ) -> "Judge":
        """Return a judge behind an OpenAI-compatible server.

        Args:
            base_url: of the server, with its `/v1`.
            model: the name under which the server offers it.
            folder: the model's folder, or its name on the hub: how it is spoken to and how it sees images.
            setup: tools, prompt, wording and limits; by default those of the training, where the folder is an export.
            api_key: sent as bearer token.
            timeout_seconds, num_retries: of one turn, and of a request that got no answer or was refused for now.
            with_logprobs: the server is vLLM's, which tells log-probabilities: the verdicts' confidence is made of them.
            settings: as for `Judge`.
        """
        setup = setup or JudgeSetup.read(folder)
        loaded, written = setup.load_tools_and_template(folder)
        local = LocalTools(loaded)
        policy = _open_server_policy(
            base_url,
            model,
            written,
            temperature=temperature,
            max_tokens=setup.limits.max_response_tokens,
            api_key=api_key,
            timeout_seconds=timeout_seconds,
            num_retries=num_retries,
            with_logprobs=with_logprobs,
        )
        phrase = read_phrase(setup.template.question)
        return cls(_close_tools_after(local, policy), written, local, limits=setup.limits, phrase=phrase, **settings)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        setup: JudgeSetup | None = None,
        temperature: float = 0.0,
        use_gpu: bool | None = None,
        **settings: Any,
    ) -> "Judge":
        """A judge on this machine: a vLLM server of its own, which starts and ends with it.

        Args:
            folder: an exported model.
            use_gpu: by default, where there is one.
            setup, settings: as for `connect`.
        """
        setup = setup or JudgeSetup.read(folder)
        loaded, written = setup.load_tools_and_template(folder)
        on_gpu = torch.cuda.is_available() if use_gpu is None else use_gpu

        @asynccontextmanager
        async def policy() -> AsyncIterator[Policy]:
            with tempfile.TemporaryDirectory() as logs:
                server = ModelServer(
                    Path(folder), Path(logs) / "server.log", use_gpu=on_gpu, max_model_len=setup.max_model_len
                )
                asking = {
                    "temperature": temperature,
                    "max_tokens": setup.limits.max_response_tokens,
                    "timeout_seconds": TURN_SECONDS,
                }
                # the server closes a connection that was idle for a while just as it is used again
                asking["num_retries"] = 3
                with server:
                    async with _open_server_policy(
                        server.base_url, SERVED_NAME, written, **asking, with_logprobs=True
                    ) as asked:
                        yield asked

        local = LocalTools(loaded)
        phrase = read_phrase(setup.template.question)
        return cls(_close_tools_after(local, policy()), written, local, limits=setup.limits, phrase=phrase, **settings)

    def __enter__(self) -> "Judge":
        self._loop = LoopThread("judge")
        self._slots = asyncio.Semaphore(self._concurrency)
        try:
            self._policy = self._wait(self._stack.enter_async_context(self._opened))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the policy."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            loop.wait(self._stack.aclose())
        finally:
            loop.close()

    # One question

    def compare(self, question: str, images: Sequence[Picture], answers: Sequence[str]) -> Verdict:
        """Which of two or more answers is better."""
        return self._wait(self._compare(question, images, answers))

    async def acompare(self, question: str, images: Sequence[Picture], answers: Sequence[str]) -> Verdict:
        """As `compare`."""
        return await self._wrap_future(self._compare(question, images, answers))

    def verify(self, question: str, images: Sequence[Picture], answer: str) -> Verdict:
        """Whether an answer is right."""
        return self._wait(self._verify(question, images, answer))

    async def averify(self, question: str, images: Sequence[Picture], answer: str) -> Verdict:
        """As `verify`."""
        return await self._wrap_future(self._verify(question, images, answer))

    def rank(self, question: str, images: Sequence[Picture], answers: Sequence[str]) -> Ranking:
        """The best of many answers, by n - 1 comparisons of two, rounds of which run at the same time."""
        return self._wait(self._rank(question, images, answers))

    async def arank(self, question: str, images: Sequence[Picture], answers: Sequence[str]) -> Ranking:
        """As `rank`."""
        return await self._wrap_future(self._rank(question, images, answers))

    # Many questions

    def judge_all(self, comparisons: Iterable[Comparison], *, progress: bool = True) -> list[Verdict | None]:
        """Return the verdicts of many questions in order and show the progress.

        A question that cannot be judged has None and a warning in the log, such as one with too long an answer.
        """
        waiting = [self._submit(self._compare_or_verify(one)) for one in comparisons]
        shown = track(waiting, description="judging", disable=not progress)
        return [future.result() for future in shown]

    async def ajudge_all(self, comparisons: Iterable[Comparison]) -> list[Verdict | None]:
        """As `judge_all`."""
        return list(await asyncio.gather(*(self._wrap_future(self._compare_or_verify(one)) for one in comparisons)))

    async def _compare_or_verify(self, one: Comparison) -> Verdict | None:
        try:
            if len(one.answers) == 1:
                return await self._verify(one.question, one.images, one.answers[0])
            return await self._compare(one.question, one.images, one.answers)
        except SessionBroke:
            raise
        except JudgeError as error:
            logger.warning("no verdict for %.80r: %s", one.question, error)
            return None

    async def _compare(self, question: str, images: Sequence[Picture], answers: Sequence[str]) -> Verdict:
        if not 2 <= len(answers) <= MAX_ANSWERS:
            raise JudgeError(f"answers: 2 to {MAX_ANSWERS} are compared, not {len(answers)}")
        order = tuple(range(1, len(answers) + 1))
        orders = [order, order[::-1]] if self._both_orders else [order]
        return await self._weigh_opinions(question, images, answers, orders)

    async def _verify(self, question: str, images: Sequence[Picture], answer: str) -> Verdict:
        return await self._weigh_opinions(question, images, [answer], [()])

    async def _rank(self, question: str, images: Sequence[Picture], answers: Sequence[str]) -> Ranking:
        if len(answers) < 2:
            raise JudgeError(f"answers: at least 2 are ranked, not {len(answers)}")
        standing = list(range(1, len(answers) + 1))
        comparisons: list[tuple[tuple[int, int], Verdict]] = []
        while len(standing) > 1:
            pairs = list(zip(standing[::2], standing[1::2], strict=False))
            verdicts = await asyncio.gather(
                *(self._compare(question, images, [answers[first - 1], answers[second - 1]]) for first, second in pairs)
            )
            comparisons += zip(pairs, verdicts, strict=True)
            winners = [
                second if verdict.choice == 2 else first
                for (first, second), verdict in zip(pairs, verdicts, strict=True)
            ]
            standing = [*winners, *standing[2 * len(pairs) :]]
        return Ranking(best=standing[0], comparisons=tuple(comparisons))

    async def _weigh_opinions(
        self, question: str, images: Sequence[Picture], answers: Sequence[str], orders: Sequence[tuple[int, ...]]
    ) -> Verdict:
        question, answers = replace_surrogates(question), [replace_surrogates(answer) for answer in answers]
        seen = [order for order in orders for _ in range(self._votes)]
        try:
            shown = await asyncio.to_thread(read_pictures, images)
        except ImageError as error:
            raise JudgeError(f"this cannot be judged: {error}") from error
        opinions = await asyncio.gather(
            *(
                self._run_session(
                    question, shown, [answers[answer - 1] for answer in order] if order else answers, number
                )
                for number, order in enumerate(seen)
            )
        )
        return Verdict.of(opinions, seen)

    async def _run_session(
        self, question: str, images: Sequence[Image], answers: Sequence[str], number: int
    ) -> Opinion:
        assert self._policy is not None  # nothing is asked of a judge that is not open
        shown = [ImagePart.original(place) for place in range(1, len(images) + 1)]
        sample = Sample(
            id=uuid.uuid4().hex,
            track="judge",
            messages=(Message(role="user", parts=self._request_parts(question, shown, answers)),),
            texts=tuple(answers),
            label="",
            tools=tuple(self._template.schemas),
        )
        memory = Memory.from_images({part.name: image for part, image in zip(shown, images, strict=True)}, answers)
        try:
            start = Start.from_memory(sample, self._template, memory)
            start.require_fit(self._limits)
        except UserError as error:
            raise JudgeError(f"this cannot be judged: {error}") from error
        async with self._slots:
            seed = derive_seed(self._seed, question, *answers, number)
            judged = await session.run(
                sample, self._policy, self._tools, self._limits, template=self._template, seed=seed, start=lambda: start
            )
        if judged.trajectory.error is not None:
            raise SessionBroke(f"the session broke:\n{judged.trajectory.error}")
        return Opinion.of(judged, self._template)

    def _request_parts(
        self, question: str, shown: Sequence[ImagePart], answers: Sequence[str]
    ) -> tuple[str | ImagePart, ...]:
        """Return the request: images stand where the question has as many `<image>`, else in front."""
        if shown and count_images(question) == len(shown):
            first, *texts = split_at_images(self._phrase(question, [*map(escape_images, answers)]))
            if len(texts) == len(shown):
                between = (part for pair in zip(shown, texts, strict=True) for part in pair)
                return tuple(part for part in (first, *between) if part)
        return (*shown, self._phrase(question, answers))

    def _submit(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        if self._loop is None:
            work.close()
            raise JudgeError("the judge is not open: use it in a `with` statement")
        return self._loop.submit(work)

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self._submit(work).result()

    def _wrap_future(self, work: Coroutine[Any, Any, Result]) -> Awaitable[Result]:
        return asyncio.wrap_future(self._submit(work))


@asynccontextmanager
async def _open_server_policy(base_url: str, model: str, template: Template, **settings: Any) -> AsyncIterator[Policy]:
    policy = ServerPolicy(base_url, model, template, **settings)
    try:
        yield policy
    finally:
        await policy.close()


@asynccontextmanager
async def _close_tools_after(tools: LocalTools, policy: AbstractAsyncContextManager[Policy]) -> AsyncIterator[Policy]:
    """Open the policy, and close the tools after it."""
    with closing(tools):
        async with policy as entered:
            yield entered
