"""The fleets of one plane, each with a hub of its own while somebody looks at it. `?fleet=NAME` says which.

Decided here: which fleet a tab shows, and for how long the hub of an attached fleet reads on after the last look. The
plane's own fleet has the process's first hub and is always read; it also knows who is logged in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from app.parts import PARTS
from app.plane import Plane
from app.source import Hub
from app.stream import Streams
from control.errors import ControlError

PARAM = "fleet"
IDLE_S = 120.0
NAMES_EVERY_S = 3.0
AGAIN_S = 0.5
MAX_NAME = 64


@dataclass(slots=True)
class Seat:
    """One attached fleet that somebody looks at."""

    hub: Hub
    streams: Streams
    asked_unix_s: float


@dataclass(slots=True)
class Fleets:
    """`connect(token, fleet)` opens a connection whose answers are of that fleet; None: there is only our own."""

    own: Hub
    connect: Callable[[str, str], Plane] | None = None
    own_streams: Streams = field(init=False)
    _others: frozenset[str] = frozenset()  # names as last told
    _seats: dict[str, Seat] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.own_streams = Streams(hub=self.own, parts=PARTS)

    def names(self, asked: str = "") -> tuple[str, ...]:
        """All fleets of the plane, its own first, those that are only starting too. While the plane is silent as last
        told: a fleet does not vanish with it. One that is `asked` for may have been attached just now."""
        snapshot = self.own.look().snapshot
        own = () if snapshot is None else (snapshot.fleet_id,)
        if self.connect is None or not own:
            return own
        with suppress(ControlError):
            self._others = self.own.cached(("fleets",), NAMES_EVERY_S, _names_of)
            if asked and asked not in {*own, *self._others}:
                self._others = self.own.cached(("fleets", "again"), AGAIN_S, _names_of)
        return own + tuple(sorted(self._others - set(own)))

    def lost(self, asked: str) -> bool:
        """Whether a fleet is asked for that is not there (any more). No other is shown in its place."""
        names = self.names(asked)
        return bool(asked and names) and asked not in names

    def shown(self, asked: str) -> str:
        """The fleet that a tab shows: the one that is asked for, if there is one of that name, else the plane's own;
        where that has no workers and never will, the first of the others."""
        names, snapshot = self.names(asked), self.own.look().snapshot
        if asked in names:
            return asked
        has_none = snapshot is not None and snapshot.kind == "none"
        return names[1] if has_none and len(names) > 1 else (names[0] if names else "")

    def hub(self, asked: str = "") -> Hub:
        seat = self._seat(self.shown(asked[:MAX_NAME]))
        return self.own if seat is None else seat.hub

    def streams(self, asked: str = "") -> Streams:
        """Of the same fleet."""
        seat = self._seat(self.shown(asked[:MAX_NAME]))
        return self.own_streams if seat is None else seat.streams

    def stop(self) -> None:
        with self._lock:
            seats, self._seats = list(self._seats.values()), {}
        for seat in [self.own, *(each.hub for each in seats)]:
            seat.stop()

    def _seat(self, name: str) -> Seat | None:
        """None: the plane's own."""
        snapshot, now = self.own.look().snapshot, self.own.now()
        if self.connect is None or not name or snapshot is None or name == snapshot.fleet_id:
            return None
        with self._lock:
            for idle in [key for key, seat in self._seats.items() if now - seat.asked_unix_s > IDLE_S and key != name]:
                seat = self._seats[idle]
                if seat.streams.num_open:
                    seat.asked_unix_s = now
                else:
                    self._seats.pop(idle).hub.stop()
            seat_of = self._seats.get(name)
            if seat_of is None:
                seat_of = self._seats[name] = self._open(name)
            seat_of.asked_unix_s = now
            return seat_of

    def _open(self, name: str) -> Seat:
        """A hub that reads that fleet for whoever may read here, for the same visits."""
        connect = self.connect
        assert connect is not None
        hub = Hub(
            base_url=self.own.base_url,
            connect=lambda token: connect(token, name),
            now=self.own.now,
            period_s=self.own.period_s,
            visits=self.own.visits,
        )
        for token in self.own.readers:
            hub.admit(token)
        hub.start()
        streams = Streams(hub=hub, parts=PARTS)
        self.own_streams.share_loop(streams)
        return Seat(hub=hub, streams=streams, asked_unix_s=self.own.now())


def _names_of(plane: Plane) -> frozenset[str]:
    return frozenset(plane.fleets()) | {each.attachment.name for each in plane.attached()}
