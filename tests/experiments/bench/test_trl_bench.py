"""The benchmarks against TRL, without TRL: their task, the sessions that the judge is taught, the process in turn, its environment."""

import io
import random
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from arm_rl.core import session
from arm_rl.core.config import ModelConfig, TemplateConfig
from arm_rl.core.errors import UserError
from arm_rl.core.template import Template
from arm_rl.core.types import Sample
from arm_rl.data.samples import read_samples
from arm_rl.demo import dataset
from arm_rl.experiments.bench import sessions, trl, trl_environment
from arm_rl.experiments.bench.trl_process import TrlProcess
from arm_rl.experiments.bench.trl_task import TOOL, TrlTask, copy_judge, crop_box, enlarge_images, reward
from tools import load_tools
from tools.execution.local import LocalTools

TASK = TrlTask(
    model="judge",
    data="data.parquet",
    system_prompt="Judge the answers.",
    notice="Answer now.",
    num_samples=4,
    group_size=8,
    turn_tokens=32,
    response_tokens=96,
    num_threads=2,
    micro_batch=32,
)


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    path = dataset.write(tmp_path / "data.parquet", seed=0, split="train", num_samples=12)
    return [*read_samples([str(path)], [TOOL])]


def view_of(folder: Path) -> Template:
    return Template.load(ModelConfig(path=str(folder)), TemplateConfig(system_prompt="configs/prompts/digits.txt"), {})


def test_the_task_travels_as_a_file(tmp_path):
    assert TrlTask.read(TASK.write(tmp_path / "task.json")) == TASK
    assert TASK.num_trajectories == 32


def test_a_copied_judge_sees_larger_images(judge_folder, tmp_path):
    same = view_of(copy_judge(judge_folder, tmp_path / "same"))
    larger = view_of(copy_judge(judge_folder, tmp_path / "larger", view=(64 * 64, 512 * 512)))
    assert same.view.num_tokens(512, 512) == 16
    assert (larger.view.num_tokens(512, 512), larger.view.num_tokens(128, 128)) == (1024, 64)


def test_images_are_enlarged_in_place(samples, tmp_path):
    path = tmp_path / "data.parquet"
    before = pq.read_table(path).drop_columns("images")
    enlarge_images(path, 512)
    after = pq.read_table(path)
    sizes = {PILImage.open(io.BytesIO(one["bytes"])).size for row in after.column("images").to_pylist() for one in row}
    assert sizes == {(512, 512)}
    assert after.drop_columns("images").equals(before)


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([0, 0, 250, 250], (0, 0, 64, 64)),
        ([750, 500, 2000, 1000], (192, 128, 256, 256)),  # clamped
        ([500, 500, 501, 501], (128, 128, 156, 156)),  # grown
    ],
)
def test_boxes_become_pixels(box, pixels):
    assert crop_box(box, 256, 256) == pixels


@pytest.mark.parametrize("box", [[250, 0, 250, 250], [0, 300, 250, 250], [0, 0, 250]])
def test_what_is_no_box_is_refused(box):
    with pytest.raises(ValueError):
        crop_box(box, 256, 256)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<answer>Overall Judgment: Answer 2 is better.</answer>", 1.0),
        ("<answer>Overall Judgment: Answer 1 is better.</answer>", 0.3),
        ("Answer 2", 0.0),
        (None, 0.0),
        ([{"type": "text", "text": "a tool's, and no answer after it"}], 0.0),
    ],
)
def test_the_reward_is_that_of_our_side(content, expected):
    assert (
        reward([{"role": "assistant", "content": "first"}, {"role": "assistant", "content": content}], "2") == expected
    )


async def test_taught_sessions_zoom_once_and_then_answer(samples, template):
    limits, rng = sessions.limits(sessions.SMALL_IMAGES), random.Random(0)
    tools = LocalTools(load_tools(["configs/tools/digits.yaml"]))
    finished = [
        await session.run(one, sessions._says(sessions._turns(one, rng), template), tools, limits, template=template)
        for one in samples
    ]
    trajectories = [one.trajectory for one in finished]
    assert {one.end for one in trajectories} == {"answered"}
    assert {len(one.turns) for one in trajectories} == {2}
    assert {event.status for one in trajectories for event in one.tool_events} == {"ok"}
    assert (
        len({(len(one.prompt_ids), one.num_sampled_tokens, len(one.turns[0].observation_ids)) for one in trajectories})
        == 1
    )
    assert max(len(turn.token_ids) for one in trajectories for turn in one.turns) <= sessions.TURN_TOKENS
    assert max(len(one.turns[0].observation_ids) for one in trajectories) <= sessions.SMALL_IMAGES.observation_tokens


def test_half_of_the_questions_are_always_answered_alike(samples):
    def answers(sample: Sample) -> int:
        rng = random.Random(1)
        return len({sessions._turns(sample, rng)[1] for _ in range(16)})

    sure = [any(color in sample.messages[-1].text for color in sessions.SURE_OF) for sample in samples]
    assert set(sure) == {True, False}
    assert [answers(sample) for sample in samples] == [1 if one else 2 for one in sure]


@pytest.mark.parametrize("shape", [sessions.SMALL_IMAGES, sessions.LARGE_IMAGES], ids=lambda shape: shape.name)
def test_all_modes_have_a_configuration(shape, tmp_path):
    configs = [trl._config(trl.TrlSettings(shape=shape), TASK, mode, tmp_path) for mode in trl.MODES]
    assert [one.algorithm.max_staleness for one in configs] == [1, 0, 1, 0]
    assert [one.algorithm.drop_flat_groups for one in configs] == [False, False, True, True]
    assert {one.learner.learning_rate for one in configs} == {0.0}
    assert {one.session.max_turns for one in configs} == {2}


STAND_IN = """
import json, os, sys
say = lambda values: print(json.dumps(values), flush=True)
say({"threads": os.environ["OMP_NUM_THREADS"], "ray": [name for name in os.environ if name.startswith("RAY_")]})
for line in sys.stdin:
    if int(line) > 9:
        sys.exit("too many")
    say({"steps": int(line)})
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A process that speaks as `trl_side` does."""
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    (tmp_path / "side.py").write_text(STAND_IN)
    with TrlProcess([sys.executable, str(tmp_path / "side.py")], tmp_path / "log", 2) as process:
        yield process


def test_the_process_does_steps_in_its_turn(stand_in):
    stand_in.ready()
    assert stand_in.started == {"threads": "2", "ray": []}
    assert [stand_in.steps(3), stand_in.steps(4)] == [{"steps": 3}, {"steps": 4}]


def test_a_process_that_ends_is_an_error_with_its_last_words(stand_in):
    stand_in.ready()
    with pytest.raises(UserError, match="too many"):
        stand_in.steps(10)


def test_the_environment_is_made_once(tmp_path, monkeypatch):
    commands = []

    def run(*command: str) -> str:
        commands.append(command)
        if "venv" in command:
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / "python").touch()
        return str(tmp_path)

    monkeypatch.setattr(trl_environment, "_run", run)
    assert trl_environment.make(tmp_path) == tmp_path / "bin" / "python"
    assert [word for command in commands for word in command if word.startswith("trl==")] == ["trl==1.16.*"]
    assert "addsitedir" in (tmp_path / "project.pth").read_text()
    commands.clear()
    trl_environment.make(tmp_path)
    assert commands == []
    monkeypatch.setattr(trl_environment, "REQUIREMENTS", ("trl==9.9.*",))
    trl_environment.make(tmp_path)
    assert any("trl==9.9.*" in command for command in commands)


def test_an_environment_that_cannot_be_made_says_why():
    with pytest.raises(trl_environment.EnvironmentFailed, match="no such thing"):
        trl_environment._run(sys.executable, "-c", "raise SystemExit('no such thing')")
