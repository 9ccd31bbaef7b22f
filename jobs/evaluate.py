"""Evaluates a model: on published benchmarks (`python -m jobs.evaluate MODEL BENCH=FILE…`), or on held-out data of a configuration."""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from arm_rl.benchmarks import BENCHMARKS
from arm_rl.benchmarks.base import ItemVerdict
from arm_rl.benchmarks.results import FILE, Key
from arm_rl.benchmarks.tables import comparison_table, summary_tables
from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config_file import load
from arm_rl.core.phases import log_phase
from arm_rl.core.stage_config import TrainConfig
from arm_rl.data.parquet_rows import require_files
from jobs.command_line import run_guarded, run_job
from jobs.server_options import CommandError, add_server_options, read_server

if TYPE_CHECKING:
    from arm_rl.benchmarks.runner import ItemQuestion
    from arm_rl.judge.backends import Server

TOOLS_COMPARED = "tools-compared.json"


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.evaluate") -> int:
    """Runs what is asked for; the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["compare"]:
        return _compare_command(argv[1:], f"{program} compare")
    if argv and argv[0].endswith((".yaml", ".yml")):
        description = "Judges the held-out samples of a configuration once each."
        return run_job(
            program,
            description,
            TrainConfig,
            _evaluate_held_out,
            argv=argv,
            check=lambda config: require_files(config.data.held_out),
            resume_hint="",
        )
    arguments = _make_parser(program).parse_intermixed_args(argv)
    return run_guarded(
        lambda: _evaluate_benchmarks(arguments), resume_hint="the same command goes on with what has no verdict yet"
    )


async def _evaluate_held_out(config: TrainConfig) -> str:
    """Judge the held-out samples of a configuration once each."""
    from arm_rl.training.evaluation import evaluate_model

    metrics = await evaluate_model(config)
    shown = "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())
    folder = config.run.folder
    return (
        f"{shown}\ndone: evaluation.json and the trajectories are in {folder}; "
        f"`python -m jobs.report {folder}` shows the trajectories"
    )


def _make_parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Asks a model the items of published benchmarks. Started again with the same --out, it goes on where it stopped.",
        epilog=f"benchmarks: {', '.join(BENCHMARKS)}.\n`compare RUN_A RUN_B` compares two runs; `CONFIG.yaml key=value` judges "
        "the held-out samples of a configuration.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="Hugging Face folder or name, or http://…/v1 of an OpenAI-compatible server")
    parser.add_argument(
        "benches", nargs="+", metavar="BENCH=FILE", help="a benchmark and its file; also key=value of the configuration"
    )
    parser.add_argument(
        "--config", default="configs/evaluate.yaml", help="of engines, sessions and tools (default: %(default)s)"
    )
    ways = parser.add_mutually_exclusive_group()
    for way, text in (
        ("tools", "offer the tools (the default)"),
        ("no-tools", "offer none"),
        ("both", "ask both ways, side by side"),
    ):
        ways.add_argument(f"--{way}", dest="ways", action="store_const", const=way, default="tools", help=text)
    parser.add_argument(
        "--both-orders", action="store_true", help="ask each pair in both orders, and report the position bias"
    )
    parser.add_argument("--limit", type=int, metavar="ROWS", help="of each benchmark, about")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="of the results (default: runs/eval-MODEL)")
    add_server_options(parser, where="where MODEL is a server")
    parser.add_argument(
        "--processor",
        metavar="MODEL",
        help="folder or name of the server's model: for its processor; by default what it says",
    )
    return parser


def _evaluate_benchmarks(arguments: argparse.Namespace) -> str:
    benches, overrides = _split_arguments(arguments.benches)
    server, path = _read_server_model(arguments) if "://" in arguments.model else (None, arguments.model)
    out = arguments.out or Path("runs") / f"eval-{_folder_name(server.model if server else path)}"
    folder = [f"run.name={out.name}", f"run.root={out.parent}", f"model.path={path}"]
    config = load(TrainConfig, arguments.config, [*overrides, *folder])
    require_files(path for _, path in benches)
    return asyncio.run(_ask_questions(config, benches, arguments, server))


def _split_arguments(written: Sequence[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Separate NAME=FILE of benchmarks from overrides of the configuration, which have a dot before their `=`."""
    overrides = [argument for argument in written if "." in argument.partition("=")[0]]
    benches: dict[str, Path] = {}
    for argument in written:
        name, equals, path = argument.partition("=")
        if argument in overrides:
            continue
        if name not in BENCHMARKS or not equals:
            raise CommandError(
                f"{argument}: a benchmark is written NAME=FILE, with NAME one of {', '.join(BENCHMARKS)}"
            )
        if name in benches:
            raise CommandError(f"{argument}: {name} is named twice")
        benches[name] = Path(path)
    if not benches:
        raise CommandError(f"no benchmark is named: NAME=FILE, with NAME one of {', '.join(BENCHMARKS)}")
    return list(benches.items()), overrides


async def _ask_questions(
    config: TrainConfig, benches: Sequence[tuple[str, Path]], arguments: argparse.Namespace, server: "Server | None"
) -> str:
    from arm_rl.benchmarks.evaluation import check_same_model, compare_ways, sample_check, summarize_all
    from arm_rl.benchmarks.runner import NO_TOOLS, REFUSED, TOOLS, ask_all, read_finished, read_questions
    from arm_rl.judge.backends import open_backend, server_template
    from arm_rl.training.inputs import read_template

    folder = config.run.folder
    template = read_template(config) if server is None else server_template(config)
    check_same_model(folder, config, server)
    questions = read_questions(
        benches,
        folder,
        tools=list(template.schemas),
        ways={"tools": (TOOLS,), "no-tools": (NO_TOOLS,), "both": (TOOLS, NO_TOOLS)}[arguments.ways],
        both_orders=arguments.both_orders,
        limit=arguments.limit,
        seed=config.run.seed,
    )
    known = read_finished(questions, folder)
    log_phase(f"model and benchmarks checked: {len(questions)} sessions, {len(known)} of them judged already")
    if len(known) < len(questions):
        async with open_backend(config, template, server) as backend:
            log_phase("engine: up")
            with _Bar(questions, known) as bar:
                known = await ask_all(
                    backend,
                    questions,
                    folder,
                    max_broken=config.run.max_broken_sessions,
                    check=sample_check(config, template, server),
                    on_done=bar.step,
                )
    summaries = summarize_all(questions, known)
    replace_text(folder / "summary.json", json.dumps(summaries, indent=2))
    console = Console(width=140)
    console.print(*summary_tables(summaries), sep="\n")
    if arguments.ways == "both":
        compared = compare_ways(questions, known)
        replace_text(folder / TOOLS_COMPARED, json.dumps(compared, indent=2))
        console.print(comparison_table(compared, NO_TOOLS, TOOLS))
    missing = len(questions) - len(known)
    note = f"{missing} of {len(questions)} sessions broke: the same command asks them again\n" if missing else ""
    if refused := sum(judged.end == REFUSED for judged in known.values()):
        note += f"{refused} of {len(questions)} items cannot be shown to this model and count as wrong\n"
    return f"{note}done: {FILE}, summary.json and the trajectories are in {folder}"


class _Bar:
    """How far an evaluation is, by benchmark and way of asking."""

    def __init__(self, questions: Sequence["ItemQuestion"], known: dict[Key, ItemVerdict]) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, TextColumn("{task.fields[right]}"), console=Console(stderr=True), disable=not sys.stderr.isatty()
        )
        self._tasks, self._right = {}, dict[tuple[str, str], list[bool]]()
        for benchmark, way in dict.fromkeys((question.benchmark, question.way) for question in questions):
            keys = [question.key for question in questions if (question.benchmark, question.way) == (benchmark, way)]
            done = [known[key] for key in keys if key in known]
            self._right[benchmark, way] = [verdict.correct for verdict in done if verdict.kind != "rating"]
            self._tasks[benchmark, way] = self._progress.add_task(
                f"{benchmark}, {way}", total=len(keys), completed=len(done), right=""
            )

    def step(self, question: "ItemQuestion", judged: ItemVerdict | None) -> None:
        """Count one finished session."""
        key = question.benchmark, question.way
        if judged is not None and judged.kind != "rating":
            self._right[key].append(judged.correct)
        right = self._right[key]
        self._progress.update(
            self._tasks[key], advance=1, right=f"{sum(right) / len(right):.1%} right" if right else ""
        )

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


def _read_server_model(arguments: argparse.Namespace) -> "tuple[Server, str]":
    """Return the server and the model whose processor it uses."""
    server, source = read_server(arguments.model, arguments, with_source=not arguments.processor)
    processor = arguments.processor or source
    if not processor:
        raise CommandError(
            f"--processor: {arguments.model} does not say from where it loaded {server.model}; a Hugging Face folder or name is needed"
        )
    return server, processor


def _folder_name(model: str) -> str:
    """Return a folder name for a model; for an export, the name of the run."""
    path = Path(model.rstrip("/"))
    return re.sub(r"[^\w.-]+", "-", path.parent.name if path.name == "export" and path.parent.name else path.name)


def _compare_command(argv: Sequence[str], program: str) -> int:
    parser = argparse.ArgumentParser(prog=program, description="Two runs on the rows that both have.")
    parser.add_argument("before", type=Path, metavar="RUN_A")
    parser.add_argument("after", type=Path, metavar="RUN_B")
    arguments = parser.parse_args(argv)
    return run_guarded(lambda: _compare_folders(arguments.before, arguments.after))


def _compare_folders(before: Path, after: Path) -> str:
    from arm_rl.benchmarks.evaluation import compare_runs

    compared = compare_runs(before, after)
    file = after / f"compared-with-{before.resolve().name}.json"
    replace_text(file, json.dumps(compared, indent=2))
    Console(width=160).print(comparison_table(compared, str(before), str(after)))
    return f"done: the numbers are in {file}"


if __name__ == "__main__":
    sys.exit(main())
