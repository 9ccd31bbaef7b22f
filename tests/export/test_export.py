"""A checkpoint becomes a folder that others load: transformers, our engine and vLLM's server go on with the same greedy tokens."""

import base64
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from actors.learner.image_inputs import ImagePreparer
from actors.learner.policy_model import PolicyModel
from actors.rollout.engine import Engine
from actors.rollout.engine_settings import engine_environment
from actors.rollout.model_server import SERVED_NAME, ModelServer
from arm_rl.core.compute_config import RolloutConfig
from arm_rl.core.config import ModelConfig, SessionConfig, TemplateConfig
from arm_rl.core.config_file import load, save
from arm_rl.core.images import Image
from arm_rl.core.stage_config import SftConfig, TrainConfig
from arm_rl.core.template import Template
from arm_rl.core.types import ImagePart, Message, Sample
from arm_rl.export.judge_config import FILE, JudgeSetup
from arm_rl.export.model_card import write_card
from arm_rl.judge import judge
from arm_rl.judge.judge import Judge
from arm_rl.run import checkpoint
from jobs import export
from tests.support.scripted import ANSWER, ZOOM, call, noise

CALL = f"<think>look closer</think>{call()}"
LENGTH = 384


@dataclass(frozen=True)
class Lesson:
    """A prompt, and the turn that the model is taught to say."""

    sample: Sample
    images: tuple[Image, ...]
    said: str
    ended: bool

    def ids(self, template: Template) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shown = {part.name: image for part, image in zip(self.parts, self.images, strict=True)}
        return template.prompt_ids(self.sample, shown), template.turn_ids(self.said, ended=self.ended)

    @property
    def parts(self) -> list[ImagePart]:
        return [part for part in self.sample.messages[0].parts if isinstance(part, ImagePart)]


def lesson(question: str, picture: PILImage.Image | None, said: str, *, ended: bool) -> Lesson:
    shown = () if picture is None else (ImagePart.original(1),)
    message = Message(role="user", parts=(*shown, question))
    sample = Sample(id="s", track="digits", messages=(message,), images=(), label="1", tools=(ZOOM,))
    return Lesson(sample, () if picture is None else (Image.from_pil(picture),), said, ended)


LESSONS = [
    lesson("Which digit is on the red tile?", noise(), CALL, ended=True),  # a server does not stop at the call
    lesson("Is it 4?", None, ANSWER, ended=True),
]


@pytest.fixture(scope="module")
def run(judge_folder, template, tmp_path_factory) -> Path:
    """A run whose only checkpoint holds a judge that has learned the lessons."""
    torch.manual_seed(0)
    overrides = [f"model.path={judge_folder}", f"run.root={tmp_path_factory.mktemp('runs')}"]
    config = load(TrainConfig, "configs/demo.yaml", overrides)
    policy = PolicyModel.load(config.model).make_trainable(config.learner)
    policy.hf.set_attn_implementation("sdpa")  # the lessons are whole sequences, not packed rows
    teach(policy.hf, template, judge_folder)
    folder = config.run.folder
    folder.mkdir()
    save(config, folder / "config.yaml")
    (folder / "metrics.jsonl").write_text(
        '{"step": 7, "stage": "stage2", "evaluation/accuracy": 0.875, "evaluation/tool_calls": 1.25}\n'
    )
    names = [name for name, _ in policy.named_parameters()]
    with checkpoint.write_checkpoint(folder / "checkpoints", 7, {"step": 7}, keep=1) as target:
        for rank in range(2):  # as two ranks write it
            mine = {f"{name}.weight_fp32": policy.get_parameter(name).detach().contiguous() for name in names[rank::2]}
            save_file(mine, target / f"learner-{rank}.safetensors")
        (target / "learner.json").write_text('{"step": 7}')
    return folder


def teach(model, template: Template, folder: Path) -> None:
    """Until each lesson's turn is what the model would say."""
    preparer = ImagePreparer(AutoProcessor.from_pretrained(folder).image_processor, template.view)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        right = True
        for one in LESSONS:
            prompt, turn = one.ids(template)
            tokens = torch.tensor([[*prompt, *turn]])
            inputs = {}
            if one.images:
                prepared = preparer.prepare(
                    [image.key for image in one.images], {image.key: image for image in one.images}
                )
                inputs = {"pixel_values": prepared.patches, "image_grid_thw": prepared.grids}
            logits = model(
                input_ids=tokens, mm_token_type_ids=(tokens == template.image_pad_id).int(), **inputs
            ).logits[0]
            predicted = logits[len(prompt) - 1 : -1]
            right &= predicted.argmax(-1).tolist() == list(turn)
            loss = torch.nn.functional.cross_entropy(predicted, torch.tensor(turn))
            (loss / len(LESSONS)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if right and loss.item() < 0.05:
            return
    raise AssertionError("the lessons were not learned")


def files_of(template: TemplateConfig) -> list[str]:
    return [Path(file).read_text(encoding="utf-8") for file in (template.system_prompt, template.question)]


@pytest.fixture(scope="module")
def exported(run) -> Path:
    """What `python -m jobs.export RUN` writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", str(run)])
        assert export.main() == 0
    return run / "export"


def test_the_folder_holds_all_that_serving_wants(run, exported, judge_folder):
    assert {path.name for path in exported.iterdir()} >= {path.name for path in judge_folder.iterdir()} | {
        "README.md",
        FILE,
    }
    generation = GenerationConfig.from_pretrained(exported)
    assert (generation.do_sample, generation.eos_token_id) == (
        False,
        GenerationConfig.from_pretrained(judge_folder).eos_token_id,
    )
    written = load_file(exported / "model.safetensors")
    assert any(
        not torch.equal(tensor, written[name]) for name, tensor in load_file(judge_folder / "model.safetensors").items()
    )
    setup, trained = JudgeSetup.read(exported, trust=True), JudgeSetup.read(run, run / "config.yaml")
    assert [OmegaConf.load(file) for file in setup.tools] == [OmegaConf.load(file) for file in trained.tools]
    assert files_of(setup.template) == files_of(trained.template)
    assert replace(setup, tools=trained.tools, template=trained.template) == trained


def test_the_card_tells_the_numbers_the_data_and_how_it_is_served(exported):
    card = (exported / "README.md").read_text()
    for part in (
        "| accuracy on held-out samples | 0.875 |",
        "| tool calls a held-out sample | 1.25 |",
        "GRPO with the reward `stage2`",
        "7 steps",
        "- trained on: runs/demo/data/grpo-filtered.parquet",
        f"python -m jobs.serve {exported}",
        "--tool-call-parser hermes",
        "samples_per_step: 32",
    ):
        assert part in card
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "base_model" not in card.split("---")[1]  # which names a model of the hub


def test_the_card_of_a_cold_start_from_a_model_of_the_hub(tmp_path):
    config = load(SftConfig, "configs/demo_sft.yaml", ["model.path=Qwen/Qwen2.5-VL-7B-Instruct"])
    write_card(config, tmp_path, tmp_path, 60)
    card = (tmp_path / "README.md").read_text()
    assert OmegaConf.create(card.split("---")[1]).base_model == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert "SupervisedActor cold start" in card
    assert "This run wrote none." in card


def test_penalties_of_the_base_model_do_not_come_along(judge_folder, exported, tmp_path):
    """Of Qwen2.5-VL's own generation config, for example; servers apply them to every request."""
    from actors.learner.hf_folder import write_folder

    model = AutoModelForImageTextToText.from_pretrained(exported)
    model.generation_config = GenerationConfig(
        eos_token_id=[3, 1], pad_token_id=1, do_sample=True, repetition_penalty=1.05, top_k=1
    )
    write_folder(model, dict(model.named_parameters()), str(judge_folder), tmp_path)
    written = GenerationConfig.from_pretrained(tmp_path)
    assert written.eos_token_id == [3, 1]
    assert written.repetition_penalty in (None, 1.0)
    assert not written.do_sample
    assert model.generation_config.repetition_penalty == 1.05


@pytest.fixture(scope="module")
def by_transformers(exported) -> list[list[int]]:
    """Greedy tokens, with Hugging Face's own processor and chat template."""
    processor, model = AutoProcessor.from_pretrained(exported), AutoModelForImageTextToText.from_pretrained(exported)
    schemas = list(JudgeSetup.read(exported).load_tools_and_template(exported)[1].schemas.values())
    said = []
    for one in LESSONS:
        content = [{"type": "image"} for _ in one.images] + [{"type": "text", "text": one.sample.messages[0].parts[-1]}]
        messages = [{"role": "system", "content": "Judge the answers."}, {"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, tools=schemas, add_generation_prompt=True)
        inputs = processor(text=text, images=[image.pil() for image in one.images] or None, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=48)
        said.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
    return said


def test_transformers_says_what_was_learned(by_transformers, template):
    assert [template.decode(ids) for ids in by_transformers] == [CALL, ANSWER]


@pytest.mark.slow
async def test_our_engine_says_the_same(exported, template, by_transformers, monkeypatch):
    for name, value in engine_environment(use_gpu=False).items():
        monkeypatch.setenv(name, value)
    sizes = RolloutConfig(max_model_len=LENGTH, max_num_seqs=4, max_images=2)
    engine = Engine(ModelConfig(path=str(exported), dtype="float32"), sizes, template.view, seed=0, use_gpu=False)
    await engine.start()
    try:
        for one, expected in zip(LESSONS, by_transformers, strict=True):
            prompt = one.ids(template)[0]
            completion = await engine.generate(prompt, one.images, max_tokens=48, temperature=0.0, seed=0)
            stopped = (
                expected[: expected.index(template.turn_ids("</tool_call>", ended=False)[0]) + 1]
                if one.said == CALL
                else expected
            )
            assert list(completion.token_ids) == stopped
    finally:
        await engine.close()


class KnownServer(ModelServer):
    """Server of a judge that a test can ask, too."""

    last_url = ""

    def start(self, timeout_seconds: float = 300.0) -> None:
        super().start(timeout_seconds)
        KnownServer.last_url = self.base_url


@pytest.fixture(scope="module")
def served(exported) -> Iterator[Judge]:
    """The exported folder as a judge on a vLLM server of its own."""
    limits = SessionConfig(max_turns=3, max_prompt_tokens=256, max_response_tokens=96)
    setup = JudgeSetup.read(exported).with_changes(limits=limits, max_model_len=LENGTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "ModelServer", KnownServer)
        with Judge.load(exported, setup=setup, use_gpu=False, votes=2) as loaded:
            yield loaded


@pytest.mark.slow
def test_the_server_says_the_same_and_parses_the_call(exported, template, by_transformers, served):
    setup = JudgeSetup.read(exported)
    for one, expected in zip(LESSONS, by_transformers, strict=True):
        content = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in one.images]
        content.append({"type": "text", "text": one.sample.messages[0].parts[-1]})
        body = {
            "model": SERVED_NAME,
            "messages": [{"role": "system", "content": "Judge the answers."}, {"role": "user", "content": content}],
            "tools": list(setup.load_tools_and_template(exported)[1].schemas.values()),
            "temperature": 0,
            "max_tokens": 48,
            "return_token_ids": True,
        }
        answer = httpx.post(f"{KnownServer.last_url}/chat/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        assert choice["token_ids"] == expected
        calls = choice["message"].get("tool_calls") or []
        if one.said == CALL:
            assert [made["function"]["name"] for made in calls] == [ZOOM]
            assert "bbox_2d" in calls[0]["function"]["arguments"]
            assert choice["finish_reason"] == "tool_calls"
        else:
            assert (calls, choice["message"]["content"]) == ([], ANSWER)


@pytest.mark.slow
def test_a_folder_becomes_a_judge(served):
    verdict = served.compare("Which digit is on the red tile?", [noise()], ["4", "7"])
    turns = [turn for trajectory in verdict.trajectories for turn in trajectory.turns]
    assert len(verdict.opinions) == 2
    assert all(turn.token_ids and len(turn.token_ids) == len(turn.logprobs) for turn in turns)
    assert all(logprob <= 0 for turn in turns for logprob in turn.logprobs)


def data_url(image: Image) -> str:
    buffer = io.BytesIO()
    image.pil().save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_a_run_without_a_checkpoint_says_so(run, tmp_path, monkeypatch, capsys):
    save(load(TrainConfig, "configs/demo.yaml", ["model.path=x"]), tmp_path / "config.yaml")
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path)])
    assert export.main() == 1
    assert "there is no checkpoint" in capsys.readouterr().err
