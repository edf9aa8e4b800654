"""What may wait for the history, as bytes: a tick's finds, a line of a command's journal, new states of alerts.

Decided here: how they are encoded. A frame that another version wrote and this one cannot read is an error of
`decode`, never half of a tick. Not decided here: where the bytes wait (`control.spool`), how they are written once
(`TickWriter.replay`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from control.points import Ingested, Line, Mark, Row, WorkerCursor, WorkerEpoch
from control.types.alerts import Alert
from control.types.commands import CommandState, CommandStep
from control.types.events import FleetEvent
from control.types.fleet import TrafficStatus
from control.types.requests import RequestRecord
from control.types.workers import Phase, RoleInterval

#: A tick's rows repeat their column names: the fastest level takes nearly all that a slow one does.
_ZLIB_LEVEL = 1


@dataclass(frozen=True, slots=True)
class TickWrite:
    """The arguments of `History.write_tick`."""

    ingested: Ingested
    cursors: Mapping[str, WorkerCursor]
    records: Sequence[tuple[str, int, RequestRecord]] = ()
    traffic: TrafficStatus | None = None


@dataclass(frozen=True, slots=True)
class JournalWrite:
    """The arguments of `History.update_command`."""

    command_id: int
    state: CommandState
    step: CommandStep | None
    result: str


@dataclass(frozen=True, slots=True)
class AlertWrite:
    """The arguments of `History.put_alerts`."""

    fleet_id: str
    alerts: tuple[Alert, ...]
    forgotten: tuple[str, ...]


class _Tick(msgspec.Struct, frozen=True, array_like=True, tag="tick"):
    """A tick with its lines numbered, since a line cannot be a key."""

    fleet_id: str
    at_unix_s: float
    lines: list[Line]
    phases: list[tuple[int, Phase, int, Row]]
    states: list[tuple[int, int, Row]]
    latencies: list[tuple[int, str, int, dict[int, int]]]
    roles: tuple[RoleInterval, ...]
    epochs: tuple[WorkerEpoch, ...]
    events: tuple[FleetEvent, ...]
    counted_from: dict[str, Mark | None]
    cursors: dict[str, WorkerCursor]
    records: list[tuple[str, int, RequestRecord]]
    traffic: TrafficStatus | None


class _Journal(msgspec.Struct, frozen=True, array_like=True, tag="journal"):
    command_id: int
    state: CommandState
    step: CommandStep | None
    result: str


class _Alerts(msgspec.Struct, frozen=True, array_like=True, tag="alerts"):
    fleet_id: str
    alerts: tuple[Alert, ...]
    forgotten: tuple[str, ...]


_decoder = msgspec.msgpack.Decoder(_Tick | _Journal | _Alerts)


def encode(write: TickWrite | JournalWrite | AlertWrite) -> bytes:
    """One write as the payload of a frame."""
    if isinstance(write, JournalWrite):
        plain: _Tick | _Journal | _Alerts = _Journal(write.command_id, write.state, write.step, write.result)
    elif isinstance(write, AlertWrite):
        plain = _Alerts(write.fleet_id, write.alerts, write.forgotten)
    else:
        plain = _numbered(write)
    return zlib.compress(msgspec.msgpack.encode(plain), _ZLIB_LEVEL)


def decode(payload: bytes) -> TickWrite | JournalWrite | AlertWrite:
    """Raises ValueError on anything that `encode` of this version does not make."""
    try:
        plain = _decoder.decode(zlib.decompress(payload))
    except (zlib.error, msgspec.MsgspecError) as error:
        raise ValueError(f"not a write of this version: {error}") from error
    if isinstance(plain, _Journal):
        return JournalWrite(plain.command_id, plain.state, plain.step, plain.result)
    if isinstance(plain, _Alerts):
        return AlertWrite(plain.fleet_id, plain.alerts, plain.forgotten)
    return TickWrite(_with_lines(plain), plain.cursors, plain.records, plain.traffic)


def _numbered(write: TickWrite) -> _Tick:
    ingested, numbers = write.ingested, dict[Line, int]()

    def number(line: Line) -> int:
        return numbers.setdefault(line, len(numbers))

    phases = [(number(line), phase, t, row) for (line, phase, t), row in ingested.phases.items()]
    states = [(number(line), t, row) for (line, t), row in ingested.states.items()]
    latencies = [(number(line), kind, t, counts) for (line, kind, t), counts in ingested.latencies.items()]
    return _Tick(
        fleet_id=ingested.fleet_id,
        at_unix_s=ingested.at_unix_s,
        lines=list(numbers),
        phases=phases,
        states=states,
        latencies=latencies,
        roles=ingested.roles,
        epochs=ingested.epochs,
        events=ingested.events,
        counted_from=dict(ingested.counted_from),
        cursors={name: write.cursors[name] for name in ingested.counted_from if name in write.cursors},
        records=list(write.records),
        traffic=write.traffic,
    )


def _with_lines(plain: _Tick) -> Ingested:
    lines = plain.lines
    return Ingested(
        fleet_id=plain.fleet_id,
        at_unix_s=plain.at_unix_s,
        phases={(lines[n], phase, t): row for n, phase, t, row in plain.phases},
        states={(lines[n], t): row for n, t, row in plain.states},
        latencies={(lines[n], kind, t): counts for n, kind, t, counts in plain.latencies},
        roles=plain.roles,
        epochs=plain.epochs,
        events=plain.events,
        counted_from=plain.counted_from,
    )
