"""Images as data URIs for a page: as they are where a browser can show them, made smaller where they are large."""

import base64
import functools
import io
from dataclasses import dataclass

from arm_rl.core.images import Image, open_image

LARGEST_SIDE = 1024  # pixels; larger images are shown smaller
SMALL_SIDE = 300  # pixels; smaller images are enlarged with their pixels kept
SHOWN_BY_BROWSERS = ("PNG", "JPEG", "GIF", "WEBP")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that a page can hold."""

    uri: str
    width: int  # pixels of the image itself
    height: int

    @property
    def is_small(self) -> bool:
        """So small that its pixels should be seen as they are."""
        return max(self.width, self.height) < SMALL_SIDE


@functools.lru_cache(maxsize=64)
def encode_picture(image: Image) -> Picture:
    """Encode an image for a page."""
    pixels = image.pil()
    data, kind = image.data, open_image(image.data).format
    if kind not in SHOWN_BY_BROWSERS or max(pixels.size) > LARGEST_SIDE:
        smaller = pixels.copy()
        smaller.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        buffer = io.BytesIO()
        smaller.save(buffer, format="JPEG", quality=85)
        data, kind = buffer.getvalue(), "JPEG"
    return Picture(f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}", *pixels.size)
