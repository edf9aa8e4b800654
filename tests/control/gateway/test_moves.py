"""Requests leave a worker that drains while they decode on: the client gets every token once, whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_builders import LOCAL_ALWAYS, House, house, until

from control.gateway.move_estimate import (
    MoveChoice,
    MoveEstimate,
    MoveFacts,
    choose_target,
    estimate,
    leaving_s,
    queued_ahead,
)
from control.gateway.mover import MoveLimits
from control.gateway.null_worker import Faults, NullConfig
from control.routing import FleetView, WorkerView
from engine.text import ModelText
from engine.types import Load, Role, WorkerState
from engine.wire import Cancel, Offer, Prefetch, Pull, ReleaseLease, Submit, Yield

ANSWER = "Paris is the capital of France. "
LENGTH = 60
NAMES = ("m0", "m1", "m2")


def configs(text: ModelText, faults: dict[str, Faults], **shape: Any) -> list[NullConfig]:
    tokens = tuple(text.encode(ANSWER))
    return [
        NullConfig(worker_id=name, role=Role.DECODE, tokens=tokens, step_s=0.005, block_tokens=4,
                   faults=faults.get(name, Faults()), **shape)
        for name in NAMES
    ]  # fmt: skip


def expected(text: ModelText, length: int = LENGTH) -> str:
    return text.detokenizer([]).push((text.encode(ANSWER) * length)[:length])


async def said(place: House, length: int = LENGTH) -> str:
    response, events = await place.events(max_tokens=length)
    assert response.status_code == 200, response.text
    assert events[-1] == "[DONE]", events
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])


@contextlib.asynccontextmanager
async def decoding(
    text: ModelText, faults: dict[str, Faults] | None = None, *, num: int = 1, length: int = LENGTH, **shape: Any
) -> AsyncIterator[tuple[House, list[asyncio.Task[str]]]]:
    """Requests that decode on m0, each with some tokens; m1 is preferred over m2 when they must leave."""
    async with house(text, configs(text, faults or {}, **shape), policy=LOCAL_ALWAYS) as place:
        place.retable(policy=LOCAL_ALWAYS, weights={"m0": 100.0, "m1": 1e-3, "m2": 1e-6})
        for worker, held in zip(place.workers[1:], (1000, 2000), strict=True):
            worker.set_load(Load(kv_blocks_total=65536, kv_blocks_held=held))
        await until(lambda: [each.kv_used_tokens for each in place.gateway.fleet.view().decode] == [0, 4000, 8000])
        asking = [asyncio.create_task(said(place, length)) for _ in range(num)]
        relays = place.gateway.admission.in_flight
        await until(lambda: len(relays) == num and all(len(each.tokens) >= 6 for each in relays.values()))
        assert {each.served.decode_worker for each in relays.values()} == {"m0"}
        yield place, asking


def drain(place: House) -> None:
    place.workers[0].set_state(WorkerState.DRAINING, leaves_decode=True)


async def test_a_request_is_moved_while_it_decodes_and_its_record_says_so(text: ModelText) -> None:
    async with decoding(text, copy_s=0.05) as (place, (asking,)):
        drain(place)
        assert await asking == expected(text)
        await until(lambda: len(place.records) == 1)
        (move,) = place.records[0].moves
        assert (move.kind, move.from_worker, move.to_worker) == ("migration", "m0", "m1")
        (pull,) = place.seen(1, Pull)
        lease = pull.lease
        assert move.num_bytes == len(lease.blocks) * lease.layout.block_bytes  # ahead and in the stall, each block once
        assert move.stall_s is not None
        assert place.records[0].decode_worker == "m1"
        assert (place.records[0].num_reroutes, place.records[0].handoff_s) == (0, None)
        (submit,) = place.seen(1, Submit)
        assert len(pull.more) >= 1  # it decoded on meanwhile
        assert len(submit.prompt) >= submit.num_prompt + 5
        assert not place.workers[0]._batch
        counts = place.gateway.fleet.mover.counts
        assert (counts.num_by_kind, counts.num_bytes) == ({"migration": 1}, move.num_bytes)
        assert sum(counts.stall_buckets.values()) == 1
        page = (await place.client.get("/metrics")).text.splitlines()
        assert 'phaseline_gateway_moves_total{gateway="gw-test",kind="migration"} 1.0' in page
        assert f'phaseline_gateway_moved_bytes_total{{gateway="gw-test"}} {float(move.num_bytes)}' in page
        assert 'phaseline_gateway_move_stall_seconds_bucket{gateway="gw-test",kind="migration",le="+Inf"} 1.0' in page


async def test_many_requests_leave_a_few_at_a_time_and_all_arrive(text: ModelText) -> None:
    async with decoding(text, num=20, length=200, copy_s=0.02) as (place, asking):
        mover = place.gateway.fleet.mover
        most = 0

        def watch(*_: Any) -> bool:
            nonlocal most
            most = max([most, *(len(moves) for moves in mover._moves.values())])
            return mover.counts.num_by_kind["migration"] == 20

        drain(place)
        await until(watch)
        assert 1 <= most <= MoveLimits().per_worker
        assert await asyncio.gather(*asking) == [expected(text, 200)] * 20
        assert not place.workers[0]._running
        (told,) = mover.departures.told()
        assert (told.worker_id, told.kind, told.num_sequences, told.num_moved) == ("m0", "leaves", 20, 20)
        assert (told.num_left, told.is_over, sum(told.to_workers.values())) == (0, True, 20)
        assert told.num_bytes == mover.counts.num_bytes
        assert told.stall_s is not None


async def test_a_worker_that_leaves_decode_again_has_another_departure(text: ModelText) -> None:
    """And one that nobody decodes on has none."""
    async with decoding(text, length=400) as (place, (asking,)):
        departures = place.gateway.fleet.mover.departures
        drain(place)
        await until(lambda: [each.num_moved for each in departures.told()] == [1])
        place.workers[0].set_state(WorkerState.READY)
        await until(lambda: place.gateway.fleet.links["m0"].state is WorkerState.READY)
        drain(place)
        await until(lambda: place.gateway.fleet.links["m0"].leaves_decode)
        assert [each.num_sequences for each in departures.told()] == [1]
        assert await asking == expected(text, 400)


async def test_a_reservation_whose_prompt_is_still_queued_is_made_anew_elsewhere(text: ModelText) -> None:
    tokens = tuple(text.encode(ANSWER))
    roles = {"p0": Role.PREFILL, "d0": Role.DECODE, "d1": Role.DECODE}
    workers = [NullConfig(worker_id=name, role=role, tokens=tokens) for name, role in roles.items()]
    workers[0].faults.is_silent = True
    async with house(text, workers) as place:
        asking = asyncio.create_task(said(place))
        await until(lambda: bool(place.seen(0, Submit)))
        first = 1 if place.seen(1, Submit) else 2
        other = 3 - first
        place.workers[first].set_state(WorkerState.DRAINING, leaves_decode=True)
        await until(lambda: len(place.seen(first, Cancel)) == 1 and len(place.seen(other, Submit)) == 1)
        workers[0].faults.is_silent = False
        place.workers[0].resume()
        assert await asking == expected(text)
        assert len(place.seen(0, Submit)) == 1  # its place in the queue was kept
        assert place.seen(first, Pull) == []
        await until(lambda: len(place.records) == 1)
        assert place.records[0].decode_worker == f"d{other - 1}"


FAULTS = {
    "m1": ["Submit", "Prefetch", "Pull"],
    "m0": ["Offer", "Yield"],
}


@pytest.mark.parametrize(("worker", "message"), [(name, each) for name, all_of in FAULTS.items() for each in all_of])
async def test_either_end_may_die_at_any_stage(text: ModelText, worker: str, message: str) -> None:
    async with decoding(text, {worker: Faults(dies_on=message)}) as (place, (asking,)):
        drain(place)
        assert await asking == expected(text)
        await until(lambda: len(place.records) == 1)
        assert place.records[0].status == 200
        await until(lambda: not any(each.legs for each in place.gateway.fleet.links.values()))


async def test_a_target_that_refuses_is_passed_over(text: ModelText) -> None:
    faults = {"m1": Faults(reject_code="no_kv", num_rejects=1000)}
    async with decoding(text, faults) as (place, (asking,)):
        drain(place)
        assert await asking == expected(text)
        await until(lambda: len(place.records) == 1)
        (move,) = place.records[0].moves
        assert (move.kind, move.to_worker) == ("migration", "m2")


async def test_a_failed_copy_ahead_leaves_the_source_decoding_and_frees_what_was_held(text: ModelText) -> None:
    async with decoding(text, {"m1": Faults(num_failed_prefetches=1)}) as (place, (asking,)):
        drain(place)
        assert await asking == expected(text)
        await until(lambda: len(place.records) == 1)
        assert [each.to_worker for each in place.records[0].moves] == ["m2"]
        assert len(place.seen(1, Cancel)) == 1
        assert len(place.seen(0, ReleaseLease)) >= 1


async def test_a_failed_last_copy_is_computed_anew_where_it_is(text: ModelText) -> None:
    async with decoding(text, {"m1": Faults(num_failed_pulls=1)}) as (place, (asking,)):
        drain(place)
        assert await asking == expected(text)
        assert next(len(message.prompt) for message in place.seen(1, Submit)) >= 5
        assert len(place.seen(1, Submit)) == 2
        await until(lambda: len(place.records) == 1)
        assert place.records[0].decode_worker == "m1"


async def test_a_client_that_goes_away_in_the_middle_frees_both_ends(text: ModelText) -> None:
    async with decoding(text, {"m0": Faults(never_yields=True)}, length=2000) as (place, (asking,)):
        drain(place)
        await until(lambda: bool(place.seen(0, Yield)))
        asking.cancel()
        await until(lambda: len(place.seen(0, Cancel)) == 1 and len(place.seen(1, Cancel)) == 1)
        await until(lambda: not any(each.legs for each in place.gateway.fleet.links.values()))


async def test_a_source_that_yields_after_the_move_was_given_up_loses_nothing(text: ModelText) -> None:
    async with decoding(text, {"m0": Faults(never_yields=True)}, length=200) as (place, (asking,)):
        drain(place)
        await until(lambda: bool(place.seen(0, Yield)))
        (relay,) = place.gateway.admission.in_flight.values()
        place.workers[0].state = WorkerState.DRAINING
        move = relay.move
        assert move is not None
        place.gateway.fleet.links["m0"].leaves_decode = False  # no second try
        move.abandon("the test gives it up")
        place.workers[0].config.faults.never_yields = False
        connection = next(iter(place.workers[0]._connections))
        place.workers[0]._on_source(connection, Yield(relay.wire_id, relay.attempt))
        assert await asking == expected(text, 200)
        await until(lambda: len(place.records) == 1)
        assert [each.kind for each in place.records[0].moves] == ["recompute"]


# --- under fire -----------------------------------------------------------------------------------------------------


async def test_a_target_that_leaves_in_the_middle_of_a_move_is_left_in_turn(text: ModelText) -> None:
    async with decoding(text, copy_s=0.05, length=200) as (place, (asking,)):
        drain(place)
        await until(lambda: bool(place.seen(1, Prefetch)))
        place.workers[1].set_state(WorkerState.DRAINING, leaves_decode=True)
        assert await asking == expected(text, 200)
        await until(lambda: len(place.records) == 1)
        assert [(each.from_worker, each.to_worker) for each in place.records[0].moves] == [("m0", "m1"), ("m1", "m2")]
        assert place.records[0].num_reroutes == 0


async def test_a_worker_that_is_flipped_back_keeps_what_has_not_left_and_loses_nothing(text: ModelText) -> None:
    async with decoding(text, num=20, length=300, copy_s=0.05) as (place, asking):
        drain(place)
        await until(lambda: bool(place.seen(1, Prefetch)))
        place.workers[0].set_state(WorkerState.READY)
        assert await asyncio.gather(*asking) == [expected(text, 300)] * 20
        await until(lambda: len(place.records) == 20)
        num_moved = sum(len(each.moves) for each in place.records)
        assert num_moved == MoveLimits().per_worker  # those that were under way when it came back
        await until(lambda: not any(each.legs for each in place.gateway.fleet.links.values()))


async def test_flips_to_and_fro_in_close_succession_lose_nothing(text: ModelText) -> None:
    async with decoding(text, num=12, length=400, copy_s=0.02) as (place, asking):
        for number in range(30):
            worker = place.workers[number % 2]
            worker.set_state(WorkerState.DRAINING, leaves_decode=True)
            await asyncio.sleep(0.011 * (number % 3))
            worker.set_state(WorkerState.READY)
        assert await asyncio.gather(*asking) == [expected(text, 400)] * 12
        await until(lambda: not any(each.legs for each in place.gateway.fleet.links.values()))
        await until(lambda: not any(place.gateway.fleet.mover._moves.values()))


async def test_when_all_workers_leave_each_request_ends_where_it_is(text: ModelText) -> None:
    async with decoding(text, num=3) as (place, asking):
        for worker in place.workers[1:]:
            worker.set_state(WorkerState.DRAINING, leaves_decode=True)
        links = place.gateway.fleet.links
        await until(lambda: not links["m1"].is_ready and not links["m2"].is_ready)
        drain(place)
        assert await asyncio.gather(*asking) == [expected(text)] * 3
        await until(lambda: len(place.records) == 3)
        assert [each.moves for each in place.records] == [(), (), ()]


@pytest.mark.parametrize("old", ["source", "switched off"])
async def test_without_the_feature_a_drain_waits_as_before(text: ModelText, old: str) -> None:
    async with decoding(text) as (place, (asking,)):
        if old == "source":
            place.gateway.fleet.links["m0"].features = ()
        else:
            place.gateway.fleet.mover._limits = MoveLimits(is_on=False)
        drain(place)
        assert await asking == expected(text)
        await until(lambda: len(place.records) == 1)
        assert place.records[0].moves == ()
        assert place.seen(0, Offer) == []
        assert place.seen(1, Prefetch) == []


# --- the estimate ---------------------------------------------------------------------------------------------------

FACTS: dict[str, Any] = {
    "rest_tokens": 1000,
    "kv_tokens": 2000,
    "kv_bytes": 300_000_000,
    "step_s": 0.02,
    "handoff_bytes_per_s": 25e9,
    "prefill_tokens_per_s": 5000,
}


@pytest.mark.parametrize(
    ("change", "choice", "words"),
    [
        ({}, MoveChoice.MOVE, "2000 tokens of KV"),
        ({"has_target": False}, MoveChoice.FINISH, "room for 3000 tokens"),
        ({"is_moving_known": False}, MoveChoice.FINISH, "older worker"),
        ({"rest_tokens": 4}, MoveChoice.FINISH, "at most 4 tokens"),
        ({"rest_tokens": 5}, MoveChoice.MOVE, ""),
        ({"rest_tokens": 10, "handoff_bytes_per_s": 1e9}, MoveChoice.FINISH, "at most 200 ms, moving it 320 ms"),
        ({"rest_tokens": 16, "handoff_bytes_per_s": 1e9}, MoveChoice.FINISH, "at most 320 ms, moving it 320 ms"),
        ({"rest_tokens": 17, "handoff_bytes_per_s": 1e9}, MoveChoice.MOVE, ""),
        ({"kv_tokens": 100}, MoveChoice.RECOMPUTE, "100 tokens anew takes 20.0 ms"),
        ({"kv_tokens": 100, "queued_prefill_tokens": 1}, MoveChoice.MOVE, ""),
        ({"kv_tokens": 101}, MoveChoice.MOVE, ""),
        ({"step_s": None, "rest_tokens": 10, "kv_tokens": 1}, MoveChoice.MOVE, ""),
        ({"handoff_bytes_per_s": None, "prefill_tokens_per_s": None}, MoveChoice.MOVE, ""),
    ],
)
def test_the_estimate_says_what_costs_least(change: dict[str, Any], choice: MoveChoice, words: str) -> None:
    decision = estimate(MoveFacts(**(FACTS | change)))
    assert decision.choice is choice
    assert words in decision.reason


def planned(choice: MoveChoice, *, rest_s: float = 5.0, move_s: float | None = 1.0) -> MoveEstimate:
    return MoveEstimate(choice=choice, reason="", rest_s=rest_s, move_s=move_s, recompute_s=None, stall_s=None)


@pytest.mark.parametrize(
    ("choices", "per_worker", "seconds"),
    [
        ("", 2, 0.0),
        ("move move move", 2, 2.0),
        ("move move move", 3, 1.0),
        ("recompute move", 1, 1.0),
        ("move finish move", 1, 5.0),
    ],
)
def test_a_worker_has_left_when_the_last_of_its_requests_has(choices: str, per_worker: int, seconds: float) -> None:
    assert leaving_s([planned(MoveChoice(each)) for each in choices.split()], per_worker) == seconds


def test_how_long_a_worker_takes_to_leave_is_unknown_while_a_part_of_it_is() -> None:
    assert leaving_s([planned(MoveChoice.MOVE), planned(MoveChoice.MOVE, move_s=None)], 8) is None


def test_the_stall_is_what_a_stop_took_lately_and_the_steps_of_the_target() -> None:
    facts = FACTS | {"target_step_s": 0.04}
    assert estimate(MoveFacts(**facts)).stall_s is None
    assert estimate(MoveFacts(**facts, stop_s=0.005)).stall_s == pytest.approx(0.065)


def test_what_is_computed_anew_waits_behind_the_emptiest_prefill_queue() -> None:
    def worker(queued: int, weight: float = 1.0) -> WorkerView:
        return WorkerView("w", 0, weight, queued, 0, 1000)

    decode = (worker(1),)
    assert queued_ahead(FleetView(3, 0, 0, 0, (worker(70), worker(50), worker(0, 0.0)), decode)) == 50
    assert queued_ahead(FleetView(3, 0, 0, 0, (worker(70),), decode, (worker(20),))) == 20
    assert queued_ahead(FleetView(3, 0, 0, 0, (), decode)) == 1


def test_a_target_has_room_and_is_the_emptiest_for_its_weight() -> None:
    def worker(name: str, used: int, weight: float = 1.0) -> WorkerView:
        return WorkerView(name, int(name[1:]), weight, 0, used, 1000)

    workers = [worker("w0", 950), worker("w1", 500), worker("w2", 400), worker("w3", 100, 0.0), worker("w4", 850, 9.0)]
    assert choose_target(workers, 100, set()) == "w4"
    assert choose_target(workers, 200, set()) == "w2"
    assert choose_target(workers, 200, {"w2"}) == "w1"
    assert choose_target(workers, 601, set()) is None
