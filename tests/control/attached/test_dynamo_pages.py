"""Recorded pages of Dynamo: names, ids in two spellings, roles, and that what nobody says stays unknown."""

from __future__ import annotations

import json

import pytest

from control.errors import CommandRefused
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.derive import derive
from control.fleets.attached.dialects import DYNAMO, read_page
from control.fleets.attached.engine_page import Counters, EnginePage, Prompts, filled
from control.fleets.attached.exposition import PageError
from control.fleets.attached.steered import SteeredFleet
from control.fleets.attached.steering.calls import Caller
from control.fleets.attached.steering.controllers import open_steering
from control.fleets.attached.steering.dynamo import DynamoSteering
from control.fleets.attached.steering.dynamo_frontend import Routed, mean_prompt, read_frontend, told_of
from control.fleets.attached.steering.dynamo_pages import PageFinder, host_of, page_of_card, ports_of
from control.fleets.attached.steering.etcd import Etcd
from control.fleets.attached.types import Attachment
from control.types.workers import Phase, Role
from engine.readings import LATENCY_KINDS
from tests.control.attached.fake_controllers import FakeDynamo, FakeEtcd, served
from tests.control.attached.fake_engines import FakeEngine, engines, until
from tests.control.attached.pages_of import PAGES, TINY

PREFILL, DECODE = "f5bafeba1fc0b1d5", "f100d311739a7f69"
APART_S = 6.03
FILES = "/v1/metadata/dynamo/prefill/generate/m/config.json"


def text_of(name: str) -> str:
    return (PAGES / f"dynamo-1.6.1-{name}.txt").read_text()


def page_of(name: str, prompts: Prompts | None = None) -> EnginePage:
    return filled(read_page(text_of(name), DYNAMO), EnginePage(prompts=prompts))


def absent(page: EnginePage) -> set[str]:
    return {each.quantity for each in page.findings if each.state == "absent"}


def test_a_decode_workers_page_is_its_engines_and_its_tokens_are_what_it_timed():
    page = page_of("decode-1")
    assert (page.worker_id, page.model_id) == (DECODE, "mock")
    assert page.counters.decode_tokens == 342 + 11  # gaps between tokens, and first tokens
    assert (page.gauges.num_running, page.gauges.num_waiting) == (3, 0)
    assert page.gauges.kv_usage == pytest.approx(43 / 4096)
    assert page.latencies["itl"][-1][1] == 342
    assert "decode_tokens" not in absent(page)


def test_a_prefill_workers_page_counts_requests_of_its_one_endpoint_and_nothing_else():
    page = page_of("prefill-2")
    assert (page.worker_id, page.counters.num_requests) == (PREFILL, 24)
    assert page.latencies["prefill"][-1][1] == 24
    assert page.counters.prefill_tokens is page.gauges.kv_usage is page.gauges.num_waiting is None
    assert {"prefill_tokens", "kv_usage", "steps", "ttft"} <= absent(page)


def test_a_real_engines_series_inside_dynamos_page_are_its_own_and_come_first():
    prefill, decode = page_of("vllm-0.31.0-prefill"), page_of("vllm-0.31.0-decode")
    assert (prefill.worker_id, prefill.model_id) == ("2ae9a212fb3bcd43", "tiny")
    assert (prefill.counters.prefill_tokens, prefill.counters.decode_tokens) == (6106, 37)
    assert (decode.counters.received_tokens, decode.counters.decode_tokens) == (6106, 37 * 30)
    assert decode.counters.num_requests == 37
    assert decode.latencies.keys() == prefill.latencies.keys() == {*LATENCY_KINDS}
    assert absent(prefill) == absent(decode) == set()


def test_what_an_engine_counts_of_its_prompts_is_not_made_of_its_requests():
    now = page_of("vllm-0.31.0-prefill", Prompts(computed_tokens=9999))
    none = EnginePage(counters=Counters(prefill_tokens=0, decode_tokens=0, num_requests=0, steps=0))
    assert derive(none, now, Role.PREFILL, TINY, 60.0)[Phase.PREFILL].tokens == 6106


def test_the_frontend_knows_workers_by_decimal_ids_and_we_by_hex_ones():
    page = read_frontend(text_of("frontend-1"))
    assert page.kv_usage[DECODE] == 38 / 4096
    assert page.kv_usage[PREFILL] == 0
    assert len(page.kv_usage) == 4
    assert (page.model_id, page.phases) == ("mock", {"prefill", "decode"})
    assert page.routed == Routed(num=24, tokens=4176, cached_tokens=0)
    whole = filled(page_of("prefill-1"), told_of(PREFILL, Role.PREFILL, page, Prompts(computed_tokens=174)))
    assert whole.gauges.kv_usage == 0
    assert not {"prefill_tokens", "decode_tokens"} & absent(whole)
    nobody = told_of("7", Role.PREFILL, page, None)
    assert nobody.gauges.kv_usage is None
    assert "prefill_tokens" in absent(filled(page_of("prefill-1"), nobody))


@pytest.mark.parametrize(
    ("before", "now", "mean"),
    [
        (None, None, None),
        (None, Routed(num=2, tokens=300, cached_tokens=100), Prompts(computed_tokens=100, cached_tokens=50)),
        (
            Routed(num=2, tokens=300, cached_tokens=0),
            Routed(num=3, tokens=400, cached_tokens=40),
            Prompts(computed_tokens=60, cached_tokens=40),
        ),
        (
            Routed(num=9, tokens=900, cached_tokens=0),
            Routed(num=1, tokens=70, cached_tokens=0),
            Prompts(computed_tokens=70),
        ),
    ],
)
def test_the_mean_prompt_is_of_what_was_routed_since(before: Routed | None, now: Routed | None, mean: Prompts | None):
    assert mean_prompt(before, now, None) == mean


def test_the_mean_prompt_has_a_memory_so_that_long_prompts_do_not_get_the_number_of_short_ones():
    lengths = [100, 300] * 200
    routed, mean, counted = Routed(num=0, tokens=0, cached_tokens=0), Prompts(computed_tokens=200), 0.0
    for length in lengths:
        now = Routed(num=routed.num + 1, tokens=routed.tokens + length, cached_tokens=0)
        mean, routed = mean_prompt(routed, now, mean) or mean, now
        counted += 2 * mean.computed_tokens if length == 300 else 0  # workers count two, whenever a long one is routed
    assert counted == pytest.approx(sum(lengths), rel=0.05)


def test_the_mean_prompt_stays_while_nothing_is_routed():
    last = Prompts(computed_tokens=5)
    same = Routed(num=2, tokens=300, cached_tokens=0)
    assert mean_prompt(same, same, last) == mean_prompt(same, None, last) == last


def test_prefill_of_a_worker_that_counts_requests_is_the_mean_prompt_for_each():
    prompts = Prompts(computed_tokens=174)
    work = derive(page_of("prefill-1", prompts), page_of("prefill-2", prompts), Role.PREFILL, TINY, APART_S)
    prefill = work[Phase.PREFILL]
    assert (prefill.tokens, prefill.steps) == (12 * 174, 12)
    assert prefill.flops == pytest.approx(12 * (174 * TINY.flops_per_token + 174 * 175 / 2 * TINY.flops_per_pair))
    assert work[Phase.DECODE].flops == 0


def test_decode_of_a_worker_that_counts_no_steps_follows_the_time_between_tokens():
    prompts = Prompts(computed_tokens=174)
    work = derive(page_of("decode-1", prompts), page_of("decode-2", prompts), Role.DECODE, TINY, APART_S)
    decode = work[Phase.DECODE]
    batch = (21.79216 - 8.74962) / APART_S
    assert decode.tokens == 880 - 353
    assert decode.steps == pytest.approx(527 / batch, rel=0.01)
    assert decode.flops is not None
    assert decode.bytes is not None
    assert work[Phase.PREFILL].flops == 0


def test_without_the_frontends_word_the_work_is_unknown_and_not_zero():
    prefill = derive(page_of("prefill-1"), page_of("prefill-2"), Role.PREFILL, TINY, APART_S)[Phase.PREFILL]
    decode = derive(page_of("decode-1"), page_of("decode-2"), Role.DECODE, TINY, APART_S)[Phase.DECODE]
    assert prefill.flops is prefill.bytes is decode.flops is None


def test_a_model_card_in_discovery_says_where_its_worker_has_its_page():
    card = {
        "instance_id": 255,
        "card_json": {
            "source_path": "/models/m",
            "model_info": {
                "hf_config_json": {"path": "http://10.0.0.7:9090/v1/metadata/dynamo/prefill/generate/m/c.json"}
            },
        },
    }
    assert page_of_card(json.dumps(card)) == ("ff", "http://10.0.0.7:9090/metrics")
    assert page_of_card(json.dumps({**card, "card_json": {"path": "http://hub/m"}})) is page_of_card("no") is None
    assert host_of({"tcp": "10.0.0.7:4000/ff/generate"}) == "10.0.0.7"
    assert host_of({"nats_tcp": "subject"}) == host_of(None) == ""


@pytest.mark.parametrize(("text", "ports"), [("", ()), ("9090", (9090,)), ("8181-8183,9090", (8181, 8182, 8183, 9090))])
def test_ports_are_written_as_numbers_and_ranges(text: str, ports: tuple[int, ...]):
    assert ports_of(text) == ports


@pytest.mark.parametrize("text", ["nine", "9-1", "0", "70000", "1-", "1000-2000"])
def test_ports_that_are_none_or_too_many_are_refused(text: str):
    with pytest.raises(CommandRefused, match=f"pages={text}"):
        ports_of(text)


async def test_pages_are_found_by_asking_whose_they_are_and_the_silent_are_asked_more_rarely():
    asked: list[str] = []

    async def fetch(url: str) -> str:
        asked.append(url)
        if url.endswith(":2/metrics"):
            return text_of("prefill-1")
        raise PageError("nobody")

    finder = PageFinder((1, 2), fetch)
    hosts = {PREFILL: "a", "7": "a"}
    for _ in range(16):
        assert await finder.find(hosts, {}) == {PREFILL: "http://a:2/metrics"}
    assert len(asked) == 2 * 5  # looks 1, 2, 4, 8, 16
    assert await finder.find({"7": ""}, {"7": "http://b:9/metrics"}) == {"7": "http://b:9/metrics"}


async def test_the_roster_has_roles_pages_and_what_the_frontend_knows():
    frontend, etcd = FakeDynamo(page=text_of("frontend-1")), FakeEtcd()
    number = int(PREFILL, 16)
    frontend.workers = {number: "prefill", int(DECODE, 16): "backend"}
    path = "http://127.0.0.1:7000/v1/metadata/dynamo/prefill/generate/m/config.json"
    etcd.keys[f"v1/mdc/dynamo/prefill/generate/{PREFILL}"] = json.dumps(
        {"instance_id": number, "card_json": {"model_info": {"path": path}}}
    )
    async with served(frontend, etcd):
        steering = DynamoSteering(Caller(frontend.url), Etcd(Caller(etcd.url)))
        found = {each.worker_id: each for each in (await steering.look()).members}
        assert {name: each.role for name, each in found.items()} == {PREFILL: Role.PREFILL, DECODE: Role.DECODE}
        assert (found[PREFILL].metrics_url, found[DECODE].metrics_url) == ("http://127.0.0.1:7000/metrics", "")
        assert found[DECODE].told.gauges.kv_usage == 38 / 4096
        assert found[PREFILL].told.prompts == Prompts(computed_tokens=174)
        del frontend.workers[number]
        (left,) = (await steering.look()).members
        assert left.role is Role.DECODE  # its prefill workers have only gone
        await steering.close()


async def test_a_version_is_the_frontends_and_asked_anew_with_a_new_worker():
    frontend = FakeDynamo()
    async with served(frontend):
        steering = DynamoSteering(Caller(frontend.url), None)
        assert (await steering.look()).version == "1.6.1"
        frontend.version = "1.7.0"
        assert (await steering.look()).version == "1.6.1"
        frontend.workers[7] = "prefill"
        assert (await steering.look()).version == "1.7.0"
        silent = FakeDynamo(version="")
        async with served(silent):
            older = DynamoSteering(Caller(silent.url), None)
            assert (await older.look()).version == ""
            await older.close()
        await steering.close()


async def test_workers_are_read_from_the_list_of_a_real_frontend():
    frontend = FakeDynamo(health=json.loads((PAGES / "dynamo-1.6.1-health.json").read_text()))
    async with served(frontend):
        steering = DynamoSteering(Caller(frontend.url), None, "dynamo")
        found = {each.worker_id: each.role for each in (await steering.look()).members}
        assert (found[PREFILL], found[DECODE], len(found)) == (Role.PREFILL, Role.DECODE, 4)
        other = DynamoSteering(Caller(frontend.url), None, "another")
        assert (await other.look()).members == ()
        await steering.close()
        await other.close()


async def test_a_dynamo_that_never_had_a_prefill_worker_serves_both_phases_on_each():
    frontend = FakeDynamo(workers={int(DECODE, 16): "backend"})
    async with served(frontend):
        steering = DynamoSteering(Caller(frontend.url), None)
        (member,) = (await steering.look()).members
        assert (member.role, member.told.prompts) == (Role.MIXED, None)
        await steering.close()


async def test_a_worker_whose_page_falls_silent_or_is_anothers_is_not_ready_though_it_is_still_listed():
    prefill, decode = FakeEngine(text_of("prefill-1")), FakeEngine(text_of("decode-1"))
    frontend, etcd = FakeDynamo(page=text_of("frontend-1")), FakeEtcd()
    frontend.workers = {int(PREFILL, 16): "prefill", int(DECODE, 16): "backend"}
    async with engines(prefill, decode), served(frontend, etcd):
        for worker_id, engine in ((PREFILL, prefill), (DECODE, decode)):
            card = {"instance_id": int(worker_id, 16), "card_json": {"path": f"{engine.url}{FILES}"}}
            etcd.keys[f"v1/mdc/{worker_id}"] = json.dumps(card)
        told = Attachment(
            name="theirs", kind="dynamo", controller=f"dynamo={frontend.url}?etcd={etcd.url}", every_s=0.5
        )
        plan = plan_of(told)
        assert plan.controller is not None
        fleet = SteeredFleet(plan, open_steering(plan.controller))
        await fleet.start(lambda: None)
        await until(lambda: sum(each.is_alive for each in fleet.scrapers.values()) == 2)
        assert {role: pool.num_ready for role, pool in fleet.pools().items()} == {Role.PREFILL: 1, Role.DECODE: 1}
        seen = {each.worker_id: each for each in (await fleet.observe(10.0)).readings}
        assert {name: each.role for name, each in seen.items()} == {PREFILL: Role.PREFILL, DECODE: Role.DECODE}
        assert {each.version for each in (await fleet.observe(10.0)).lives} == {"1.6.1"}
        assert "num_waiting" in seen[PREFILL].unknown
        decode.page = text_of("prefill-1")
        await until(lambda: not fleet.scrapers[DECODE].is_alive)
        assert f"is now the page of {PREFILL}" in fleet.scrapers[DECODE].problem
        pool = fleet.pools()[Role.DECODE]
        assert (pool.num_ready, pool.num_other) == (0, 1)
        await fleet.close()
