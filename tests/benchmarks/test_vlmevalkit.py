"""The adapter against VLMEvalKit's interface: its base class as a stub, and the way it asks models behind an API."""

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from arm_rl.benchmarks.vlmevalkit import FAILED, AgentModel, MessageError, server_model
from arm_rl.core import trajectory_file
from arm_rl.core.config_file import load
from arm_rl.core.stage_config import TrainConfig
from arm_rl.judge.backends import Server, server_backend, server_template
from tests.benchmarks import published
from tests.benchmarks.test_evaluate_job import first_option
from tests.support.chat_server import FakeServer, text_of


class KitBase:
    """What the kit's base class does around a model: messages of any form become lists of dicts, which `generate_inner` answers."""

    allowed_types = ("text", "image")
    generate_inner: Any  # the model's

    def generate(self, message, dataset=None):
        message = [{"type": "text", "value": message}] if isinstance(message, str) else message
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)


@pytest.fixture
def server():
    with FakeServer(first_option) as running:
        yield running


@pytest.fixture
def model(server, judge_folder, tmp_path):
    with server_model(server.url, str(judge_folder), served_model="judge", folder=str(tmp_path / "kit")) as model:
        yield model


@pytest.fixture
def message(tmp_path):
    (tmp_path / "x.png").write_bytes(published.png())
    return [
        {"type": "image", "value": str(tmp_path / "x.png")},
        {"type": "text", "value": "Which?\nOptions:\nA. a\nB. b"},
    ]


def test_text_out_and_the_session_kept(model, server, message, tmp_path):
    assert model.generate(message=message, dataset="MMBench") == "A"
    assert [part["type"] for part in server.bodies[0]["messages"][1]["content"]] == ["image_url", "text"]
    assert server.bodies[0]["messages"][0]["content"][0]["text"].startswith("You answer questions")
    model.close()
    log = trajectory_file.read(tmp_path / "kit/trajectories/MMBench-000000.parquet")
    (one,) = log.scored
    assert [event.status for event in one.trajectory.tool_events] == ["ok"]
    assert len(log.images) == 2, "the image, and what the zoom showed"
    assert log.samples["MMBench/1"].messages[1].text == message[1]["value"]
    model.close()  # twice does no harm


def test_the_kits_base_class_calls_the_inner_method(server, judge_folder, message, tmp_path):
    class Judge(AgentModel, KitBase):
        generate = KitBase.generate

    config = load(TrainConfig, "configs/evaluate.yaml", [f"model.path={judge_folder}", f"run.root={tmp_path}"])
    template = server_template(config)
    with Judge(
        server_backend(config, template, Server(url=server.url, model="judge")), tools=["image_zoom_in_tool"]
    ) as model:
        assert model.generate(message, dataset="MMBench") == "A"
        assert model.generate("hello") == "Overall Judgment: Answer 1 is better"
        assert model.is_api
        assert not model.use_custom_prompt("MMBench")


def test_many_threads_ask_at_a_time(model, message, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: model.generate(message=message, dataset="VStar"), range(70)))
    assert answers == ["A"] * 70
    model.close()
    logs = [trajectory_file.read(path) for path in sorted((tmp_path / "kit/trajectories").glob("VStar-*.parquet"))]
    assert [len(log.scored) for log in logs] == [32, 32, 6]
    assert len({one.trajectory.sample_id for log in logs for one in log.scored}) == 70


def test_images_between_texts_and_a_system_message(model, server, message):
    model.generate([{"role": "system", "type": "text", "value": "Be brief."}, *message, message[0], "and this one"])
    system, user = server.bodies[0]["messages"]
    assert system["content"][0]["text"].endswith("\n\nBe brief.")
    assert [part["type"] for part in user["content"]] == ["image_url", "text", "image_url", "text"]
    assert "and this one" in text_of(server.bodies[0])


def test_a_failure_reads_as_the_kit_knows_it(model, server, message):
    server.answer = lambda body: 400
    answer = model.generate(message=message, dataset="MMBench")
    assert answer.startswith(FAILED)
    assert "400" in answer


def test_what_is_no_message_is_refused(model):
    with pytest.raises(MessageError, match="has the type text or image"):
        model.generate([{"type": "video", "value": "x.mp4"}])


def test_a_second_run_continues_the_numbers(model, message, server, judge_folder, tmp_path):
    model.generate(message, dataset="MMBench")
    model.generate(message, dataset="VStar")
    model.close()
    with server_model(server.url, str(judge_folder), served_model="judge", folder=str(tmp_path / "kit")) as again:
        again.generate(message, dataset="MMBench")
    files = sorted((tmp_path / "kit/trajectories").glob("MMBench-*.parquet"))
    assert [file.name for file in files] == ["MMBench-000000.parquet", "MMBench-000001.parquet"]
    ids = [one.trajectory.sample_id for file in files for one in trajectory_file.read(file).scored]
    assert ids == ["MMBench/1", "MMBench/3"]


def test_a_list_of_texts_may_name_images(model, server, message, tmp_path):
    """The kit's own first example: `generate([path, question])`."""
    path, question = message[0]["value"], message[1]["value"]
    url = "data:image/png;base64," + base64.b64encode(published.png()).decode()
    for image in (path, f"file://{path}", url):
        assert model.generate([image, question], dataset="MMBench") == "A"
        content = server.bodies[-2]["messages"][1]["content"]
        assert [part["type"] for part in content] == ["image_url", "text"]
    model.generate([question, "gone.png", "x" * 5000 + ".png"])
    assert "gone.png" in text_of(server.bodies[-1])
    model.generate(path)
    assert path in text_of(server.bodies[-1]), "a text alone is a text"


def test_an_image_as_a_data_url(model, server, message):
    url = "data:image/png;base64," + base64.b64encode(published.png()).decode()
    assert model.generate([{"type": "image", "value": url}, message[1]], dataset="MMBench") == "A"
    answer = model.generate([{"type": "image", "value": "data:image/png;base64,AAAA"}, message[1]])
    assert answer.startswith(FAILED)


class KitApi:
    """What the kit's base class for APIs does around a model, which returns a code, an answer and a log."""

    allowed_types = ["text", "image", "video"]

    def __init__(self, retry=2, system_prompt=None, fail_msg=FAILED, **kwargs):
        self.retry, self.system_prompt, self.fail_msg, self.default_kwargs = retry, system_prompt, fail_msg, kwargs

    def generate_inner(self, inputs, **kwargs):
        raise NotImplementedError

    def generate(self, message, **kwargs):
        message = [{"type": "text", "value": message}] if isinstance(message, str) else message
        kept = [part for part in message if part.pop("role", "user") != "system"]
        for part in message:
            if part not in kept:
                self.system_prompt = part["value"]
        answer = None
        for _ in range(self.retry):
            code, answer, _ = self.generate_inner(kept, **{**self.default_kwargs, **kwargs})
            if code == 0 and self.fail_msg not in answer and answer:
                return answer
        return answer or self.fail_msg


KitApi.__name__ = "BaseAPI"


def test_the_kits_base_class_for_apis(server, judge_folder, message, tmp_path):
    class Judge(AgentModel, KitApi):  # type: ignore[misc]
        generate = KitApi.generate  # type: ignore[assignment]

    config = load(TrainConfig, "configs/evaluate.yaml", [f"model.path={judge_folder}", f"run.root={tmp_path}"])
    backend = server_backend(config, server_template(config), Server(url=server.url, model="judge"))
    with Judge(backend, tools=["image_zoom_in_tool"]) as model:
        told = [{"role": "system", "type": "text", "value": "Be brief."}, *message]
        assert model.generate(told, dataset="MMBench") == "A"
        assert server.bodies[0]["messages"][0]["content"][0]["text"].endswith("\n\nBe brief.")
        server.answer = lambda body: 400
        asked = len(server.bodies)
        assert model.generate(message, dataset="MMBench").startswith(FAILED)
        assert len(server.bodies) == asked + 2, "a failure is the kit's to ask again"

    class Plain(AgentModel, KitApi):  # type: ignore[misc]
        """With our `generate`."""

    backend = server_backend(config, server_template(config), Server(url=server.url, model="judge"))
    server.answer = first_option
    with Plain(backend, tools=["image_zoom_in_tool"]) as model:
        assert model.generate(message, dataset="MMBench") == "A"
