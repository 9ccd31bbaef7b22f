"""The terminal session: what is asked, and what is shown."""

import io
from contextlib import asynccontextmanager

import pytest
from rich.console import Console

from arm_rl.core.errors import UserError
from arm_rl.judge.judge import Judge
from arm_rl.judge.verdict import Verdict
from jobs.chat import PrintedSession, ask_questions, read_images
from tests.judge.test_judge import Preferring
from tests.support.scripted import noise
from tools import load_tools
from tools.execution.local import LocalTools


def test_the_loop_is_shown_turn_by_turn(template, tmp_path):
    noise().save(tmp_path / "scene.png")
    output = io.StringIO()
    console = Console(file=output, width=100)
    shown = PrintedSession(Preferring(template), LocalTools(load_tools(["configs/tools/digits.yaml"])), console)

    @asynccontextmanager
    async def policy():
        yield shown.policy

    said = iter(["Which?", "", "7", "4", "", "Long?", "word " * 20_000, "", "Is it?", "7", "", ""])
    with Judge(policy(), template, shown) as judge:
        assert ask_questions(lambda _: next(said), judge, read_images([tmp_path / "scene.png"]), console) == 3
    text = output.getvalue()
    for part in (
        "image_zoom_in_tool: ok",
        "image of ",
        "<think>so it is</think>",
        "answer 2 is better (90% sure)",
        "this cannot be judged: the prompt has",
        "the answer is right (90% sure)",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("lines", "number", "message"),
    [
        (["Which?"], 0, "the last question is not judged"),
        (["Which?", ""], 0, "an answer is needed"),
        (["Which?", "", "7"], 1, "an answer is needed"),
    ],
)
def test_a_question_without_answers_is_reported(lines, number, message):
    def ask(prompt: str) -> str:
        if not lines:
            raise EOFError
        return lines.pop(0)

    class Judging:
        def verify(self, *asked: object) -> Verdict:
            return Verdict(choice=True, confidence=None, opinions=(), orders=())

    output = io.StringIO()
    assert ask_questions(ask, Judging(), [], Console(file=output, width=100)) == number
    assert message in output.getvalue()


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), (b"no image", "not a readable image")])
def test_an_image_is_checked_before_the_model_is_loaded(tmp_path, content, message):
    if content is not None:
        (tmp_path / "scene.png").write_bytes(content)
    with pytest.raises(UserError, match=f"scene.png: .*{message}"):
        read_images([tmp_path / "scene.png"])
