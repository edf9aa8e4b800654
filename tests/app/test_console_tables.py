"""Rows for tables and downloads."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import pytest

from app import tables
from tests.app.builders import plane_and_hub, points, result


def test_the_summary_is_over_buckets_with_data() -> None:
    ((name, last, mean, least, largest),) = tables.summary(result({"": points(0, [1.0, None, 3.0])}))
    assert (name, last, mean, least, largest) == ("fleet", 3.0, 2.0, 1.0, 3.0)


def test_the_summary_of_a_percentile_averages_nothing() -> None:
    told = replace(result({"": points(0, [1.0, None, 3.0])}), metric="ttft_p99_s")
    assert tables.summary(told) == [("fleet", 3.0, None, 1.0, 3.0)]
    known = replace(told, series=(replace(told.series[0], whole=2.9),))
    assert tables.summary(known) == [("fleet", 3.0, 2.9, 1.0, 3.0)]


def test_a_worker_on_its_way_to_another_role_shows_both() -> None:
    plane, _, _ = plane_and_hub()
    snapshot = plane.snapshot()
    first = replace(snapshot.workers[0], desired_role="decode")
    rows = tables.worker_rows(replace(snapshot, workers=(first, *snapshot.workers[1:])), UTC)
    assert list(rows["role"][:2]) == ["prefill → decode", "decode"]


def test_an_unknown_utilization_is_none_and_not_zero() -> None:
    plane, _, _ = plane_and_hub("starting")
    assert tables.worker_rows(plane.snapshot(), UTC)["kv"].isna().any()


@pytest.mark.parametrize(
    ("wanted", "fits", "words"),
    [
        ((1, 3, 0), True, "All 4 workers have a role."),
        ((3, 3, 0), False, "6 workers wanted, the fleet has 4: take 2 away somewhere."),
        ((1, 2, 0), True, "3 of 4 workers; 1 would be left as a spare without a role."),
    ],
)
def test_pool_sizes_are_added_up_in_words(wanted: tuple[int, ...], fits: bool, words: str) -> None:
    assert tables.sizes_words(wanted, 4) == (fits, words)


def test_rule_changes_follow_the_order_in_which_rules_are_walked() -> None:
    changes = tables.rule_changes({"remote": 8, "short_local": 2}, {"control_arm": 3, "remote": 5, "short_local": 2})
    assert changes == [("short_local", 2, 2, 0), ("control_arm", 0, 3, 3), ("remote", 8, 5, -3)]


def test_the_outcome_of_a_request_has_one_word() -> None:
    plane, _, _ = plane_and_hub()
    good = plane.record(1)
    assert tables.outcome(good) == "good"
    assert tables.outcome(replace(good, good=False)) == "late"
    assert tables.outcome(replace(good, good=None)) == "cancelled"
    assert tables.outcome(replace(good, status=503)) == "error 503"
