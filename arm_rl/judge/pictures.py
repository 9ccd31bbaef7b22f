"""Images that the judge is asked about, in every form in which they are given."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image as PILImage

from arm_rl.core.images import Image, ImageError, check

Picture = Image | PILImage.Image | bytes | str | Path


def read_pictures(pictures: Sequence[Picture]) -> list[Image]:
    """Return images that a model can be shown. Images are decoded: call this function in a thread of its own.

    Raises:
        ImageError: If there is no such file, or a picture is no image, or a broken, too large or too narrow one.
    """
    images = []
    for number, picture in enumerate(pictures, 1):
        image = _read_picture(picture)
        try:
            check(image.data)
        except ImageError as error:
            raise ImageError(f"image {number}: {error}") from error
        images.append(image)
    return images


def _read_picture(picture: Picture) -> Image:
    if isinstance(picture, Image):
        return picture
    if isinstance(picture, PILImage.Image):
        return Image.from_pil(picture)
    if isinstance(picture, bytes):
        return Image.from_bytes(picture)
    try:
        return Image.from_bytes(Path(picture).read_bytes())
    except OSError as error:
        raise ImageError(f"{picture}: {error.strerror}") from error
