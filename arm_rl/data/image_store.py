"""Images of data files, from wherever they are: bytes, base64, files or URLs; and a folder that keeps each content once."""

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from arm_rl.core import http_clients, images
from arm_rl.core.atomic_file import replace_file
from arm_rl.core.images import Image, ImageError, open_image

_EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchLimits:
    """What a URL may cost. With `fetch` false, none is fetched."""

    fetch: bool = False
    max_bytes: int = 32 << 20
    timeout_seconds: float = 30.0
    max_redirects: int = 3


class ImageSource:
    """Reads the images that a data file names. Files may not lie outside of `root`, links followed."""

    def __init__(self, folder: Path, root: Path | None = None, limits: FetchLimits | None = None) -> None:
        """`folder` is that of the data file; paths are relative to it."""
        self._folder, self._root, self._limits = folder, root, limits or FetchLimits()
        self._client: httpx.Client | None = None
        self._fetched: tuple[str, bytes] = ("", b"")  # the last one: rows of one image often follow each other

    def read(self, entry: Any) -> Image:
        """An image, checked, given as bytes, a path, a URL, or a dictionary with one of them (`bytes`, `path`, `url`).

        Raises:
            ImageError: it cannot be read.
        """
        if isinstance(entry, dict):
            entry = entry.get("bytes") or entry.get("url") or entry.get("path") or entry.get("image")
        if isinstance(entry, bytes):
            data = entry
        elif isinstance(entry, str) and entry.startswith("data:"):
            data = _decode_data_url(entry)
        elif isinstance(entry, str) and entry.startswith(("http://", "https://")):
            data = self._fetch(entry)
        else:
            path = entry.removeprefix("file://") if isinstance(entry, str) else entry
            data, _ = images.read_entry({"path": path}, self._folder, self._root)
        images.check(data)
        return Image.from_bytes(data)

    def _fetch(self, url: str) -> bytes:
        limits = self._limits
        if not limits.fetch:
            raise ImageError(f"{url:.200}: URLs are fetched with --fetch only")
        if self._fetched[0] == url:
            return self._fetched[1]
        if self._client is None:
            self._client = http_clients.make_client(
                retries=2,
                timeout=limits.timeout_seconds,
                follow_redirects=True,
                max_redirects=limits.max_redirects,
            )
        data = bytearray()
        try:
            with self._client.stream("GET", url) as response:
                response.raise_for_status()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > limits.max_bytes:
                        raise ImageError(f"{url:.200}: more than {limits.max_bytes} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ImageError(
                f"{url:.200}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            ) from error
        self._fetched = url, bytes(data)
        return bytes(data)


def _decode_data_url(url: str) -> bytes:
    head, _, body = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not base64")
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ImageError(f"the data URL {url[:40]!r}… cannot be read: {error}") from error


def extension(data: bytes) -> str:
    """The file name's ending that fits an image's format, such as `.png`."""
    return _EXTENSIONS.get(open_image(data).format or "", ".img")


class ImageFolder:
    """Keeps images as files named by their content, so that each is there once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store_image(self, image: Image) -> Path:
        """Store an image and return its file."""
        path = self.folder / f"{image.key}{extension(image.data)}"
        if not path.exists():
            with replace_file(path) as temporary:
                temporary.write_bytes(image.data)
        return path
