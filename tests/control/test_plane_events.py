"""The plane's own events: it took over once, an outage of the history is told when it is over."""

from __future__ import annotations

from control.plane_events import PlaneEvents
from control.types.fleet import PlaneStatus
from tests.control.builders import NOW


def events() -> PlaneEvents:
    plane = PlaneStatus(pid=7, hostname="node-1", address="", fence=3, since_unix_s=NOW)
    return PlaneEvents("f", plane)


def test_a_plane_that_took_over_says_so_once() -> None:
    own = events()
    (told,) = own.take("", NOW + 1)
    assert (told.kind, told.at_unix_s, told.epoch, told.reason) == ("plane", NOW, 3, "process 7 on node-1, fence 3")
    assert own.take("", NOW + 2) == ()


def test_an_outage_is_told_when_it_is_over_with_its_reason() -> None:
    own = events()
    own.take("", NOW)
    assert [own.take("disk full", NOW + 10 + second) for second in range(5)] == [()] * 5
    (told,) = own.take("", NOW + 16)
    assert (told.kind, told.at_unix_s, told.away_s, told.reason) == ("history", NOW + 10, 6.0, "disk full")
    assert own.take("", NOW + 17) == ()


def test_a_slow_write_is_no_outage() -> None:
    own = events()
    own.take("", NOW)
    own.take("a write is taking long", NOW + 1)
    assert own.take("", NOW + 2) == ()
