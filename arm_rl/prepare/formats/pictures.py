"""How a file that is written holds its images: in itself, or as files beside it, each content once."""

import base64
import os
from pathlib import Path
from typing import Any

from arm_rl.core.images import Image
from arm_rl.data.image_store import ImageFolder, extension


class Pictures:
    """Images of a file. With a folder, they are kept there, and named relative to the file."""

    def __init__(self, file: Path, folder: Path | None = None) -> None:
        self._file, self._folder = file, None if folder is None else ImageFolder(folder)

    def entry(self, image: Image) -> dict[str, Any]:
        """Return the image as a struct of bytes and path; in a folder, of the path and, for verl, a `file://` address."""
        if self._folder is None:
            return {"bytes": image.data, "path": None}
        path = self._store_path(image)  # beside bytes, even null ones, verl reads no address
        return {"path": path, "image": f"file://{(self._file.parent / path).resolve()}"}

    @property
    def embeds(self) -> bool:
        """Whether the images stand in the file itself."""
        return self._folder is None

    def url(self, image: Image) -> str:
        """As a path, or a data URL where there is no folder."""
        if self._folder is not None:
            return self._store_path(image)
        kind = {".jpg": "jpeg", ".tif": "tiff"}.get(ending := extension(image.data), ending[1:])
        return f"data:image/{kind};base64,{base64.b64encode(image.data).decode()}"

    def _store_path(self, image: Image) -> str:
        assert self._folder is not None
        return os.path.relpath(self._folder.store_image(image), self._file.parent)
