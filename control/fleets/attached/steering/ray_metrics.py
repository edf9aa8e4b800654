"""The pages of Ray's metrics agents, one a node, found by the dashboard's list for Prometheus, read within bounds.

Decided here: how often, how many and at what cost. What they say of whom is `ray_pages`. An agent that does not answer
is told and costs its replicas a look, nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from control.errors import FleetError
from control.fleets.attached.clients import own_client
from control.fleets.attached.engine_page import EnginePage
from control.fleets.attached.exposition import PageError
from control.fleets.attached.scraper import fetch_page
from control.fleets.attached.steering.calls import Caller
from control.fleets.attached.steering.ray_pages import NOTHING_YET, Seen, counting, lines_by_replica, page_of

#: Workers push every 10 s: so long after a push, at most, it is seen.
READ_EVERY_S: Final = 2.0
MAX_AGENTS: Final = 512
MAX_AT_ONCE: Final = 16


class RayMetrics:
    """`read` as often as one likes. `problem`: what the last reading lacked; "" when nothing."""

    def __init__(self, dashboard: Caller, now: Callable[[], float] = time.time) -> None:
        self.problem = ""
        self._dashboard = dashboard
        self._now = now
        self._read_unix_s = 0.0
        self._seen: dict[str, Seen] = {}
        self._client = own_client()

    async def read(self, workers: Mapping[str, str]) -> Mapping[str, Seen]:
        """What is known of each replica, and since when. Never raises. `workers`: their processes, ids of Ray."""
        now_unix_s = self._now()
        if now_unix_s - self._read_unix_s < READ_EVERY_S:
            return self._seen
        self._read_unix_s = now_unix_s
        try:
            texts, problems = await self._texts()
        except FleetError as error:
            self.problem = f"the list of its metrics agents: {error.detail}"
            return self._seen
        replica_of = {worker: replica for replica, worker in workers.items()}
        pages, refused = await asyncio.to_thread(_pages, texts, replica_of)
        self.problem = "; ".join([*problems, *refused][:3])
        if pages and not self.problem:  # its engines say what they do, so one that says nothing has done nothing
            pages = {name: NOTHING_YET for name in workers if name not in self._seen} | pages
        new = counting(pages, self._seen, now_unix_s)
        self._seen = {name: each for name, each in self._seen.items() if name in workers} | new
        return self._seen

    async def close(self) -> None:
        await self._client.aclose()

    async def _texts(self) -> tuple[list[str], list[str]]:
        """The agents' pages, and why some are missing. Raises FleetError."""
        groups = await self._dashboard.array("/api/prometheus/sd")
        listed = [each for group in groups for each in group.get("targets") or () if isinstance(each, str)]
        if len(listed) > MAX_AGENTS:
            raise FleetError(f"{len(listed)} of them are listed, {MAX_AGENTS} at most are read")
        gate = asyncio.Semaphore(MAX_AT_ONCE)

        async def fetched(address: str) -> str | PageError:
            async with gate:
                try:
                    return await fetch_page(self._client, f"http://{address}/metrics")
                except PageError as error:
                    return error

        found = await asyncio.gather(*map(fetched, dict.fromkeys(listed)))
        texts = [each for each in found if isinstance(each, str)]
        return texts, [each.detail for each in found if isinstance(each, PageError)]


def _pages(texts: list[str], replica_of: Mapping[str, str]) -> tuple[dict[str, EnginePage], list[str]]:
    """Those that are not empty, by replica, and what was wrong with others."""
    pages: dict[str, EnginePage] = {}
    problems: list[str] = []
    for name, lines in lines_by_replica(texts, replica_of).items():
        try:
            page = page_of(lines)
        except PageError as error:
            problems.append(f"{name}: {error.detail}")
            continue
        if page.has_anything:
            pages[name] = page
    return pages, problems
