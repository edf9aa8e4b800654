"""Records in the history: counted once whether kept or not; heatmap and totals are of all requests, not of a sample."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from math import floor
from typing import Any

import pytest

from control.errors import CommandRefused
from control.heatmap import BIN_BUCKETS
from control.history.store import EventQuery, ExplainQuery, History, RequestFilter, RequestQuery, Retention
from control.sampling import Sampler, latency_of
from control.types.latencies import Heatmap
from control.types.requests import LatencyKind, RequestMove, RequestRecord, Slo
from engine.histogram import bucket_of
from tests.control.history.test_ticks import nothing, values
from tests.control.metered import T0
from tests.control.records import record

RANGE: dict[str, Any] = {"fleet_id": "f", "since_unix_s": T0, "until_unix_s": T0 + 60}
LATE_WORKER = "w7"


def traffic(count: int, over_s: float = 60.0) -> list[RequestRecord]:
    """Requests at an even rate; those on LATE_WORKER take ten times as long, and past the bound."""
    chance = random.Random(5)
    found = []
    for index in range(count):
        worker = chance.choice(("w1", "w2", "w3", LATE_WORKER))
        scale = 10.0 if worker == LATE_WORKER else 1.0
        ttft_s = scale * chance.lognormvariate(-2.0, 0.4)
        found.append(
            record(
                request_id=f"r{index}",
                arrival_unix_s=T0 + index * over_s / count,
                decode_worker=worker,
                rule=chance.choice(("remote", "short_local")),
                ttft_s=ttft_s,
                max_gap_s=0.1 * scale,
                e2e_s=ttft_s + 1.0,
                good=ttft_s <= 1.0,
                broken=() if ttft_s <= 1.0 else ("ttft",),
                status=503 if index % 50 == 7 else 200,
            )
        )
    return found


def sampled(records: list[RequestRecord], per_s: float = 5.0) -> list[RequestRecord]:
    sampler = Sampler(per_s)
    return [sampler.judge(each, each.arrival_unix_s) for each in records]


def write(history: History, records: list[RequestRecord]) -> None:
    history.write_tick(nothing(70), {}, [("g", seq, each) for seq, each in enumerate(records, 1)])


def cells(heatmap: Heatmap) -> dict[tuple[int, float], float]:
    """Counts by column and upper edge of the bin."""
    edges = [heatmap.edges_s[number + 1] for number in heatmap.bins]
    return dict(zip(zip(heatmap.columns, edges, strict=True), heatmap.counts, strict=True))


def expected(records: list[RequestRecord], kind: LatencyKind, heatmap: Heatmap) -> dict[tuple[int, int], int]:
    """The same by hand: column and histogram buckets of a bin."""
    found: Counter[tuple[int, int]] = Counter()
    for each in records:
        value_s = latency_of(each, kind)
        if value_s is not None:
            column = floor((each.arrival_unix_s - heatmap.since_unix_s) / heatmap.step_s)
            found[column, bucket_of(value_s) // BIN_BUCKETS] += 1
    return dict(found)


@pytest.mark.parametrize("kind", ["ttft", "e2e", "gap"])
def test_a_heatmap_counts_every_request_though_most_records_are_dropped(history: History, kind: LatencyKind) -> None:
    records = traffic(3000)
    write(history, sampled(records))
    heatmap = history.heatmap(RequestFilter(**RANGE, metric=kind), Slo())
    assert not heatmap.is_estimated
    assert sorted(heatmap.counts) == sorted(expected(records, kind, heatmap).values())
    assert heatmap.requests.num_requests == 3000
    assert len(history.requests(RequestQuery(**RANGE, limit=5000))) < 1500
    by_rule = history.heatmap(RequestFilter(**RANGE, metric=kind, rule="remote"), Slo())
    assert (by_rule.is_estimated, sum(by_rule.counts)) == (
        False,
        sum(each.rule == "remote" and latency_of(each, kind) is not None for each in records),
    )


def test_what_the_histograms_do_not_know_is_estimated_by_weights_and_says_so(history: History) -> None:
    records = traffic(6000)
    write(history, sampled(records, per_s=20.0))
    for worker in ("w1", LATE_WORKER):
        heatmap = history.heatmap(RequestFilter(**RANGE, metric="ttft", worker_id=worker), Slo())
        assert heatmap.is_estimated
        assert "estimated" in heatmap.note
        num = sum(each.decode_worker == worker for each in records)
        assert sum(heatmap.counts) == pytest.approx(num, rel=0.2)


def test_with_every_record_kept_the_estimate_is_the_count(history: History) -> None:
    write(history, traffic(500))
    counted = history.heatmap(RequestFilter(**RANGE, metric="ttft"), Slo())
    estimated = history.heatmap(RequestFilter(**RANGE, metric="ttft", batch=False), Slo())
    assert (counted.is_estimated, estimated.is_estimated) == (False, True)
    assert cells(counted) == cells(estimated)


def test_the_records_of_a_cell_are_found_by_its_edges(history: History) -> None:
    write(history, traffic(800))
    heatmap = history.heatmap(RequestFilter(**RANGE, metric="gap"), Slo())
    for column, number, count in zip(heatmap.columns, heatmap.bins, heatmap.counts, strict=True):
        start = heatmap.since_unix_s + column * heatmap.step_s
        cell = RequestQuery(
            fleet_id="f",
            since_unix_s=start,
            until_unix_s=start + heatmap.step_s,
            metric="gap",
            above_s=heatmap.edges_s[number],
            up_to_s=heatmap.edges_s[number + 1],
        )
        assert len(history.requests(cell)) == count


def test_counts_say_what_became_of_the_records_by_class(history: History) -> None:
    records = [
        *(record(request_id=f"r{i}", kept="dropped", weight=4.0) for i in range(3)),
        record(request_id="a", kept="dropped", status=429, finish_reason="error", ttft_s=None),
        record(request_id="b", kept="dropped", status=499, finish_reason="cancelled"),
        record(request_id="c", kept="slow"),
        record(request_id="d", kept="share", weight=4.0),
    ]
    write(history, [replace(each, arrival_unix_s=T0 + 1) for each in records])
    counts = history.heatmap(RequestFilter(**RANGE), Slo()).requests
    assert (counts.num_requests, counts.kept) == (7, {"slow": 1, "share": 1})
    assert counts.dropped == {"served": 3, "refused": 1, "cancelled": 1}
    assert {each.request_id for each in history.requests(RequestQuery(fleet_id="f"))} == {"c", "d"}


def test_a_record_that_is_only_counted_counts_once_too(history: History) -> None:
    """Sent again by its gateway, by a retry after a lost answer, and out of order by a spool."""
    moved = RequestMove(kind="failover", from_worker="w1", to_worker="w2", at_s=1.0)
    rows = [
        ("g", seq, record(request_id=f"r{seq}", arrival_unix_s=T0 + 1, kept="dropped", moves=(moved,)))
        for seq in range(1, 9)
    ]
    for batch in (rows[:2], rows[5:], rows[:6], rows[2:5], rows):
        history.write_tick(nothing(5), {}, batch)
    assert values(history, "offered_rps", 2, 2) == {"fleet": [4.0]}
    assert [each.num_requests for each in history.events(EventQuery(fleet_id="f"))] == [8]
    assert history.last_seq("g") == 8


def test_the_slow_worker_is_what_is_different_about_the_bad_ones(history: History) -> None:
    write(history, sampled(traffic(3000)))
    found = history.explanation(ExplainQuery(among=RequestFilter(**RANGE, metric="ttft")))
    assert found.asked.startswith("not good")
    assert (found.differences[0].dimension, found.differences[0].value) == ("decode worker", LATE_WORKER)
    assert found.differences[0].share > 0.9
    assert found.num_requests + found.num_rest == pytest.approx(3000, rel=0.1)


def test_a_cell_is_explained_against_the_rest_of_the_range(history: History) -> None:
    write(history, traffic(1000))
    among = RequestFilter(**RANGE, metric="gap")
    cell = ExplainQuery(among=among, from_unix_s=T0 + 10, to_unix_s=T0 + 20, above_s=0.5)
    found = history.explanation(cell)
    assert found.asked == "largest gap between two tokens above 500 ms"
    assert found.num_records + found.num_rest_records == 1000
    assert found.differences[0].value == LATE_WORKER


def test_when_all_were_good_the_slowest_are_asked_about(history: History) -> None:
    records = [replace(each, good=True, broken=(), status=200) for each in traffic(1000)]
    write(history, records)
    late = sum(each.decode_worker == LATE_WORKER for each in records)
    for metric, least, most in (
        ("ttft", 50, 60),
        ("gap", late, late),
    ):  # the gaps of a quarter are equal: none of them is left out
        found = history.explanation(ExplainQuery(among=RequestFilter(**RANGE, metric=metric)))  # type: ignore[arg-type]
        assert found.asked.startswith("the slowest 5%")
        assert least <= found.num_requests <= most
        assert found.differences[0].value == LATE_WORKER


def test_the_slowest_are_a_share_of_the_requests_and_not_of_the_records(history: History) -> None:
    fast = [record(request_id=f"f{i}", arrival_unix_s=T0 + 1, ttft_s=0.1, weight=32.0) for i in range(100)]
    slow = [record(request_id=f"s{i}", arrival_unix_s=T0 + 1, ttft_s=1 + i / 100, kept="slow") for i in range(300)]
    write(history, [*fast, *slow])
    found = history.explanation(ExplainQuery(among=RequestFilter(**RANGE, metric="ttft")))
    assert found.num_requests == pytest.approx(0.05 * 3500, rel=0.1)


def test_an_empty_range_explains_nothing_and_one_that_is_none_is_refused(history: History) -> None:
    found = history.explanation(ExplainQuery(among=RequestFilter(**RANGE)))
    assert (found.num_requests, found.differences) == (0, ())
    assert history.heatmap(RequestFilter(**RANGE), Slo()).edges_s == ()
    with pytest.raises(CommandRefused, match="since_unix_s"):
        history.heatmap(RequestFilter(fleet_id="f", since_unix_s=T0 + 9, until_unix_s=T0), Slo())


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ({"failed": True}, ["r3"]),
        ({"failed": False}, ["r5", "r4", "r2", "r1"]),
        ({"api_key_id": "k"}, ["r4"]),
        ({"batch": True}, ["r5"]),
        ({"metric": "ttft", "order": "slowest", "limit": 2}, ["r2", "r1"]),
        ({"metric": "gap", "above_s": 0.1, "up_to_s": 0.3}, ["r4"]),
    ],
)
def test_records_are_found_by_outcome_key_class_and_latency(
    history: History, filters: dict[str, Any], ids: list[str]
) -> None:
    changes: list[dict[str, Any]] = [
        {"ttft_s": 0.7},
        {"ttft_s": 3.0},
        {"status": 500, "finish_reason": "error", "ttft_s": None},
        {"api_key_id": "k", "max_gap_s": 0.3},
        {"priority": 10},
    ]
    write(
        history,
        [record(request_id=f"r{i}", arrival_unix_s=T0 + i, **each) for i, each in enumerate(changes, 1)],
    )
    found = history.requests(RequestQuery(fleet_id="f", **filters))
    assert [each.request_id for each in found] == ids


def test_more_records_than_allowed_lose_the_oldest_and_stay_counted(history: History) -> None:
    write(history, traffic(300))
    history.prune(T0 + 100, Retention(max_records=120))
    found = history.requests(RequestQuery(fleet_id="f", limit=1000))
    assert [each.request_id for each in found] == [f"r{index}" for index in range(299, 179, -1)]
    assert history.heatmap(RequestFilter(**RANGE), Slo()).requests.num_requests == 300
