"""Workers refuse, fail and die under requests: a client still gets every token once, in order, or one clear error."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from gateway_builders import LOCAL_ALWAYS, House, chat_body, house, until

from control.gateway.null_worker import Faults, NullConfig
from engine.connection import Connection
from engine.text import ModelText
from engine.types import FinishReason, Load, Role, WorkerState, WorkKind
from engine.wire import Cancel, Pull, Rejected, ReleaseLease, Step, Submit, TokenEvent

ANSWER = "Paris is the capital of France. "


def configs(text: ModelText, roles: dict[str, Role], faults: dict[str, Faults], **shape: Any) -> list[NullConfig]:
    """Workers that all give the same answer, so that any of them can go on with another's."""
    tokens = tuple(text.encode(ANSWER))
    return [
        NullConfig(worker_id=name, role=role, tokens=tokens, faults=faults.get(name, Faults()), **shape)
        for name, role in roles.items()
    ]


PAIRS = {"p0": Role.PREFILL, "p1": Role.PREFILL, "d0": Role.DECODE, "d1": Role.DECODE}
MIXED = {"m0": Role.MIXED, "m1": Role.MIXED, "m2": Role.MIXED}


async def said(place: House, *, max_tokens: int = 40) -> str:
    """A streamed answer's text; it must have ended well."""
    response, events = await place.events(max_tokens=max_tokens)
    assert response.status_code == 200, response.text
    assert events[-1] == "[DONE]", events
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])


def expected(text: ModelText, max_tokens: int = 40) -> str:
    tokens = (text.encode(ANSWER) * max_tokens)[:max_tokens]
    return text.detokenizer([]).push(tokens)


CODES = ["draining", "role", "queue_full", "no_kv", "layout", "unknown"]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("worker", ["p", "d"])
async def test_a_worker_that_refuses_is_passed_over_without_the_client_seeing_it(
    text: ModelText, worker: str, code: str
) -> None:
    refuses = {name: Faults(reject_code=code, num_rejects=1000) for name in PAIRS if name == f"{worker}0"}
    async with house(text, configs(text, PAIRS, refuses)) as place:
        for _ in range(6):
            assert await said(place) == expected(text)
        await until(lambda: len(place.records) == 6)
        assert {record.status for record in place.records} == {200}
        assert f"{worker}0" not in {record.prefill_worker for record in place.records} | {
            record.decode_worker for record in place.records
        }


async def test_a_reservation_is_given_up_when_its_prefill_is_refused(text: ModelText) -> None:
    refuses = {"p0": Faults(reject_code="draining", num_rejects=1000)}
    roles = {"p0": Role.PREFILL, "d0": Role.DECODE}
    async with house(text, configs(text, roles, refuses)) as place:
        assert await said(place) == expected(text)
        kinds = [message.kind for message in place.seen(1, Submit)]
        assert kinds == [WorkKind.DECODE, WorkKind.LOCAL]  # with no prefill worker left it serves alone
        assert len(place.seen(1, Cancel)) == 1


async def test_a_failed_handoff_goes_on_where_it_is_with_the_tokens_that_were_sent(text: ModelText) -> None:
    roles = {"p0": Role.PREFILL, "d0": Role.DECODE}
    async with house(text, configs(text, roles, {"d0": Faults(num_failed_pulls=1)})) as place:
        assert await said(place) == expected(text)
        decode, local = place.seen(1, Submit)
        assert (decode.kind, local.kind) == (WorkKind.DECODE, WorkKind.LOCAL)
        assert local.num_prompt == len(decode.prompt)
        assert local.prompt[:-1] == decode.prompt
        assert local.attempt == decode.attempt + 1
        assert len(place.seen(0, ReleaseLease)) == 1
        await until(lambda: len(place.records) == 1)
        assert place.records[0].num_reroutes == 1


@pytest.mark.parametrize("after", [1, 2, 7, 39])
async def test_a_worker_that_dies_in_the_middle_is_continued_elsewhere_without_a_gap_or_a_repeat(
    text: ModelText, after: int
) -> None:
    dies = {name: Faults(die_after_tokens=after) for name in ("m0",)}
    roles = {"m0": Role.MIXED}
    async with house(text, configs(text, MIXED, dies, tokens_per_step=1), policy=LOCAL_ALWAYS) as place:
        place.retable(policy=LOCAL_ALWAYS, weights={"m0": 1.0, "m1": 1e-6, "m2": 1e-6})
        place_for_load = Load(kv_blocks_total=65536, kv_blocks_held=1)
        for worker in place.workers[1:]:
            worker.set_load(place_for_load)
        await until(lambda: all(each.kv_used_tokens for each in place.gateway.fleet.view().mixed[1:]))
        assert await said(place) == expected(text)
        await until(lambda: len(place.records) == 1)
        record = place.records[0]
        assert record.num_reroutes == 1
        assert record.decode_worker in ("m1", "m2")
        (continued,) = [message for index in (1, 2) for message in place.seen(index, Submit)]
        assert len(continued.prompt) == continued.num_prompt + after
    assert roles


async def test_a_decode_worker_that_dies_after_the_handoff_is_continued_elsewhere(text: ModelText) -> None:
    dies = {"d0": Faults(die_after_tokens=5), "d1": Faults(die_after_tokens=5)}
    dies.pop("d1")
    async with house(text, configs(text, PAIRS, dies, tokens_per_step=1)) as place:
        answers = [await said(place) for _ in range(8)]
        assert answers == [expected(text)] * 8
        await until(lambda: len(place.records) == 8)
        assert sum(record.num_reroutes for record in place.records) == 1


async def test_a_prefill_worker_that_dies_before_its_answer_is_replaced(text: ModelText) -> None:
    async with house(text, configs(text, PAIRS, {"p0": Faults(is_silent=True), "p1": Faults(is_silent=True)})) as place:
        asking = asyncio.create_task(said(place))
        await until(lambda: any(place.seen(index, Submit) for index in (0, 1)))
        silent = 0 if place.seen(0, Submit) else 1
        place.workers[1 - silent].config.faults.is_silent = False
        await place.workers[silent].close()
        assert await asking == expected(text)


async def test_after_two_deaths_a_request_ends_with_an_error_that_says_so(text: ModelText) -> None:
    dies = {name: Faults(die_after_tokens=3) for name in MIXED}
    async with house(text, configs(text, MIXED, dies, tokens_per_step=1), policy=LOCAL_ALWAYS) as place:
        response, events = await place.events(max_tokens=40)
        assert response.status_code == 200
        assert events[-1]["error"]["code"] == "workers_failed"
        assert "2 workers failed under this request" in events[-1]["error"]["message"]
        await until(lambda: len(place.records) == 1)
        assert place.records[0].status == 500
        assert place.records[0].good is False
        assert place.gateway.admission.num_failed == 1


async def test_before_the_first_token_an_error_is_a_plain_response(text: ModelText) -> None:
    dies = {name: Faults(die_after_tokens=1) for name in MIXED}
    async with house(text, configs(text, MIXED, dies), policy=LOCAL_ALWAYS) as place:
        response = await place.chat(max_tokens=40)
        assert response.status_code in (200, 500)
        assert response.json().get("error", {}).get("code") in (None, "workers_failed")


async def test_a_worker_that_cuts_the_stream_at_the_last_token_loses_nothing(text: ModelText) -> None:
    dies = {"m0": Faults(die_after_tokens=40)}
    async with house(text, configs(text, {"m0": Role.MIXED}, dies, tokens_per_step=1), policy=LOCAL_ALWAYS) as place:
        assert await said(place) == expected(text)


async def test_requests_wait_for_room_in_order_of_priority_and_are_served(text: ModelText) -> None:
    roles = {"p0": Role.PREFILL, "d0": Role.DECODE}
    async with house(text, configs(text, roles, {})) as place:
        full = Load(kv_blocks_total=65536, kv_blocks_held=65536)
        place.workers[1].set_load(full)
        await until(lambda: place.gateway.fleet.view().decode[0].kv_used_tokens == 65536 * 16)
        asking = []
        for number, priority in enumerate([5, 0, -5]):
            asking.append(asyncio.create_task(place.chat(max_tokens=2, priority=priority)))
            await until(lambda number=number: len(place.gateway.fleet.waiters) == number + 1)
        place.workers[1].set_load(Load(kv_blocks_total=65536))
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert [message.priority for message in place.seen(1, Submit)] == [-5, 0, 5]
        assert place.gateway.fleet.waiters == []


async def test_a_request_that_waits_and_whose_client_leaves_gives_its_place_up(text: ModelText) -> None:
    roles = {"p0": Role.PREFILL, "d0": Role.DECODE}
    async with house(text, configs(text, roles, {})) as place:
        place.workers[1].set_load(Load(kv_blocks_total=65536, kv_blocks_held=65536))
        await until(lambda: place.gateway.fleet.view().decode[0].kv_used_tokens == 65536 * 16)
        asking = asyncio.create_task(place.chat())
        await until(lambda: len(place.gateway.fleet.waiters) == 1)
        asking.cancel()
        await until(lambda: not place.gateway.fleet.waiters)
        assert place.seen(1, Submit) == []


async def test_a_flip_under_load_loses_no_request_and_changes_no_answer(text: ModelText) -> None:
    async with house(text, configs(text, PAIRS, {}, tokens_per_step=1)) as place:

        async def client() -> list[str]:
            return [await said(place) for _ in range(8)]

        async def flips() -> None:
            for _ in range(5):
                for index, role in ((2, Role.PREFILL), (2, Role.DECODE), (0, Role.DECODE), (0, Role.PREFILL)):
                    place.workers[index].set_state(WorkerState.DRAINING)
                    await asyncio.sleep(0)
                    place.workers[index].set_state(WorkerState.READY, role)
                    await asyncio.sleep(0)

        answers = await asyncio.gather(*[client() for _ in range(4)], flips())
        assert [each for part in answers[:-1] if part for each in part] == [expected(text)] * 32


async def test_a_worker_that_comes_back_is_used_again(text: ModelText) -> None:
    async with house(text, configs(text, {"m0": Role.MIXED}, {}), policy=LOCAL_ALWAYS) as place:
        port = int(place.addresses[0].rpartition(":")[2])
        await place.workers[0].close()
        await until(lambda: not place.gateway.fleet.links["m0"].is_connected)
        await place.workers[0].start(port)
        await until(lambda: place.gateway.fleet.links["m0"].is_ready)
        assert await said(place) == expected(text)


async def test_a_worker_that_left_the_table_finishes_what_it_has_and_gets_nothing_new(text: ModelText) -> None:
    roles = {"m0": Role.MIXED, "m1": Role.MIXED}
    async with house(text, configs(text, roles, {}, step_s=0.005), policy=LOCAL_ALWAYS) as place:
        asking = asyncio.create_task(said(place))
        await until(lambda: any(place.seen(index, Submit) for index in (0, 1)))
        busy = 0 if place.seen(0, Submit) else 1
        kept = 1 - busy
        link = place.gateway.fleet.links[f"m{busy}"]
        place.workers, place.addresses = [place.workers[kept], place.workers[busy]], place.addresses
        leaver = place.workers.pop()
        place.addresses = [place.addresses[kept]]
        place.retable(policy=LOCAL_ALWAYS)
        assert await said(place) == expected(text)
        assert await asking == expected(text)
        assert len([message for message in leaver.seen if isinstance(message, Submit)]) == 1
        await until(lambda: not link.is_connected)
        await leaver.close()


async def test_a_pull_names_the_lease_and_the_first_token(text: ModelText) -> None:
    roles = {"p0": Role.PREFILL, "d0": Role.DECODE}
    async with house(text, configs(text, roles, {})) as place:
        await said(place)
        (pull,) = place.seen(1, Pull)
        assert pull.first_token == text.encode(ANSWER)[0]
        assert pull.lease.worker_id == "p0"
        assert pull.lease.num_tokens == len(place.seen(1, Submit)[0].prompt)


@pytest.mark.parametrize("is_prefilled_first", [False, True])
async def test_a_reservation_that_lapses_is_made_anew_and_the_prefill_keeps_its_place(
    text: ModelText, is_prefilled_first: bool
) -> None:
    roles = {"p0": Role.PREFILL, "d0": Role.DECODE}
    async with house(text, configs(text, roles, {"p0": Faults(is_silent=True)})) as place:
        prefill, decode = place.workers
        asking = asyncio.create_task(said(place))
        await until(lambda: len(place.seen(0, Submit)) == 1)
        (ask,) = place.seen(0, Submit)
        decode.config.faults.is_silent = is_prefilled_first
        decode.tell(Rejected(ask.req_id, ask.attempt, "handoff", "no Pull came in time"))
        await until(lambda: len(place.seen(1, Submit)) == 2)
        prefill.config.faults.is_silent = False
        prefill.resume()
        if is_prefilled_first:
            await until(lambda: any(relay.tokens for relay in place.gateway.admission.in_flight.values()))
            decode.config.faults.is_silent = False
            decode.resume()
        assert await asking == expected(text)
        assert len(place.seen(0, Submit)) == 1
        assert place.seen(0, Cancel) == []
        assert len(place.seen(1, Pull)) == 1


async def test_streams_of_many_clients_do_not_mix(text: ModelText) -> None:
    async with house(text, configs(text, PAIRS, {}, step_s=0.002)) as place:
        lengths = [3, 9, 14, 20, 25, 31, 38, 40]
        answers = await asyncio.gather(*[said(place, max_tokens=length) for length in lengths])
        assert answers == [expected(text, length) for length in lengths]


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(text: ModelText) -> None:
    dies = {"m0": Faults(die_after_tokens=3)}
    async with house(text, configs(text, {"m0": Role.MIXED}, dies, tokens_per_step=1), policy=LOCAL_ALWAYS) as place:
        place.gateway.fleet.links["m0"].set_row(place.gateway.fleet.links["m0"].row)
        asking = asyncio.create_task(
            place.client.post("/v1/chat/completions", json=chat_body(stream=True, max_tokens=40))
        )
        await until(lambda: bool(place.gateway.fleet.waiters))
        place.retable(policy=LOCAL_ALWAYS, weights={"m0": 0.0})
        for relay in place.gateway.admission.in_flight.values():
            relay.check_time(1e12, 0.0, 1.0)
        events = [line.removeprefix("data: ") for line in (await asking).text.split("\n\n") if line]
        assert json.loads(events[-1])["error"]["type"] == "rate_limit_error"


async def test_workers_of_one_process_that_die_together_are_one_death_to_a_request(text: ModelText) -> None:
    names = [f"m{number}" for number in range(5)]
    roles = dict.fromkeys(names, Role.MIXED)
    async with house(text, configs(text, roles, {}, tokens_per_step=1, step_s=0.02), policy=LOCAL_ALWAYS) as place:
        links = place.gateway.fleet.links
        asking = asyncio.create_task(said(place))
        await until(lambda: any(link.legs for link in links.values()))
        first = next(name for name in names if links[name].legs)
        (relay,) = links[first].legs.values()
        await until(lambda: len(relay.tokens) > 2)  # type: ignore[attr-defined]
        for worker in place.workers:
            worker.config.faults.is_silent = True  # asked just before the end of its own connection has been read
        for number in range(2):
            dying = next(name for name in names if links[name].legs)
            if number == 1:
                for worker in place.workers:
                    worker.config.faults.is_silent = False
            links[dying]._connection.abort("killed")  # type: ignore[union-attr]
            await until(lambda dying=dying: any(links[name].legs for name in names if name != dying))
        assert await asking == expected(text)
        await until(lambda: len(place.records) == 1)
        assert place.records[0].num_reroutes == 2


async def test_a_new_request_waits_for_workers_that_were_lost_just_now(text: ModelText) -> None:
    async with house(text, configs(text, {"m0": Role.MIXED}, {}), policy=LOCAL_ALWAYS) as place:
        link = place.gateway.fleet.links["m0"]
        link._connection.abort("killed")  # type: ignore[union-attr]
        await until(lambda: not link.is_connected)
        assert await said(place) == expected(text)


async def test_a_request_on_a_worker_that_hangs_is_continued_elsewhere_without_a_gap_or_a_repeat(
    text: ModelText,
) -> None:
    hangs = {"d0": Faults(hang_after_tokens=5)}
    async with house(
        text, configs(text, PAIRS, hangs, tokens_per_step=1), limits={"token_gap_timeout_s": 0.3}
    ) as place:
        place.retable(weights={"d0": 1.0, "d1": 1e-6})
        assert await said(place) == expected(text)
        await until(lambda: len(place.records) == 1)
        record = place.records[0]
        assert (record.decode_worker, record.num_reroutes, record.output_tokens) == ("d1", 1, 40)
        assert len(place.seen(2, Cancel)) == 1
        assert place.gateway.fleet.links["d0"].is_connected


async def test_a_hung_step_is_left_when_it_is_overdue_twice_and_its_late_tokens_are_dropped(text: ModelText) -> None:
    hangs = {"d0": Faults(hang_after_tokens=5)}
    async with house(text, configs(text, PAIRS, hangs, tokens_per_step=1)) as place:
        place.retable(weights={"d0": 1.0, "d1": 1e-6})
        worker, link = place.workers[2], place.gateway.fleet.links["d0"]
        asking = asyncio.create_task(said(place))
        await until(lambda: any(len(each.tokens) == 5 for each in place.gateway.admission.in_flight.values()))
        worker.set_load(Load(kv_blocks_total=65536, step_running_s=0.6, step_limit_s=0.5))
        await until(lambda: not link.is_ready)
        assert link.legs  # late: nothing new goes there, what it has stays
        worker.set_load(Load(kv_blocks_total=65536, step_running_s=1.0, step_limit_s=0.5))
        await until(lambda: not link.legs)
        worker.config.faults = Faults()
        worker.resume()
        assert await asking == expected(text)
        await until(lambda: len(place.records) == 1)
        (move,) = place.records[0].moves
        assert (move.kind, move.from_worker, move.to_worker) == ("failover", "d0", "d1")
        assert move.notice_s is not None
        assert move.notice_s >= 1.0
        assert move.stall_s is not None
        assert "its step has run for 1.0 s" in move.reason
        page = (await place.client.get("/metrics")).text
        assert 'phaseline_gateway_moves_total{gateway="gw-test",kind="failover"} 1.0' in page
        assert 'phaseline_gateway_failover_notice_seconds_count{gateway="gw-test"} 1.0' in page
        await until(lambda: link.is_connected)
        assert not link.is_ready  # it is back, and still in that step
        worker.set_load(Load(kv_blocks_total=65536))
        await until(lambda: link.is_ready)


async def test_a_failover_before_the_first_token_is_recorded_without_a_stall(text: ModelText) -> None:
    silent = {"m0": Faults(is_silent=True)}
    async with house(text, configs(text, {"m0": Role.MIXED, "m1": Role.MIXED}, silent), policy=LOCAL_ALWAYS) as place:
        place.retable(policy=LOCAL_ALWAYS, weights={"m0": 1.0, "m1": 1e-9})
        asking = asyncio.create_task(said(place))
        await until(lambda: bool(place.seen(0, Submit)))
        await place.workers[0].close()
        assert await asking == expected(text)
        await until(lambda: len(place.records) == 1)
        (move,) = place.records[0].moves
        assert (move.kind, move.to_worker, move.stall_s) == ("failover", "m1", None)
        assert move.notice_s is not None


async def test_a_request_that_only_waits_its_turn_at_a_busy_worker_stays(text: ModelText) -> None:
    roles = {"m0": Role.MIXED, "m1": Role.MIXED}
    async with house(text, configs(text, roles, {}, tokens_per_step=1), policy=LOCAL_ALWAYS) as place:
        for worker in place.workers:
            worker.config.faults.hang_after_tokens = 5
        asking = asyncio.create_task(said(place))
        await until(lambda: any(len(each.tokens) == 5 for each in place.gateway.admission.in_flight.values()))
        (link,) = [each for each in place.gateway.fleet.links.values() if each.legs]
        later_s = time.monotonic() + 100.0
        link.gave_s = later_s - 1.0
        link.leave_if_hung(later_s, 60.0)
        assert link.legs
        for worker in place.workers:
            worker.config.faults = Faults()
        link.leave_if_hung(later_s + 60.0, 60.0)
        assert await asking == expected(text)


async def test_a_lease_is_given_up_when_the_decode_worker_fails_before_it_has_the_kv(text: ModelText) -> None:
    async with house(text, configs(text, {"p0": Role.PREFILL, "d0": Role.DECODE}, {})) as place:
        decode = place.workers[1]

        def break_once(connection: Connection, pull: Pull) -> None:
            del decode._on_pull
            event = TokenEvent(pull.req_id, pull.attempt, 0, [], FinishReason.ERROR, "broke")
            connection.send(Step("d0", 1, 1, [event], decode.load))

        decode._on_pull = break_once  # type: ignore[method-assign]
        assert (await place.chat(max_tokens=4)).status_code == 200
        pulled = [pull.lease.lease_id for pull in place.seen(1, Pull)]
        assert [release.lease_id for release in place.seen(0, ReleaseLease)] == pulled[:1]
        assert len(pulled) == 2


async def test_a_request_that_no_worker_was_asked_for_is_recorded_as_of_its_fleet(text: ModelText) -> None:
    async with house(text, configs(text, {"m0": Role.MIXED}, {}), max_in_flight=0, policy=LOCAL_ALWAYS) as place:
        assert (await place.chat()).status_code == 429
        assert [record.simulated for record in place.records] == [True]
