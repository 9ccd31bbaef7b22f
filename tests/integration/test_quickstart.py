"""The quickstart's script, every step but the download: on CPUs, with an untrained judge and a small file in LLaVA-Critic's format."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from arm_rl.core.images import Image
from arm_rl.data.samples import read_samples
from arm_rl.run.metrics_log import read_lines
from tests.support.chat_server import FakeServer, text_of
from tests.support.llava_critic_file import compared, write_parquet
from tests.support.scripted import call, noise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SCRIPT = "configs/recipes/quickstart.sh"


def teach(body) -> str:
    """Call the zoom tool once, then name the answer that counts as the question does."""
    if not any(message["role"] == "tool" for message in body["messages"]):
        return call()
    asked = text_of(body)
    number = re.search(r"Is it picture (\d+)\?", asked)[1]
    better = 1 if re.search(rf"Answer 1: It is {number}\.", asked) else 2
    return f"<think>seen</think><answer>Overall Judgment: Answer {better} is better.</answer>"


def small_keys(model: Path) -> list[str]:
    """Return the keys that make the recipe small, on CPUs."""
    return [
        f"model.path={model}",
        "model.dtype=float32",
        "model.max_pixels=null",
        "template.system_prompt=configs/prompts/digits.txt",
        "tools.files=[configs/tools/digits.yaml]",
        "session.max_turns=2",
        "session.max_prompt_tokens=400",
        "session.max_response_tokens=400",
        "rollout.max_model_len=800",
        "rollout.max_num_seqs=8",
        "algorithm.samples_per_step=2",
        "algorithm.group_size=2",
        "algorithm.mini_batch_samples=2",
        "algorithm.drop_flat_groups=false",  # an untrained judge earns nothing
        "learner.micro_batch_tokens=2048",
        "learner.lora_rank=4",
        "placement.use_gpu=false",
        "evaluation.every=0",
        "evaluation.final=false",
        "metrics.wandb=disabled",
    ]


def test_from_the_published_format_to_a_judge_that_is_served(judge_folder, tmp_path, free_port):
    rows = []
    for number in range(16):
        better = ("first", "second")[number % 2]
        first, second = (f"It is {number}.", f"It is {(number + 1) % 16}.")[:: 1 if better == "first" else -1]
        rows.append(compared(f"Is it picture {number}?", first, second, better))
    pictures = [Image.from_pil(noise(64, 64, seed)).data for seed in range(16)]
    write_parquet(tmp_path / "hub" / "pairwise" / "train-00000-of-00001.parquet", rows, pictures)
    out = tmp_path / "quickstart"
    with FakeServer(teach) as server:
        options = ["--from", str(tmp_path / "hub"), "--out", str(out), "--held-out", "0.25", "--no-gpu"]
        options += ["--teacher", server.url, "--filter", "--stage1-steps", "1", "--stage2-steps", "2"]
        options += ["--port", str(free_port)]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [SCRIPT, *options, *small_keys(judge_folder)],
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert done.returncode == 0, done.stdout
    data = out / "data"
    samples = {name: read_samples([str(data / f"{name}.parquet")], ["one"]) for name in ("pair", "pair-held_out")}
    assert sum(map(len, samples.values())) == 16
    assert (data / "demonstrations.parquet").is_file()
    assert (data / "pair-filtered.parquet").is_file()
    assert (out / "sft" / "export" / "model.safetensors").is_file()
    for stage, steps in (("stage1", 1), ("stage2", 2)):
        lines = [line for line in read_lines(out / stage / "metrics.jsonl") if "learner/loss" in line]
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert (out / "judge" / "model.safetensors").is_file()
    assert (out / "stage2" / "report.html").is_file()
    for run in ("before", "after"):
        assert 0 <= json.loads((out / run / "evaluation.json").read_text())["accuracy"] <= 1
    answered = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"choice"'))
    assert len(answered["opinions"]) == 1
    assert f"the judge is in {out}/judge" in done.stdout


def test_the_script_says_what_it_takes():
    said = subprocess.run([SCRIPT, "--help"], stdout=subprocess.PIPE, text=True)
    assert said.returncode == 0
    assert "--teacher URL" in said.stdout
    assert subprocess.run([SCRIPT, "--tempo"], stderr=subprocess.PIPE).returncode == 2
