"""The judge as an object: what a verdict is made of, and sessions behind it."""

import math
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from arm_rl.core.config import SessionConfig
from arm_rl.core.session import Completion, Session
from arm_rl.core.types import Trajectory, Turn
from arm_rl.judge.judge import Comparison, Judge, JudgeError, SessionBroke
from arm_rl.judge.verdict import Opinion, Verdict, position_bias
from tests.support.scripted import call, noise
from tools import load_tools
from tools.execution.local import LocalTools


def answer(label: str) -> str:
    verdict = label.title() if label in ("true", "false") else f"Answer {label} is better."
    return f"<think>so it is</think><answer>Overall Judgment: {verdict}</answer>"


class Preferring:
    """A policy that zooms once and then chooses the answer whose text is smallest; it checks whether an answer is `7`."""

    def __init__(self, template, *, always: str | None = None) -> None:
        self.template, self.always, self.requests = template, always, []

    async def __call__(self, request) -> Completion:
        self.requests.append(request)
        if len(request.messages) == 2:
            text = call()
        else:
            said = request.messages[1].text.split("\n\n")
            if said[1].startswith("Answer: "):
                label = str(said[1] == "Answer: 7").lower()
            else:
                answers = [line.split(": ", 1)[1] for line in said[1:]]
                label = str(1 + answers.index(min(answers)))
            text = answer(self.always or label)
        ids = self.template.turn_ids(text, ended="answer" in text)
        return Completion(token_ids=ids, logprobs=(math.log(0.9),) * len(ids), text=text, finish_reason="stop")


@pytest.fixture
def judging(template):
    """Makes open judges around a policy."""
    opened = []

    def make(policy=None, **settings) -> Judge:
        policy = policy or Preferring(template)

        @asynccontextmanager
        async def entered():
            yield policy

        judge = Judge(entered(), template, LocalTools(load_tools(["configs/tools/digits.yaml"])), **settings)
        opened.append(judge.__enter__())
        return judge

    yield make
    for judge in opened:
        judge.close()


def test_a_comparison_is_a_session_with_tools(judging):
    verdict = judging().compare("Which?", [noise()], ["7", "4"])
    assert verdict.choice == 2
    assert verdict.confidence == pytest.approx(0.9)
    assert verdict.reasoning == "look closer\nso it is"
    (trajectory,) = verdict.trajectories
    assert [event.status for event in trajectory.tool_events] == ["ok"]
    assert verdict.opinions[0].session.messages[1].image_names == ("observation_1",)


def test_half_characters_are_repaired(judging):
    verdict = judging().compare("Which\ud800?", [noise()], ["7\udfff", "4"])
    assert verdict.choice == 2
    assert judging().verify("Which\ud800?", [noise()], "7").choice is True


def test_images_stand_where_the_question_has_them(judging, template):
    policy = Preferring(template)
    judge = judging(policy)
    for question, parts in (
        ("A <image> and <image>?", ["A ", "original_image", " and ", "original_image_2", "?"]),
        ("One <image>?", ["original_image", "original_image_2", "One <image>?"]),
        (r"<image><image>\<image>", ["original_image", "original_image_2", "<image>"]),
    ):
        judge.compare(question, [noise(), noise()], ["<image>", "4"])
        shown = [part if isinstance(part, str) else part.name for part in policy.requests[-1].messages[1].parts]
        assert shown[: len(parts) - 1] == parts[:-1]
        assert shown[len(parts) - 1].startswith(parts[-1])
        assert "Answer 1: <image>" in shown[-1]


def test_both_orders_cancel_a_bias_for_a_place(judging, template):
    fair = judging(both_orders=True).compare("Which?", [noise()], ["7", "4"])
    assert (fair.choice, fair.consistent, fair.orders) == (2, True, ((1, 2), (2, 1)))
    biased = judging(Preferring(template, always="1"), both_orders=True).compare("Which?", [noise()], ["7", "4"])
    assert (biased.choice, biased.confidence, biased.consistent, biased.choices) == (None, None, False, (1, 2))
    assert position_bias([fair, biased]) == {"first_share": 0.75, "inconsistent": 0.5}


def test_an_answer_is_checked(judging):
    judge = judging(votes=2)
    right, wrong = judge.verify("Which?", [noise()], "7"), judge.verify("Which?", [noise()], "4")
    assert (right.choice, wrong.choice) == (True, False)
    assert right.confidence == pytest.approx(0.9)
    assert len(right.opinions) == 2


@pytest.mark.parametrize("number", [2, 3, 5, 8])
def test_the_best_of_many_takes_one_comparison_less_than_there_are(judging, number):
    answers = [str(9 - place) for place in range(number)]
    ranking = judging().rank("Which?", [noise()], answers)
    assert ranking.best == number
    assert len(ranking.comparisons) == number - 1
    assert ranking.num_wins.total() == number - 1


def test_many_questions_come_back_in_order(judging):
    asked = [Comparison(question="Which?", answers=pair, images=[noise()]) for pair in (["1", "2"], ["2", "1"], ["7"])]
    assert [one.choice for one in judging().judge_all(asked, progress=False)] == [1, 2, True]


async def test_it_can_be_awaited_on_any_loop(judging):
    judge = judging()
    assert (await judge.acompare("Which?", [noise()], ["1", "2"])).choice == 1
    assert (await judge.averify("Which?", [noise()], "4")).choice is False
    assert (await judge.arank("Which?", [noise()], ["3", "1", "2"])).best == 2


def test_a_judgment_that_cannot_be_read_is_no_choice(judging, template):
    verdict = judging(Preferring(template, always="maybe")).compare("Which?", [noise()], ["7", "4"])
    assert (verdict.choice, verdict.confidence, verdict.consistent) == (None, None, False)


def test_what_cannot_be_judged_is_said(judging, tmp_path):
    judge = judging()
    with pytest.raises(JudgeError, match="2 to 99 are compared, not 1"):
        judge.compare("Which?", [], ["one"])
    with pytest.raises(JudgeError, match=r"nowhere.png: No such file"):
        judge.compare("Which?", [tmp_path / "nowhere.png"], ["1", "2"])
    judge.close()
    with pytest.raises(JudgeError, match="not open"):
        judge.compare("Which?", [], ["1", "2"])


@pytest.mark.parametrize("as_file", [True, False])
def test_an_image_that_no_model_is_shown_is_refused(judging, tmp_path, as_file):
    strip = noise(1000, 4)
    strip.save(tmp_path / "strip.png")
    with pytest.raises(JudgeError, match="1000 x 4 px: one side may be at most 200 times the other"):
        judging().compare("Which?", [tmp_path / "strip.png" if as_file else strip], ["1", "2"])
    with pytest.raises(JudgeError, match="not a readable image"):
        judging().verify("Which?", [b"no image"], "7")


def test_an_answer_that_is_too_long_is_refused_and_alone_has_no_verdict_among_many(judging, caplog):
    judge = judging(limits=SessionConfig(max_prompt_tokens=1500))
    long = "word " * 3000
    with pytest.raises(JudgeError, match="max_prompt_tokens is 1500") as raised:
        judge.verify("Which?", [noise()], long)
    assert not isinstance(raised.value, SessionBroke)
    asked = [Comparison(question="Which?", answers=[answer], images=[noise()]) for answer in ("7", long, "4")]
    verdicts = judge.judge_all(asked, progress=False)
    assert [verdict and verdict.choice for verdict in verdicts] == [True, None, False]
    assert "max_prompt_tokens" in caplog.text


def test_half_a_surrogate_pair_is_judged(judging):
    assert judging().compare("Which \ud800?", [noise()], ["7\udfff", "4"]).choice == 2


def test_a_policy_that_breaks_is_an_error_with_its_reason(judging):
    async def broken(request):
        raise RuntimeError("the server is on fire")

    with pytest.raises(JudgeError, match="on fire"):
        judging(broken).compare("Which?", [noise()], ["1", "2"])


def opinion(label: str | None, probability: float | None) -> Opinion:
    turn = Turn(token_ids=(), logprobs=(), text="", finish_reason="stop")
    trajectory = Trajectory(
        sample_id="s", track="t", group_id="g", index=0, prompt_ids=(), turns=(turn,), end="answered"
    )
    return Opinion(label=label, probability=probability, session=Session(trajectory=trajectory, messages=(), images={}))


@pytest.mark.parametrize(
    ("opinions", "orders", "choice", "confidence"),
    [
        ([("1", 0.8)], [(1, 2)], 1, 0.8),
        ([("1", 0.8), ("1", 0.6)], [(1, 2), (2, 1)], 1, 0.6),  # 0.8 + 0.4 against 0.2 + 0.6
        ([("2", None), ("2", None), ("1", None)], [(1, 2)] * 3, 2, 2 / 3),
        ([("3", 0.5)], [(1, 2, 3)], 3, 0.5),
        ([("9", 0.9)], [(1, 2)], None, None),  # there is no ninth answer
        ([("true", 0.9)], [(1, 2)], None, None),  # nobody asked that
        ([("1", 0.9)], [()], None, None),
        ([(None, None), ("false", 0.7)], [(), ()], False, 0.7),
    ],
)
def test_opinions_are_weighed(opinions, orders, choice, confidence):
    verdict = Verdict.of([opinion(*one) for one in opinions], orders)
    assert verdict.choice == choice
    assert verdict.confidence == (None if confidence is None else pytest.approx(confidence))


def test_the_judge_is_imported_from_its_package_and_the_clients_without_torch():
    """Other trainers import the clients: these must not bring models along."""
    program = (
        "import sys; import arm_rl.judge.reward_client; assert 'torch' not in sys.modules; "
        "from arm_rl.judge import Judge; assert Judge.__module__ == 'arm_rl.judge.judge'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
