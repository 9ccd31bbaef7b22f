"""Images as the vision tower takes them: views cut into patches, kept by the images' keys."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image as PILImage
from torch import Tensor

from arm_rl.core.images import Image
from arm_rl.core.resize import ViewSize

_MAX_BYTES = 1 << 30  # of patches kept


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """Distinct images, ready for the vision tower."""

    patches: Tensor  # float32 [patches of all images, patch size]
    grids: Tensor  # int64 [images, 3]: frames (1), rows and columns of patches
    keys: tuple[str, ...] = ()  # of the images; none of a blank one


class ImagePreparer:
    """Runs the model's image processor, once for an image that is used again soon."""

    def __init__(self, processor: Any, view: ViewSize) -> None:
        self._processor = processor
        self._view = view
        self._kept: OrderedDict[str, ImageInputs] = OrderedDict()
        self._num_bytes = 0

    def prepare(self, keys: Sequence[str], images: Mapping[str, Image]) -> ImageInputs:
        """The images of `keys`, in that order; of no keys, a blank one of one token (for ranks that must take part in encoding)."""
        if not keys:
            return self._process([PILImage.new("RGB", (self._view.factor, self._view.factor))])
        new = [key for key in keys if key not in self._kept]
        if new:
            inputs = self._process([self._view.resize(images[key]) for key in new])
            pieces = inputs.patches.split(inputs.grids.prod(dim=1).tolist())
            for key, patches, grid in zip(new, pieces, inputs.grids, strict=True):
                self._kept[key] = ImageInputs(patches, grid)
                self._num_bytes += patches.nbytes
        for key in keys:
            self._kept.move_to_end(key)
        chosen = [self._kept[key] for key in keys]
        self._drop_oldest()
        return ImageInputs(
            torch.cat([image.patches for image in chosen]), torch.stack([image.grids for image in chosen]), tuple(keys)
        )

    def _process(self, views: list[PILImage.Image]) -> ImageInputs:
        # views have the model's size already
        output = self._processor(images=views, do_resize=False, return_tensors="pt")
        return ImageInputs(output["pixel_values"], output["image_grid_thw"])

    def _drop_oldest(self) -> None:
        while self._num_bytes > _MAX_BYTES:
            _, image = self._kept.popitem(last=False)
            self._num_bytes -= image.patches.nbytes
