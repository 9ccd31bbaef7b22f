"""A short whole run on a real local Ray: cold start, stage 1, stage 2, with vLLM, DeepSpeed, tools and weight sync; and going on."""

import asyncio
import itertools
from collections import defaultdict
from pathlib import Path

import pytest

from arm_rl.core import trajectory_file
from arm_rl.core.config_file import load
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.data.demonstrations import write_demonstrations
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset
from arm_rl.demo.teacher import ScriptedTeacher
from arm_rl.prepare.screening import run_screened_sessions
from arm_rl.run import timeline
from arm_rl.run.metrics_log import read_lines
from arm_rl.run.step_times import step_times
from arm_rl.training.grpo import train_grpo
from arm_rl.training.sft import train_sft
from arm_rl.training.weight_sync import published_folder
from tests.support import small_run
from tools import load_tools
from tools.execution.local import LocalTools

pytestmark = pytest.mark.timeout(900)

MAX_LOGPROB_GAP = 1e-5  # between engine and learner, float32: the same tokens, the same images, the same weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run folder with data."""
    folder = tmp_path_factory.mktemp("runs")
    small_run.write_data(folder, 96)
    dataset.write(folder / "held_out.parquet", seed=0, split="held_out", num_samples=16)
    return folder


@pytest.fixture(scope="module")
def cold_start(local_ray, folder, judge_folder, template) -> Path:
    """The export of a cold start on screened demonstrations."""
    config = grpo_config(folder, judge_folder)
    tools = load_tools(config.tools.files)
    teacher = ScriptedTeacher(seed=0)
    samples = read_samples(config.data.train, list(tools))
    sessions = run_screened_sessions(
        samples, lambda one: teacher.policy(one, template), LocalTools(tools), config.session, template
    )
    write_demonstrations(folder / "demonstrations.parquet", list(itertools.islice(sessions, 32)))
    sft = load(
        SftConfig,
        "configs/demo_sft.yaml",
        [
            f"run.root={folder}",
            f"model.path={judge_folder}",
            f"data.train=[{folder / 'demonstrations.parquet'}]",
            "batch_size=8",
            "learner.learning_rate=1e-3",
            "learner.num_threads=1",
            "metrics.wandb=disabled",
        ],
    )
    asyncio.run(train_sft(sft))
    losses = [line["learner/loss"] for line in read_lines(folder / "sft" / "metrics.jsonl")]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    return folder / "sft" / "export"


def grpo_config(folder: Path, model: Path, *overrides: str) -> TrainConfig:
    """Return the demo's configuration, made small."""
    held_out = f"data.held_out=[{folder / 'held_out.parquet'}]"
    arguments = small_run.overrides(folder, model, held_out, "evaluation.final=false", *overrides)
    return load(TrainConfig, "configs/demo.yaml", arguments)


def steps(run: Path) -> list[dict]:
    """The metrics of training steps."""
    return [line for line in read_lines(run / "metrics.jsonl") if "learner/loss" in line]


def assert_whole_timeline(run: Path, num_steps: int) -> None:
    """All that actors do is there, and nothing overlaps in a lane but what lies in something else."""
    events = timeline.read(run)
    kinds = {(event.actor_kind, event.kind) for event in events}
    assert kinds >= {
        ("driver", kind)
        for kind in ("step", "rollout", "learner", "batch", "sync", "group", "evaluation", "checkpoint")
    }
    assert kinds >= {("rollout", kind) for kind in ("session", "turn", "update", "pause", "load", "resume")}
    assert kinds >= {
        ("learner", kind) for kind in ("train", "images", "forward", "backward", "optimizer", "publish", "save")
    }
    assert ("scorer", "score") in kinds
    called = {("rollout", "tool"), ("tools", "call")}
    assert kinds & called in (set(), called)  # a judge so young may call none
    lanes = defaultdict(list)
    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        lane = lanes[event.actor, event.lane]
        while lane and lane[-1].end <= event.start:
            lane.pop()
        assert not lane or event.end <= lane[-1].end
        lane.append(event)
    times = step_times(events)
    assert times.num_steps == num_steps
    assert sum(row.seconds for row in times.waits if row.actor == "learner") == pytest.approx(
        times.phases[0].seconds, rel=1e-6
    )


def test_stage_1_with_two_ranks_and_two_engines_trains_on_what_the_engine_sampled(folder, cold_start):
    config = grpo_config(
        folder,
        cold_start,
        *(
            "run.name=stage1",
            "reward.name=stage1",
            "num_steps=2",
            "learner.num_ranks=2",
            "learner.zero_stage=2",
            "rollout.num_actors=2",
        ),
        *("algorithm.mini_batch_samples=2", "evaluation.initial=true", "evaluation.without_tools=true"),
    )
    asyncio.run(train_grpo(config))
    done = steps(config.run.folder)
    assert [line["step"] for line in done] == [1, 2]
    assert done[0]["rollout/num_trajectories"] == 16
    first_of_step = done[0]  # with two mini-batches, the second one is one update away from the sampling policy
    assert 0 < first_of_step["learner/logprob_gap"] < 0.1
    evaluated = [line for line in read_lines(config.run.folder / "metrics.jsonl") if "evaluation/accuracy" in line]
    assert [line["step"] for line in evaluated] == [0]
    assert evaluated[0]["evaluation/num_samples"] == 16
    assert_whole_timeline(config.run.folder, num_steps=2)
    Template.load(config.model, config.template, {})  # the cold start's export is a whole model folder


def test_stage_2_goes_on_where_it_was(folder, cold_start):
    def config(num_steps: int) -> TrainConfig:
        return grpo_config(folder, cold_start, "run.name=stage2", f"num_steps={num_steps}", "evaluation.final=true")

    asyncio.run(train_grpo(config(1)))
    asyncio.run(train_grpo(config(2)))
    asyncio.run(train_grpo(config(2)))  # finished: nothing is done again
    run = config(2).run.folder
    done = steps(run)
    assert [line["step"] for line in done] == [1, 2]
    # after loading, and after a weight update
    assert all(line["learner/logprob_gap"] < MAX_LOGPROB_GAP for line in done)
    assert all(line["learner/ratio"] == pytest.approx(1, abs=1e-5) for line in done)
    assert [int(path.name) for path in sorted((run / "checkpoints").iterdir())] == [1, 2]
    first, second = (trajectory_file.read(run / "trajectories" / f"stage2-{step:06d}.parquet") for step in (1, 2))
    assert {one.trajectory.sample_id for one in first.scored}.isdisjoint(
        one.trajectory.sample_id for one in second.scored
    )
    assert {turn.policy_version for one in first.scored for turn in one.trajectory.turns} == {0}
    assert {turn.policy_version for one in second.scored for turn in one.trajectory.turns} == {1}
    assert (run / "export" / "model.safetensors").is_file()
    assert_whole_timeline(run, num_steps=2)  # of the first run and of the one that went on
    assert list(published_folder(config(2).run).iterdir()) == []  # nothing is left in shared memory
