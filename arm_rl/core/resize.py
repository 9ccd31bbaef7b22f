"""The view of an image that a model gets: its size, its tokens and its pixels."""

from dataclasses import dataclass

from PIL import Image as PILImage

from arm_rl.core.images import Image


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSize:
    """How large a model sees an image: both sides multiples of `factor`, the area within bounds, the shape kept."""

    factor: int  # pixels a side of one image token: patch size x merge size
    min_pixels: int
    max_pixels: int

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height to which an image is resized."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize  # imports torch: seconds

        view_height, view_width = smart_resize(height, width, self.factor, self.min_pixels, self.max_pixels)
        return view_width, view_height

    def num_tokens(self, width: int, height: int) -> int:
        """Image tokens of the view."""
        view_width, view_height = self.resized_size(width, height)
        return (view_width // self.factor) * (view_height // self.factor)

    def resize(self, image: Image) -> PILImage.Image:
        """Resize an image with Pillow's bicubic filter; engine and learner use this result and do not resize again."""
        full = image.pil()
        return full.resize(self.resized_size(*full.size), PILImage.Resampling.BICUBIC)
