"""A disk or an object store that fills up in the middle of a run: one line, exit status 1, and the run goes on once there is room."""

import itertools
import json
import shlex
import shutil
import subprocess
import sys

import pytest

from arm_rl.core.config import SessionConfig
from arm_rl.data.demonstrations import write_demonstrations
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset
from arm_rl.demo.teacher import ScriptedTeacher
from arm_rl.prepare.screening import run_screened_sessions
from tools import load_tools
from tools.execution.local import LocalTools

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed: it makes the small disk"),
]

# a checkpoint has 8.5 million, and a second one is written before the first one goes
DISK_BYTES, TAKEN_BYTES = 32_000_000, 18_000_000

SCRIPT = """
head -c {taken} /dev/zero > {disk}/taken
{command}; echo "status $?"
ls {disk}/sft/checkpoints
rm {disk}/taken
{command}; echo "status $?"
cp {disk}/sft/metrics.jsonl {disk}/sft/export/model.safetensors {kept}
"""


def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on_when_there_is_room(tmp_path, judge_folder, template):
    tools, teacher = load_tools(["configs/tools/digits.yaml"]), ScriptedTeacher(seed=0)
    samples = read_samples(
        [str(dataset.write(tmp_path / "train.parquet", seed=0, split="train", num_samples=32))], list(tools)
    )
    limits = SessionConfig(max_turns=3, max_prompt_tokens=128, max_response_tokens=128)
    sessions = run_screened_sessions(
        samples, lambda one: teacher.policy(one, template), LocalTools(tools), limits, template
    )
    write_demonstrations(tmp_path / "demonstrations.parquet", list(itertools.islice(sessions, 8)))
    (disk := tmp_path / "disk").mkdir()
    command = [
        sys.executable,
        "-m",
        "jobs.sft",
        "configs/demo_sft.yaml",
        f"run.root={disk}",
        f"model.path={judge_folder}",
        "batch_size=4",
    ]
    command += [
        f"data.train=[{tmp_path / 'demonstrations.parquet'}]",
        "metrics.wandb=disabled",
        "learner.num_threads=1",
    ]
    command += ["checkpoint.every=1", "checkpoint.keep=1"]
    script = SCRIPT.format(taken=TAKEN_BYTES, disk=disk, kept=tmp_path, command=shlex.join(command))
    sandbox = [
        "bwrap",
        "--dev-bind",
        "/",
        "/",
        "--size",
        str(DISK_BYTES),
        "--tmpfs",
        str(disk),
        "--die-with-parent",
        "sh",
        "-c",
        script,
    ]
    ran = subprocess.run(sandbox, capture_output=True, text=True, timeout=500)
    lines = ran.stdout.splitlines()
    assert [line for line in lines if line.startswith("status")] == ["status 1", "status 0"], ran.stderr
    assert lines[lines.index("status 1") + 1] == "1", "the first checkpoint stands, and nothing of the second is left"
    (error,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {disk}/sft/checkpoints/2: the checkpoint could not be written: ")
    assert "No space left on device" in error
    assert "the same command goes on from there" in error
    assert "Traceback" not in ran.stderr
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    assert (tmp_path / "model.safetensors").stat().st_size > 1_000_000


PROGRAM = """
import sys

import numpy
import ray

from jobs.command_line import run_guarded


@ray.remote(num_cpus=0)
class Rollout:
    def run(self):
        return numpy.ones(4 << 20)  # 32 MiB


def job():
    ray.init(address="local", object_store_memory=80 << 20, object_spilling_directory=sys.argv[1], num_cpus=1, include_dashboard=False)
    rollout = Rollout.remote()
    kept = [rollout.run.remote() for _ in range(9)]
    return f"all of {len(ray.get(kept))}"


sys.exit(run_guarded(job))
"""


def test_a_full_object_store_is_told_in_one_line(tmp_path):
    sandbox = ["bwrap", "--dev-bind", "/", "/", "--size", "50000000", "--tmpfs", str(tmp_path), "--die-with-parent"]
    ran = subprocess.run(
        [*sandbox, sys.executable, "-c", PROGRAM, str(tmp_path / "spilled")],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert ran.returncode == 1, ran.stdout
    (error,) = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert "the local object store is full" in error
