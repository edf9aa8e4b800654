"""What Prometheus is told: names, exact buckets, roles after a flip, a bounded number of series, two formats."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from control.accounting import Accountant
from control.alerts.burn import WINDOWS_S
from control.exposition.families import BOUNDS_S, Family, Latencies, Page, rendered
from control.exposition.plane_page import FAMILIES, AlertFacts, HistoryFacts, plane_page, series_bound
from control.exposition.request_totals import OUTCOMES, RULES, RequestTotals, outcome_of
from control.exposition.work_totals import WorkTotals
from control.gateway.admission import Admission
from control.gateway.fleet import Fleet
from control.gateway.gatekeeper import AdmissionRules
from control.gateway.metrics_page import FAMILIES as GATEWAY_FAMILIES
from control.gateway.metrics_page import MAX_SERIES, GatewayFacts, gateway_page
from control.gateway.records import RecordLog
from control.types.bottleneck import Bottleneck, Resource
from control.types.requests import RequestMove, Slo
from control.types.routing import RouteRule
from control.types.workers import Phase, Role
from engine.histogram import MAX_RELATIVE_ERROR, bucket_of
from engine.wire import Hello
from tests.control.builders import NOW, FakeFleet
from tests.control.metered import FakeWorker, observe
from tests.control.records import record
from tests.control.rig import Rig

ALERTS = AlertFacts(objective=0.99, burn_rates=dict.fromkeys(WINDOWS_S, 1.0), deliveries=Counter())
ROOT = Path(__file__).resolve().parents[2]
HISTORY = HistoryFacts(is_up=True, num_waiting=0, num_dropped=0, num_spooled=0, spooled_bytes=0)
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TIMED = Family("phaseline_thing_seconds", "histogram", "A thing.", ("kind",))


def samples(found: Iterator[Metric] | Any, name: str) -> dict[tuple[str, ...], float]:
    """Values of one series name by its labels, but for the fleet, in the order of their names."""
    values = [each for metric in found for each in metric.samples if each.name == name]
    return {tuple(v for k, v in sorted(each.labels.items()) if k != "fleet"): each.value for each in values}


def test_every_name_says_its_unit_and_only_counters_are_totals() -> None:
    names = [each.name for each in (*FAMILIES, *GATEWAY_FAMILIES)]
    assert len(names) == len(set(names))
    assert all(each.help.endswith(".") for each in (*FAMILIES, *GATEWAY_FAMILIES))
    with pytest.raises(ValueError, match="only a counter"):
        Family("phaseline_things", "counter", "Things.")
    with pytest.raises(ValueError, match="ends with its unit"):
        Family("phaseline_thing", "histogram", "A thing.")


def test_a_bucket_counts_exactly_what_is_not_above_its_bound() -> None:
    values = [random.Random(3).lognormvariate(-2, 2) for _ in range(3_000)]
    latencies = Latencies()
    for value_s in values:
        latencies.observe(value_s)
    page = Page([TIMED])
    page.put_latencies(TIMED, latencies, "a")
    (metric,) = parse_classic(rendered([page], "")[0].decode())
    counts = {each.labels["le"]: each.value for each in metric.samples if each.name.endswith("_bucket")}
    assert counts["+Inf"] == 3_000
    for bound_s in BOUNDS_S:
        assert counts[repr(bound_s)] == sum(1 for each in values if each <= bound_s)
    assert metric.samples[-1].value == pytest.approx(sum(values))


def test_buckets_of_two_pages_add_up_to_those_of_all_values() -> None:
    one, other, both = Latencies(), Latencies(), Latencies()
    one.observe(0.2)
    other.observe(3.0)
    both.observe(0.2)
    both.add({bucket_of(3.0): 1})
    assert both.counts == [a + b for a, b in zip(one.counts, other.counts, strict=True)]
    assert both.sum_s == pytest.approx(3.2, rel=MAX_RELATIVE_ERROR)


def test_openmetrics_shows_the_newest_trace_of_a_bucket_and_the_classic_text_none() -> None:
    latencies = Latencies()
    latencies.observe(0.2, "a" * 32, NOW)
    latencies.observe(0.201, "b" * 32, NOW)
    page = Page([TIMED], {"fleet": "test"})
    page.put_latencies(TIMED, latencies, "x")
    text, content_type = rendered([page], OPENMETRICS)
    assert content_type.startswith(OPENMETRICS)
    (metric,) = parse_openmetrics(text.decode())
    (exemplar,) = [each.exemplar for each in metric.samples if each.exemplar]
    assert exemplar.labels == {"trace_id": "b" * 32}
    classic, content_type = rendered([page], "text/html")
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b"trace_id" not in classic


def test_work_stays_with_the_role_that_it_was_done_in_after_a_flip() -> None:
    work, accountant, worker = WorkTotals(), Accountant("test"), FakeWorker()
    worker.step(0.0, 1.0, flops=300.0, bytes=30.0, tokens=3)
    work.add(observe(accountant, 1.0, worker))
    worker.now_s = 1.5
    worker.place(Role.PREFILL)
    worker.step(2.0, 3.0, role=Role.PREFILL, phase=Phase.PREFILL, flops=500.0, bytes=5.0, tokens=50)
    work.add(observe(accountant, 4.0, worker))
    assert work.of_role(Role.DECODE, Phase.DECODE)["flops"] == pytest.approx(300.0)
    assert work.of_role(Role.PREFILL, Phase.PREFILL)["flops"] == pytest.approx(500.0)
    assert work.of_role(Role.PREFILL, Phase.DECODE)["flops"] == 0.0
    assert work.cover(Role.DECODE)["worker_s"] == pytest.approx(1.5)
    assert work.cover(Role.PREFILL)["worker_s"] == pytest.approx(2.5)
    assert work.cover(None)["flops_peak"] == pytest.approx(4_000.0)
    by_worker = work.of_worker("w0", Role.PREFILL, Phase.PREFILL)
    assert by_worker is not None
    assert by_worker["tokens"] == pytest.approx(50.0)


def test_a_restarted_worker_makes_no_total_smaller() -> None:
    work, accountant = WorkTotals(), Accountant("test")
    first, second = FakeWorker(), FakeWorker(epoch=2, at_s=2.0)
    first.step(0.0, 1.0, flops=300.0)
    work.add(observe(accountant, 1.0, first))
    second.step(2.0, 3.0, flops=40.0)
    work.add(observe(accountant, 3.0, second))
    assert work.of_role(Role.DECODE, Phase.DECODE)["flops"] == pytest.approx(340.0)
    work.keep({"w1"})
    assert work.of_worker("w0", Role.DECODE, Phase.DECODE) is None


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "good"),
        ({"ttft_s": 50.0}, "late"),
        ({"status": 503, "finish_reason": "error"}, "error"),
        ({"status": 429, "finish_reason": "error"}, "rejected"),
        ({"status": 499, "finish_reason": "cancelled"}, "cancelled"),
        ({"status": 400, "finish_reason": "error"}, "bad_request"),
    ],
)
def test_each_request_ends_in_one_outcome(changes: dict[str, Any], outcome: str) -> None:
    assert outcome_of(record(**changes), Slo()) == outcome


async def test_the_number_of_series_is_bounded_whatever_requests_say(tmp_path: Path) -> None:
    rig = await Rig(tmp_path, FakeFleet.of(8)).start()
    totals, move = RequestTotals(Slo()), RequestMove(kind="failover", from_worker="w1", to_worker="w2", at_s=0.1)
    for number in range(3_000):
        totals.add(
            record(
                rule=random.choice([*RouteRule, f"rule {number}", ""]),
                request_id=f"id {number}",
                api_key_id=f"key {number}",
                decode_worker=f"w{number}",
                status=random.choice([200, 400, 408, 429, 499, 503, 599]),
                moves=(move,),
                traceparent=f"00-{number:032x}-{number:016x}-01",
            )
        )
    snapshot = rig.plane.monitor.snapshot
    assert snapshot is not None
    for max_workers in (0, 3, 256):
        page = plane_page(snapshot, WorkTotals(), totals, HISTORY, ALERTS, max_workers=max_workers, now_unix_s=rig.now)
        assert page.num_series <= series_bound(8, max_workers)
        assert samples(page.collect(), "phaseline_workers_omitted") == {(): max(0, 8 - max_workers)}
    assert len(samples(page.collect(), "phaseline_requests_total")) == len(RULES) * len(OUTCOMES)


async def test_the_page_needs_a_viewers_token_and_says_what_the_fleet_does(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).start()
    rig.plane.gateways.on_records("gw@1", 1, [record(rule="remote"), record(rule="remote", ttft_s=60.0)])
    transport = httpx.ASGITransport(app=rig.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://plane") as client:
        refused = await client.get("/metrics")
        assert (refused.status_code, refused.json()["status"]) == (401, 401)
        headers = {"Authorization": f"Bearer {rig.token('viewer')}", "Accept": OPENMETRICS}
        answer = await client.get("/metrics", headers=headers)
    found = list(parse_openmetrics(answer.text))
    assert samples(found, "phaseline_pool_ready_workers")[("prefill",)] == 1
    assert samples(found, "phaseline_requests_total")["good", "remote"] == 1
    assert samples(found, "phaseline_requests_total")["late", "remote"] == 1
    assert samples(found, "phaseline_history_up") == {(): 1.0}
    assert samples(found, "phaseline_worker_up") == {(role.value, f"w{i}"): 1.0 for i, role in enumerate(rig.roles())}


async def test_a_pool_of_which_nothing_is_known_has_no_sample(tmp_path: Path) -> None:
    snapshot = (await Rig(tmp_path).start()).plane.monitor.snapshot
    assert snapshot is not None
    unseen = replace(snapshot, pools=tuple(replace(each, num_desired=None, num_ready=0) for each in snapshot.pools))
    page = plane_page(unseen, WorkTotals(), RequestTotals(Slo()), HISTORY, ALERTS, max_workers=8, now_unix_s=NOW)
    assert "phaseline_pool_desired_workers" not in {each.name for each in page.collect()}
    assert "phaseline_pool_ready_workers" not in {each.name for each in page.collect()}


async def test_the_bottleneck_is_a_series_for_each_resource_and_nothing_while_unknown(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).start()
    snapshot = rig.plane.monitor.snapshot
    assert snapshot is not None

    def shown(found: Bottleneck) -> list[Metric]:
        seen = replace(snapshot, bottleneck=found)
        values: dict[str, Any] = {"max_workers": 4, "now_unix_s": rig.now}
        return list(plane_page(seen, WorkTotals(), RequestTotals(Slo()), HISTORY, ALERTS, **values).collect())

    limited = Bottleneck(
        kind="two",
        resources=(Resource.PREFILL, Resource.KV_ROOM),
        text="",
        at_unix_s=NOW,
        since_unix_s=NOW,
        window_s=60.0,
        gains={each.value: 0.25 for each in Resource},
    )
    found = samples(shown(limited), "phaseline_bottleneck")
    assert found == {(each.value,): float(each in limited.resources) for each in Resource}
    assert samples(shown(limited), "phaseline_bottleneck_gain_ratio")[("prefill",)] == 0.25
    assert not samples(shown(replace(limited, kind="unknown", resources=())), "phaseline_bottleneck")


async def test_a_plane_that_does_not_tick_shows_how_old_its_numbers_are(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).start()
    rig.now += 30.0
    rig.history.broken = "disk full"
    rig.plane.recorder.failure = "disk full"
    page = rig.plane.monitor.page(rig.now)
    assert page is not None
    assert samples(page.collect(), "phaseline_plane_observation_age_seconds") == {(): pytest.approx(30.0)}
    assert samples(page.collect(), "phaseline_history_up") == {(): 0.0}


@pytest.mark.parametrize("name", ["monitoring", "operations"])
def test_the_documentation_states_the_bounds(name: str) -> None:
    per_worker = series_bound(1, 1) - series_bound(0, 0)
    words = f"{series_bound(0, 0):,} series (a gateway's {MAX_SERIES:,}) and {per_worker} per worker"
    assert words in (ROOT / "docs" / f"{name}.md").read_text()


async def test_a_gateways_page_keeps_its_bound() -> None:
    totals = RequestTotals(Slo())
    for number in range(500):
        totals.add(record(rule=f"rule {number}", traceparent=f"00-{number:032x}-{number:016x}-01"))
    fleet = Fleet(Hello("gw", "gateway", "secret"))
    facts = GatewayFacts(
        gateway_id="gw",
        started_unix_s=NOW,
        fleet=fleet,
        admission=Admission(fleet, AdmissionRules(max_in_flight=1)),
        records=RecordLog(),
        totals=totals,
        tracing=None,
    )
    assert 900 < gateway_page(facts).num_series <= MAX_SERIES
