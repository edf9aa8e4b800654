"""A bounded load whose tokens its clients count: by the answers' own `usage`, which is what was asked and answered.

Decided here: that no two prompts begin alike, so that none is cached, and that each client asks anew when its answer
has ended: a slow system gets less, and nothing is under way at the end.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from _streams import prompts
from control.traffic.client import Outcome, exchange

SENTENCES = (4, 8, 14)  # of a prompt, in turn
LIMIT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSize:
    num_clients: int
    num_each: int
    answer_tokens: int


def counted_load(url: str, model: str, size: LoadSize) -> list[Outcome]:
    """All that was asked, in order; what failed has its `error`."""
    return asyncio.run(_asked(url, model, size))


async def _asked(url: str, model: str, size: LoadSize) -> list[Outcome]:
    texts = _texts(size.num_clients * size.num_each)
    outcomes = [Outcome(index=index) for index in range(len(texts))]

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        for index in range(number, len(texts), size.num_clients):
            body, begun_s = _body(model, texts[index], size.answer_tokens), time.monotonic()
            await exchange(session, f"{url}/v1/completions", body, {}, outcomes[index], begun_s, keep_text=False)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as session:
        await asyncio.gather(*(client(number, session) for number in range(size.num_clients)))
    return outcomes


def _texts(count: int) -> list[str]:
    """Of mixed lengths; the number first, so that not even a first block of a few tokens is shared."""
    salt = time.monotonic_ns()
    lengths = (SENTENCES[index % len(SENTENCES)] for index in range(count))
    return [prompts(f"{index} {salt}", 1, (length,))[0] for index, length in enumerate(lengths)]


def _body(model: str, prompt: str, answer_tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": answer_tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
