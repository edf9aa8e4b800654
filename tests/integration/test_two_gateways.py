"""Two gateways in front of one busy worker: each counts its own requests, sees the other's work, is served alike."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "engine"))
sys.path.append(str(Path(__file__).resolve().parents[1] / "control" / "gateway"))

from fronts import LOCAL, Front, front, open_when_loaded
from gateway_builders import until
from worker_client import LIMIT_S
from worker_process import WorkerProcess, paced_config, running

from control.traffic_stats import TrafficStats
from control.types.requests import Slo
from control.types.workers import Role
from engine.text import SeededText

pytestmark = pytest.mark.integration
MODEL = "llama-70b"
NUM_CLIENTS = 12
NUM_REQUESTS = 300


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[list[Front]]:
    """Two gateways, and a mixed worker that runs four requests at a time and queues four more."""
    config = paced_config(tmp_path / "shm", "w-0", max_batch=4, max_queue=4)
    async with contextlib.AsyncExitStack() as stack:
        process: WorkerProcess = stack.enter_context(running(config))
        order = await open_when_loaded(process.addresses[0])
        await order.place(Role.MIXED)
        fronts = [await stack.enter_async_context(front(SeededText(128_256), MODEL, [process])) for _ in range(2)]
        for each in fronts:
            each.take(LOCAL)
            links = each.gateway.fleet.links.values()
            await until(lambda links=links: all(link.is_ready for link in links), LIMIT_S)
        yield fronts
        order.close()


class Users:
    """Clients of one gateway that ask again as soon as they have an answer."""

    def __init__(self, place: Front, first_number: int) -> None:
        self.num_served = 0
        self._place = place
        self._number = first_number
        self._tasks = [asyncio.create_task(self._ask_on()) for _ in range(NUM_CLIENTS)]

    async def _ask_on(self) -> None:
        while True:
            await self._place.ask(self._number % 5, max_tokens=20)
            self.num_served += 1

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_gateways_with_equal_load_are_served_alike(pair: list[Front]) -> None:
    users = [Users(place, at) for at, place in enumerate(pair)]
    await until(lambda: sum(each.num_served for each in users) >= NUM_REQUESTS, LIMIT_S)
    served = [each.num_served for each in users]
    await asyncio.gather(*(each.end() for each in users))
    assert min(served) >= 0.4 * NUM_REQUESTS, served


async def test_a_request_is_counted_once_by_the_gateway_that_served_it(pair: list[Front]) -> None:
    await asyncio.gather(
        *[place.ask(number) for place, count in zip(pair, (3, 5), strict=True) for number in range(count)]
    )
    records = [place.gateway.records.batch_from(0)[1] for place in pair]
    assert [len(each) for each in records] == [3, 5]
    assert [place.gateway.admission.num_completed for place in pair] == [3, 5]
    stats = TrafficStats(Slo())
    for record in (one for own in records for one in own):
        stats.add(record)
    newest = max(record.arrival_unix_s for own in records for record in own)
    assert round(stats.status(newest + 1.0).offered_rps * 60.0) == 8  # type: ignore[operator]


async def test_a_gateway_sees_the_load_that_the_other_one_brought(pair: list[Front]) -> None:
    idle, busy = pair
    asking = [asyncio.create_task(busy.ask(number, max_tokens=400)) for number in range(4)]
    (link,) = idle.gateway.fleet.links.values()
    await until(lambda: link.pressure.load.num_running == 4, LIMIT_S)
    assert link.view().kv_used_tokens > 0
    assert not link.legs
    await asyncio.gather(*asking)
    await until(lambda: link.pressure.load.num_running == 0, LIMIT_S)
