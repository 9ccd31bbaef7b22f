"""The same picture in every mode of Pillow."""

import numpy as np
from PIL import Image as PILImage
from PIL import ImageCms

GREYS = ("1", "L", "LA", "La", "F", "I", "I;16")
MODES = (*GREYS, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def gradient() -> PILImage.Image:
    """Return a picture of smooth colours, 32 x 16 px."""
    across, down = np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 16))
    return PILImage.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


def in_mode(mode: str) -> PILImage.Image:
    """Return `gradient` in a mode; floats are fractions, and integers of more than 8 bits use 16."""
    picture = gradient()
    grey = np.asarray(picture.convert("L"))
    if mode == "F":
        return PILImage.fromarray(grey.astype(np.float32) / 255)
    if mode in ("I", "I;16"):
        return PILImage.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
    if mode == "LAB":
        rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(picture, rgb, lab, outputMode="LAB")
        assert converted is not None
        return converted
    direct = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)
    return picture.convert("L" if direct == "LA" else "RGB").convert(direct).convert(mode)


def difference(first: PILImage.Image, second: PILImage.Image) -> int:
    """Return the largest difference of two RGB pictures of one size, in one channel of a pixel (0 to 255)."""
    return int(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max())
