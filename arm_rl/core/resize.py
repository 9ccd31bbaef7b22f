"""The view of an image that a model gets: its size, its tokens and its pixels."""

from dataclasses import dataclass

from PIL import Image as PILImage
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from arm_rl.core.images import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSize:
    """How large a model sees an image: both sides multiples of `factor`, the area within bounds, the shape kept."""

    factor: int  # pixels a side of one image token: patch size x merge size
    min_pixels: int
    max_pixels: int

    def of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the view."""
        view_height, view_width = smart_resize(height, width, self.factor, self.min_pixels, self.max_pixels)
        return view_width, view_height

    def num_tokens(self, width: int, height: int) -> int:
        """Image tokens of the view."""
        view_width, view_height = self.of(width, height)
        return (view_width // self.factor) * (view_height // self.factor)

    def view(self, image: Image) -> PILImage.Image:
        """The view itself, made with Pillow's bicubic filter. Engine and learner both get this, so neither resizes again."""
        full = image.pil()
        return full.resize(self.of(*full.size), PILImage.Resampling.BICUBIC)
