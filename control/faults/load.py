"""A continuous load of known answers: a fixed number of streams is always open, and each is compared as it ends.

A stream that differs says how: cut short, gone on too long, or other text. Clients retry nothing. What we hung up on
must be the beginning of its answer.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import aiohttp

from control.faults.checks import REFUSED, first_difference
from control.faults.streams import Stream, Streams, Target
from control.traffic.client import Outcome
from control.traffic.report import fingerprint


@dataclass(slots=True)
class LoadTally:
    """What became of all streams so far. `problems` keeps the first few, in words."""

    num: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    max_gaps_s: list[float] = field(default_factory=list)

    def count(self, what: str, problem: str = "") -> None:
        self.num[what] += 1
        if problem and len(self.problems) < 10:
            self.problems.append(problem)

    @property
    def num_bad(self) -> int:
        return sum(self.num[each] for each in ("failed", "truncated", "repeated", "changed"))


def verdict(ours: Outcome, theirs: Outcome, *, is_cut: bool) -> tuple[str, str]:
    """One stream beside its undisturbed answer: (what, problem in words; "" when all is well)."""
    if is_cut:
        if theirs.text.startswith(ours.text):
            return "hung_up", ""
        return "changed", f"hung up on: {first_difference(ours.text, theirs.text)}"
    if ours.status == REFUSED:
        return "refused", ""
    if ours.error:
        return "failed", f"{ours.status} {ours.error}"
    if fingerprint(ours) == fingerprint(theirs):
        return "equal", ""
    told = first_difference(ours.text, theirs.text)
    if theirs.text.startswith(ours.text):
        return "truncated", told
    return ("repeated" if len(ours.text) > len(theirs.text) else "changed"), told


class Load:
    """`async with` nothing: `run` until `stop` is set. `streams` is there to hang up on."""

    def __init__(self, target: Target, plan: Sequence[Stream], num_open: int, seed: int) -> None:
        self.streams = Streams(target)
        self.tally = LoadTally()
        self.stop = asyncio.Event()
        self._plan = plan
        self._num_open = num_open
        self._rng = random.Random(seed)
        self._numbers = itertools.count()
        self._expected: Mapping[int, Outcome] = {}

    async def learn(self) -> None:
        """The undisturbed answers, a few at a time. Raises RuntimeError when one cannot be had."""
        known = Streams(replace(self.streams.target, run_id=f"{self.streams.target.run_id}.undisturbed"))
        await known.send([replace(each, at_s=0.05 * each.index) for each in self._plan])
        failed = [each for each in known.outcomes.values() if each.error]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(self._plan)} undisturbed streams failed: {failed[0].error}")
        self._expected = known.outcomes

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self.streams.target.timeout_s)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._client(session) for _ in range(self._num_open)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        """One after the other, each with the next number and an answer that is known."""
        while not self.stop.is_set():
            known, number = self._rng.choice(self._plan), next(self._numbers)
            sending = self.streams.begin(session, replace(known, index=number))
            await asyncio.wait([sending])
            if not sending.cancelled():  # else it was hung up on before it was sent
                sending.result()
            ours = self.streams.outcomes.pop(number)
            is_cut = number in self.streams.cancelled
            self.streams.cancelled.discard(number)
            what, problem = verdict(ours, self._expected[known.index], is_cut=is_cut)
            self.tally.count(what, problem and f"stream {number} (answer {known.index}): {problem}")
            if ours.gaps_s and what == "equal":
                self.tally.max_gaps_s.append(max(ours.gaps_s))
            if what == "refused":
                await asyncio.sleep(0.5)
