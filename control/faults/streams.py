"""Open-loop streams of a scenario: which ones (pure, seeded), sending them once each, and hanging up on some.

Prompts are token ids, so that their lengths are exact on any model. Clients retry nothing. Each request carries an id
of its own, by which its record is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from control.faults.scenario import Traffic
from control.traffic.client import Outcome, exchange

#: Ids that are ordinary tokens of every model that we serve.
FIRST_TOKEN: Final = 10
NUM_TOKENS: Final = 240
API_KEY: Final = "phaseline-faults"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One request of the plan; `at_s` after the start."""

    index: int
    at_s: float
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int


def plan_streams(traffic: Traffic, salt: str = "") -> tuple[Stream, ...]:
    """The same for the same traffic and salt, always. Another salt gives prompts that nobody has in a cache."""
    rng = random.Random(f"{traffic.seed}/{salt}")
    prefix = _tokens(rng, traffic.prefix_tokens)
    found = []
    for index in range(traffic.streams):
        prompt = _tokens(rng, rng.randint(*traffic.prompt_tokens))
        if prefix and rng.random() < traffic.prefix_share:
            prompt = prefix + prompt
        num_output = rng.randint(*traffic.output_tokens)
        stream = Stream(
            index=index, at_s=index / traffic.rate_rps, prompt=prompt, max_tokens=num_output, seed=rng.getrandbits(31)
        )
        found.append(stream)
    return tuple(found)


def _tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(FIRST_TOKEN + rng.randrange(NUM_TOKENS) for _ in range(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where streams go, and how they are marked."""

    gateway_url: str
    model_id: str
    run_id: str  # first part of every request id
    temperature: float
    timeout_s: float

    def request_id(self, index: int) -> str:
        return f"{self.run_id}-{index}"


class Streams:
    """Streams under way. `outcomes` fills as they end; those that we hung up on are in `cancelled`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.outcomes: dict[int, Outcome] = {}
        self.cancelled: set[int] = set()
        self._open: dict[int, asyncio.Task[None]] = {}

    @property
    def num_open(self) -> int:
        return len(self._open)

    async def send(self, plan: Sequence[Stream]) -> None:
        """Each at its time, whatever became of the others; until all have ended."""
        timeout = aiohttp.ClientTimeout(total=self.target.timeout_s)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            start_s = time.monotonic()
            for stream in plan:
                await asyncio.sleep(max(0.0, start_s + stream.at_s - time.monotonic()))
                self.begin(session, stream)
            await self.ended()

    def begin(self, session: aiohttp.ClientSession, stream: Stream) -> asyncio.Task[None]:
        outcome = self.outcomes[stream.index] = Outcome(index=stream.index, prompt_tokens=len(stream.prompt))
        task = asyncio.create_task(self._one(session, stream, outcome, time.monotonic()))
        self._open[stream.index] = task
        task.add_done_callback(lambda _: self._open.pop(stream.index, None))
        return task

    async def ended(self) -> None:
        """Until nothing is open."""
        if self._open:
            await asyncio.wait(list(self._open.values()))

    async def _one(self, session: aiohttp.ClientSession, stream: Stream, outcome: Outcome, scheduled_s: float) -> None:
        target = self.target
        body = {
            "model": target.model_id,
            "prompt": stream.prompt,
            "max_tokens": stream.max_tokens,
            "temperature": target.temperature,
            "seed": stream.seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"Authorization": f"Bearer {API_KEY}", "X-Request-Id": target.request_id(stream.index)}
        url = f"{target.gateway_url}/v1/completions"
        with contextlib.suppress(asyncio.CancelledError):
            await exchange(session, url, body, headers, outcome, scheduled_s, keep_text=True)

    def cancel(self, count: int, rng: random.Random) -> list[int]:
        """Hang up on `count` open streams, or on all there are; which ones."""
        chosen = rng.sample(sorted(self._open), min(count, len(self._open)))
        for index in chosen:
            self.cancelled.add(index)
            self._open[index].cancel()
        return sorted(chosen)
