"""Show a judge at work in the terminal: ask for a question and answers, and print each turn as it comes."""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel

from arm_rl.core.errors import UserError
from arm_rl.core.images import Image, ImageError
from arm_rl.core.question_template import read_phrase
from arm_rl.core.session import Completion, Memory, Policy, PolicyRequest, ToolResult, Tools
from arm_rl.core.types import ToolCall
from arm_rl.judge.verdict import Verdict
from jobs.command_line import run_guarded
from jobs.judge_options import add_judge_options, read_judge_setup, require_model
from tools.execution.local import LocalTools

if TYPE_CHECKING:
    from arm_rl.judge.judge import Judge


class PrintedSession:
    """A policy and tools that show what they say."""

    def __init__(self, policy: Policy, tools: Tools, console: Console) -> None:
        self._policy, self._tools, self._console = policy, tools, console

    async def policy(self, request: PolicyRequest) -> Completion:
        """The policy's turn."""
        with self._console.status("the judge thinks"):
            completion = await self._policy(request)
        self._console.print(
            Panel(completion.text, title="judge", title_align="left", border_style="cyan"), markup=False
        )
        return completion

    async def __call__(self, call: ToolCall, memory: Memory) -> ToolResult:
        """A tool's answer."""
        result = await self._tools(call, memory)
        shown = ", ".join(
            f"image of {width} x {height} px" for width, height in (image.size for image in result.images)
        )
        style = "green" if result.status == "ok" else "red"
        text = "\n".join(part for part in (result.text, shown) if part)
        self._console.print(
            Panel(text, title=f"{call.name}: {result.status}", title_align="left", border_style=style), markup=False
        )
        return result

    async def release(self, memory: Memory) -> None:
        """The session is over."""
        await self._tools.release(memory)


def read_images(paths: Sequence[Path]) -> list[Image]:
    """Return the images of the command line, each decoded once: a broken one is reported before the model is loaded.

    Raises:
        UserError: If a file is missing or no image; the message names the file.
    """
    images = []
    for path in paths:
        try:
            images.append(Image.from_bytes(path.read_bytes()))
            images[-1].pil()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        except ImageError as error:
            raise UserError(f"{path}: {error}") from error
    return images


def ask_questions(ask: Callable[[str], str], judge: "Judge", images: Sequence[Image], console: Console) -> int:
    """Ask for questions until an empty one or the end of the input, judge the answers, and return the number judged."""
    from arm_rl.judge.judge import JudgeError, SessionBroke

    number = 0
    while question := _ask_line(ask, "question (empty: the end): "):
        answers: list[str] = []
        prompt = "answer {} (empty: no more): "
        while (answer := _ask_line(ask, prompt.format(len(answers) + 1))) or (answer == "" and not answers):
            if answer:
                answers.append(answer)
            else:
                console.print("an answer is needed: one is checked, several are compared", style="red")
        if not answers:
            console.print("the input ended before an answer: the last question is not judged", style="red")
            return number
        number += 1
        try:
            verdict = (
                judge.verify(question, images, answers[0])
                if len(answers) == 1
                else judge.compare(question, images, answers)
            )
        except SessionBroke:
            raise
        except JudgeError as error:  # such as an answer that is too long: the next question may be shorter
            console.print(str(error), style="red", markup=False)
            continue
        console.print(_format_verdict(verdict), style="bold")
    return number


def _ask_line(ask: Callable[[str], str], prompt: str) -> str | None:
    """Return a line of the input without blanks at its ends, or None at the end of the input."""
    try:
        return ask(prompt).strip()
    except EOFError:
        return None


def _format_verdict(verdict: Verdict) -> str:
    if verdict.choice is None:
        return "no judgment that can be read"
    sure = "" if verdict.confidence is None else f" ({verdict.confidence:.0%} sure)"
    if isinstance(verdict.choice, bool):
        return f"the answer is {'right' if verdict.choice else 'wrong'}{sure}"
    return f"answer {verdict.choice} is better{sure}"


@contextlib.contextmanager
def open_judge(arguments: argparse.Namespace, console: Console) -> Iterator["Judge"]:
    """Open the judge that the command line names, and print each turn."""
    if arguments.url is None:
        require_model(arguments.folder)
    setup = read_judge_setup(arguments)
    from actors.rollout.model_server import SERVED_NAME, ModelServer
    from arm_rl.judge.judge import Judge
    from arm_rl.judge.remote_policy import ServerPolicy

    loaded, template = setup.load_tools_and_template(arguments.folder)
    with contextlib.ExitStack() as stack:
        url, name = arguments.url, arguments.name
        if url is None:
            log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "server.log"
            server = ModelServer(arguments.folder, log, use_gpu=arguments.gpu, max_model_len=setup.max_model_len)
            with console.status("loading the model"):
                url = stack.enter_context(server).base_url
            name = SERVED_NAME
        asked = ServerPolicy(
            url,
            name,
            template,
            temperature=arguments.temperature,
            max_tokens=setup.limits.max_response_tokens,
            with_logprobs=arguments.url is None,
        )
        local = LocalTools(loaded)
        stack.callback(local.close)
        shown = PrintedSession(asked, local, console)

        @contextlib.asynccontextmanager
        async def policy() -> AsyncIterator[Policy]:
            yield shown.policy
            await asked.close()

        phrase = read_phrase(setup.template.question)
        yield stack.enter_context(Judge(policy(), template, shown, limits=setup.limits, phrase=phrase))


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.chat") -> int:
    """Asks, judges and shows until there is no more question."""
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    add_judge_options(parser)
    parser.add_argument("images", type=Path, nargs="*", help="that the questions are about")
    parser.add_argument("--url", help="of an OpenAI-compatible server that offers the model already, with its /v1")
    parser.add_argument("--name", default="judge", help="of the model at that server (%(default)s)")
    arguments = parser.parse_args(argv)
    console = Console(highlight=False)

    def start() -> str:
        images = read_images(arguments.images)
        with open_judge(arguments, console) as judge:
            number = ask_questions(console.input, judge, images, console)
        return f"done: {number} judged"

    return run_guarded(start)


if __name__ == "__main__":
    sys.exit(main())
