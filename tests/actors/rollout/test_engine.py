"""The vLLM engine against Hugging Face: the same tokens, the same log-probabilities, before and after new weights; limits and failures."""

import asyncio
import contextlib
import copy
import dataclasses
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import torch
from PIL import Image as PILImage
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

from actors.rollout.engine import Engine, EngineMismatch
from actors.rollout.engine_settings import engine_environment
from actors.rollout.vllm_process import EngineClosed
from actors.weights.files import WeightFile, write_weights
from actors.weights.lora import publishable
from arm_rl.core.compute_config import RolloutConfig
from arm_rl.core.config import ModelConfig
from arm_rl.core.errors import EngineDied
from arm_rl.core.images import Image
from arm_rl.core.resize import ViewSize
from arm_rl.core.session import Completion
from arm_rl.experiments.processes import is_alive
from tests.support import tiny

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one engine for all tests, and an engine lives in one event loop

VIEW = ViewSize(factor=tiny.VIEW_FACTOR, min_pixels=32 * 32, max_pixels=tiny.VIEW_PIXELS)
TOLERANCE = 1e-5
ROLLOUT = RolloutConfig(max_model_len=2048, max_num_seqs=64, max_images=4)


@dataclass
class Judge:
    """The Hugging Face side: the model that the engine should now be equal to."""

    model: Qwen2_5_VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    folder: Path

    def ids(self, text: str, *images: Image) -> list[int]:
        """Token ids; each `{}` in the text is the next image, expanded."""
        shown = [
            "<|vision_start|>" + "<|image_pad|>" * VIEW.num_tokens(*image.pil().size) + "<|vision_end|>"
            for image in images
        ]
        return self.tokenizer.encode(text.format(*shown), add_special_tokens=False)

    def id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))

    def all_but(self, *tokens: str) -> list[int]:
        """What to forbid so that only these can be sampled."""
        allowed = {self.id(token) for token in tokens}
        return [id_ for id_ in range(len(self.tokenizer)) if id_ not in allowed]

    @torch.no_grad()
    def logits(self, ids: Sequence[int], images: Sequence[Image]) -> Tensor:  # (len(ids), vocabulary)
        inputs: dict[str, Tensor] = {}
        if images:
            processor = AutoImageProcessor.from_pretrained(self.folder)
            inputs = dict(
                processor(images=[VIEW.resize(image) for image in images], do_resize=False, return_tensors="pt")
            )
        tokens = torch.tensor([ids])
        types = (tokens == self.model.config.image_token_id).int()
        return self.model(input_ids=tokens, mm_token_type_ids=types, **inputs).logits[0]

    def logprobs(
        self,
        prompt: Sequence[int],
        images: Sequence[Image],
        sampled: Sequence[int],
        *,
        temperature: float = 1.0,
        forbidden: Sequence[int] = (),
    ) -> Tensor:  # (len(sampled),)
        logits = self.logits([*prompt, *sampled], images)[len(prompt) - 1 : -1] / temperature
        logits[:, [*self.vision_ids, *forbidden]] = -math.inf
        return logits.log_softmax(-1).gather(-1, torch.tensor(sampled)[:, None])[:, 0]

    @property
    def vision_ids(self) -> list[int]:
        return [self.id(token) for token in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")]


def noise(seed: int, width: int = 64, height: int = 64) -> Image:
    return Image.from_pil(PILImage.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height)))


def difference(completion: Completion, logprobs: Tensor) -> float:
    assert len(completion.logprobs) == len(completion.token_ids) == len(logprobs)
    return (torch.tensor(completion.logprobs) - logprobs).abs().max().item()


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    folder = tiny.build(tmp_path_factory.mktemp("tiny"), seed=0)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return Judge(model, AutoTokenizer.from_pretrained(folder), folder)


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in engine_environment(use_gpu=False).items():
            patch.setenv(name, value)
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(judge: Judge, environment: None) -> AsyncIterator[Engine]:
    engine = Engine(ModelConfig(path=str(judge.folder), dtype="float32"), ROLLOUT, VIEW, seed=0, use_gpu=False)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture
def new_weights(judge: Judge, tmp_path: Path) -> Callable[[int], WeightFile]:
    """Changes all weights of the Hugging Face model and writes them for the engine."""

    def change(version: int) -> WeightFile:
        tiny.spread(judge.model, seed=1000 + version)
        return write_weights(judge.model.state_dict(), tmp_path, version)

    return change


async def play(
    engine: Engine, judge: Judge, images: Sequence[Image], *, seed: int
) -> list[tuple[list[int], Completion]]:
    """A turn for each image; gives each turn's prompt ids and completion."""
    turns, context = [], judge.ids("<|im_start|>user\nWhich digit is on the red tile?")
    for number, image in enumerate(images):
        context += judge.ids("{}<|im_end|>\n<|im_start|>assistant\n", image)
        completion = await engine.generate(
            context, images[: number + 1], max_tokens=12, temperature=1.0, seed=seed + number
        )
        turns.append((list(context), completion))
        context += completion.token_ids
    return turns


async def check_three_turns(engine: Engine, judge: Judge, version: int) -> None:
    images = [noise(0), noise(1, 96, 64), noise(2, 64, 128)]
    for number, (prompt, completion) in enumerate(await play(engine, judge, images, seed=5)):
        expected = judge.logprobs(prompt, images[: number + 1], completion.token_ids)
        assert difference(completion, expected) < TOLERANCE, f"turn {number}"
        assert completion.policy_version == version


async def test_log_probabilities_are_those_of_hugging_face_over_three_turns_with_images(
    engine: Engine, judge: Judge
) -> None:
    await check_three_turns(engine, judge, version=0)


async def test_after_an_update_they_are_those_of_the_new_weights_even_for_known_images(
    engine: Engine, judge: Judge, new_weights: Callable[[int], WeightFile]
) -> None:
    for version in (1, 2):
        await play(engine, judge, [noise(0)], seed=5)  # its caches now hold this under the old weights
        file = new_weights(version)
        prompt, completion = (await play(engine, judge, [noise(0)], seed=5))[0]
        stale = difference(completion, judge.logprobs(prompt, [noise(0)], completion.token_ids))
        assert stale > 1e-2, "the weights did not change enough for this test to mean something"
        await engine.load_weights(file.path, file.version)
        assert engine.version == version
        await check_three_turns(engine, judge, version)


async def test_temperature_and_forbidden_tokens_are_in_the_log_probabilities(engine: Engine, judge: Judge) -> None:
    prompt = judge.ids("Look: {} well", noise(3))
    likely = judge.logits(prompt, [noise(3)])[-1].topk(20).indices.tolist()
    completion = await engine.generate(prompt, [noise(3)], max_tokens=30, temperature=0.6, seed=1, forbidden_ids=likely)
    assert not set(likely) & set(completion.token_ids)
    expected = judge.logprobs(prompt, [noise(3)], completion.token_ids, temperature=0.6, forbidden=likely)
    assert difference(completion, expected) < TOLERANCE
    without = judge.logprobs(prompt, [noise(3)], completion.token_ids, temperature=0.6)
    assert difference(completion, without) > 1e-2


async def test_the_likeliest_tokens_are_not_sampled_when_forbidden(engine: Engine, judge: Judge) -> None:
    prompt = judge.ids("Look: {} well", noise(3))
    order = judge.logits(prompt, [noise(3)])[-1].argsort(descending=True).tolist()
    allowed = [id_ for id_ in order if id_ not in judge.vision_ids]
    free = await engine.generate(prompt, [noise(3)], max_tokens=1, temperature=0.0, seed=1)
    bound = await engine.generate(prompt, [noise(3)], max_tokens=1, temperature=0.0, seed=1, forbidden_ids=allowed[:10])
    assert free.token_ids == (allowed[0],)
    assert bound.token_ids == (allowed[10],)


async def test_vision_tokens_cannot_be_sampled(engine: Engine, judge: Judge) -> None:
    vision = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    forbidden = judge.all_but("a", *vision)
    completion = await engine.generate(
        judge.ids("Go"), [], max_tokens=40, temperature=2.0, seed=1, forbidden_ids=forbidden
    )
    assert completion.token_ids == (judge.id("a"),) * 40
    assert completion.logprobs == pytest.approx([0.0] * 40, abs=1e-6)


async def test_the_end_of_a_call_stops_and_stays(engine: Engine, judge: Judge) -> None:
    forbidden = judge.all_but("a", "</tool_call>")
    completion = await engine.generate(
        judge.ids("Go"), [], max_tokens=500, temperature=1.0, seed=1, forbidden_ids=forbidden
    )
    assert completion.finish_reason == "stop"
    assert completion.token_ids.count(judge.id("</tool_call>")) == 1
    assert completion.token_ids[-1] == judge.id("</tool_call>")
    assert completion.text == "a" * (len(completion.token_ids) - 1) + "</tool_call>"
    assert (
        difference(completion, judge.logprobs(judge.ids("Go"), [], completion.token_ids, forbidden=forbidden))
        < TOLERANCE
    )


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
async def test_an_end_token_stays_in_the_ids_and_not_in_the_text(engine: Engine, judge: Judge, end: str) -> None:
    forbidden = judge.all_but("a", end)
    completion = await engine.generate(
        judge.ids("Go"), [], max_tokens=500, temperature=1.0, seed=1, forbidden_ids=forbidden
    )
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] == judge.id(end)
    assert completion.text == "a" * (len(completion.token_ids) - 1)


async def test_the_token_limit_ends_a_turn(engine: Engine, judge: Judge) -> None:
    forbidden = judge.all_but("a", "<think>")
    completion = await engine.generate(
        judge.ids("Go"), [], max_tokens=7, temperature=1.0, seed=1, forbidden_ids=forbidden
    )
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 7
    assert completion.text == judge.tokenizer.decode(completion.token_ids)


async def test_many_sessions_at_once_do_not_mix_their_images(engine: Engine, judge: Judge) -> None:
    images = [[noise(100 + 2 * number), noise(101 + 2 * number)] for number in range(32)]
    sessions = await asyncio.gather(*(play(engine, judge, pair, seed=number) for number, pair in enumerate(images)))
    for pair, session in zip(images, sessions, strict=True):
        for number, (prompt, completion) in enumerate(session):
            assert difference(completion, judge.logprobs(prompt, pair[: number + 1], completion.token_ids)) < TOLERANCE


async def test_more_prompt_tokens_at_once_than_vllm_takes_in_one_step(engine: Engine, judge: Judge) -> None:
    prompts = [judge.ids(f"{number} " * 100 + "{} well", noise(200 + number)) for number in range(64)]
    assert sum(map(len, prompts)) > 8192  # its default
    completions = await asyncio.gather(
        *(
            engine.generate(prompt, [noise(200 + number)], max_tokens=4, temperature=1.0, seed=number)
            for number, prompt in enumerate(prompts)
        )
    )
    for number in (0, 31, 63):
        expected = judge.logprobs(prompts[number], [noise(200 + number)], completions[number].token_ids)
        assert difference(completions[number], expected) < TOLERANCE


async def test_the_seed_decides_the_tokens(engine: Engine, judge: Judge) -> None:
    prompt = judge.ids("Look: {} well", noise(4))

    async def sample(seed: int) -> tuple[int, ...]:
        return (await engine.generate(prompt, [noise(4)], max_tokens=20, temperature=1.0, seed=seed)).token_ids

    alone = await sample(3)
    among_others = await asyncio.gather(*(sample(seed) for seed in range(8)))
    assert among_others[3] == alone
    assert len(set(among_others)) == 8


async def test_cancelling_aborts_the_request_and_the_engine_goes_on(engine: Engine, judge: Judge) -> None:
    endless = judge.all_but("a", "b")

    async def sample(image: Image, max_tokens: int) -> Completion:
        prompt = judge.ids("Look: {} well", image)
        return await engine.generate(
            prompt, [image], max_tokens=max_tokens, temperature=1.0, seed=1, forbidden_ids=endless
        )

    for attempt in range(30):  # at every point of a new image's way into vLLM
        image = noise(300 + attempt)
        task = asyncio.create_task(sample(image, 1500))
        await asyncio.sleep(attempt * 2e-4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.num_running == 0
        completion = await sample(image, 2)
        expected = judge.logprobs(judge.ids("Look: {} well", image), [image], completion.token_ids, forbidden=endless)
        assert difference(completion, expected) < TOLERANCE


async def test_images_and_pads_that_do_not_fit_are_refused(engine: Engine, judge: Judge) -> None:
    first, second = noise(60), noise(61)
    one, two = judge.ids("Look: {} well", first), judge.ids("{} and {}", first, second)

    async def sample(prompt: Sequence[int], images: Sequence[Image]) -> Completion:
        return await engine.generate(prompt, images, max_tokens=5, temperature=1.0, seed=1)

    pad = judge.id("<|image_pad|>")
    short = one.copy()
    short.remove(pad)
    with pytest.raises(EngineMismatch, match="1 images for 2 runs"):
        await sample(two, [first])
    with pytest.raises(EngineMismatch, match="2 images for 1 runs"):
        await sample(one, [first, second])
    with pytest.raises(EngineMismatch, match=f"place {len(short) - 1 - short[::-1].index(pad) + 1}"):
        await sample(short, [first])
    assert engine.num_running == 0
    completion = await sample(two, [first, second])  # vLLM has seen these images in requests that were refused
    assert difference(completion, judge.logprobs(two, [first, second], completion.token_ids)) < TOLERANCE


async def test_requests_that_run_live_through_an_update(
    engine: Engine, judge: Judge, new_weights: Callable[[int], WeightFile]
) -> None:
    images = [noise(70 + number) for number in range(4)]
    prompts = [judge.ids("Look: {} well", image) for image in images]
    endless = judge.all_but(*"abcdefgh")

    async def sample(number: int, max_tokens: int) -> Completion:
        return await engine.generate(
            prompts[number],
            [images[number]],
            max_tokens=max_tokens,
            temperature=1.0,
            seed=number,
            forbidden_ids=endless,
        )

    def match(completion: Completion, number: int) -> list[bool]:
        expected = judge.logprobs(prompts[number], [images[number]], completion.token_ids, forbidden=endless)
        return ((torch.tensor(completion.logprobs) - expected).abs() < TOLERANCE).tolist()

    long = [asyncio.create_task(sample(number, 600)) for number in range(4)]
    await sample(0, 30)
    before = engine.version
    assert engine.num_running == 4
    old_state = copy.deepcopy(judge.model.state_dict())
    file = new_weights(before + 1)
    new_state = copy.deepcopy(judge.model.state_dict())
    await engine.load_weights(file.path, file.version)
    assert engine.num_running == 4
    later = await sample(0, 30)
    completions = await asyncio.gather(*long)

    assert [len(completion.token_ids) for completion in completions] == [600] * 4
    assert [completion.policy_version for completion in completions] == [before] * 4
    assert later.policy_version == before + 1
    assert all(match(later, 0))
    under_new = [match(completion, number) for number, completion in enumerate(completions)]
    judge.model.load_state_dict(old_state)
    under_old = [match(completion, number) for number, completion in enumerate(completions)]
    judge.model.load_state_dict(new_state)
    for old, new in zip(under_old, under_new, strict=True):
        change = old.index(False)
        assert 0 < change < 600
        assert all(old[:change])
        assert all(new[change:]), "after the update the whole context belongs to the new weights"


async def test_cached_images_of_running_requests_are_encoded_anew_after_an_update(
    engine: Engine, judge: Judge, new_weights: Callable[[int], WeightFile]
) -> None:
    """The prefix cache covers their images when they start, so that vLLM would not send these to its worker; then the cache is emptied."""
    image = noise(80)
    prompt = judge.ids("Look: {} " + "well " * 40, image)
    endless = judge.all_but(*"abcdefgh")

    async def sample(max_tokens: int, seed: int) -> Completion:
        return await engine.generate(
            prompt, [image], max_tokens=max_tokens, temperature=1.0, seed=seed, forbidden_ids=endless
        )

    await sample(2, 0)
    long = [asyncio.create_task(sample(400, seed)) for seed in range(3)]
    await sample(30, 0)
    assert engine.num_running == 3
    file = new_weights(engine.version + 1)
    await engine.load_weights(file.path, file.version)
    assert engine.num_running == 3
    completions = await asyncio.gather(*long)
    assert [len(completion.token_ids) for completion in completions] == [400] * 3
    later = await sample(5, 9)
    expected = judge.logprobs(prompt, [image], later.token_ids, forbidden=endless)
    assert difference(later, expected) < TOLERANCE


async def test_a_missing_file_changes_nothing(engine: Engine, judge: Judge, tmp_path: Path) -> None:
    version = engine.version
    with pytest.raises(FileNotFoundError):
        await engine.load_weights(tmp_path / "99.safetensors", 99)
    assert engine.version == version
    await check_three_turns(engine, judge, version)


async def test_adapters_are_merged_into_the_models_own_weights(engine: Engine, judge: Judge, tmp_path: Path) -> None:
    """Whatever the engine served before; then whole weights are served again."""
    judge.model.load_state_dict(
        Qwen2_5_VLForConditionalGeneration.from_pretrained(judge.folder, dtype=torch.float32).state_dict()
    )
    scaling = torch.tensor(2.0)
    adapters = {}
    for name, weight in judge.model.named_parameters():
        if "language_model" in name and name.endswith(("q_proj.weight", "down_proj.weight")):
            adapters[name] = (torch.randn(3, weight.shape[1]) * 0.2, torch.randn(weight.shape[0], 3) * 0.2)
            weight.data += 2.0 * adapters[name][1] @ adapters[name][0]
    assert len(adapters) == 6
    version = engine.version + 1
    file = write_weights(publishable(adapters, scaling), tmp_path, version, is_adapter=True)
    assert file.path.stat().st_size < (judge.folder / "model.safetensors").stat().st_size / 10
    await engine.load_weights(file.path, version, is_adapter=True)
    await check_three_turns(engine, judge, version)


async def test_whole_weights_follow_adapters(
    engine: Engine, judge: Judge, new_weights: Callable[[int], WeightFile]
) -> None:
    file = new_weights(engine.version + 1)
    await engine.load_weights(file.path, file.version)
    await check_three_turns(engine, judge, file.version)


async def test_incomplete_weights_close_the_engine_and_leave_no_process(
    engine: Engine, judge: Judge, tmp_path: Path
) -> None:
    """The last test of this engine."""
    process = children("EngineCore")
    assert len(process) == 1
    endless = judge.all_but("a", "b")
    running = asyncio.create_task(
        engine.generate(judge.ids("Go"), [], max_tokens=1500, temperature=1.0, seed=1, forbidden_ids=endless)
    )
    await engine.generate(judge.ids("Go"), [], max_tokens=5, temperature=1.0, seed=1, forbidden_ids=endless)
    weights = judge.model.state_dict()
    weights.pop("model.language_model.layers.1.mlp.down_proj.weight")
    file = write_weights(weights, tmp_path, 98)
    with pytest.raises(Exception, match="down_proj"):
        await engine.load_weights(file.path, 98)
    aborted = await running
    assert aborted.finish_reason == "abort"
    assert len(aborted.token_ids) == len(aborted.logprobs) < 1500
    with pytest.raises(EngineClosed):
        await engine.generate(judge.ids("Go"), [], max_tokens=5, temperature=1.0, seed=1)
    await engine.close()  # once more does no harm
    assert not psutil.pid_exists(process[0])


@pytest.mark.slow
async def test_an_engine_without_memory_does_not_start_and_says_so(judge: Judge, environment: None) -> None:
    enormous = dataclasses.replace(ROLLOUT, cpu_kv_cache_gib=1 << 20)
    engine = Engine(ModelConfig(path=str(judge.folder), dtype="float32"), enormous, VIEW, seed=0, use_gpu=False)
    with pytest.raises(
        EngineDied, match="vLLM's engine did not start .*: out of memory .*, or what its own log says: /"
    ):
        await engine.start()


@pytest.mark.slow
async def test_an_update_ends_when_the_process_dies_that_should_answer(
    judge: Judge, environment: None, tmp_path: Path
) -> None:
    engine = Engine(ModelConfig(path=str(judge.folder), dtype="float32"), ROLLOUT, VIEW, seed=0, use_gpu=False)
    await engine.start()
    await engine.pulse()
    (process,) = children("EngineCore")
    os.kill(process, signal.SIGSTOP)  # it gets the call, and gives no answer
    update = asyncio.create_task(engine.load_weights(write_weights(judge.model.state_dict(), tmp_path, 1).path, 1))
    pulse = asyncio.create_task(engine.pulse())
    await asyncio.wait([update, pulse], timeout=0.5)
    assert not update.done()
    assert not pulse.done()
    os.kill(process, signal.SIGKILL)
    for waiting in (update, pulse):
        with pytest.raises(EngineDied):
            await waiting
    await engine.close()


OWNER = """
import asyncio, sys
from actors.rollout.engine import Engine
from tests.actors.rollout.test_engine import ModelConfig, ROLLOUT, VIEW

async def main():
    engine = Engine(ModelConfig(path=sys.argv[1], dtype="float32"), ROLLOUT, VIEW, seed=0, use_gpu=False)
    await engine.start()
    print("serving", flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.slow
async def test_no_process_outlives_an_owner_that_is_killed(judge: Judge, environment: None, tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    owner = subprocess.Popen(
        [sys.executable, str(script), str(judge.folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        text=True,
    )
    assert owner.stdout is not None
    for line in owner.stdout:
        if line.strip() == "serving":
            break
    process = children("EngineCore", owner.pid)
    assert len(process) == 1
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    while is_alive(process[0]):  # the test's own time limit is the patience
        await asyncio.sleep(0.05)


def children(name: str, parent: int | None = None) -> list[int]:
    """Return the ids of the child processes with this in their command line."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):  # the parent has ended
        for child in psutil.Process(parent).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # or the child
                if name in " ".join(child.cmdline()):
                    found.append(child.pid)
    return found
