"""Traces: a request's spans at a collector process, W3C traceparent in and out, and a collector that is away."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gateway_builders import LOCAL_ALWAYS, SPLIT_ALWAYS, house, until
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import StatusCode

from control.gateway.null_worker import NullConfig
from control.gateway.spans import spans_of, stages
from control.gateway.tracing import MAX_WAITING, Tracing, traces_url
from control.types.requests import RequestMove
from engine.text import ModelText
from engine.types import Role
from tests.control.records import record

ROOT = Path(__file__).resolve().parents[3]
TRACE, CLIENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CLIENT}-01", f"00-{TRACE}-{CLIENT}-00"
OURS = f"00-{TRACE}-aaaaaaaaaaaaaaaa-01"
ABOUT = {"service.name": "phaseline-gateway"}


@pytest.fixture
def collector() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.control.gateway.otlp_receiver", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


async def line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(await asyncio.to_thread(process.stdout.readline))
    return found


def workers(text: ModelText) -> list[NullConfig]:
    answer = tuple(text.encode("Paris."))
    return [
        NullConfig(worker_id=name, role=role, tokens=answer)
        for name, role in (("p0", Role.PREFILL), ("d0", Role.DECODE))
    ]


async def test_a_split_requests_spans_reach_the_collector_below_its_clients_own(
    text: ModelText, collector: subprocess.Popen[str]
) -> None:
    port = (await line(collector))["port"]
    tracing = Tracing(f"http://127.0.0.1:{port}", 0.0, ABOUT)
    async with house(text, workers(text), policy=SPLIT_ALWAYS, tracing=tracing) as place:
        body = {"model": "null", "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 4}
        answer = await place.client.post("/v1/chat/completions", json=body, headers={"traceparent": SAMPLED})
        plain = await place.client.post("/v1/chat/completions", json=body)  # nobody asks for a trace of it
        wrong = await place.client.post("/v1/chat/completions", json={}, headers={"traceparent": SAMPLED})
        root = await line(collector)
        below = [await line(collector) for _ in stages(place.records[0])]
        await asyncio.to_thread(tracing.close)
        page = (await place.client.get("/metrics")).text
    version, trace, span, flags = answer.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert (root["trace"], root["span"], root["parent"]) == (TRACE, span, CLIENT)
    assert (root["name"], root["events"][0]) == ("POST /v1/chat/completions", "first_token")
    assert root["service"] == ["phaseline-gateway"]
    assert {"gen_ai.usage.output_tokens", "phaseline.rule"} <= set(root["attributes"])
    assert below[-1]["name"] == "decode"
    for each in below:
        assert (each["trace"], each["parent"]) == (TRACE, span)
        assert root["begin"] <= each["begin"] <= each["end"] <= root["end"] + 1_000
    assert plain.headers["traceparent"].endswith("-00")
    assert wrong.headers["traceparent"].split("-")[1] == TRACE
    assert 'phaseline_gateway_traced_requests_total{gateway="gw-test",outcome="exported"} 1.0' in page


async def test_requests_are_served_when_the_collector_is_away_and_lost_traces_are_counted(text: ModelText) -> None:
    tracing = Tracing("http://127.0.0.1:9", 1.0, ABOUT)
    answer = tuple(text.encode("Paris."))
    async with house(
        text, [NullConfig(worker_id="m0", role=Role.MIXED, tokens=answer)], policy=LOCAL_ALWAYS, tracing=tracing
    ) as place:
        for _ in range(3):
            response = await place.chat()
            assert response.status_code == 200
            assert response.headers["traceparent"].endswith("-01")
        ended = place.records[0]
        for _ in range(MAX_WAITING + 500):
            tracing.take(ended, "")
        assert tracing.num_waiting <= MAX_WAITING
        assert tracing.requests["dropped"] >= 500 - 128
        assert (await place.chat()).status_code == 200
        await until(lambda: tracing.requests["failed"] > 0)
    await asyncio.to_thread(tracing.close)


def test_stages_follow_each_other_and_end_with_the_request() -> None:
    found = record(line_s=0.1, queue_s=0.05, prefill_s=0.2, handoff_s=0.02, ttft_s=0.4, e2e_s=2.0)
    assert [each[0] for each in stages(found)] == ["line", "queue", "prefill", "handoff", "decode"]
    ends = [(begin, end) for _, _, begin, end in stages(found)]
    assert all(one[1] == other[0] for one, other in pairwise(ends))
    assert ends[-1][1] == 2.0
    refused = record(line_s=0.3, queue_s=None, prefill_s=None, handoff_s=None, ttft_s=None, e2e_s=0.25)
    assert list(stages(refused)) == [("line", "", 0.0, 0.25)]


def test_moves_are_events_and_an_error_is_the_spans_status() -> None:
    move = RequestMove(kind="failover", from_worker="w1", to_worker="w2", at_s=0.5, stall_s=0.04, notice_s=0.01)
    root = spans_of(record(traceparent=OURS, moves=(move,), status=503, error="gone"), CLIENT, Resource({}))[0]
    event = root.events[-1]
    assert (event.name, event.attributes["phaseline.to_worker"]) == ("failover", "w2")
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, "gone")
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == CLIENT
    assert spans_of(record(traceparent=OURS), "", Resource({}))[0].parent is None


async def test_what_its_client_does_not_want_traced_is_not() -> None:
    tracing = Tracing("http://127.0.0.1:9", 1.0, ABOUT)
    tracing.take(record(traceparent=UNSAMPLED), CLIENT)
    assert tracing.num_waiting == 0
    await asyncio.to_thread(tracing.close)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("https://c/otlp/v1/traces", "https://c/otlp/v1/traces"),
    ],
)
def test_an_endpoint_without_a_path_means_the_standard_one(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url
