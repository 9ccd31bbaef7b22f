"""Images that threads prepare: several at a time, each once, and with the tokens and pixels of vLLM's own processing."""

# ruff: noqa: F811 (fixtures of another file)

import asyncio
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image as PILImage
from transformers import BatchFeature

from actors.rollout.engine_images import FIELDS, EngineImages, PreparedImage
from actors.rollout.engine_settings import engine_arguments, spare_threads
from arm_rl.core.compute_config import RolloutConfig
from arm_rl.core.config import ConfigError, ModelConfig
from arm_rl.core.images import Image
from tests.actors.rollout.test_engine import ROLLOUT, VIEW, environment, noise  # noqa: F401
from tests.support import tiny, tiny_qwen3

NUM_IMAGES = 3


class Renderer:
    """vLLM's renderer, as far as `EngineImages` knows it: the patches of an image are its mean red."""

    def __init__(self, *, meet: int = 1, cached: frozenset[str] = frozenset()) -> None:
        """Prepare.

        Args:
            meet: Number of threads that have to be in the processor at the same time.
            cached: Content keys of images in vLLM's cache.
        """
        self.info = self.mm_processor_cache = self
        self.cached, self.calls, self._barrier = cached, Counter[float](), threading.Barrier(meet)

    def get_mm_processor(self) -> Any:
        return self

    def is_cached_item(self, key: str) -> bool:
        return key in self.cached

    def parse_mm_data(self, data: dict[str, list[PILImage.Image]]) -> dict[str, Any]:
        return {name: SimpleNamespace(get_all=lambda views=views: views) for name, views in data.items()}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> Any:
        self._barrier.wait(10)
        values = [float(view.resize((1, 1)).getpixel((0, 0))[0]) for view in mm_items["image"].get_all()]
        self.calls.update(values)
        return BatchFeature({"pixel_values": torch.tensor(values), "image_grid_thw": torch.ones(len(values), 3)})

    def render(self, *views: PILImage.Image) -> list[float]:
        """Ask for the patches of images as vLLM does, which copies each image first."""
        items = self.parse_mm_data({"image": [view.copy() for view in views]})
        return self._apply_hf_processor_main(mm_items=items, hf_kwargs={})["pixel_values"].tolist()


def plain(red: int) -> Image:
    return Image.from_pil(PILImage.new("RGB", (64, 64), (red, 0, 0)))


def engine_images(renderer: Renderer, num_threads: int = NUM_IMAGES) -> EngineImages:
    images = EngineImages(VIEW, num_threads=num_threads, max_bytes=2**20)
    images.attach(renderer)
    return images


async def prepare(images: EngineImages, *wanted: Image) -> list[PreparedImage]:
    return list(await asyncio.gather(*(images.prepare(image) for image in wanted)))


async def test_images_of_several_requests_are_prepared_at_the_same_time() -> None:
    renderer = Renderer(meet=NUM_IMAGES)  # each thread waits until all are there
    images = engine_images(renderer)
    prepared = await prepare(images, *map(plain, (1, 2, 3)))
    assert renderer.render(*(one.view for one in reversed(prepared))) == [3.0, 2.0, 1.0]
    assert renderer.calls == {1.0: 1, 2.0: 1, 3.0: 1}, "vLLM's thread has looked them up"


async def test_an_image_that_many_requests_show_is_prepared_once() -> None:
    renderer = Renderer()
    images = engine_images(renderer)
    prepared = await prepare(images, *[plain(7)] * 16)
    assert prepared == prepared[:1] * 16
    assert await prepare(images, plain(7)) == prepared[:1], "as long as a request holds it"
    assert renderer.calls == {7.0: 1}


async def test_patches_live_as_long_as_a_request_that_waits() -> None:
    renderer = Renderer()
    images = engine_images(renderer)
    (prepared,) = await prepare(images, plain(7))
    view = prepared.view
    del prepared
    await asyncio.sleep(0.01)  # the event loop holds the last result a moment longer
    assert not images._ready
    assert renderer.render(view) == [7.0], "vLLM's own processor"
    assert renderer.calls == {7.0: 2}


async def test_an_image_in_vllms_cache_is_not_processed() -> None:
    image = plain(7)
    renderer = Renderer(cached=frozenset({image.key}))
    images = engine_images(renderer)
    first, second = [(await prepare(images, image))[0] for _ in range(2)]
    assert first.inputs is second.inputs is None
    assert first.view is second.view, "resized once"
    assert not renderer.calls
    assert renderer.render(first.view) == [7.0], "it has left the cache meanwhile"


async def test_an_image_that_cannot_be_decoded_fails_each_request_that_shows_it_and_no_other() -> None:
    images = engine_images(Renderer())
    broken = Image.from_bytes(b"no image")
    found = await asyncio.gather(*(images.prepare(one) for one in (broken, plain(1), broken)), return_exceptions=True)
    assert [type(one).__name__ for one in found] == ["ImageError", "PreparedImage", "ImageError"]
    assert not images._running


async def test_what_is_no_image_is_left_to_vllm() -> None:
    renderer = Renderer()
    engine_images(renderer)
    with pytest.raises(KeyError, match="image"):
        renderer._apply_hf_processor_main({"video": None}, {})


@pytest.mark.parametrize("build", [tiny.build, tiny_qwen3.build], ids=["Qwen2.5-VL", "Qwen3-VL"])
async def test_tokens_and_pixels_are_those_of_vllms_own_processing(
    build: Any, tmp_path: Path, environment: None
) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.renderers import renderer_from_config

    model = ModelConfig(path=str(build(tmp_path, seed=0)), dtype="float32")
    arguments = engine_arguments(model, ROLLOUT, VIEW, seed=0, use_gpu=False, can_sleep=False)
    config = AsyncEngineArgs(**arguments).create_engine_config()
    renderers = [renderer_from_config(config) for _ in range(2)]
    shown = [noise(0), noise(1, 96, 64), noise(2, 64, 128)]
    images = EngineImages(VIEW, num_threads=NUM_IMAGES, max_bytes=2**20)
    images.attach(renderers[0])
    prepared = await prepare(images, *shown)
    vision = config.model_config.hf_config
    ids = [vision.vision_start_token_id, vision.image_token_id, vision.vision_end_token_id]
    # One image, then a second turn with another, then all three: the first ones are in vLLM's cache then.
    for number in (1, 2, 3):
        prompt = {
            "prompt_token_ids": [*range(5), *ids * number],
            "multi_modal_data": {"image": [VIEW.resize(image) for image in shown[:number]]},
            "multi_modal_uuids": {"image": [image.key for image in shown[:number]]},
        }
        (expected,) = await renderers[1].render_cmpl_async([prompt])
        prompt["multi_modal_data"] = {"image": [image.view for image in prepared[:number]]}
        (found,) = await renderers[0].render_cmpl_async([prompt])
        for name in ("prompt_token_ids", "mm_hashes", "mm_placeholders"):
            assert found[name] == expected[name], name
        assert [item is None for item in found["mm_kwargs"]["image"]] == [True] * (number - 1) + [False]
        for name in FIELDS:
            ours, theirs = (one["mm_kwargs"]["image"][-1][name].data for one in (found, expected))
            assert torch.equal(ours, theirs), name
            assert ours.dtype == theirs.dtype
    assert images._is_cached(shown[0].key)


def test_the_size_of_vllms_image_cache_is_a_key() -> None:
    for use_gpu in (False, True):
        made = engine_arguments(
            ModelConfig(path="m"), RolloutConfig(image_cache_gib=12.5), VIEW, seed=0, use_gpu=use_gpu, can_sleep=False
        )
        assert made["mm_processor_cache_gb"] == 12.5
    with pytest.raises(ConfigError, match="rollout.image_cache_gib: not negative and finite, not -1"):
        RolloutConfig(image_cache_gib=-1)
    with pytest.raises(ConfigError, match="rollout.image_threads: null or at least 1, not 0"):
        RolloutConfig(image_threads=0)


@pytest.mark.parametrize(("share", "threads"), [(0.0, 1), (1 / 8, 14), (1.0, 126)])
def test_threads_are_the_cores_of_the_engines_share_but_two(
    share: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(128)))
    assert spare_threads(share) == threads
