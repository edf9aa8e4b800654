"""What a client gets: whole and streamed answers, the official client, headers, records, cancellation, bounds."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from gateway_builders import LOCAL_ALWAYS, House, chat_body, house, until

from control.gateway.null_worker import Faults, NullConfig
from control.types.routing import RoutingPolicy
from engine.blocks import block_hashes
from engine.text import ModelText
from engine.types import Load, Role, WorkerState, WorkKind
from engine.wire import CacheDelta, Cancel, Submit

MESSAGES = [{"role": "user", "content": "Where?"}]


def split_pair(text: ModelText, answer: str = "Paris is the capital of France.") -> list[NullConfig]:
    """A prefill and a decode worker that repeat `answer`."""
    tokens = tuple(text.encode(answer))
    return [
        NullConfig(worker_id="p0", role=Role.PREFILL, tokens=tokens),
        NullConfig(worker_id="d0", role=Role.DECODE, tokens=tokens, tokens_per_step=1),
    ]


@pytest.fixture
async def place(text: ModelText) -> AsyncIterator[House]:
    async with house(text, split_pair(text)) as running:
        yield running


@pytest.fixture
def answer_tokens(text: ModelText) -> int:
    return len(text.encode("Paris is the capital of France."))


async def test_the_official_client_gets_a_whole_answer_unchanged(place: House, answer_tokens: int) -> None:
    async with openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key="sk-1", max_retries=0) as client:
        answer = await client.chat.completions.create(model="null", messages=MESSAGES, max_tokens=answer_tokens)
    assert answer.choices[0].message.content == "Paris is the capital of France."
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == answer_tokens


async def test_the_official_client_streams_the_same_text_with_usage(place: House, answer_tokens: int) -> None:
    parts, usage = [], None
    async with openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key="sk-1", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="null",
            messages=MESSAGES,
            max_tokens=answer_tokens,
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in stream:
            parts += [choice.delta.content or "" for choice in chunk.choices]
            usage = chunk.usage or usage
    assert "".join(parts) == "Paris is the capital of France."
    assert usage is not None
    assert usage.completion_tokens == answer_tokens


async def test_the_official_client_completes_text_and_token_ids_alike(place: House, text: ModelText) -> None:
    async with openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key="sk-1", max_retries=0) as client:
        plain = await client.completions.create(model="null", prompt="Where is it?", max_tokens=5)
        ids = await client.completions.create(model="null", prompt=text.encode("Where is it?"), max_tokens=5)
        streamed = await client.completions.create(model="null", prompt="Where is it?", max_tokens=5, stream=True)
        parts = [choice.text async for chunk in streamed for choice in chunk.choices]
    assert plain.choices[0].text == ids.choices[0].text == "".join(parts) != ""
    assert plain.usage is not None
    assert ids.usage is not None
    assert plain.usage.prompt_tokens == ids.usage.prompt_tokens


async def test_the_official_client_lists_the_model_and_reads_our_errors(place: House) -> None:
    async with openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key="sk-1", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["null"]
        assert (await client.models.retrieve("null")).id == "null"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="other", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


async def test_stream_chunks_have_openai_shapes_and_end_with_done(place: House) -> None:
    response, events = await place.events(max_tokens=4, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-1] == "[DONE]"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["total_tokens"] == events[-2]["usage"]["prompt_tokens"] + 4
    assert events[-3]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert all(event["usage"] is None for event in events[:-2])
    assert len({event["id"] for event in events[:-1]}) == 1


async def test_without_include_usage_no_chunk_speaks_of_usage(place: House) -> None:
    _, events = await place.events(max_tokens=4)
    assert all("usage" not in event for event in events[:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_over_several_tokens_ends_the_answer_and_the_work(place: House, stream: bool) -> None:
    fields = {"max_tokens": 200, "stop": ["capital of"]}
    if stream:
        _, events = await place.events(**fields)
        said = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
        reason = events[-2]["choices"][0]["finish_reason"]
    else:
        choice = (await place.chat(**fields)).json()["choices"][0]
        said, reason = choice["message"]["content"], choice["finish_reason"]
    assert said == "Paris is the "
    assert reason == "stop"
    await until(lambda: len(place.seen(1, Cancel)) == 1)
    await until(lambda: len(place.records) == 1)
    assert place.records[0].finish_reason == "stop"
    assert place.records[0].status == 200
    assert place.records[0].output_tokens < 30


async def test_headers_name_the_rule_the_workers_and_the_request(place: House) -> None:
    response = await place.client.post(
        "/v1/chat/completions", json=chat_body(), headers={"X-Request-Id": "mine-1", "Authorization": "Bearer sk-1"}
    )
    assert response.headers["x-request-id"] == "mine-1"
    route = response.headers["x-phaseline-route"]
    assert route.startswith("rule=remote; prefill=p0; decode=d0; reason=")
    await until(lambda: len(place.records) == 1)
    record = place.records[0]
    assert record.request_id == "mine-1"
    assert (record.rule, record.prefill_worker, record.decode_worker) == ("remote", "p0", "d0")
    assert record.api_key_id not in ("anonymous", "sk-1")


async def test_a_record_says_how_the_request_went(place: House) -> None:
    await place.chat(max_tokens=6, seed=3)
    await until(lambda: len(place.records) == 1)
    record = place.records[0]
    assert (record.status, record.finish_reason, record.output_tokens, record.max_tokens) == (200, "length", 6, 6)
    assert record.ttft_s is not None
    assert record.e2e_s is not None
    assert record.e2e_s >= record.ttft_s > 0
    assert (record.queue_s, record.prefill_s, record.handoff_s) == (0.001, 0.002, 0.003)
    assert sum(record.itl_buckets.values()) == 5
    assert record.good is True
    assert record.simulated is True
    assert record.traceparent.startswith("00-")


async def test_both_workers_get_the_same_request_and_the_decode_worker_first_reserves(place: House) -> None:
    await place.chat(max_tokens=6, seed=3, temperature=0.5, top_k=7, priority=-2)
    (prefill,), (decode,) = place.seen(0, Submit), place.seen(1, Submit)
    assert (prefill.kind, decode.kind) == (WorkKind.PREFILL, WorkKind.DECODE)
    assert (prefill.prompt, prefill.sampling, prefill.priority) == (decode.prompt, decode.sampling, -2)
    assert (decode.sampling.seed, decode.sampling.temperature, decode.sampling.top_k) == (3, 0.5, 7)
    assert decode.traceparent.startswith("00-")


async def test_a_seed_is_drawn_at_admission_when_there_is_none(place: House) -> None:
    await place.chat()
    await place.chat()
    seeds = {message.sampling.seed for message in place.seen(1, Submit)}
    assert len(seeds) == 2
    assert all(seed >= 0 for seed in seeds)


async def test_ignore_eos_takes_the_stop_tokens_away(place: House) -> None:
    await place.chat()
    await place.chat(ignore_eos=True)
    first, second = place.seen(1, Submit)
    assert first.sampling.stop_token_ids == (2,)
    assert second.sampling.stop_token_ids == ()
    assert second.sampling.ignore_eos


@pytest.mark.parametrize(("asked", "used"), [(0, 0.0), (1e-308, 0.0), (0.00009, 0.0), (0.0001, 0.0001), (2, 2.0)])
async def test_a_temperature_too_small_to_divide_by_is_greedy(place: House, asked: float, used: float) -> None:
    await place.chat(temperature=asked)
    assert place.seen(1, Submit)[0].sampling.temperature == used


async def test_an_answer_of_one_token_needs_no_handoff_and_frees_the_reservation(place: House) -> None:
    body = (await place.chat(max_tokens=1)).json()
    assert body["usage"]["completion_tokens"] == 1
    await until(lambda: len(place.seen(1, Cancel)) == 1)


async def test_one_request_id_used_twice_at_once_stays_two_requests(place: House) -> None:
    headers = {"X-Request-Id": "twin"}
    answers = await asyncio.gather(
        *[place.client.post("/v1/chat/completions", json=chat_body(), headers=headers) for _ in range(4)]
    )
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({message.req_id for message in place.seen(1, Submit)}) == 4


# --- routing live ------------------------------------------------------------------------------------------------


async def test_remote_share_changes_where_the_next_request_goes_with_no_restart(place: House) -> None:
    for share, rule in ((1.0, "remote"), (0.0, "control_arm"), (1.0, "remote")):
        place.retable(
            policy=RoutingPolicy(
                min_fleet_devices=0, min_remote_prefill_tokens=0, max_local_output_tokens=0, remote_share=share
            )
        )
        assert f"rule={rule};" in (await place.chat()).headers["x-phaseline-route"]
    assert place.gateway.admission.by_rule == {"remote": 2, "control_arm": 1}


async def test_a_prompt_that_the_decode_worker_holds_stays_there(place: House, text: ModelText) -> None:
    await place.chat(max_tokens=2)
    prompt = place.seen(1, Submit)[0].prompt
    place.workers[1].set_load(Load(kv_blocks_total=65536), CacheDelta(added=block_hashes(prompt, 16), reset=True))
    await until(lambda: bool(place.gateway.fleet.view().prefixes))
    place.retable(policy=RoutingPolicy(min_fleet_devices=0, local_cache_ratio=0.5))
    assert "rule=cached_local;" in (await place.chat(max_tokens=2)).headers["x-phaseline-route"]


async def test_a_worker_says_itself_that_it_drains_before_any_table_does(place: House) -> None:
    place.workers[0].set_state(WorkerState.DRAINING)
    await until(lambda: not place.gateway.fleet.view().prefill)
    assert "rule=empty_pool; prefill=d0; decode=d0;" in (await place.chat()).headers["x-phaseline-route"]


# --- bounds ------------------------------------------------------------------------------------------------------


async def test_the_gateway_refuses_what_is_over_its_bound_and_says_when_to_come_back(text: ModelText) -> None:
    silent = [NullConfig(faults=Faults(is_silent=True))]
    async with house(text, silent, max_in_flight=1, policy=LOCAL_ALWAYS) as place:
        first = asyncio.create_task(place.chat())
        await until(lambda: len(place.gateway.admission.in_flight) == 1)
        refused = await place.chat()
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert place.records[0].status == 429
        assert place.records[0].good is False
        first.cancel()
        await until(lambda: len(place.gateway.admission.in_flight) == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_has_its_work_cancelled(text: ModelText, stream: bool) -> None:
    silent = [NullConfig(faults=Faults(is_silent=True))]
    async with house(text, silent, policy=LOCAL_ALWAYS) as place:
        asking = asyncio.create_task(place.chat(stream=stream))
        await until(lambda: len(place.seen(0, Submit)) == 1)
        asking.cancel()
        await until(lambda: len(place.seen(0, Cancel)) == 1)
        await until(lambda: len(place.records) == 1)
        assert place.records[0].status == 499
        assert place.records[0].finish_reason == "cancelled"
        assert place.records[0].good is None
        assert place.gateway.admission.num_cancelled == 1


async def test_a_client_that_leaves_in_the_middle_of_a_stream_is_noticed(text: ModelText) -> None:
    async with house(text, [NullConfig(step_s=0.002)], policy=LOCAL_ALWAYS) as place:
        async with place.client.stream(
            "POST", "/v1/chat/completions", json=chat_body(stream=True, max_tokens=5000)
        ) as got:
            async for _ in got.aiter_lines():
                break
        await until(lambda: len(place.seen(0, Cancel)) == 1)
        await until(lambda: len(place.records) == 1)
        assert place.records[0].status == 499
        assert 0 < place.records[0].output_tokens < 5000


async def test_no_first_token_in_time_is_504(text: ModelText) -> None:
    silent = [NullConfig(faults=Faults(is_silent=True))]
    async with house(text, silent, limits={"first_token_timeout_s": 0.05}, policy=LOCAL_ALWAYS) as place:
        response = await place.chat()
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "first_token_timeout"
        assert len(place.seen(0, Cancel)) == 1


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({}, {"X-Phaseline-Deadline-S": "0.05"}),
        ({"deadline_s": 0.05}, {}),
        ({"timeout": 0.05}, {"X-Phaseline-Deadline-S": "50"}),
    ],
)
async def test_a_deadline_of_the_client_is_kept(
    text: ModelText, fields: dict[str, Any], headers: dict[str, str]
) -> None:
    silent = [NullConfig(faults=Faults(is_silent=True))]
    async with house(text, silent, policy=LOCAL_ALWAYS) as place:
        response = await place.client.post("/v1/chat/completions", json=chat_body(**fields), headers=headers)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline"
        assert place.seen(0, Submit)[0].deadline_unix_s is not None


@pytest.mark.parametrize(
    ("fields", "headers", "priority"),
    [
        ({}, {}, 0),
        ({"service_tier": "flex"}, {}, 10),
        ({"priority": "batch"}, {}, 10),
        ({}, {"X-Phaseline-Priority": "batch"}, 10),
        ({"priority": "interactive"}, {"X-Phaseline-Priority": "batch"}, 0),
        ({"service_tier": "flex"}, {"X-Phaseline-Priority": "-5"}, -5),
    ],
)
async def test_body_header_and_tier_say_the_priority(
    text: ModelText, fields: dict[str, Any], headers: dict[str, str], priority: int
) -> None:
    async with house(text, [NullConfig()], policy=LOCAL_ALWAYS) as place:
        response = await place.client.post("/v1/chat/completions", json=chat_body(**fields), headers=headers)
        assert response.status_code == 200
        assert place.seen(0, Submit)[0].priority == priority


async def test_a_request_is_gone_with_its_prompt_as_soon_as_it_has_ended(text: ModelText) -> None:
    silent = [NullConfig(faults=Faults(is_silent=True))]
    async with house(text, silent, policy=LOCAL_ALWAYS) as place:
        gc.disable()  # nothing is left for it: prompts are large, and a collection may be long in coming
        asking = asyncio.create_task(place.chat(deadline_s=0.2))
        await until(lambda: len(place.gateway.admission.in_flight) == 1)
        kept = [weakref.ref(relay) for relay in place.gateway.admission.in_flight.values()]
        assert (await asking).status_code == 504
        try:
            await until(lambda: kept[0]() is None)
        finally:
            gc.enable()


class Broken(Exception):
    """A fault of ours that nothing foresees."""


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_of_the_gateway_itself_is_an_envelope_a_record_and_freed_work(
    place: House, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def breaks(*_: object) -> str:
        raise Broken

    monkeypatch.setattr("control.gateway.exchange.TextStream.push", breaks)
    response = await place.chat(stream=stream, max_tokens=500)
    assert (response.status_code, "internal_error" in response.text) == (200 if stream else 500, True)
    await until(lambda: len(place.records) == 1)
    assert place.records[0].status == 500
    assert place.gateway.admission.in_flight == {}


async def test_a_fault_before_admission_is_an_envelope_too(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> list[int]:
        raise Broken

    monkeypatch.setattr("control.gateway.app.block_hashes", breaks)
    response = await place.chat()
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"


# --- readiness ---------------------------------------------------------------------------------------------------


async def test_ready_means_that_a_worker_can_serve(place: House) -> None:
    assert (await place.client.get("/healthz")).status_code == 200
    assert (await place.client.get("/readyz")).status_code == 200
    place.retable(weights={"d0": 0.0})
    response = await place.client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["reason"] == "no worker takes requests"
    assert (await place.client.get("/healthz")).status_code == 200


async def test_with_all_weights_zero_requests_are_told_to_come_back(place: House) -> None:
    place.retable(weights={"d0": 0.0, "p0": 0.0})
    response = await place.chat()
    assert response.status_code == 429
    assert "retry-after" in response.headers
    assert "rule=no_capacity;" in response.headers["x-phaseline-route"]


async def test_without_a_tokenizer_the_gateway_is_not_ready_and_says_why(place: House) -> None:
    place.gateway.text = None
    response = await place.chat()
    assert response.status_code == 503
    assert "tokenizer" in response.json()["error"]["message"]


async def test_a_long_text_is_tokenized_on_a_thread_with_the_same_result(place: House, text: ModelText) -> None:
    long = "Tokens are text. " * 1800
    response = await place.client.post("/v1/completions", json={"model": "null", "prompt": long, "max_tokens": 2})
    assert response.json()["usage"]["prompt_tokens"] == len(text.encode(long))
