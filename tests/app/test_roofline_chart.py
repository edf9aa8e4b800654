"""The roofline's arithmetic: ridge, what is achievable at an intensity, and which points carry a label."""

from __future__ import annotations

import pyarrow as pa
import pytest

from app import measured, roofline, truth
from control.types.series import SeriesPoint
from control.types.workers import PhaseUtilization
from tests.app.builders import plane_and_hub
from tests.app.fake_plane import FakePlane


def table(data: bytes) -> list[dict[str, object]]:
    return pa.ipc.open_stream(data).read_all().to_pylist()


def plane() -> FakePlane:
    found, _, _ = plane_and_hub("ok")
    return found


def test_prefill_lies_right_of_the_ridge_and_decode_left_of_it() -> None:
    found = plane().roofline(None, 1000.0)
    ridge = roofline.ridge(found.roofs[0])
    assert ridge == pytest.approx(989e12 / 3.35e12)
    assert {each.intensity > ridge for each in found.points if each.phase == "prefill"} == {True}
    assert {each.intensity > ridge for each in found.points if each.phase == "decode"} == {False}


def test_what_is_achievable_is_the_slope_left_of_the_ridge_and_flat_right_of_it() -> None:
    roof = plane().roofline(None, 1000.0).roofs[0]
    assert roofline.limit(roof, 10.0) == pytest.approx(10 * 2.68e12)
    assert roofline.limit(roof, 5000.0) == pytest.approx(593e12)


def test_a_roof_is_two_lines_bent_at_the_ridge_and_two_points_of_a_phase_are_labelled() -> None:
    data = roofline.datasets(plane().roofline(None, 1000.0))
    roofs = table(data["roofs"])
    assert [each["kind"] for each in roofs] == ["peak"] * 3 + ["achievable"] * 3
    labels = [each["label"] for each in table(data["live"]) if each["phase"] == "decode" and each["label"]]
    assert len(labels) == 2


def test_without_a_point_the_axes_still_hold_the_roof() -> None:
    found = plane().roofline(None, 1000.0)
    empty = type(found)(fleet_id="f", since_unix_s=0.0, until_unix_s=1.0, roofs=(), points=(), simulated=False)
    assert table(roofline.datasets(empty)["live"]) == []


def phase(wall_compute: float | None) -> PhaseUtilization:
    return PhaseUtilization(wall_compute=wall_compute, wall_bandwidth=0.1, in_phase_compute=0.9,
                            in_phase_bandwidth=0.2, busy=0.5, tokens_per_s=1.0)  # fmt: skip


def test_a_device_sees_both_phases_as_one_and_unknown_stays_unknown() -> None:
    assert truth.total(phase(0.2), phase(0.1), "wall_compute") == pytest.approx(0.3)
    assert truth.total(phase(0.2), phase(None), "wall_compute") is None
    assert truth.total(None, None, "wall_compute") is None


def test_a_device_without_gpm_says_so_and_draws_nothing() -> None:
    found, hub, _ = plane_and_hub("ok")
    assert "no measured source" in truth.note(found.snapshot())
    told = hub.live("gpm_tensor_active", "worker", 300, 10).result
    assert measured.lines(hub.live("compute_wall", "worker", 300, 10).result, told, "w0") == []


def test_the_difference_is_a_gap_where_either_source_is_silent() -> None:
    ours = [SeriesPoint(t_unix_s=float(t), value=0.5) for t in (0, 10, 20)]
    theirs = [SeriesPoint(t_unix_s=0.0, value=0.4), SeriesPoint(t_unix_s=10.0, value=None)]
    assert [each.value for each in measured.difference(ours, theirs)] == [pytest.approx(0.1), None, None]


def test_a_measured_number_stands_beside_how_far_the_derived_one_is_off() -> None:
    found = plane()
    found.has_gpm = True
    cells = [cell.text for cell in truth.rows(found.snapshot())[-1]]
    assert any(text.startswith("61.0% (") for text in cells)
    assert "100%" in cells
