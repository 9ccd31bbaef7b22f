"""Asking: each item once, also after a crash; broken sessions are asked again; what is recorded can be read."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from arm_rl.benchmarks.evaluation import sample_check
from arm_rl.benchmarks.results import FILE, ResultsError, read_results
from arm_rl.benchmarks.runner import NO_TOOLS, TOOLS, EvaluationStopped, ask_all, read_finished, read_questions
from arm_rl.core import trajectory_file
from arm_rl.core.compute_config import RolloutConfig
from arm_rl.core.config import SessionConfig
from arm_rl.core.types import Message, Trajectory, Turn
from arm_rl.judge.backends import JudgedSession
from tests.benchmarks import published
from tests.support.scripted import noise


class Backend:
    """Answers by a function of the sample; keeps what it was asked."""

    def __init__(self, answer, folder, concurrency=4):
        self.concurrency, self._answer, self._folder = concurrency, answer, folder
        self.asked, self.running, self.most = [], 0, 0

    async def ask(self, sample, group_id):
        self.asked.append((sample.id, bool(sample.tools)))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        said = self._answer(sample)
        turns = (Turn(token_ids=(), logprobs=(), text=said or "", finish_reason="stop"),)
        trajectory = Trajectory(
            sample_id=sample.id,
            track=sample.track,
            group_id=group_id,
            index=0,
            prompt_ids=(),
            turns=turns,
            end="aborted" if said is None else "answered",
            error="no luck" if said is None else None,
        )
        return JudgedSession(sample=sample, trajectory=trajectory, recording=None)

    async def record(self, stage, step, asked):
        samples = {one.sample.id: one.sample for one, _ in asked}
        path = self._folder / "trajectories" / trajectory_file.file_name(stage, step)
        trajectory_file.write(path, [scored for _, scored in asked], samples, {}, stage=stage, step=step)


def letter_a(sample):
    return "<think>?</think><answer>A</answer>"


@pytest.fixture
def questions(tmp_path):
    def questions(ways=(TOOLS,), labels="ABABAB", **changes):
        path = published.vstar(tmp_path / "data", labels)
        return read_questions([("vstar", path)], tmp_path / "run", tools=["image_zoom_in_tool"], ways=ways, **changes)

    return questions


def ask(backend, questions, folder, max_broken=0.5):
    return asyncio.run(ask_all(backend, questions, folder, max_broken=max_broken))


def test_all_are_asked_once_both_ways_and_recorded(tmp_path, questions):
    both = questions((TOOLS, NO_TOOLS))
    backend = Backend(letter_a, tmp_path / "run", concurrency=3)
    judged = ask(backend, both, tmp_path / "run")
    assert list(judged) == [question.key for question in both]
    assert [one.correct for one in judged.values()] == [True, False] * 6
    assert sorted(backend.asked) == sorted(
        (question.item.sample.id, tools) for question in both[:6] for tools in (True, False)
    )
    assert backend.most == 3
    log = trajectory_file.read(tmp_path / "run/trajectories/vstar-no-tools-evaluation-000000.parquet")
    assert sorted(one.correct for one in log.scored) == [False] * 3 + [True] * 3
    again = Backend(letter_a, tmp_path / "run")
    assert ask(again, both, tmp_path / "run") == judged
    assert again.asked == []


def test_a_run_goes_on_after_a_crash_in_the_middle_of_a_line(tmp_path, questions):
    folder = tmp_path / "run"
    ask(Backend(letter_a, folder), questions(), folder)
    file = folder / FILE
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:40])
    backend = Backend(letter_a, folder)
    assert len(ask(backend, questions(), folder)) == 6
    assert len(backend.asked) == 3
    assert [json.loads(line)["judged"]["label"] for line in file.read_text().splitlines()] == list("ABABAB")
    steps = sorted(path.stem for path in (folder / "trajectories").glob("*.parquet"))
    assert steps == ["vstar-tools-evaluation-000000", "vstar-tools-evaluation-000001"]


def test_broken_sessions_have_no_verdict_and_are_asked_again(tmp_path, questions):
    folder = tmp_path / "run"
    judged = ask(
        Backend(lambda sample: None if sample.id.endswith("/2") else letter_a(sample), folder), questions(), folder
    )
    assert len(judged) == 5
    backend = Backend(letter_a, folder)
    assert len(ask(backend, questions(), folder)) == 6
    assert [id for id, _ in backend.asked] == ["vstar/direct_attributes/2"]


def test_items_that_cannot_be_shown_are_wrong_and_are_not_asked_again(tmp_path, questions, template):
    """A strip of 1000 x 4 pixels, a picture that is cut short, and a text that is longer than a prompt may be."""
    folder, asked = tmp_path / "run", questions()
    strip, cut = (Path(question.sample.images[0].path) for question in asked[1:3])
    noise(1000, 4).save(strip, format="PNG")
    cut.write_bytes(cut.read_bytes()[:-20])
    long = asked[3].sample
    long = replace(long, messages=(*long.messages, Message(role="user", parts=("word " * 5000,))))
    asked[3] = replace(asked[3], item=replace(asked[3].item, sample=long))
    config = SimpleNamespace(session=SessionConfig(max_prompt_tokens=4000), rollout=RolloutConfig())
    check = sample_check(config, template, None)
    backend = Backend(letter_a, folder)
    judged = asyncio.run(ask_all(backend, asked, folder, max_broken=0.0, check=check))
    assert [one.end for one in judged.values()] == ["answered", *["refused"] * 3, *["answered"] * 2]
    assert [one.correct for one in judged.values()][1:4] == [False] * 3
    assert len(backend.asked) == 3
    again = Backend(letter_a, folder)
    assert asyncio.run(ask_all(again, asked, folder, max_broken=0.0, check=check)) == judged
    assert again.asked == []


def test_too_many_broken_sessions_end_it_and_the_verdicts_stay(tmp_path, questions):
    folder = tmp_path / "run"
    backend = Backend(lambda sample: letter_a(sample) if sample.id.endswith("/0") else None, folder, concurrency=1)
    with pytest.raises(EvaluationStopped, match=r"2 sessions broke.*\nno luck"):
        ask(backend, questions(), folder, max_broken=0.2)
    assert len(backend.asked) == 3
    assert len(read_results(folder)) == 1
    assert list((folder / "trajectories").glob("*.parquet")), "the broken ones can be looked at"


def test_results_of_another_file_are_refused(tmp_path, questions):
    folder = tmp_path / "run"
    ask(Backend(letter_a, folder), questions(), folder)
    with pytest.raises(ResultsError, match=r"vstar/direct_attributes/0 \(tools\) was asked in other words"):
        read_finished(questions(labels="BBABAB"), folder)
    with (folder / FILE).open("a") as file:
        file.write('{"benchmark": "vstar"}\n')
    with pytest.raises(ResultsError, match="line 7: not a verdict"):
        read_results(folder)


def test_one_order_can_be_had_from_a_run_with_both(tmp_path):
    path = published.vl_rewardbench(tmp_path, [f"RLHF-V-{n}" for n in range(4)])

    def pairs(both):
        return read_questions([("vl_rewardbench", path)], tmp_path / "run", tools=[], ways=[TOOLS], both_orders=both)

    backend = Backend(lambda sample: "<answer>1</answer>", tmp_path / "run")
    assert len(ask(backend, pairs(True), tmp_path / "run")) == 8
    assert {one.row_items for one in read_finished(pairs(False), tmp_path / "run").values()} == {1}
    assert {one.row_items for one in read_finished(pairs(True), tmp_path / "run").values()} == {2}


def test_a_limit_takes_whole_questions_and_a_smaller_one_takes_some_of_a_larger_ones(tmp_path):
    path = published.hrbench(tmp_path, published.hrbench_rows(6))

    def rows(limit):
        found = read_questions([("hrbench_4k", path)], tmp_path, tools=[], ways=[TOOLS], limit=limit)
        return [question.item.row for question in found]

    assert (len(rows(None)), len(rows(8)), len(rows(5))) == (24, 8, 8)
    assert len(rows(1)) == 4
    assert set(rows(1)) < set(rows(8)) < set(rows(17))
    assert rows(8) == sorted(rows(8), key=int)
