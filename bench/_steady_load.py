"""Streams that never cease: as many as asked for are open at any time, each with a prompt of its own; and probes.

Decided here: what is open, and whether an answer is that of the same request on an undisturbed fleet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from _streams import Heard, listen, prompts
from control.types.workers import Role

PROBE_EVERY_S = 0.03
MOST_REFUSALS = 100
MOST_KEYS = 300  # answers that are asked for again, to compare
PROBE_TOKENS = 12  # more than routing keeps on a decode worker


@dataclass(frozen=True, slots=True)
class Asked:
    prompt: str
    heard: Heard


class SteadyLoad:
    """`async with` it: the streams run inside, and have ended after it."""

    def __init__(
        self, url: str, model_id: str, *, num_streams: int, max_tokens: int, contexts: tuple[int, ...], limit_s: float
    ) -> None:
        """`contexts`: how often the prompts repeat a sentence, in turn."""
        self.asked: list[Asked] = []
        self._model_id = model_id
        self._num_streams = num_streams
        self._max_tokens = max_tokens
        self._contexts = contexts
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=url, timeout=limit_s, limits=limits)
        self._is_over = False
        self._slots: list[asyncio.Task[None]] = []
        self._num_probes = 0

    async def __aenter__(self) -> SteadyLoad:
        self._slots = [asyncio.create_task(self._slot(each)) for each in range(self._num_streams)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._slots)

    async def _slot(self, number: int) -> None:
        await asyncio.sleep(0.05 * number)  # so that they do not end together
        texts = prompts(f"Slot {number}", 1000, self._contexts)
        for text in texts[number % len(self._contexts) :]:
            if self._is_over:
                return
            heard = await self._ask(text)
            if heard.is_refused:
                await asyncio.sleep(1.0)

    async def _ask(self, prompt: str) -> Heard:
        self.asked.append(Asked(prompt, Heard()))
        heard = self.asked[-1].heard
        await listen(self._client, self._model_id, prompt, self._max_tokens, heard)
        return heard

    async def _ask_until_admitted(self, prompt: str) -> Heard:
        for _ in range(MOST_REFUSALS):
            heard = await self._ask(prompt)
            if not heard.problem:
                return heard
            await asyncio.sleep(1.0)
        raise SystemExit(f"the undisturbed fleet did not answer: {heard.problem}")

    async def num_different(self, key: Callable[[Asked], object]) -> tuple[int, int]:
        """How many answers were compared with the undisturbed one of the same key, and how many differ from it.

        Of at most MOST_KEYS keys, evenly over the run. Call it when nothing is open."""
        asked, self.asked = self.asked, []
        by_key: dict[object, list[Asked]] = {}
        for each in asked:
            if not each.heard.problem:
                by_key.setdefault(key(each), []).append(each)
        chosen = list(by_key.values())[:: -(-len(by_key) // MOST_KEYS) or 1]
        different = 0
        for first in range(0, len(chosen), self._num_streams):
            group = chosen[first : first + self._num_streams]
            expected = await asyncio.gather(*(self._ask_until_admitted(each[0].prompt) for each in group))
            for same, heard in zip(group, expected, strict=True):
                different += sum(each.heard.text != heard.text for each in same)
        self.asked = asked
        await self._client.aclose()
        return sum(map(len, chosen)), different

    # --- probes ----------------------------------------------------------------------------------------------------

    async def first_token_unix_s(self, worker_id: str, role: Role, since_unix_s: float, limit_s: float) -> float:
        """When this worker, since then prefill or decode worker, first gave anybody a token as such.

        So that there is somebody, short requests are sent in close succession until then.
        """
        deadline_s = time.monotonic() + limit_s
        heard = [each.heard for each in self.asked if each.heard.problem or each.heard.num_chunks < 2]
        probes: list[asyncio.Task[None]] = []
        known = len(self.asked)
        while time.monotonic() < deadline_s:
            heard.append(Heard())
            probes.append(asyncio.create_task(self._probe(heard[-1])))
            await asyncio.sleep(PROBE_EVERY_S)
            heard += [each.heard for each in self.asked[known:]]
            known = len(self.asked)
            found = [at for each in heard if (at := first_token_of(each, worker_id, role, since_unix_s)) is not None]
            if found:
                await asyncio.gather(*probes)
                return min(found)
        raise SystemExit(f"{worker_id} gave no token as {role} worker within {limit_s:g} s")

    async def _probe(self, heard: Heard) -> None:
        self._num_probes += 1
        prompt = f"Probe {self._num_probes}: " + "name the colours that one sees in spring. " * 4
        await listen(self._client, self._model_id, prompt, PROBE_TOKENS, heard)


def first_token_of(heard: Heard, worker_id: str, role: Role, since_unix_s: float) -> float | None:
    """When this stream got its first token from the worker as a prefill worker, or as a decode worker."""
    prefills, decodes = f"prefill={worker_id};" in heard.route, f"decode={worker_id};" in heard.route
    if prefills == decodes or prefills != (role is Role.PREFILL):
        return None
    number = 0 if prefills else 1  # a decode worker's first token is the stream's second
    times = heard.first_unix_s[number : number + 1]
    return times[0] if times and times[0] >= since_unix_s else None
