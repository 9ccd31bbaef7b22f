"""The command `pairs`: answers to judge, out of questions and their right answers."""

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config_file import describe, load
from arm_rl.core.json_lines import JsonLines
from arm_rl.core.question_template import read_phrase
from arm_rl.data.parquet_rows import require_files
from arm_rl.prepare.pairs.config import PairsConfig
from arm_rl.prepare.pairs.replies import Replies
from arm_rl.prepare.pairs.report import file_lines
from arm_rl.prepare.pairs.writer import FlawWriter, WritingOutcome
from arm_rl.prepare.progress import progress_bar
from arm_rl.prepare.questions import Question
from arm_rl.run.folder import require_same_settings
from jobs.command_line import Commands
from jobs.server_options import add_server_options, read_server

if TYPE_CHECKING:
    from arm_rl.judge.backends import Server

REPLIES, REPORT, WRITER = "replies.jsonl", "report.json", "writer.json"


def add_pairs_command(commands: Commands) -> None:
    """Add the command that makes preference pairs."""
    parser = commands.add_parser(
        "pairs",
        help="answers to judge, out of questions and their right answers",
        description="A language model writes plausible but flawed answers to questions. They become training data of two answers (pair),\n"
        "one (point) or several (rank), in which nothing but the content tells which is right. Replies are kept: an interrupted\n"
        "run goes on, and other limits need no new ones.",
        epilog=f"keys:\n{describe(PairsConfig)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "questions", nargs="+", metavar="FILE", help="JSONL of questions; also key=value of the configuration"
    )
    parser.add_argument("--server", required=True, metavar="URL", help="http://…/v1 of an OpenAI-compatible server")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="of the files, the replies and the report"
    )
    parser.add_argument("--config", default="configs/prepare/pairs.yaml", help="(default: %(default)s)")
    add_server_options(parser, where="the server")
    parser.set_defaults(run=_run_pairs)


def _run_pairs(arguments: argparse.Namespace) -> str:
    overrides = [one for one in arguments.questions if "=" in one and not Path(one).exists()]
    config = load(PairsConfig, arguments.config, overrides)
    files = [Path(one) for one in arguments.questions if one not in overrides]
    require_files(files)
    from arm_rl.prepare.pairs.build import read_all, report, write_files

    phrase = read_phrase(config.question)
    questions = read_all(files)
    server, _ = read_server(arguments.server, arguments)
    settings = {"seed": config.seed, "--served-model": server.model}
    require_same_settings(arguments.out / WRITER, settings, remedy="choose another --out, or remove that folder")
    outcomes, num_requests = asyncio.run(_write_answers(questions, server, config, arguments.out))
    made = write_files(outcomes, config, phrase, arguments.out)
    found = report(outcomes, made, config, num_requests)
    replace_text(arguments.out / REPORT, json.dumps(found, indent=2, ensure_ascii=False))
    look = f"`python -m jobs.prepare_data audit {arguments.out}` looks for what is wrong with them"
    done = f"done: {', '.join(found['files'])} and {REPORT} are in {arguments.out}; {look}"
    return "\n".join([*summary_lines(found), done])


async def _write_answers(
    questions: Sequence[Question], server: "Server", config: PairsConfig, folder: Path
) -> tuple[list[WritingOutcome], int]:
    from arm_rl.judge.chat_client import ChatServer

    chat = ChatServer(
        server.url, timeout_seconds=server.timeout_seconds, num_retries=server.num_retries, api_key=server.api_key
    )
    try:
        with (
            JsonLines(folder / REPLIES) as lines,
            progress_bar("writing flawed answers", len(questions), "questions") as step,
        ):
            writer = FlawWriter(chat, server.model, config, Replies(lines))
            outcomes = await writer.write_all(questions, concurrency=server.concurrency, on_done=lambda outcome: step())
        return outcomes, writer.num_requests
    finally:
        await chat.close()


def summary_lines(found: dict[str, Any]) -> list[str]:
    """Return the report as a few lines."""
    lines = [f"{found['used']} of {found['questions']} questions used, {found['requests']} requests"]
    lines += [
        f"  not used: {reason}: {one['questions']} (such as {one['such_as'][0]})"
        for reason, one in found["not_used"].items()
    ]
    return lines + file_lines(found["files"])
