"""Target zones: fractions of what is achievable, cut at the axis, of the two lines alone; and the grey line's words."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from app import lines, zones
from control.types.fleet import Blended
from tests.app.builders import plane_and_hub
from tests.app.fake_fleet import CEILINGS

PREFILL, DECODE, BLENDED = lines.utilization("wall", "phase", blended=True)


def test_a_zone_is_a_fraction_of_the_ceiling_of_its_own_resource() -> None:
    assert zones.zone(CEILINGS, PREFILL, "wall") == pytest.approx((0.5 * 0.6, 0.85 * 0.6))
    assert zones.zone(CEILINGS, DECODE, "wall") == pytest.approx((0.5 * 0.8, 0.85 * 0.8))


def test_the_blended_line_and_an_unknown_peak_have_no_target() -> None:
    assert zones.zone(CEILINGS, BLENDED, "wall") is None
    assert zones.zone(None, PREFILL, "wall") is None
    assert zones.both(None, PREFILL, "wall") == ("", "")


def test_a_zone_never_stretches_the_axis() -> None:
    data = zones.dataset(CEILINGS, (PREFILL, DECODE, BLENDED), "wall", top=0.35)
    assert pa.ipc.open_stream(data).read_all().to_pylist() == [
        {"line": "Prefill compute", "lo": pytest.approx(0.3), "hi": 0.35}
    ]


def test_the_grey_line_says_what_it_is_and_where_it_comes_from() -> None:
    plane, _, _ = plane_and_hub("ok")
    snapshot = plane.snapshot()
    entry = lines.legend((BLENDED,), snapshot, "wall")[0]
    assert entry.value.startswith("97")
    assert "by the workers' own steps" in entry.tag_note
    told = replace(snapshot, blended=Blended(value=1.0, source="device"))
    assert "utilization.gpu" in lines.legend((BLENDED,), told, "wall")[0].tag_note
