"""The service as a reward in other trainers: called with the arguments that their code passes."""

import asyncio
import base64
import importlib.util
import inspect
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from arm_rl.core.images import Image as JudgeImage
from arm_rl.judge import reward_client
from arm_rl.judge.reward_client import AnswerRefused, RewardClient, compute_score, compute_scores, trl_reward
from tests.support.http_server import LoopbackServer, body_of, send
from tests.support.pictures import difference, in_mode
from tests.support.scripted import noise


class Service:
    """Answers as the reward service does: an answer is right with 0.9 where it is in the question; `?` has no judgment."""

    url = ""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.refusals = [429]  # before the first answer
        self.together = threading.Barrier(2)

    def answer(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refusals:
            return self.refusals.pop(), {"detail": "come again"}
        self.asked.append(body)
        self.headers.append(headers)
        (said,) = body["answers"]
        if said == "together":
            self.together.wait(20)
        if said == "too long":
            return 422, {"detail": "a text has too many characters"}
        choice = None if said == "?" else said in body["question"]
        return 200, {"choice": choice, "confidence": None if choice is None else 0.9}


@pytest.fixture
def service():
    """A service behind a real HTTP server."""
    made = Service()

    def respond(handler):
        assert handler.path == "/v1/judge"
        status, answer = made.answer(dict(handler.headers), body_of(handler))
        send(handler, json.dumps(answer).encode(), status=status)

    with LoopbackServer(respond) as server:
        made.url = server.url
        yield made


def test_trl_with_texts(service):
    """As `GRPOTrainer._calculate_rewards` calls it: every argument by name, all other columns and TRL's own hooks beside them."""
    judge = trl_reward(service.url, token="secret")
    rewards = judge(
        prompts=["4 or 7?", "4 or 7?", "4 or 7?"],
        completions=["4", "5", "?"],
        completion_ids=[[1], [2], [3]],
        answer=["4", "4", "4"],
        trainer_state=object(),
        log_extra=print,
        log_metric=print,
    )
    assert rewards == [pytest.approx(0.9), pytest.approx(0.1), None]
    assert judge.__name__ == "judge"  # its name in TRL's metrics
    assert not inspect.iscoroutinefunction(judge)
    assert {headers["Authorization"] for headers in service.headers} == {"Bearer secret"}


def test_trl_with_messages_and_images(service):
    content = [{"type": "image"}, {"type": "text", "text": "4 or 7?"}]
    prompt = [{"role": "system", "content": "Answer."}, {"role": "user", "content": content}]
    said = [{"role": "assistant", "content": "7"}]
    judge = trl_reward(service.url)
    assert judge(prompts=[prompt], completions=[said], image=[noise()]) == [pytest.approx(0.9)]
    assert judge(prompts=[prompt], completions=[said], images=[[noise(), noise()]]) == [pytest.approx(0.9)]
    first, second = service.asked
    assert (first["question"], first["answers"]) == ("4 or 7?", ["7"])
    assert Image.open(io.BytesIO(base64.b64decode(first["images"][0]))).size == noise().size
    assert len(second["images"]) == 2


def test_verl_one_answer_at_a_time(service):
    """As verl's `naive` reward manager calls a custom function that it loaded by its path, with `reward_kwargs`."""
    spec = importlib.util.spec_from_file_location("custom_module", reward_client.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    row = {"data_source": "digits", "solution_str": "4", "ground_truth": "4"}
    info = {"question": "4 or 7?", "images": [{"bytes": png(), "path": None}]}
    assert module.compute_score(**row, extra_info=info, url=service.url) == pytest.approx(0.9)
    assert base64.b64decode(service.asked[0]["images"][0]) == png()


async def test_verl_reward_loop(service):
    """Its newer reward loop passes two more arguments, from a thread."""
    row = {"data_source": "digits", "solution_str": "5", "ground_truth": "4", "extra_info": {"question": "4 or 7?"}}
    more = {"reward_router_address": None, "reward_model_tokenizer": None}
    score = await asyncio.get_running_loop().run_in_executor(
        None, lambda: compute_score(**row, **more, url=service.url)
    )
    assert score == pytest.approx(0.1)


def test_verl_a_batch_at_once(service):
    service.refusals.clear()
    infos = [{"question": "together"}, {"question": "together"}, {"question": "4 or 7?"}]
    scores = compute_scores(
        data_sources=["digits"] * 3,
        solution_strs=["together", "together", "?"],  # the service answers the first two only when both are there
        ground_truths=[""] * 3,
        extra_infos=infos,
        url=service.url,
    )
    assert scores == pytest.approx([0.9, 0.9, 0.5])


def test_verl_shows_images_where_the_question_has_them(service):
    """Rows as of geo3k: the question holds `<image>`."""
    service.refusals.clear()
    info = {"question": "<image>Is it 4?", "images": [{"bytes": png(), "path": None}]}
    assert compute_score("geo3k", "4", "4", info, url=service.url) == pytest.approx(0.9)
    assert (service.asked[0]["question"], len(service.asked[0]["images"])) == ("<image>Is it 4?", 1)
    with pytest.raises(ValueError, match=r"the question has 1 <image> for 0 images: .* extra_info.images"):
        compute_score("geo3k", "4", "4", {"question": "<image>Is it 4?"}, url=service.url)


def test_half_characters_are_sent_as_question_marks(service):
    client = RewardClient(service.url)
    client.reward("4\ud800?", "\udfff", [])
    assert (service.asked[0]["question"], service.asked[0]["answers"]) == ("4??", ["?"])
    client.close()


def test_verl_without_a_question_says_what_is_missing(service):
    with pytest.raises(ValueError, match="extra_info: the judge needs the row's question"):
        compute_score("digits", "4", "4", None, url=service.url)


def test_images_of_every_kind(service, tmp_path):
    (tmp_path / "scene.png").write_bytes(png())
    client = RewardClient(service.url)
    path = tmp_path / "scene.png"
    client.reward("4?", "4", [path, str(path), png(), {"bytes": None, "path": str(path)}])
    assert {base64.b64decode(image) for image in service.asked[0]["images"]} == {png()}
    client.close()


def test_a_refusal_is_told(service):
    client = RewardClient(service.url)
    with pytest.raises(AnswerRefused, match="422: .*too many characters"):
        client.reward("Which?", "too long")
    client.close()


def test_an_answer_that_is_refused_leaves_the_others_their_rewards(service, caplog):
    rewards = trl_reward(service.url)(prompts=["4 or 7?"] * 3, completions=["4", "too long", "5"])
    assert rewards == [pytest.approx(0.9), None, pytest.approx(0.1)]
    assert "too many characters" in caplog.text
    info = [{"question": "4 or 7?"}] * 2
    scores = compute_scores(["digits"] * 2, ["too long", "4"], ["4"] * 2, info, url=service.url)
    assert scores == pytest.approx([0.5, 0.9])


def test_a_refused_client_is_an_error(service):
    service.refusals = [401]
    with pytest.raises(RuntimeError, match="401"):
        trl_reward(service.url)(prompts=["4 or 7?"], completions=["4"])


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "F", "I", "I;16", "La", "RGBa", "PA"]
)
def test_images_of_every_mode_reach_the_service_as_they_look(service, mode):
    picture = in_mode(mode)
    trl_reward(service.url)(prompts=["4 or 7?"], completions=["4"], image=[picture])
    (sent,) = service.asked[0]["images"]
    shown = JudgeImage.from_bytes(base64.b64decode(sent)).pil()
    assert difference(shown, JudgeImage.from_pil(picture).pil()) < 2


def test_a_busy_service_is_not_asked_for_ever(service):
    service.refusals = [429] * 100
    client = RewardClient(service.url, timeout_seconds=1.0)
    with pytest.raises(RuntimeError, match="429"):
        client.reward("Which?", "4")
    client.close()


def png() -> bytes:
    buffer = io.BytesIO()
    noise(32, 32).save(buffer, format="PNG")
    return buffer.getvalue()


def test_the_file_stands_alone():
    """Other trainers' environments hold nothing of the project."""
    source = Path(reward_client.__file__).read_text()
    assert "arm_rl" not in "".join(line for line in source.splitlines() if line.startswith(("import", "from")))
