"""Asks a chat model for flawed answers: each with a flaw that the seed draws, and another time where one cannot be used."""

import asyncio
import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from arm_rl.core.concurrency import for_each
from arm_rl.core.errors import UserError
from arm_rl.core.images import Image, ImageError
from arm_rl.core.placeholders import split_at_images
from arm_rl.core.seeding import derive_seed
from arm_rl.judge.chat_client import ChatServer, ServerError
from arm_rl.judge.chat_message import message_text
from arm_rl.prepare.pairs.choices import AnsweredQuestion, full_question
from arm_rl.prepare.pairs.config import PairsConfig
from arm_rl.prepare.pairs.replies import Replies, Reply
from arm_rl.prepare.pairs.sieve import answer_fault, extract_answer, question_fault
from arm_rl.prepare.questions import Constraint, Question, read_images

_HOPELESS = (401, 403, 404)  # refusals that all requests will meet


class WritingStopped(UserError):
    """The server failed too often. The replies that came are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WritingOutcome:
    """What became of a question."""

    answered: AnsweredQuestion  # with fewer flawed answers than were wanted, perhaps none
    refusals: tuple[str, ...] = ()  # why replies were refused, or the question itself
    flaws: tuple[str, ...] = ()  # of the flawed answers
    failed: bool = False  # the server did: asked again by the next run


class FlawWriter:
    """Writes flawed answers."""

    def __init__(self, server: ChatServer, model: str, config: PairsConfig, replies: Replies) -> None:
        """Prepares.

        Args:
            model: the name under which the server offers it.
            replies: those that are there are not asked for.

        Raises:
            ConfigError: the prompt's file cannot be used.
        """
        self._server, self._model, self._config, self._replies = server, model, config, replies
        self._prompt = config.read_prompt()
        self.num_requests = 0  # requests of this run

    async def write_all(
        self,
        questions: Sequence[Question],
        *,
        concurrency: int,
        on_done: Callable[[WritingOutcome], None] = lambda outcome: None,
    ) -> list[WritingOutcome]:
        """Writes the flawed answers of all questions, in their order.

        Raises:
            WritingStopped: the server refused everything, or more requests failed than the configuration allows.
            UserError: a constraint that cannot be checked.
        """
        outcomes: dict[str, WritingOutcome] = {}
        may_fail = int(self._config.max_failed * len(questions))

        async def write(question: Question) -> None:
            outcome = outcomes[question.id] = await self.write(question)
            failed = [one for one in outcomes.values() if one.failed] if outcome.failed else []
            if len(failed) > may_fail:
                raise WritingStopped(
                    f"{self._server.url}: {len(failed)} requests failed, more than max_failed allows; the replies that came are kept, "
                    f"and the same command goes on from there. The last failure: {outcome.refusals[-1]}"
                )
            on_done(outcome)

        await for_each(questions, write, at_a_time=concurrency)
        return [outcomes[question.id] for question in questions]

    async def write(self, question: Question) -> WritingOutcome:
        """Writes the flawed answers of one question."""
        reason = question_fault(question)
        try:
            shown = await asyncio.to_thread(read_images, question)
        except ImageError:
            reason = "an image cannot be read"
        if reason is not None:
            return WritingOutcome(answered=AnsweredQuestion(question=question, flawed=()), refusals=(reason,))
        flawed: list[str] = []
        flaws: list[str] = []
        refusals: list[str] = []
        for number in range(self._config.num_flawed):
            for attempt in range(self._config.tries):
                flaw, instruction, broken = self._draw_flaw(question, number, attempt)
                try:
                    reply = await self._get_reply(question, shown, number, attempt, flaw, instruction)
                except (ServerError, httpx.TransportError) as error:
                    if isinstance(error, ServerError) and error.status in _HOPELESS:
                        raise WritingStopped(str(error)) from error
                    failure = f"the server failed: {error!r:.300}"
                    return WritingOutcome(
                        answered=AnsweredQuestion(question=question, flawed=()),
                        refusals=(*refusals, failure),
                        failed=True,
                    )
                answer = extract_answer(reply.text)
                if answer is None:
                    refusals.append(
                        "the reply was cut off" if reply.finish_reason == "length" else "the reply holds no <answer>"
                    )
                    continue
                refusal = answer_fault(answer, question, flawed, broken, self._config)
                if refusal is not None:
                    refusals.append(refusal)
                    continue
                flawed.append(answer)
                flaws.append(flaw)
                break
        return WritingOutcome(
            answered=AnsweredQuestion(question=question, flawed=tuple(flawed)),
            refusals=tuple(refusals),
            flaws=tuple(flaws),
        )

    def _draw_flaw(self, question: Question, number: int, attempt: int) -> tuple[str, str, Constraint | None]:
        """Draw a flaw for an answer and an attempt: its name, its instruction, and the constraint that it breaks."""
        config = self._config
        draw = number + attempt * config.num_flawed
        if question.constraints:
            start = derive_seed(config.seed, "constraint", question.id)
            broken = question.constraints[(start + draw) % len(question.constraints)]
            return "constraint", config.constraint_flaw.replace("$constraint", broken.instruction), broken
        names = sorted(config.flaws, key=lambda name: derive_seed(config.seed, "flaw", question.id, name))
        name = names[draw % len(names)]
        return name, config.flaws[name], None

    async def _get_reply(
        self, question: Question, shown: Sequence[Image], number: int, attempt: int, flaw: str, instruction: str
    ) -> Reply:
        text = self._prompt.substitute(
            question="".join(split_at_images(full_question(question))), answer=question.answer, flaw=instruction
        )
        settings = {
            "model": self._model,
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
        }
        shown = shown if self._config.send_images else ()
        digest = hashlib.blake2b(
            repr((text, settings, [image.key for image in shown])).encode("utf-8", "replace"), digest_size=8
        ).hexdigest()
        known = self._replies.find_reply(question.id, number, attempt, digest)
        if known is not None:
            return known
        content: list[dict[str, Any]] = [
            *[{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in shown],
            {"type": "text", "text": text},
        ]
        seed = derive_seed(self._config.seed, "reply", question.id, number, attempt)
        self.num_requests += 1
        choice = await self._server.complete(
            {**settings, "messages": [{"role": "user", "content": content}], "seed": seed}
        )
        reply = Reply(
            question=question.id,
            number=number,
            attempt=attempt,
            flaw=flaw,
            digest=digest,
            text=message_text(choice["message"]),
            finish_reason=str(choice["finish_reason"]),
        )
        self._replies.add(reply)
        return reply


def drop_reason(outcome: WritingOutcome, num_flawed: int) -> str | None:
    """Return why a question has no row of `num_flawed` flawed answers; None if it has one."""
    if len(outcome.answered.flawed) >= num_flawed:
        return None
    if outcome.failed:
        return "the server failed"
    return Counter(outcome.refusals).most_common(1)[0][0]


def _data_url(image: Image) -> str:
    return f"data:{image.mime_type};base64,{base64.b64encode(image.data).decode()}"
