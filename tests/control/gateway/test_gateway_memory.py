"""A gateway keeps nothing of requests that have ended and of workers that have left, however many there were."""

from __future__ import annotations

import asyncio
from collections import Counter

from gateway_builders import LOCAL_ALWAYS, House, house, until

from control.gateway.null_worker import NullConfig, NullWorker
from engine.text import ModelText
from engine.types import Role, WorkerState
from tests.control.containers import kept

NAMES = ("m0", "m1", "m2")
#: Counts by what was seen, of few kinds: one more kind may come late. How many of a round's requests a drain still
#: met (`seen`), and to which of two workers they went (`to_workers`), is chance; departures themselves are counted.
KINDS = ("stall_buckets", "num_by_kind", "notice_buckets", "by_rule", "seen", "to_workers")


def config(text: ModelText, worker_id: str) -> NullConfig:
    tokens = tuple(text.encode("Paris is the capital of France. "))
    return NullConfig(worker_id=worker_id, role=Role.DECODE, tokens=tokens, step_s=0.005, block_tokens=4)


async def a_round(place: House, text: ModelText) -> None:
    """Requests are moved, hung up on, and served to their end; then their worker comes back as another process."""
    links = place.gateway.fleet.links
    moved = [asyncio.create_task(place.events(max_tokens=80)) for _ in range(6)]
    left = [asyncio.create_task(place.events(max_tokens=400)) for _ in range(2)]
    relays = place.gateway.admission.in_flight
    await until(lambda: len(relays) == 8 and all(each.tokens for each in relays.values()))
    place.workers[0].set_state(WorkerState.DRAINING, leaves_decode=True)
    for each in left:
        each.cancel()
    await asyncio.gather(*moved)
    await until(lambda: not relays)
    before, place.workers[0] = place.workers[0], NullWorker(config(text, "m0"))
    place.addresses[0] = await place.workers[0].start()
    place.retable(policy=LOCAL_ALWAYS)
    await before.close()
    await until(lambda: all(link.is_connected for link in links.values()))
    first, records = place.gateway.records.waiting
    place.gateway.records.acknowledge(first + len(records) - 1)


async def sizes(place: House, text: ModelText) -> Counter[str]:
    for _ in range(3):
        await a_round(place, text)
    await until(lambda: len(place.gateway.fleet._tasks) == len(NAMES))
    place.gateway.fleet.look_at_moves()
    return kept(place.gateway, but=(place.gateway.text,))


async def test_half_as_many_requests_and_workers_again_leave_no_more_behind(text: ModelText) -> None:
    async with house(text, [config(text, each) for each in NAMES], policy=LOCAL_ALWAYS) as place:
        await sizes(place, text)
        first, last = await sizes(place, text), await sizes(place, text)
    grown = {name: (first[name], last[name]) for name in last if last[name] > first[name]}
    assert not {name: each for name, each in grown.items() if not name.partition(".")[2].startswith(KINDS)}
