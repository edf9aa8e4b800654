"""Series to frames: gaps, bands, axes, bars."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app import frames, marks
from control.types.commands import Departure
from control.types.events import EventKind, FleetEvent
from control.types.requests import RequestRecord
from control.types.series import SeriesPoint
from control.types.workers import Role, RoleInterval, WorkerState
from tests.app.builders import NOW, plane_and_hub, points, result, rows


def test_a_gap_stays_a_gap() -> None:
    drawn = rows(frames.lines([("a", points(10, [1.0, None, 3.0]))]))
    assert [(row["t"], row["value"]) for row in drawn] == [(10_000.0, 1.0), (11_000.0, None), (12_000.0, 3.0)]


def test_a_point_without_a_band_is_its_own_band() -> None:
    (row,) = rows(frames.lines([("a", [SeriesPoint(t_unix_s=1.0, value=0.5)])]))
    assert (row["lo"], row["hi"], row["line"]) == (0.5, 0.5, "a")


def test_downsampling_keeps_the_least_and_the_largest() -> None:
    found = frames.downsampled(points(0, [1.0, 5.0, None, 2.0, 9.0, 4.0]), 2)
    assert [(p.t_unix_s, p.value, p.min, p.max) for p in found] == [(0.0, 3.0, 1.0, 5.0), (3.0, 5.0, 2.0, 9.0)]


def test_downsampling_a_gap_gives_a_gap() -> None:
    assert [p.value for p in frames.downsampled(points(0, [None, None, 1.0, 1.0]), 2)] == [None, 1.0]


@pytest.mark.parametrize(
    ("largest", "top"), [(None, 0.05), (0.03, 0.05), (0.06, 0.1), (0.3, 0.3), (0.6, 0.75), (0.92, 1.0), (1.2, 1.2)]
)
def test_a_fraction_axis_ends_at_the_first_round_value_that_holds_it(largest: float | None, top: float) -> None:
    assert frames.top_of([largest]) == top


@pytest.mark.parametrize(("range_s", "step"), [(900, 1), (3600, 10), (21_600, 60), (86_400, 600), (2_592_000, 3600)])
def test_the_step_keeps_a_line_within_the_pixels(range_s: float, step: int) -> None:
    assert frames.step_for(range_s) == step


def test_an_earlier_window_is_moved_onto_the_chosen_one() -> None:
    (row,) = rows(frames.lines([("a", points(10, [1.0]))], shift_s=90.0))
    assert row["t"] == 100_000.0


def test_the_newest_value_is_not_an_old_one() -> None:
    assert frames.newest(points(0, [1.0, None])) == 1.0
    assert frames.newest(points(0, [1.0, *[None] * 10])) is None


def record() -> RequestRecord:
    plane, _, _ = plane_and_hub()
    return replace(plane.record(1), queue_s=0.1, prefill_s=0.2, handoff_s=0.05, e2e_s=1.0, ttft_s=0.3)


def test_the_stages_of_a_request_follow_one_another() -> None:
    names = [(name, round(start, 3), round(end, 3)) for name, start, end in frames.stages(record())]
    assert names == [("queued", 0.0, 0.1), ("prefill", 0.1, 0.3), ("handoff", 0.3, 0.35), ("decode", 0.35, 1.0)]


def test_time_that_the_record_cannot_attribute_is_said_to_be_so() -> None:
    bare = replace(record(), queue_s=None, prefill_s=None, handoff_s=None)
    assert frames.stages(bare) == [("not attributed", 0.0, 1.0)]
    assert frames.stages(replace(bare, e2e_s=None)) == []


def test_the_busiest_groups_are_kept_in_order() -> None:
    many = result({name: points(0, [level]) for name, level in (("a", 1.0), ("b", 3.0), ("c", 2.0))})
    kept, left_out = frames.busiest(many, 2)
    assert [each.label for each in kept] == ["b", "c"]
    assert left_out == 1


def test_the_axes_are_pinned_by_two_invisible_points() -> None:
    assert rows(frames.span(1.0, 2.0, 0.5)) == [{"t": 1000.0, "value": 0.0}, {"t": 2000.0, "value": 0.5}]


def test_a_count_is_carried_over_a_late_tick_and_no_further() -> None:
    found = frames.carried(points(0, [4.0, None, None, None]), limit_s=2.0)
    assert [point.value for point in found] == [4.0, 4.0, 4.0, None]


def test_a_sparkline_leaves_the_unfinished_bucket_out() -> None:
    assert frames.course(points(0, [1.0, 2.0, 0.1])) == (1.0, 2.0)


def test_a_young_fleet_does_not_leave_its_chart_empty_before_it() -> None:
    young = [("a", points(900, [None, 1.0]))]
    assert frames.begin(young, 100.0, 1000.0, least_s=60.0) == 901.0
    assert frames.begin(young, 100.0, 1000.0, least_s=120.0) == 880.0
    assert frames.begin([("a", points(110, [1.0]))], 100.0, 1000.0, least_s=60.0) == 100.0
    assert frames.begin([("a", [])], 100.0, 1000.0, least_s=60.0) == 940.0


# --- a worker's life and a request's moves ---------------------------------------------------------------------------


def event(kind: EventKind, at_s: float, worker_id: str = "w1", **more: Any) -> FleetEvent:
    values: dict[str, Any] = {"fleet_id": "f", "kind": kind, "at_unix_s": NOW + at_s, "worker_id": worker_id}
    return FleetEvent(**{**values, **more})


def test_a_worker_is_away_from_its_death_to_its_next_life() -> None:
    told = [event("restarted", 3.0, reason="killed"), event("died", 0.0), event("died", 9.0, reason="again")]
    gone = [(each.start_unix_s - NOW, each.end_unix_s and each.end_unix_s - NOW) for each in frames.absences(told)]
    assert gone == [(0.0, 3.0), (9.0, None)]


def test_an_absence_that_began_before_the_window_is_known_from_its_end() -> None:
    (gone,) = frames.absences([event("restarted", 5.0, away_s=4.0)])
    assert (gone.start_unix_s - NOW, gone.end_unix_s) == (1.0, NOW + 5.0)


def test_an_absence_is_a_bar_of_its_own() -> None:
    held = [RoleInterval(worker_id="w1", epoch=1, role=Role.DECODE, state=WorkerState.READY, start_unix_s=NOW - 50,
                         end_unix_s=NOW)]  # fmt: skip
    drawn = rows(frames.intervals(held, NOW - 100, NOW + 100, frames.absences([event("died", 0.0)])))
    assert [(row["role"], row["text"]) for row in drawn] == [("decode", "decode, ready"), ("away", "away")]


def test_a_departure_is_gone_when_nothing_is_left() -> None:
    leaving = Departure(worker_id="w1", kind="leaves", since_unix_s=NOW, num_sequences=8, num_left=2)
    assert frames.gone_share(leaving) == 0.75
    assert frames.gone_share(replace(leaving, num_sequences=0, num_left=0)) == 1.0


def test_a_move_is_a_mark_at_its_moment_with_its_target() -> None:
    plane, _, _ = plane_and_hub()
    (row,) = rows(frames.request_moves(plane.record(4), marks.LOOKS))
    assert (row["at"], row["kind"], row["label"]) == (0.9, "continued", "failover to w2, stall 240 ms")


def test_a_partial_bucket_and_one_between_two_gaps_are_dots() -> None:
    told = [*points(0, [1.0, 1.0, None, 2.0, None]), SeriesPoint(t_unix_s=5.0, value=3.0, partial=True)]
    assert [row["dot"] for row in rows(frames.lines([("a", told)]))] == ["", "", "", "alone", "", "partial"]


def test_buckets_joined_over_a_gap_are_partial() -> None:
    told = frames.downsampled(points(0, [1.0, None, 2.0, 4.0]), 2)
    assert [(point.value, point.partial) for point in told] == [(1.0, True), (3.0, False)]


def test_a_percentile_is_read_in_steps_that_are_drawn_as_they_are() -> None:
    assert [frames.percentile_step(range_s, 1) for range_s in (300, 900, 3600, 86_400)] == [1, 2, 5, 120]
    assert frames.percentile_step(900, 60) == 60


def test_two_metrics_of_one_unit_are_drawn_together_each_line_under_its_metric() -> None:
    ours, theirs = result({"": points(0, [0.2])}), replace(result({"": points(0, [1.0])}), metric="gpu_utilization")
    assert [line.label for line in frames.together(ours, theirs).series] == ["goodput_rps", "gpu_utilization"]
    pools = result({"prefill": points(0, [0.2]), "decode": points(0, [0.1])})
    assert frames.together(pools, theirs).series[0].label == "goodput_rps, prefill"


def test_two_windows_are_compared_where_both_are_known() -> None:
    now, then = points(100, [1.0, None, 3.0, 8.0]), points(0, [5.0, 7.0, 9.0, None])
    assert frames.means_together(now, then, 100.0, 1) == (2.0, 7.0)
    assert frames.means_together(now, [], 100.0, 1) == (None, None)


def test_seconds_are_compared_with_the_wider_bucket_that_holds_them() -> None:
    now, then = points(100, [1.0, None, 3.0]), [SeriesPoint(t_unix_s=0.0, value=5.0)]
    assert frames.means_together(now, then, 100.0, 10) == (2.0, 5.0)
