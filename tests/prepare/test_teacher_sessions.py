"""Demonstrations by a model behind a server: screened, the best of several, and read back as the sessions they were."""

import json
import re

import pytest

from arm_rl.core import session
from arm_rl.core.config import SessionConfig
from arm_rl.core.images import Image
from arm_rl.data.demonstrations import read_demonstrations
from arm_rl.data.preferences import Preference, write_preferences
from arm_rl.prepare.teacher_sessions import _rebuild_messages
from jobs import prepare_data
from tests.data.test_demonstrations import SESSIONS
from tests.support.chat_server import FakeServer, text_of
from tests.support.scripted import ANSWER, WRONG, ZOOM, Scripted, call, make_sample, noise
from tools import load_tools
from tools.execution.local import LocalTools

NOTICE = "Answer now."
ROOM = [
    "session.max_prompt_tokens=1500",
    "session.max_response_tokens=500",
    "rollout.max_model_len=2000",
    "run.name=teacher",
]


def number_of(body) -> int:
    return int(re.search(r"item (\d+)", text_of(body))[1])


@pytest.fixture
def server():
    with FakeServer(None) as running:
        yield running


@pytest.fixture
def run(server, judge_folder, tmp_path, capsys):
    rows = [
        Preference(
            id=f"i{number}",
            track="digits",
            ability="",
            split="train",
            index=number,
            question="?",
            request=f"<image>item {number}",
            label="1",
            images=(Image.from_pil(noise(64, 64, seed=number)).data,),
        )
        for number in range(8)
    ]
    data = write_preferences(tmp_path / "train.parquet", rows)

    def run(*arguments):
        config = [
            "configs/demo.yaml",
            f"run.root={tmp_path}",
            f"model.path={judge_folder}",
            f"data.train=[{data}]",
            "data.held_out=[]",
        ]
        options = ["--server", server.url, "--retries", "0", "--concurrency", "3"]
        status = prepare_data.main(["trajectories", *config, *ROOM, *arguments, *options])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


class Teacher:
    """Item 0 of every four: one call. 1: none. 2: one, and wrong. 3: two calls in one of its sessions, one in the others."""

    def __init__(self) -> None:
        self._first_seeds: dict[int, int] = {}  # of each item's first session

    def __call__(self, body) -> str:
        number, calls = number_of(body), sum(message["role"] == "tool" for message in body["messages"])
        seed = body["seed"] - calls  # of the session's first turn
        wanted = (1, 0, 1, 2 if self._first_seeds.setdefault(number, seed) == seed else 1)[number % 4]
        if calls < wanted and body["tool_choice"] == "auto":
            return call()
        return WRONG if number % 4 == 2 else ANSWER


def test_the_best_of_those_that_pass_are_written_and_it_goes_on(run, server, tmp_path, template):
    teacher = Teacher()
    server.answer = lambda body: 400 if number_of(body) == 4 else teacher(body)
    status, out, err = run("--best-of", "2", "run.max_broken_sessions=0.2")
    assert (status, err) == (0, "")
    folder = tmp_path / "teacher-trajectories"
    assert f"done: 3 demonstrations are in {folder / 'demonstrations.parquet'}" in out
    found = json.loads((folder / "report.json").read_text())
    assert found["refused_sessions"] == {"no call succeeded": 4, "the judgment is wrong": 4, "the session broke": 2}
    assert (found["samples"], found["sessions"], found["kept"], found["calls_a_demonstration"]) == (8, 14, 3, 1.0)

    server.answer, before = teacher, len(server.bodies)
    status, out, _ = run("--best-of", "2", "run.max_broken_sessions=0.2")
    assert status == 0
    assert {number_of(body) for body in server.bodies[before:]} == {4}, "only what broke is asked again"
    read = read_demonstrations([str(folder / "demonstrations.parquet")], template)
    assert len(read) == 4
    assert all(one.trajectory.turns[0].text == call() and one.trajectory.turns[1].text == ANSWER for one in read)
    assert len({key for one in read for key in one.images}) == 8, "each prompt's, and what each call showed"

    before = len(server.bodies)
    status, again, _ = run("--best-of", "2", "run.max_broken_sessions=0.2", "--out", str(tmp_path / "d.parquet"))
    assert (status, len(server.bodies)) == (0, before)
    assert (tmp_path / "d.parquet").read_bytes() == (folder / "demonstrations.parquet").read_bytes()
    assert "done: 4 demonstrations" in again


def test_sessions_of_another_teacher_are_not_mixed_in(run, server):
    server.answer = Teacher()
    assert run()[0] == 0
    before = len(server.bodies)
    status, _, err = run("--served-model", "another")
    assert status == 1
    assert "--served-model: 'another' now, " in err
    assert "choose another run.name, or remove that folder" in err
    status, _, err = run("run.seed=1")
    assert status == 1
    assert "run.seed: 1 now, 0 before; " in err
    assert len(server.bodies) == before


def test_a_teacher_that_is_never_right_and_one_that_breaks(run, server):
    server.answer = lambda body: WRONG
    status, _, err = run()
    assert status == 1
    assert "no session can be learned from:" in err
    assert "not learned from: the judgment is wrong: 8 sessions" in err
    server.answer = lambda body: 400
    status, _, err = run("run.name=other")
    assert status == 1
    assert "1 sessions broke, more than run.max_broken_sessions allows" in err


@pytest.mark.parametrize("name", [name for name in SESSIONS if name != "out of turns"])
async def test_a_trajectory_tells_what_its_session_said(name, template, tmp_path):
    limits = SessionConfig(max_turns=4, last_turn_notice=NOTICE)
    tools = LocalTools(load_tools(["configs/tools/digits.yaml"]))
    ran = await session.run(
        make_sample(tmp_path, tools=(ZOOM,)), Scripted(template, *SESSIONS[name]), tools, limits, template=template
    )
    assert _rebuild_messages(ran.trajectory, NOTICE) == ran.messages
