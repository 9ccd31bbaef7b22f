"""The judge's service as a reward in other trainers: TRL takes `trl_reward(URL)`, verl the functions `compute_score` and `compute_scores`.

The reward of an answer is the probability that it is right, as the judge says. This file wants nothing of the project but itself, so that
it can be copied into another trainer's environment, or be named by its path as verl does; httpx and Pillow are all that it imports.
"""

import base64
import functools
import io
import ipaddress
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

REFUSED = frozenset({413, 422})  # the service cannot judge this answer, and no other try would help
AGAIN = frozenset({429, 502, 503, 504})  # the service is busy, or begins: another try may be answered
LONGEST_WAIT = 10.0  # seconds between two tries

Picture = Image.Image | bytes | str | os.PathLike[str] | Mapping[str, Any]


class AnswerRefused(RuntimeError):
    """An answer that the service cannot judge, such as one that is too long for its judge; the message says why."""


class RewardClient:
    """Asks the service. Safe from several threads."""

    def __init__(
        self, url: str, *, token: str | None = None, concurrency: int = 32, timeout_seconds: float = 600.0
    ) -> None:
        """Prepares.

        Args:
            url: of the service, for example http://localhost:8000.
            token: that the service asks for.
            concurrency: answers that are judged at a time.
            timeout_seconds: of one judgment, tries included.
        """
        self._timeout = timeout_seconds
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="rewards")
        headers = {"Authorization": f"Bearer {token}"} if token else None
        limits = httpx.Limits(max_connections=None)
        direct = httpx.HTTPTransport(limits=limits) if _is_in_cluster(httpx.URL(url).host) else None
        self._client = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_seconds, limits=limits, transport=direct
        )

    def reward(self, question: str, answer: str, images: Sequence[Picture] = ()) -> float | None:
        """The probability that the answer is right; None where the judge gives no judgment.

        Raises:
            AnswerRefused: If the service cannot judge the answer.
            RuntimeError: If the service refuses the client, or failed until the timeout.
            httpx.HTTPError: If the service does not answer in time.
        """
        # half of a surrogate pair cannot be sent
        question, answer = (text.encode("utf-8", "replace").decode() for text in (question, answer))
        body = {"question": question, "answers": [answer], "images": [_encode_image(image) for image in images]}
        deadline, wait = time.monotonic() + self._timeout, 0.5
        while True:
            response = self._client.post("/v1/judge", json=body)
            if response.status_code not in AGAIN or time.monotonic() + wait > deadline:
                break
            time.sleep(wait * random.uniform(0.5, 1.0))  # not all of a batch at once
            wait = min(2 * wait, LONGEST_WAIT)
        if response.status_code != httpx.codes.OK:
            kind = AnswerRefused if response.status_code in REFUSED else RuntimeError
            raise kind(f"{response.url}: {response.status_code}: {response.text[:2000]}")
        verdict = response.json()
        if verdict["choice"] is None:
            return None
        return verdict["confidence"] if verdict["choice"] else 1.0 - verdict["confidence"]

    def rewards(self, asked: Sequence[tuple[str, str, Sequence[Picture]]]) -> list[float | None]:
        """Return the rewards of many questions, answers and their images, in order.

        At most `concurrency` answers are judged at a time. An answer that the service cannot judge has None and a warning
        in the log; the others keep their rewards.
        """

        def reward(one: tuple[str, str, Sequence[Picture]]) -> float | None:
            try:
                return self.reward(*one)
            except AnswerRefused as error:
                logger.warning("an answer has no reward: %s", error)
                return None

        return list(self._pool.map(reward, asked))

    def close(self) -> None:
        """Closes the connections."""
        self._pool.shutdown()
        self._client.close()


def trl_reward(url: str, **settings: Any) -> Callable[..., list[float | None]]:
    """A function for `reward_funcs` of TRL's trainers: `GRPOTrainer(reward_funcs=trl_reward("http://localhost:8000"), …)`.

    Prompts and completions may be texts or messages. The question is the last thing that the user says; images come from the data's column
    `images` or `image`. An answer without a judgment, or one that the service cannot judge, has no reward (None), which
    TRL leaves out.
    """
    client = RewardClient(url, **settings)

    def judge(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        images = columns.get("images") or [
            [one] if one is not None else [] for one in columns.get("image") or [None] * len(prompts)
        ]
        said = zip(prompts, completions, images, strict=True)
        return client.rewards(
            [
                (_last_text(prompt, "user"), _last_text(completion, "assistant"), shown or ())
                for prompt, completion, shown in said
            ]
        )

    return judge


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str,
    **settings: Any,
) -> float:
    """verl's custom reward function, for one answer. The row's `extra_info` holds `question`, and `images` where there are any.

    In verl's configuration: `custom_reward_function.path=…/reward_client.py`, `.name=compute_score`, `.reward_kwargs={url: …}`. An answer
    without a judgment, or one that the service cannot judge, has 0.5.
    """
    settings = {name: value for name, value in settings.items() if name in ("token", "concurrency", "timeout_seconds")}
    return compute_scores([data_source], [solution_str], [ground_truth], [extra_info], url=url, **settings)[0]


def compute_scores(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    url: str,
    **settings: Any,
) -> list[float]:
    """The same for verl's reward manager `batch`: all answers of a batch at once."""
    asked = []
    for solution, info in zip(solution_strs, extra_infos, strict=True):
        if not info or "question" not in info:
            raise ValueError("extra_info: the judge needs the row's question there (and its images, where it has any)")
        shown = [] if info.get("images") is None else list(info["images"])
        num_places = info["question"].count("<image>")
        if num_places not in (0, len(shown)):
            raise ValueError(
                f"extra_info: the question has {num_places} <image> for {len(shown)} images: "
                "the row's images are needed in extra_info.images, which verl hands to reward functions"
            )
        asked.append((info["question"], solution, shown))
    rewards = _shared_client(url, tuple(sorted(settings.items()))).rewards(asked)
    return [0.5 if reward is None else reward for reward in rewards]


@functools.cache
def _shared_client(url: str, settings: tuple[tuple[str, Any], ...]) -> RewardClient:
    """Return the process's client for a URL: its connections are kept."""
    return RewardClient(url, **dict(settings))


def _is_in_cluster(host: str) -> bool:
    """Return whether a service is on this machine or in its private network, so that no proxy leads to it."""
    if not set(host) & {".", ":"} or host.endswith((".localhost", ".local", ".internal", ".svc")):
        return True
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):  # a name that only the proxy can resolve
        return False
    return not any(ipaddress.ip_address(address).is_global for address in found)


def _last_text(said: Any, role: str) -> str:
    """Return a text as it is, or the text of the last message of that role."""
    if isinstance(said, str):
        return said
    content = next((message["content"] for message in reversed(said) if message["role"] == role), "") or ""
    return content if isinstance(content, str) else "".join(part.get("text") or "" for part in content)


def _encode_image(picture: Picture) -> str:
    """Return an image as base64."""
    if isinstance(picture, Mapping):  # Hugging Face's and verl's way to keep an image in a row
        return _encode_image(picture.get("bytes") or picture["path"])
    if isinstance(picture, Image.Image):
        picture = _encode_pixels(ImageOps.exif_transpose(picture))
    data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    return base64.b64encode(data).decode()


def _encode_pixels(picture: Image.Image) -> bytes:
    """Return an image as PNG, or as TIFF in modes that PNG lacks: the service converts these as it does files."""
    near = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA", "HSV": "RGB", "YCbCr": "RGB", "CMYK": "RGB", "RGBX": "RGB"}
    picture = picture.convert(near.get(picture.mode, picture.mode))
    in_png = picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG" if in_png else "TIFF")
    return buffer.getvalue()
