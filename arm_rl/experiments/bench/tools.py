"""How fast the tools are: called directly, one call after the other, and through an executor by many sessions at once."""

import asyncio
import io
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ray
from PIL import Image as PILImage
from PIL import ImageDraw
from rich.table import Table

from actors.tool_executor import ToolExecutor, ToolPool
from arm_rl.core.config import ToolsConfig
from arm_rl.core.images import Image
from arm_rl.core.session import Memory
from arm_rl.core.types import ToolCall
from arm_rl.experiments.bench.benchmark import medians
from tools import load_tools
from tools.base import Tool, ToolContext

SIZE = (1024, 768)  # pixels of the image
PARAGRAPHS = 6  # of the text
PARAGRAPH = (
    "The tower was built in 1889, e.g. for the fair, and stands 330.0 m tall. Dr. Smith counted 2,500,000 rivets; 7.5% of them were new. "
    "Was it worth it? Most visitors say so! The rest went home early because of the rain, the queue and the price of the lift."
)

# Arguments by their names: every tool finds its own.
ARGUMENTS: dict[str, Any] = {
    "image": "original_image",
    "bbox_2d": [250, 250, 750, 750],
    "response": "text_0",
    "lower_bound": 1,
    "upper_bound": 1000,
    "lower_bound_times": 0,
    "upper_bound_times": 10,
    "ranges": [[1, 100]] * PARAGRAPHS,
    "substring": "the",
    "substrings": ["elephant", "giraffe"],
    "keywords": ["tower", "rain"],
    "precision": 1,
    "code": "print(1 + 1)",
}


@dataclass(frozen=True, kw_only=True)
class CallSpeed:
    """Speed of one tool that is called in one way."""

    rate: float  # calls a second
    p50_ms: float  # of a call, waiting included
    p99_ms: float

    @classmethod
    def of(cls, seconds: list[float], total: float) -> "CallSpeed":
        """Return the speed of calls that took `seconds` each and `total` seconds together."""
        ordered = sorted(seconds)
        return cls(
            rate=len(ordered) / total,
            p50_ms=1000 * ordered[len(ordered) // 2],
            p99_ms=1000 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        )


@dataclass(frozen=True, kw_only=True)
class ToolSpeed:
    """Speed of one tool, as medians over the repeats."""

    name: str
    isolation: str
    status: str  # of its calls: a call that failed is no measure
    direct: CallSpeed
    executor: CallSpeed
    ratio: float  # executor's rate over the direct one
    ratio_low: float  # smallest and ...
    ratio_high: float  # ... largest over the repeats


def measure(
    arguments: Mapping[str, Mapping[str, Any]], *, num_sessions: int, seconds: float, repeats: int, config: ToolsConfig
) -> Iterator[ToolSpeed]:
    """Measure each tool of the configuration, called directly and through an executor in turn.

    Args:
        arguments: of tools that `ARGUMENTS` does not serve, by the tool's name.
        num_sessions: that call at the same time; each of them at least once.
        seconds: of one measurement.
        repeats: measurements of each kind.
        config: of the one executor.
    """
    tools = load_tools(config.files)
    executor = ray.remote(ToolExecutor).options(num_cpus=0).remote(config)
    pool = ToolPool([executor], ray.get(executor.traits.remote()))
    try:
        for name, tool in tools.items():
            given = dict(arguments.get(name) or _arguments(tool))
            yield asyncio.run(
                _measure(tool, ToolCall(name=name, arguments=given), pool, num_sessions, seconds, repeats)
            )
    finally:
        ray.kill(executor)
        for tool in tools.values():
            tool.close()


def table(speeds: Sequence[ToolSpeed]) -> Table:
    """Return a table for the terminal."""
    shown = Table(
        "tool", "runs in", "status", "direct /s", "p50 ms", "p99 ms", "executor /s", "p50 ms", "p99 ms", "ratio"
    )
    for tool in speeds:
        numbers = [*asdict(tool.direct).values(), *asdict(tool.executor).values()]
        ratio = f"{tool.ratio:.2f} ({tool.ratio_low:.2f} to {tool.ratio_high:.2f})"
        shown.add_row(tool.name, tool.isolation, tool.status, *(f"{number:.4g}" for number in numbers), ratio)
    return shown


async def _measure(
    tool: Tool, call: ToolCall, pool: ToolPool, num_sessions: int, seconds: float, repeats: int
) -> ToolSpeed:
    statuses = {(await pool(call, _memory())).status, _direct(tool, call, 0)[1]}  # the first calls load what they need
    await _through(pool, call, num_sessions, 0)
    pairs = [
        (_direct(tool, call, seconds)[0], await _through(pool, call, num_sessions, seconds)) for _ in range(repeats)
    ]
    ratios = [through.rate / direct.rate for direct, through in pairs]
    return ToolSpeed(
        name=tool.name,
        isolation=tool.execution.isolation,
        status="/".join(sorted(statuses)),
        direct=_median([direct for direct, _ in pairs]),
        executor=_median([through for _, through in pairs]),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
    )


def _direct(tool: Tool, call: ToolCall, seconds: float) -> tuple[CallSpeed, str]:
    memory = _memory()
    context = ToolContext(
        session=memory.session, images=memory.images, texts=memory.texts, image_names=list(memory.images)
    )
    taken: list[float] = []
    started, status = time.perf_counter(), ""
    while not taken or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        status = tool.call(call.arguments, context).status
        taken.append(time.perf_counter() - begun)
    speed = CallSpeed.of(taken, time.perf_counter() - started)
    tool.release(memory.session)
    return speed, status


async def _through(pool: ToolPool, call: ToolCall, num_sessions: int, seconds: float) -> CallSpeed:
    """Measure sessions that call again as soon as they are answered."""
    taken: list[float] = []
    started = time.perf_counter()

    async def session() -> None:
        memory = _memory()
        while True:
            begun = time.perf_counter()
            await pool(call, memory)
            taken.append(time.perf_counter() - begun)
            if time.perf_counter() - started >= seconds:
                return await pool.release(memory)

    await asyncio.gather(*(session() for _ in range(num_sessions)))
    return CallSpeed.of(taken, time.perf_counter() - started)


def _median(speeds: list[CallSpeed]) -> CallSpeed:
    return CallSpeed(**medians([asdict(speed) for speed in speeds]))


def _arguments(tool: Tool) -> dict[str, Any]:
    return {name: ARGUMENTS[name] for name in tool.schema["function"]["parameters"].get("required", [])}


def _memory() -> Memory:
    return Memory(images={"original_image": _IMAGE}, texts={"text_0": "\n\n".join([PARAGRAPH] * PARAGRAPHS)})


def _picture() -> Image:
    """Return an image as large and smooth as a photograph, with some lines of text."""
    picture = PILImage.linear_gradient("L").resize(SIZE).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for line in range(8):
        draw.text((60, 60 + 80 * line), f"Line {line}: the quick brown fox, {line * 37}", fill="black", font_size=36)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=90)
    return Image.from_bytes(buffer.getvalue())


_IMAGE = _picture()
