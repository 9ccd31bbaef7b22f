"""Images of requests: decoded, resized and cut into patches by threads, before their request is submitted.

image -> thread: resize, vLLM's image processor -> submission, one request at a time -> vLLM takes the patches that are ready

vLLM 0.32 runs its image processor in one thread and in the order of the requests, because its two caches of images have to
agree. With patches that are ready, this thread is left with a lookup.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from PIL import Image as PILImage

from arm_rl.core.images import Image
from arm_rl.core.resize import ViewSize

KEY = "arm_rl_key"  # in the `info` of a resized image, which copies keep: the content key of the image
FIELDS = ("pixel_values", "image_grid_thw")  # vLLM's inputs of images


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class PreparedImage:
    """An image as the model sees it."""

    view: PILImage.Image  # resized
    inputs: Any  # vLLM's inputs of the image (`BatchFeature`); None if vLLM has them in its cache


class EngineImages:
    """Prepared images of one engine. All methods but `_take` and `_process_image` run in the engine's event loop."""

    def __init__(self, view: ViewSize, *, num_threads: int, max_bytes: int) -> None:
        """Prepare; `attach` connects to vLLM.

        Args:
            view: Size at which the model sees an image.
            num_threads: Number of images that are prepared at the same time.
            max_bytes: Bytes of resized images that are kept for later turns.
        """
        self._view = view
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="images")
        self._views = _Views(max_bytes)
        # Patches are large: they live as long as a request that was not submitted yet holds them.
        self._ready: WeakValueDictionary[str, PreparedImage] = WeakValueDictionary()
        self._running: dict[str, asyncio.Task[PreparedImage]] = {}

    def attach(self, renderer: Any) -> None:
        """Let vLLM's renderer take patches from here.

        This replaces a method of vLLM's image processor. Remove it when vLLM takes patches, or has several threads for images:
        test_engine_images.py compares with what vLLM computes itself.
        """
        self._processor, self._cache = renderer.get_mm_processor(), renderer.mm_processor_cache
        self._process = self._processor._apply_hf_processor_main
        self._processor._apply_hf_processor_main = self._take

    async def prepare(self, image: Image) -> PreparedImage:
        """Return the prepared image, which the caller holds until vLLM has taken it.

        Raises:
            ImageError: If the image cannot be decoded.
        """
        ready = self._ready.get(image.key)
        if ready is not None:
            return ready
        view = self._views.get(image.key)
        if view is not None and self._is_cached(image.key):
            return PreparedImage(view, None)
        if image.key not in self._running:
            self._running[image.key] = asyncio.ensure_future(self._prepare(image, view))
        return await asyncio.shield(self._running[image.key])  # other requests wait for it as well

    async def _prepare(self, image: Image, view: PILImage.Image | None) -> PreparedImage:
        run = asyncio.get_running_loop().run_in_executor
        try:
            prepared = await run(self._threads, self._process_image, image, view)
        finally:
            del self._running[image.key]
        self._views.keep(image.key, prepared.view)
        self._ready[image.key] = prepared
        return prepared

    def _process_image(self, image: Image, view: PILImage.Image | None) -> PreparedImage:
        """Prepare an image in a thread."""
        if view is None:
            view = self._view.resize(image)
            view.info[KEY] = image.key
        return PreparedImage(view, None if self._is_cached(image.key) else self._inputs(view))

    def _is_cached(self, key: str) -> bool:
        return self._cache is not None and self._cache.is_cached_item(key)

    def _inputs(self, view: PILImage.Image) -> Any:
        """Run vLLM's own image processor on one image."""
        return self._process(self._processor.info.parse_mm_data({"image": [view]}), {})

    def _take(self, mm_items: Any, hf_kwargs: Any) -> Any:
        """Return vLLM's inputs of images that are not in its cache, in vLLM's thread.

        Args:
            mm_items: vLLM's `MultiModalDataItems`.
            hf_kwargs: Options of the image processor for this request alone; requests of `Engine` have none.
        """
        if set(mm_items) != {"image"} or hf_kwargs:
            return self._process(mm_items, hf_kwargs)
        parts = []
        for view in mm_items["image"].get_all():
            prepared = self._ready.get(view.info.get(KEY))
            # An image that has left vLLM's cache since it was prepared is processed here.
            parts.append(self._inputs(view) if prepared is None or prepared.inputs is None else prepared.inputs)
        if len(parts) == 1:
            return parts[0]
        return type(parts[0])({name: torch.cat([part[name] for part in parts]) for name in FIELDS})


class _Views:
    """Resized images by content key; the least recently used ones are dropped."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._images: OrderedDict[str, PILImage.Image] = OrderedDict()

    def get(self, key: str) -> PILImage.Image | None:
        if key in self._images:
            self._images.move_to_end(key)
        return self._images.get(key)

    def keep(self, key: str, image: PILImage.Image) -> None:
        if key not in self._images:
            self._num_bytes += _num_bytes(image)
        self._images[key] = image
        self._images.move_to_end(key)
        while self._num_bytes > self._max_bytes and len(self._images) > 1:
            self._num_bytes -= _num_bytes(self._images.popitem(last=False)[1])


def _num_bytes(image: PILImage.Image) -> int:
    return image.width * image.height * 3
