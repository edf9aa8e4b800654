"""What gateways tell makes the plane look at its fleet at once, or not."""

from __future__ import annotations

from typing import Any, cast

from control.gateway.link import Beat
from control.gateways import Gateways
from control.settings import Settings
from control.types.commands import Departure
from tests.control.builders import NOW


def beat(at_s: float, *departures: Departure) -> Beat:
    return Beat(NOW + at_s, 0, 0, None, 0, 0, 0, 0, 0, 0, {}, 0.0, 1, list(departures))


def lost(worker_id: str, at_s: float, **changes: Any) -> Departure:
    return Departure(worker_id=worker_id, kind="lost", since_unix_s=NOW + at_s, num_sequences=3, **changes)


def test_a_loss_is_looked_at_once_and_told_again_is_no_news() -> None:
    looks: list[str] = []
    nothing = cast(Any, None)
    gateways = Gateways(
        nothing, nothing, nothing, Settings(), 1, NOW, on_loss=lambda: looks.append("look"), on_record=nothing
    )
    leaving = Departure(worker_id="w3", kind="leaves", since_unix_s=NOW, num_sequences=1)
    gateways.on_beat("gw-1", beat(0.0, leaving))
    assert looks == []
    gateways.on_beat("gw-1", beat(1.0, leaving, lost("w1", 0.9)))
    assert len(looks) == 1
    gateways.on_beat("gw-1", beat(2.0, leaving, lost("w1", 0.9, num_continued=3)))
    assert len(looks) == 1
    gateways.on_beat("gw-1", beat(3.0, lost("w1", 0.9), lost("w2", 2.5)))
    gateways.on_beat("gw-2", beat(3.0, lost("w2", 2.6)))
    assert len(looks) == 3
