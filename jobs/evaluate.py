"""Evaluates a model: on published benchmarks (`python -m jobs.evaluate MODEL BENCH=FILE…`), or on held-out data of a configuration."""

import argparse
import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from actors.cluster.connection import cluster
from arm_rl.benchmarks import BENCHMARKS
from arm_rl.benchmarks.base import ItemVerdict
from arm_rl.benchmarks.results import FILE, Key, read_results
from arm_rl.benchmarks.runner import NO_TOOLS, TOOLS, ItemQuestion, ask_all, finished, read_questions
from arm_rl.benchmarks.summary import compare, summarize
from arm_rl.benchmarks.tables import comparison_table, summary_tables
from arm_rl.core.atomic_file import replace_text
from arm_rl.core.config_file import load
from arm_rl.core.stage_config import TrainConfig
from arm_rl.judge.backends import Server, engine_backend, server_backend, server_template
from arm_rl.training.evaluation import evaluate_model
from arm_rl.training.inputs import read_template
from jobs.command_line import guarded, run_job
from jobs.server_options import CommandError, add_server_options, read_server

TOOLS_COMPARED = "tools-compared.json"
WAYS = {"tools": (TOOLS,), "no-tools": (NO_TOOLS,), "both": (TOOLS, NO_TOOLS)}


def main(argv: Sequence[str] | None = None, *, program: str = "python -m jobs.evaluate") -> int:
    """Runs what is asked for; the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["compare"]:
        return _compare(argv[1:], f"{program} compare")
    if argv and argv[0].endswith((".yaml", ".yml")):
        description = "Judges the held-out samples of a configuration once each."
        return run_job(program, description, TrainConfig, _held_out, argv=argv, again="")
    arguments = _parser(program).parse_intermixed_args(argv)
    return guarded(lambda: _evaluate(arguments), again="the same command goes on with what has no verdict yet")


async def _held_out(config: TrainConfig) -> str:
    """One pass over the held-out samples of a configuration."""
    metrics = await evaluate_model(config)
    shown = "  ".join(f"{name} {value:.3g}" for name, value in metrics.items())
    return f"{shown}\ndone: evaluation.json and the trajectories are in {config.run.folder}"


def _parser(program: str) -> argparse.ArgumentParser:
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
    for way, told in (
        ("tools", "offer the tools (the default)"),
        ("no-tools", "offer none"),
        ("both", "ask both ways, side by side"),
    ):
        ways.add_argument(f"--{way}", dest="ways", action="store_const", const=way, default="tools", help=told)
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


def _evaluate(arguments: argparse.Namespace) -> str:
    benches, overrides = _split(arguments.benches)
    server, path = _server(arguments) if "://" in arguments.model else (None, arguments.model)
    out = arguments.out or Path("runs") / f"eval-{_short(server.model if server else path)}"
    folder = [f"run.name={out.name}", f"run.root={out.parent}", f"model.path={path}"]
    config = load(TrainConfig, arguments.config, [*overrides, *folder])
    return asyncio.run(_ask(config, benches, arguments, server))


def _split(written: Sequence[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Benchmarks with their files, and what is written like a key of the configuration: with a dot before its `=`."""
    overrides = [one for one in written if "." in one.partition("=")[0]]
    benches: dict[str, Path] = {}
    for one in written:
        name, equals, path = one.partition("=")
        if one in overrides:
            continue
        if name not in BENCHMARKS or not equals:
            raise CommandError(f"{one}: a benchmark is written NAME=FILE, with NAME one of {', '.join(BENCHMARKS)}")
        if name in benches:
            raise CommandError(f"{one}: {name} is named twice")
        benches[name] = Path(path)
    if not benches:
        raise CommandError(f"no benchmark is named: NAME=FILE, with NAME one of {', '.join(BENCHMARKS)}")
    return list(benches.items()), overrides


async def _ask(
    config: TrainConfig, benches: Sequence[tuple[str, Path]], arguments: argparse.Namespace, server: Server | None
) -> str:
    folder = config.run.folder
    template = read_template(config) if server is None else server_template(config)
    _check_same_model(folder, config, server)
    questions = read_questions(
        benches,
        folder,
        tools=list(template.schemas),
        ways=WAYS[arguments.ways],
        both_orders=arguments.both_orders,
        limit=arguments.limit,
        seed=config.run.seed,
    )
    known = finished(questions, folder)
    if len(known) < len(questions):
        with contextlib.ExitStack() as stack:
            if server is None:
                stack.enter_context(cluster())
            backend: AbstractAsyncContextManager[Any] = (
                engine_backend(config, template) if server is None else server_backend(config, template, server)
            )
            async with backend as ready:
                with _Bar(questions, known) as bar:
                    known = await ask_all(
                        ready, questions, folder, max_broken=config.run.max_broken_sessions, on_done=bar.step
                    )
    summaries = _summaries(questions, known)
    replace_text(folder / "summary.json", json.dumps(summaries, indent=2))
    console = Console(width=140)
    console.print(*summary_tables(summaries), sep="\n")
    if arguments.ways == "both":
        compared = _ways_compared(questions, known)
        replace_text(folder / TOOLS_COMPARED, json.dumps(compared, indent=2))
        console.print(comparison_table(compared, NO_TOOLS, TOOLS))
    missing = len(questions) - len(known)
    told = f"{missing} of {len(questions)} sessions broke: the same command asks them again\n" if missing else ""
    return f"{told}done: {FILE}, summary.json and the trajectories are in {folder}"


def _summaries(questions: Sequence[ItemQuestion], known: dict[Key, ItemVerdict]) -> dict[str, dict[str, Any]]:
    summaries: dict[str, dict[str, Any]] = {}
    for name, way in dict.fromkeys((question.benchmark, question.way) for question in questions):
        keys = [question.key for question in questions if (question.benchmark, question.way) == (name, way)]
        judged = [known[key] for key in keys if key in known]
        summaries.setdefault(name, {})[way] = summarize(BENCHMARKS[name], judged, len(keys))
    return summaries


def _ways_compared(questions: Sequence[ItemQuestion], known: dict[Key, ItemVerdict]) -> dict[str, dict[str, Any]]:
    """What the tools change, row by row: for each benchmark, asked with them against asked without."""
    compared = {}
    for name in dict.fromkeys(question.benchmark for question in questions):
        ways = {
            way: [
                known[question.key]
                for question in questions
                if (question.benchmark, question.way) == (name, way) and question.key in known
            ]
            for way in (NO_TOOLS, TOOLS)
        }
        compared[name] = compare(BENCHMARKS[name], ways[NO_TOOLS], ways[TOOLS])
    return compared


@dataclass(frozen=True, kw_only=True, slots=True)
class _EvaluationKey:
    """What the verdicts in a folder depend on beside the questions."""

    model: str
    server: str | None
    temperature: float
    session: dict[str, Any]


def _check_same_model(folder: Path, config: TrainConfig, server: Server | None) -> None:
    """A folder holds the verdicts of one model, asked in one way."""
    now = _EvaluationKey(
        model=server.model if server else config.model.path,
        server=server.url if server else None,
        temperature=config.evaluation.temperature,
        session=asdict(config.session),
    )
    file = folder / "model.json"
    if file.exists():
        before = json.loads(file.read_text())
        for name, value in asdict(now).items():
            if before.get(name) != value:
                raise CommandError(
                    f"{folder} holds verdicts with {name} {before.get(name)!r}, not {value!r}: choose another --out"
                )
    replace_text(file, json.dumps(asdict(now), indent=2))


class _Bar:
    """How far an evaluation is, by benchmark and way of asking."""

    def __init__(self, questions: Sequence[ItemQuestion], known: dict[Key, ItemVerdict]) -> None:
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
            self._right[benchmark, way] = [one.correct for one in done if one.kind != "rating"]
            self._tasks[benchmark, way] = self._progress.add_task(
                f"{benchmark}, {way}", total=len(keys), completed=len(done), right=""
            )

    def step(self, question: ItemQuestion, judged: ItemVerdict | None) -> None:
        """One more session is over."""
        one = question.benchmark, question.way
        if judged is not None and judged.kind != "rating":
            self._right[one].append(judged.correct)
        right = self._right[one]
        self._progress.update(
            self._tasks[one], advance=1, right=f"{sum(right) / len(right):.1%} right" if right else ""
        )

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()


def _server(arguments: argparse.Namespace) -> tuple[Server, str]:
    """The server, and the model whose template it uses."""
    server, source = read_server(arguments.model, arguments, with_source=not arguments.processor)
    processor = arguments.processor or source
    if not processor:
        raise CommandError(
            f"--processor: {arguments.model} does not say from where it loaded {server.model}; a Hugging Face folder or name is needed"
        )
    return server, processor


def _short(model: str) -> str:
    """A name for a folder: of an export, the run's."""
    path = Path(model.rstrip("/"))
    return re.sub(r"[^\w.-]+", "-", path.parent.name if path.name == "export" and path.parent.name else path.name)


def _compare(argv: Sequence[str], program: str) -> int:
    parser = argparse.ArgumentParser(prog=program, description="Two runs on the rows that both have.")
    parser.add_argument("before", type=Path, metavar="RUN_A")
    parser.add_argument("after", type=Path, metavar="RUN_B")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _compared(arguments.before, arguments.after))


def _compared(before: Path, after: Path) -> str:
    found: list[dict[str, list[ItemVerdict]]] = []
    for folder in (before, after):
        runs: dict[str, list[ItemVerdict]] = {}
        for (benchmark, way, _), judged in read_results(folder).items():
            runs.setdefault(f"{benchmark}, {way}", []).append(judged)
        if not runs:
            raise CommandError(f"{folder}: there are no verdicts ({FILE})")
        found.append(runs)
    common = [name for name in found[0] if name in found[1]]
    if not common:
        raise CommandError(
            f"{before} and {after} have no benchmark in common: {', '.join(found[0])}; {', '.join(found[1])}"
        )
    compared = {name: compare(BENCHMARKS[name.partition(",")[0]], found[0][name], found[1][name]) for name in common}
    file = after / f"compared-with-{before.resolve().name}.json"
    replace_text(file, json.dumps(compared, indent=2))
    Console(width=160).print(comparison_table(compared, str(before), str(after)))
    return f"done: the numbers are in {file}"


if __name__ == "__main__":
    sys.exit(main())
