"""Requests of a lost worker: who goes first, and how much of a worker they may fill beside new traffic."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from gateway_builders import LOCAL_ALWAYS, House, house, until
from test_relay import MIXED, configs, expected, said

from control.gateway.line import BEGUN_WAIT_S, MAX_WAIT_S, Place
from control.gateway.recovery import LEAST_TOKENS, Need, Recovery, may_go, recovery_turn
from engine.text import ModelText
from engine.types import Role


def need(**changes: Any) -> Need:
    """A long request of which nothing survives, at an idle worker."""
    base = Need(worker_id="w0", uncached_tokens=3000, known_tokens=3000, priority=0, since_s=10.0)
    return replace(base, **changes)


def test_what_is_soon_done_goes_first_then_priority_then_who_waits_longest() -> None:
    survives = need(uncached_tokens=1000, known_tokens=4000, priority=5, since_s=19.0)
    short = need(uncached_tokens=200, known_tokens=200, priority=5, since_s=20.0)
    urgent, oldest, newest = need(priority=-1, since_s=18.0), need(since_s=1.0), need(since_s=2.0)
    assert sorted([newest, oldest, short, urgent, survives], key=recovery_turn) == [
        survives,
        short,
        urgent,
        oldest,
        newest,
    ]


@pytest.mark.parametrize(
    ("under_way", "queued", "tokens", "may"),
    [
        (0, 0, 100_000, True),  # one at a time always may
        (2000, 2000, 2000, True),  # a few steps' worth
        (2000, 2000, 3000, False),  # nothing new waits there, and it has work
        (5000, 12_000, 2000, True),  # 7000 of 14000
        (5000, 11_000, 3000, False),  # 8000 of 14000
        (5000, 0, 500, False),  # the worker has not counted them yet: they are there all the same
    ],
)
def test_recovery_takes_its_share_of_a_workers_queue(under_way: int, queued: int, tokens: int, may: bool) -> None:
    assert may_go(need(uncached_tokens=tokens, queued_tokens=queued), under_way, 0.5) is may


@dataclass(eq=False)
class Lost:
    """A request of a dead worker; it notes when it was sent."""

    name: str
    line: Recovery
    sent: list[str]
    wants: Need = field(default_factory=need)

    def need(self) -> Need:
        return self.wants

    def recover(self) -> None:
        self.sent.append(self.name)
        if self.wants.worker_id is not None:
            self.line.sent(self, self.wants.worker_id, self.wants.uncached_tokens)


async def test_a_worker_that_dies_with_many_requests_makes_no_storm() -> None:
    line, sent = Recovery(0.5), list[str]()
    lost = [Lost(f"long{at}", line, sent, need(since_s=float(at))) for at in range(4)]
    short = Lost("short", line, sent, need(uncached_tokens=10, known_tokens=10))
    for each in (*reversed(lost), short):
        line.join(each)
    assert sent == []  # all of them first: then their order is known
    await asyncio.sleep(0)
    assert sent == ["short", "long0"]
    assert line.num_waiting == 3
    for shown in (short, lost[0], lost[1], lost[2]):
        line.leave(shown)
        await asyncio.sleep(0)
    assert sent == ["short", "long0", "long1", "long2", "long3"]


async def test_a_short_one_passes_a_long_one_that_finds_no_room_in_the_share() -> None:
    line, sent = Recovery(0.5), list[str]()
    for name, tokens in (("a", 3000), ("b", LEAST_TOKENS), ("c", 900)):
        line.join(Lost(name, line, sent, need(uncached_tokens=tokens, known_tokens=5000, since_s=float(ord(name)))))
    await asyncio.sleep(0)
    assert sent == ["c", "a"]


async def test_each_worker_has_its_own_share_and_without_room_they_go_to_the_line_for_it() -> None:
    line, sent = Recovery(0.5), list[str]()
    for at, worker_id in enumerate(("w0", "w1", "w0", None, None)):
        line.join(Lost(f"{worker_id}/{at}", line, sent, need(worker_id=worker_id, since_s=float(at))))
    await asyncio.sleep(0)
    assert sent == ["w0/0", "w1/1", "None/3", "None/4"]


async def test_who_is_dying_too_is_left_before_anybody_is_sent_on() -> None:
    order = list[str]()
    line = Recovery(0.5, lambda: order.append("left the dying"))
    line.join(Lost("a", line, order))
    line.join(Lost("b", line, order))
    await asyncio.sleep(0)
    assert order == ["left the dying", "a"]


async def test_one_that_ends_while_it_waits_is_not_sent() -> None:
    line, sent = Recovery(0.5), list[str]()
    gone, stays = Lost("gone", line, sent), Lost("stays", line, sent)
    line.join(gone)
    line.join(stays)
    line.leave(gone)
    await asyncio.sleep(0)
    assert sent == ["stays"]


async def begun(place: House, num: int) -> None:
    relays = place.gateway.admission.in_flight
    await until(lambda: len(relays) == num and all(each.tokens for each in relays.values()))


async def test_all_streams_of_a_killed_worker_go_on_over_the_others_without_a_gap_or_a_repeat(text: ModelText) -> None:
    async with house(text, configs(text, MIXED, {}, step_s=0.01), policy=LOCAL_ALWAYS) as place:
        place.retable(policy=LOCAL_ALWAYS, weights={"m0": 1.0, "m1": 1e-9, "m2": 1e-9})
        asking = [asyncio.create_task(said(place)) for _ in range(12)]
        await begun(place, 12)
        place.retable(policy=LOCAL_ALWAYS)
        await place.workers[0].close()
        assert await asyncio.gather(*asking) == [expected(text)] * 12
        await until(lambda: len(place.records) == 12)
        moves = [move for record in place.records for move in record.moves]
        assert {(move.kind, move.from_worker) for move in moves} == {("failover", "m0")}
        assert {move.to_worker for move in moves} == {"m1", "m2"}
        assert place.gateway.fleet.recovery.num_waiting == 0


async def test_streams_wait_for_the_only_worker_to_come_back_longer_than_new_requests(text: ModelText) -> None:
    roles = {"m0": Role.MIXED}
    async with house(text, configs(text, roles, {}, step_s=0.01), policy=LOCAL_ALWAYS) as place:
        asking = [asyncio.create_task(said(place)) for _ in range(3)]
        await begun(place, 3)
        port = int(place.addresses[0].rpartition(":")[2])
        await place.workers[0].close()
        relays = list(place.gateway.admission.in_flight.values())
        await until(lambda: len(place.gateway.fleet.waiters) == 3)
        for relay in relays:
            relay.check_time(relay.timeline.last_s + BEGUN_WAIT_S - 5.0, 0.0, 1000.0)
        assert not any(relay.is_done for relay in relays)
        await place.workers[0].start(port)
        assert await asyncio.gather(*asking) == [expected(text)] * 3


def test_a_place_in_the_line_is_kept_longer_by_those_that_have_begun() -> None:
    class Room:
        def may_recover(self, *, is_new: bool) -> bool:
            return True

        def wait_for_room(self, waiter: object) -> None: ...

    place = Place(Room())  # type: ignore[arg-type]
    assert place.join(object(), is_new=False)  # type: ignore[arg-type]
    since_s = place._since_s
    assert since_s is not None
    assert place.is_over(since_s + MAX_WAIT_S, has_begun=False)
    assert not place.is_over(since_s + BEGUN_WAIT_S - 0.1, has_begun=True)
    assert place.is_over(since_s + BEGUN_WAIT_S, has_begun=True)
