"""Who is let in, who waits, who is told to come back and gets in then: a real gateway before null workers.

The workers claim a load, so what is predicted can be checked in the head: prompts of `chat_body` are some 20 tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from gateway_builders import LOCAL_ALWAYS, House, chat_body, house, until

from control.gateway.errors import GatewayError
from control.gateway.forecast import Need
from control.gateway.gatekeeper import AdmissionRules, Gatekeeper
from control.gateway.job import Job
from control.gateway.null_worker import NullConfig
from control.gateway.relay import Relay
from control.gateway.usage import Usage
from control.types.bottleneck import Resource
from control.types.requests import Slo
from engine.text import ModelText
from engine.types import Load, Role, SamplingParams
from engine.wire import Submit

NUM_BLOCKS = 65536
QUEUED = 100_000  # tokens
#: Whoever is to wait in a test is not refused meanwhile for waiting, however slow the machine is.
PATIENT = Slo(ttft_base_s=60.0)


def load(**changes: Any) -> Load:
    fields = {"kv_blocks_total": NUM_BLOCKS, "prefill_tokens": 10_000, "prefill_steps_s": 1.0}
    return Load(**{**fields, **changes})


@asynccontextmanager
async def measured_house(text: ModelText, *, queued: int = 0, **changes: Any) -> AsyncIterator[House]:
    """One mixed worker that was measured at 10,000 prompt tokens per second, with so many queued."""
    async with house(text, [NullConfig()], policy=LOCAL_ALWAYS, **changes) as place:
        place.workers[0].set_load(load(queued_prefill_tokens=queued))
        view = place.gateway.fleet.view
        await until(lambda: view().mixed[0].prefill_tokens_per_s and view().mixed[0].queued_prefill_tokens == queued)
        yield place


async def ask(place: House, key: str = "k", **fields: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return await place.client.post("/v1/chat/completions", json=chat_body(**fields), headers=headers)


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {"request_id": "r", "wire_id": "r", "prompt": [1] * 20, "block_hashes": []}
    return Job(**{**fields, "sampling": SamplingParams(max_tokens=8), "arrival_s": 100.0, "api_key_id": "k", **changes})


def drop_queue(place: House) -> None:
    place.workers[0].set_load(load())


async def test_who_would_be_late_is_told_at_once_when_to_come_back(text: ModelText) -> None:
    async with measured_house(text, queued=QUEUED) as place:
        response = await ask(place)
        assert response.status_code == 429
        error = response.json()["error"]
        assert error["code"] == "rate_limit_exceeded"
        assert "predicted time to first token 10.0" in error["message"]
        assert "over 0.8 of its bound of 1.0" in error["message"]
        exact_s = float(response.headers["X-Phaseline-Retry-After-S"])
        assert 9.2 <= exact_s <= 9.2 * 1.1 + 0.25 + 0.1, "10 s queued, 0.8 s is allowed, some jitter on top"
        assert exact_s <= int(response.headers["Retry-After"]) <= exact_s + 1
        assert place.seen(0, Submit) == []
        assert place.gateway.records.waiting[1][0].waited_for == Resource.PREFILL


async def test_who_comes_back_when_told_gets_in_whatever_is_predicted_then(text: ModelText) -> None:
    async with measured_house(text, queued=QUEUED) as place:
        fleet, gatekeeper = place.gateway.fleet, place.gateway.admission.gatekeeper
        first = Relay(job(), fleet)
        with pytest.raises(GatewayError) as told:
            gatekeeper.let_in(first, 100.0, 0.0, is_full=False)
        told_s = told.value.retry_after_s or 0.0
        with pytest.raises(GatewayError) as early:
            gatekeeper.let_in(Relay(job(arrival_s=101.0), fleet), 101.0, 0.0, is_full=False)
        assert early.value.retry_after_s == pytest.approx(told_s - 1.0, abs=0.1), "too early: told the same time"
        other = Relay(job(arrival_s=100.0 + told_s, prompt=[7] * 20), fleet)
        with pytest.raises(GatewayError):
            gatekeeper.let_in(other, 100.0 + told_s, 0.0, is_full=False)
        obeys = Relay(job(arrival_s=100.0 + told_s), fleet)
        gatekeeper.let_in(obeys, 100.0 + told_s, 0.0, is_full=False)
        assert obeys.standing.since_s == first.job.arrival_s, "with its first place in the order"
        assert (gatekeeper.promises.num_made, gatekeeper.promises.num_kept) == (2, 1)


async def test_who_was_promised_a_place_stands_ahead_of_newcomers(text: ModelText) -> None:
    async with measured_house(text, queued=QUEUED) as place:
        fleet = place.gateway.fleet
        gatekeeper = Gatekeeper(fleet, AdmissionRules(), jitter=lambda: 0.0)
        told_s = []
        for token in (5, 6):
            with pytest.raises(GatewayError) as refused:
                gatekeeper.let_in(Relay(job(prompt=[token] * 8_000), fleet), 100.0, 0.0, is_full=False)
            told_s.append(refused.value.retry_after_s)
        assert told_s == pytest.approx([9.2, 9.6]), "10 s queued, 0.8 s may be waited; half of the first returns"


async def test_the_metrics_page_says_who_waits_and_who_was_promised_a_place(text: ModelText) -> None:
    async with measured_house(text, queued=QUEUED) as place:
        waiting = asyncio.create_task(ask(place, priority="batch"))
        await until(lambda: len(place.gateway.fleet.waiters) == 1)
        await ask(place)
        lines = (await place.client.get("/metrics")).text.splitlines()
        assert 'phaseline_gateway_line_requests{gateway="gw-test"} 1.0' in lines
        assert 'phaseline_gateway_promises_total{gateway="gw-test",outcome="made"} 1.0' in lines
        drop_queue(place)
        await waiting


async def test_what_waits_at_other_gateways_counts_until_it_is_out_of_date(text: ModelText) -> None:
    async with measured_house(text) as place:
        fleet, gatekeeper = place.gateway.fleet, place.gateway.admission.gatekeeper
        gatekeeper.learn(Usage({}, Need(prefill_tokens=30_000, num_slots=9), Need(kv_tokens=5)), 100.0)
        with pytest.raises(GatewayError) as refused:
            gatekeeper.let_in(Relay(job(), fleet), 100.0, 0.0, is_full=False)
        assert "3.00 s for the prefill queue" in refused.value.message
        gatekeeper.review(104.0, 0.0)
        assert fleet.waiting_elsewhere.num_slots == 9
        gatekeeper.review(106.0, 0.0)
        assert fleet.waiting_elsewhere == fleet.batch.elsewhere == Need()
        gatekeeper.let_in(Relay(job(), fleet), 106.0, 0.0, is_full=False)


async def test_the_deadline_of_a_client_is_looked_at_before_it_waits(text: ModelText) -> None:
    async with measured_house(text, queued=7_000) as place:
        fleet, gatekeeper = place.gateway.fleet, place.gateway.admission.gatekeeper
        with pytest.raises(GatewayError) as refused:
            gatekeeper.let_in(Relay(job(deadline_unix_s=0.5), fleet), 100.0, 0.0, is_full=False)
        assert refused.value.status == 429
        assert "over the 0.50 s left (deadline_s)" in refused.value.message
        gatekeeper.let_in(Relay(job(deadline_unix_s=0.75), fleet), 100.0, 0.0, is_full=False)


async def test_a_batch_request_waits_where_an_interactive_one_is_refused(text: ModelText) -> None:
    async with measured_house(text, queued=QUEUED) as place:
        waiting = asyncio.create_task(ask(place, priority="batch"))
        await until(lambda: len(place.gateway.fleet.waiters) == 1)
        assert (await ask(place)).status_code == 429
        drop_queue(place)
        assert (await waiting).status_code == 200


async def test_a_short_queue_is_waited_for_in_the_line_not_on_the_worker(text: ModelText) -> None:
    async with measured_house(text, queued=6_000, slo=PATIENT) as place:
        waiting = asyncio.create_task(ask(place))
        await until(lambda: len(place.gateway.fleet.waiters) == 1)
        assert place.seen(0, Submit) == [], "half a second of prompts is queued there already"
        drop_queue(place)
        assert (await waiting).status_code == 200


async def test_a_full_decode_batch_is_waited_for_in_the_line(text: ModelText) -> None:
    async with measured_house(text) as place:
        place.workers[0].set_load(load(max_batch=4, num_decoding=4))
        await until(lambda: place.gateway.fleet.view().mixed[0].num_free_slots == 0)
        waiting = asyncio.create_task(ask(place))
        await until(lambda: len(place.gateway.fleet.waiters) == 1)
        place.workers[0].set_load(load(max_batch=4, num_decoding=3))
        assert (await waiting).status_code == 200


async def test_interactive_goes_before_batch_and_a_modest_key_before_a_flooding_one(text: ModelText) -> None:
    async with measured_house(text, queued=6_000, slo=PATIENT) as place:
        place.gateway.fleet.shares.charge(await key_id(place, "flood"), 100.0)
        asking = []
        orders = [("flood", "batch", 2), ("flood", 0, 3), ("modest", "batch", 4), ("modest", 0, 5)]
        for number, (key, priority, max_tokens) in enumerate(orders):
            asking.append(asyncio.create_task(ask(place, key, priority=priority, max_tokens=max_tokens)))
            await until(lambda number=number: len(place.gateway.fleet.waiters) == number + 1)
        drop_queue(place)
        await asyncio.gather(*asking)
        in_order = [message.sampling.max_tokens for message in place.seen(0, Submit)]
        assert in_order[1:] == [5, 3, 4, 2]


async def key_id(place: House, key: str) -> str:
    """The digest under which the gateway knows a key."""
    drop_queue(place)
    await until(lambda: not place.gateway.fleet.view().mixed[0].queued_prefill_tokens)
    assert (await ask(place, key)).status_code == 200
    await until(lambda: len(place.records) == 1)
    place.workers[0].set_load(load(queued_prefill_tokens=6_000))
    await until(lambda: place.gateway.fleet.view().mixed[0].queued_prefill_tokens >= 6_000)
    return place.records[0].api_key_id


async def test_when_the_gateway_is_full_the_worst_turn_gives_way(text: ModelText) -> None:
    async with measured_house(text, queued=6_000, slo=PATIENT, max_in_flight=2) as place:
        asking = [asyncio.create_task(ask(place, priority="batch", max_tokens=each)) for each in (2, 3)]
        await until(lambda: len(place.gateway.fleet.waiters) == 2)
        asking.append(asyncio.create_task(ask(place)))
        await until(lambda: len(place.gateway.fleet.waiters) == 2 and any(each.done() for each in asking))
        refused = await ask(place, priority="batch", max_tokens=4)
        assert refused.status_code == 429
        assert "2 requests, its bound max_in_flight" in refused.json()["error"]["message"]
        drop_queue(place)
        answers = [each.status_code for each in await asyncio.gather(*asking)]
        assert sorted(answers[:2]) == [200, 429]
        assert answers[2] == 200
        lacked = [each.waited_for for each in place.gateway.records.waiting[1] if each.status == 429]
        assert lacked == [Resource.GATEWAY, Resource.GATEWAY]


async def test_who_waits_and_would_be_late_by_now_is_told_so(text: ModelText) -> None:
    async with measured_house(text, queued=6_000, slo=PATIENT) as place:
        waiting = asyncio.create_task(ask(place))
        await until(lambda: len(place.gateway.fleet.waiters) == 1)
        place.workers[0].set_load(load(queued_prefill_tokens=10 * QUEUED))
        response = await waiting
        assert response.status_code == 429
        assert "is over its bound" in response.json()["error"]["message"]
        assert not place.gateway.fleet.waiters


async def test_within_one_key_its_own_priorities_decide(text: ModelText) -> None:
    async with measured_house(text, queued=6_000, slo=PATIENT) as place:
        asking = []
        for number, priority in enumerate([0, -1, -2]):
            asking.append(asyncio.create_task(ask(place, priority=priority)))
            await until(lambda number=number: len(place.gateway.fleet.waiters) == number + 1)
        drop_queue(place)
        await asyncio.gather(*asking)
        assert [message.priority for message in place.seen(0, Submit)] == [-2, -1, 0]


@pytest.mark.parametrize("role", [Role.MIXED])
async def test_a_key_is_charged_for_what_it_used(text: ModelText, role: Role) -> None:
    async with measured_house(text) as place:
        assert place.workers[0].config.role is role
        assert (await ask(place)).status_code == 200
        await until(lambda: len(place.records) == 1)
        record = place.records[0]
        (used_s,) = place.gateway.fleet.shares.used_s.values()
        assert used_s >= record.prompt_tokens / 10_000, "at least its prefill, at the measured rate"
        assert place.gateway.fleet.batch.held.num_slots == 0
