"""An engine as a queue: it reads prompts one after the other and samples for many sequences at once, on a simulated clock."""

import asyncio
import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field

from arm_rl.plan import clock
from arm_rl.plan.step_time import EngineTimes

_CHUNK = 8192  # tokens of a prompt that vLLM reads in one pass, beside one token for each sequence that it samples


@dataclass(slots=True)
class _Prefill:
    """A prompt that waits to be read, or is."""

    seconds: float  # that are left
    read: "asyncio.Future[None]"


@dataclass(slots=True)
class Use:
    """Seconds of an engine, by what it did."""

    prefill: float = 0.0
    decode: float = 0.0
    bounds: dict[str, float] = field(default_factory=dict)  # of these: what bounded the sampling


class SimulatedEngine:
    """vLLM's continuous batching: each pass samples one token for every sequence; while prompts wait, it reads a chunk of them as well.

    So between two events all sequences advance at one rate, which follows from how many they are and how much context they hold.
    """

    def __init__(self, times: EngineTimes, *, max_sequences: int, cache_tokens: float) -> None:
        """`cache_tokens` that the key-value cache holds: a sequence waits where they are not free."""
        self.use = Use()
        self._times, self._max_sequences, self._cache_tokens = times, max_sequences, max(cache_tokens, 1.0)
        self._chunk_seconds = times.prefill(_CHUNK, 0, _CHUNK)
        self._reading: deque[_Prefill] = deque()
        # heap: progress at its end, its context at the end
        self._sampling: list[tuple[float, int, float, asyncio.Future[None]]] = []
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._numbers = itertools.count()
        self._progress = 0.0  # tokens that a sequence would have got that was always there
        self._context = 0.0  # tokens of all sequences
        self._held, self._num_held = 0.0, 0
        self._updated = 0.0
        self._rates = (0.0, 0.0)  # of reading, and of sampling
        self._timer: asyncio.TimerHandle | None = None
        self._awake = asyncio.Event()
        self._awake.set()

    async def turn(
        self, new_tokens: float, image_tokens: float, context: float, num_tokens: float, own_tokens: float
    ) -> None:
        """Reads `new_tokens` after a context, and samples `num_tokens`; `own_tokens` of cache are this session's alone."""
        await self._awake.wait()
        own = min(own_tokens, self._cache_tokens)
        await self._admitted(own)
        try:
            read: asyncio.Future[None] = clock.loop().create_future()
            self._advance()
            self._reading.append(_Prefill(self._times.prefill(new_tokens, image_tokens, context), read))
            self._plan()
            await read
            sampled: asyncio.Future[None] = clock.loop().create_future()
            self._advance()
            held = context + new_tokens + num_tokens / 2
            self._context += held
            heapq.heappush(self._sampling, (self._progress + num_tokens, next(self._numbers), held, sampled))
            self._plan()
            await sampled
        finally:
            self._release(own)

    def read_again(self) -> None:
        """The caches were emptied: the contexts of all running sequences are computed anew."""
        if self._context:
            self._advance()
            self._reading.append(_Prefill(self._times.prefill(self._context, 0, 0), clock.loop().create_future()))
            self._plan()

    async def pause(self, seconds: float) -> None:
        """Nothing is read or sampled for so long."""
        self._advance()
        self._rates = (0.0, 0.0)
        if self._timer is not None:
            self._timer.cancel()
        self._awake.clear()
        await asyncio.sleep(seconds)
        self._updated = clock.loop().time()
        self._awake.set()
        self._plan()

    async def _admitted(self, own: float) -> None:
        if self._waiting or self._num_held >= self._max_sequences or self._held + own > self._cache_tokens:
            place: asyncio.Future[None] = clock.loop().create_future()
            self._waiting.append((own, place))
            await place
            return
        self._held, self._num_held = self._held + own, self._num_held + 1

    def _release(self, own: float) -> None:
        self._held, self._num_held = self._held - own, self._num_held - 1
        while self._waiting:
            needed, place = self._waiting[0]
            if self._num_held and (self._num_held >= self._max_sequences or self._held + needed > self._cache_tokens):
                return
            self._waiting.popleft()
            self._held, self._num_held = self._held + needed, self._num_held + 1
            place.set_result(None)

    def _advance(self) -> None:
        """Books what was done since the last event."""
        now = clock.loop().time()
        passed, self._updated = now - self._updated, now
        reading, sampling = self._rates
        if self._reading:
            self._reading[0].seconds -= passed * reading
            self.use.prefill += passed * reading
        if self._sampling and sampling:
            self._progress += passed * sampling
            spent = passed * (1 - reading)
            self.use.decode += spent
            bound = self._bound
            self.use.bounds[bound] = self.use.bounds.get(bound, 0.0) + spent

    def _plan(self) -> None:
        """Ends what is done, and sets the timer for what is done next."""
        if not self._awake.is_set():
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._reading and self._reading[0].seconds <= 1e-9:
            self._reading.popleft().read.set_result(None)
        while self._sampling and self._sampling[0][0] <= self._progress + 1e-6:
            _, _, held, sampled = heapq.heappop(self._sampling)
            self._context -= held
            if not sampled.done():
                sampled.set_result(None)
        step = 0.0
        if self._sampling:
            step, self._bound = self._times.decode(len(self._sampling), self._context)
        if self._reading:
            chunk = min(self._chunk_seconds, self._reading[0].seconds)
            self._rates = (chunk / (chunk + step), 1 / (chunk + step))
        else:
            self._rates = (0.0, 1 / step if step else 0.0)
        until = []
        if self._reading:
            until.append(self._reading[0].seconds / self._rates[0])
        if self._sampling:
            until.append((self._sampling[0][0] - self._progress) / self._rates[1])
        if until:
            self._timer = clock.loop().call_later(max(min(until), 0.0), self._on_time)

    def _on_time(self) -> None:
        self._advance()
        self._plan()
