"""The terminal session: what is asked, and what is shown."""

import io
from contextlib import asynccontextmanager

from rich.console import Console

from arm_rl.judge.judge import Judge
from jobs.chat import PrintedSession, ask_questions
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
        assert ask_questions(lambda _: next(said), judge, [tmp_path / "scene.png"], console) == 3
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
