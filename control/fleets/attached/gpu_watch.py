"""Looks at the dcgm-exporters of one fleet, again and again: what its GPUs measure, worker by worker.

As with engines, each exporter costs only itself, and one that does not answer three looks in a row is not known: its
GPUs then have no value, which is not 0. Whose GPU is whose is `gpu_join`; what a page says is `gpu_page`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import httpx

from control.errors import CommandRefused
from control.fleets.attached.exposition import PageError
from control.fleets.attached.gpu_join import gpus_of, joined, sharers, unknown_names
from control.fleets.attached.gpu_page import Gpu, GpuPage, read_gpus
from control.fleets.attached.scraper import SILENT_LOOKS, fetch_page
from control.fleets.attached.targets import MAX_TARGETS, make_target
from control.types.workers import Role
from engine.readings import DeviceReading


def exporter_urls(texts: Sequence[str]) -> tuple[str, ...]:
    """Of their pages. Raises CommandRefused."""
    urls = tuple(dict.fromkeys(make_target(each, Role.MIXED.value).url for each in texts))
    if len(urls) > MAX_TARGETS:
        raise CommandRefused(
            f"{len(urls)} exporters", field="gpu_metrics", value=len(urls), bound=f"at most {MAX_TARGETS}"
        )
    return urls


async def look_at(client: httpx.AsyncClient, url: str) -> GpuPage:
    """One exporter. Raises PageError."""
    text = await fetch_page(client, url)
    page = await asyncio.to_thread(read_gpus, text, urlsplit(url).hostname or "")
    if not page.gpus:
        raise PageError(f"{url} has no series of dcgm-exporter")
    return page


class ExporterWatch:
    """One exporter. `page` is None while it is not known."""

    def __init__(self, url: str, every_s: float, now: Callable[[], float] = time.time) -> None:
        self.url = url
        self.problem = "not looked at yet"
        self.page: GpuPage | None = None
        self.at_unix_s = 0.0
        self._every_s = every_s
        self._now = now
        self._num_failed = 0

    async def look(self, client: httpx.AsyncClient) -> None:
        """Once. Never raises: a failure is in `problem`."""
        asked_unix_s = self._now()
        try:
            self.page = await look_at(client, self.url)
        except PageError as error:
            self.problem, self._num_failed = error.detail, self._num_failed + 1
            if self._num_failed >= SILENT_LOOKS:
                self.page = None
            return
        self.at_unix_s, self.problem, self._num_failed = asked_unix_s, "", 0

    async def run(self, client: httpx.AsyncClient) -> None:
        await asyncio.sleep(random.random() * min(1.0, self._every_s))
        while True:
            begun_s = time.monotonic()
            await self.look(client)
            await asyncio.sleep(max(0.05, self._every_s - (time.monotonic() - begun_s)))


class GpuWatch:
    """All exporters of one fleet."""

    def __init__(self, urls: Sequence[str], every_s: float, now: Callable[[], float] = time.time) -> None:
        self.exporters = [ExporterWatch(url, every_s, now) for url in urls]
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, client: httpx.AsyncClient) -> None:
        self._tasks = [asyncio.create_task(each.run(client), name=f"gpus {each.url}") for each in self.exporters]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def problems(self) -> tuple[str, ...]:
        """Exporters that are not known, and values that were refused."""
        pages = [each.page for each in self.exporters if each.page is not None]
        refused = [one.series for page in pages for one in page.findings if one.state == "refused"]
        return tuple(f"GPUs: {each}" for each in (*(one.problem for one in self.exporters if not one.page), *refused))

    def readings(
        self, roles: Mapping[str, Role], said: Mapping[str, tuple[str, ...]], now_unix_s: float
    ) -> tuple[DeviceReading, ...]:
        """One for each worker of `roles`; none where the fleet has no exporters. `said`: of its GPUs, by worker."""
        if not self.exporters:
            return ()
        known = [each for each in self.exporters if each.page is not None]
        gpus = [gpu for each in known for gpu in (each.page.gpus if each.page else ())]
        at_unix_s = min((each.at_unix_s for each in known), default=now_unix_s)
        of_each = {worker_id: gpus_of(worker_id, said.get(worker_id, ()), gpus) for worker_id in roles}
        shared = sharers(of_each)
        return tuple(
            joined(
                worker_id,
                role,
                of_each[worker_id],
                at_unix_s,
                note=self._why_incomplete(said.get(worker_id, ()), of_each[worker_id], gpus),
                others=shared[worker_id],
            )
            for worker_id, role in roles.items()
        )

    def _why_incomplete(self, names: Sequence[str], own: Sequence[Gpu], gpus: Sequence[Gpu]) -> str:
        """ "" where all is there that should be."""
        lacking = unknown_names(names, gpus)
        away = [each.problem for each in self.exporters if each.page is None]
        if lacking:
            return "; ".join((f"no exporter tells of {', '.join(lacking[:4])}", *away[:1]))
        if not own:
            return "; ".join(("no GPU is said to be its, and none is of a pod that is named as it is", *away[:1]))
        return ""
