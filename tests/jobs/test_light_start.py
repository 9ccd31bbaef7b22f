"""Arguments and configurations are checked before heavy libraries are imported: `--help` and a typing error answer at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "transformers", "ray", "sklearn", "scipy", "vllm", "deepspeed", "fastapi", "wandb", "matplotlib"]
PREPARE = [
    "questions",
    "synthetic",
    "labelled",
    "pairs",
    "difficulty",
    "trajectories",
    "documents",
    "convert",
    "audit",
]
STAGE = "configs/arm_thinker_stage1.yaml"
HELP = {name: [name, "--help"] for name in COMMANDS} | {
    f"prepare-data {name}": ["prepare-data", name, "--help"] for name in PREPARE
}
WRONG_OPTION = {name: [name, "--no-such-option"] for name in COMMANDS}
WRONG_KEY = {
    "train": ["train", STAGE, "no_such.key=1"],
    "sft": ["sft", "configs/arm_thinker_sft.yaml", "no_such.key=1"],
    "plan": ["plan", STAGE, "no_such.key=1"],
    "evaluate, held out": ["evaluate", STAGE, "no_such.key=1"],
    "evaluate": ["evaluate", "some/model", "vstar=file", "no_such.key=1"],
    "difficulty": ["prepare-data", "difficulty", STAGE, "no_such.key=1"],
    "trajectories": ["prepare-data", "trajectories", STAGE, "no_such.key=1"],
    "pairs": ["prepare-data", "pairs", "x.jsonl", "no_such=1", "--server", "http://127.0.0.1:9/v1", "--out", "x"],
    "labelled": ["prepare-data", "labelled", "jsonl", "x.jsonl", "no_such=1", "--out", "x"],
}
MISSING = {
    "train": ["train", STAGE, "data.train=[none.parquet]"],
    "sft": ["sft", "configs/arm_thinker_sft.yaml", "data.train=[none.parquet]"],
    "evaluate, held out": ["evaluate", STAGE, "data.held_out=[none.parquet]"],
    "evaluate": ["evaluate", "some/model", "vstar=none.jsonl"],
    "difficulty": ["prepare-data", "difficulty", STAGE, "data.train=[none.parquet]"],
    "trajectories": ["prepare-data", "trajectories", STAGE, "data.train=[none.parquet]"],
    "pairs": ["prepare-data", "pairs", "none.jsonl", "--server", "http://127.0.0.1:9/v1", "--out", "none"],
    "labelled": ["prepare-data", "labelled", "jsonl", "README.md", "none.jsonl", "--out", "none"],
    "questions": ["prepare-data", "questions", "jsonl", "README.md", "none.jsonl", "--out", "none/q.jsonl"],
    "audit": ["prepare-data", "audit", "none.parquet"],
    "chat": ["chat", "none"],
    "chat, image": ["chat", "configs", "none.png"],
    "chat, no image": ["chat", "configs", "README.md"],
    "serve": ["serve", "none"],
    "serve, model": ["serve", "none", "--model-only"],
    "export": ["export", "none"],
    "report": ["report", "none"],
}
PROGRAM = """
import contextlib, io, json, sys
from jobs.cli import main
commands, heavy = json.loads(sys.argv[1])
said, seen = {}, set()
for name, arguments in commands.items():
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code
    said[name] = [status, output.getvalue(), [one for one in heavy if one in sys.modules and one not in seen]]
    seen.update(said[name][2])
print(json.dumps(said))
"""


def run_all(commands: dict[str, list[str]]) -> dict[str, tuple[int, str, list[str]]]:
    """Run the commands one after the other in one process; return status, output and newly imported heavy modules."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([commands, HEAVY])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("commands", "status", "text"),
    [(HELP, 0, "usage: "), (WRONG_OPTION, 2, "error: "), (WRONG_KEY, 1, "no_such"), (MISSING, 1, "error: ")],
    ids=["help", "wrong option", "wrong key", "missing file"],
)
def test_nothing_heavy_is_imported_before_the_arguments_are_known(commands, status, text):
    found = run_all(commands)
    assert {name: imported for name, (_, _, imported) in found.items() if imported} == {}
    assert {name: ended for name, (ended, _, _) in found.items() if ended != status} == {}
    assert [name for name, (_, output, _) in found.items() if text not in output] == []
