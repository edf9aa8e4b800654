"""A history that nobody measured, marked simulated in every row: the full set of lines of a fleet, for tests and to
browse.

Decided here: how the days of `control.history.demo_days` are laid into the tables. A day of a line is one of
NUM_TEMPLATES days, encoded once, so thirty days of two hundred workers are written in the time that the disk takes.
Seconds are written for the last `raw_days`, rollups for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

import msgspec
import numpy as np
from sqlalchemy import Connection, select

from control.history import schema
from control.history.chunks import PHASE_KINDS, STATE, Kind, chunk_rows
from control.history.codec import encode_ints
from control.history.demo_days import (
    DAY_S,
    NUM_TEMPLATES,
    PEAK_BYTES_S,
    PEAK_FLOPS,
    ROLES,
    RULES,
    as_frames,
    group_day,
    joined,
    latencies_day,
    role_of,
    template_of,
    traffic_days,
    worker_day,
    worker_latencies_day,
)
from control.history.frames import Frame, concat, merge, roll, with_bands
from control.history.marks import write_mark
from control.history.points import line_ids
from control.history.store import History
from control.points import Line, Scope
from control.types.workers import WorkerState
from engine.readings import DeviceInfo

_MODEL: Final = "demo"
_DEVICE: Final = DeviceInfo(
    name="demo", kind="paced", peak_flops=PEAK_FLOPS, peak_bytes_per_s=PEAK_BYTES_S, peak_source="assumed"
)
Chunks = dict[tuple[Kind, int, int], dict[str, bytes]]  # kind, step, start within the day -> columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What is to be filled: [until - days, until) of a fleet; `until_s` is the start of a day."""

    fleet_id: str
    until_s: int
    num_workers: int
    days: int = 30
    raw_days: int = 1

    @property
    def since_s(self) -> int:
        return self.until_s - self.days * DAY_S


class Template:
    """One day of a shelf as chunks, and its hours, which lie in chunks of a week."""

    def __init__(self, seconds: Mapping[Kind, Frame]) -> None:
        """`seconds`: a day from second 0, lines numbered from 0."""
        self.chunks: Chunks = {}
        self.hours: dict[Kind, Frame] = {}
        self.num_values: dict[int, int] = dict.fromkeys(schema.STEPS, 0)  # by step
        self._times: dict[tuple[Kind, int, int], Frame] = {}
        for kind, frame in seconds.items():
            self._add(kind, 1, frame)
            if kind in PHASE_KINDS:
                frame = with_bands(frame, seconds[STATE])
            for step_s in schema.STEPS[1:-1]:
                frame = roll(frame, step_s)
                self._add(kind, step_s, frame)
            self.hours[kind] = roll(frame, schema.STEPS[-1])
            self.num_values[schema.STEPS[-1]] += len(self.hours[kind]) * len(frame.columns)

    def _add(self, kind: Kind, step_s: int, frame: Frame) -> None:
        length_s = schema.CHUNK_S[step_s]
        in_order = np.argsort(frame.t // length_s, kind="stable")  # within a chunk by line, as they are
        ends = np.searchsorted(frame.t[in_order] // length_s, np.arange(DAY_S // length_s + 1))
        for number, (first, last) in enumerate(pairwise(ends.tolist())):
            if first == last:
                continue
            start, part = number * length_s, frame.where(in_order[first:last])
            rows = chunk_rows(0, kind, step_s, start, part)
            self.chunks[kind, step_s, start] = {row["name"]: row["data"] for row in rows if row["name"][0] != "#"}
            self._times[kind, step_s, start] = Frame(part.line_ids, part.t, part.bucket, {})
            self.num_values[step_s] += len(part) * len(self.chunks[kind, step_s, start])

    def rows(self, shelf_id: int, first_line: int, day_s: int, steps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """The day as rows of `chunks`, of this shelf, beginning at `day_s`."""
        for (kind, step_s, start), columns in self.chunks.items():
            if step_s in steps:
                keys = self._times[kind, step_s, start]
                placed = {"#line": keys.line_ids + first_line, "#t": keys.t + day_s, "#bucket": keys.bucket}
                found: Mapping[str, bytes] = columns | {name: encode_ints(each) for name, each in placed.items()}
                key = {"shelf_id": shelf_id, "kind": kind, "step_s": step_s, "t": day_s + start}
                yield from ({**key, "name": name, "data": data} for name, data in found.items())


@dataclass(frozen=True, slots=True)
class Shelf:
    """Lines that lie together, and their template on each day since 1970; equal keys are equal templates."""

    lines: Sequence[Line]
    template: Callable[[int], tuple[Any, ...]]
    make: Callable[..., Template]


def shelves(demo: Demo) -> list[Shelf]:
    """All of a fleet: its workers, sixteen to a shelf; its roles, its rules, itself."""
    found = [_worker_shelf(demo, shelf) for shelf in range(-(-demo.num_workers // schema.SHELF_LINES))]
    groups: list[tuple[Scope, Sequence[str], Callable[[int, int], dict[Kind, Frame]]]] = [
        ("fleet", ("",), _fleet_seconds),
        ("role", [role.value for role in ROLES], _role_seconds),
        ("rule", list(RULES), _rule_seconds),
    ]
    for scope, names, seconds in groups:
        lines = [Line(scope, name, _MODEL, True, role=name if scope == "role" else "") for name in names]
        found.append(Shelf(lines, lambda day: (day % NUM_TEMPLATES,), partial(_group, seconds, demo.num_workers)))
    return found


def _worker_shelf(demo: Demo, shelf: int) -> Shelf:
    first = shelf * schema.SHELF_LINES
    numbers = range(first, min(first + schema.SHELF_LINES, demo.num_workers))
    lines = [Line("worker", f"w{n}", _MODEL, True, 1, role_of(n).value) for n in numbers]
    return Shelf(lines, lambda day: (template_of(shelf, day), len(numbers)), _workers)


def _workers(template: int, num_lines: int) -> Template:
    if (template, num_lines) not in _made:
        _made[template, num_lines] = Template(as_frames([worker_day(template, slot) for slot in range(num_lines)]))
    return _made[template, num_lines]


_made: dict[tuple[int, int], Template] = {}


def _group(seconds: Callable[[int, int], dict[Kind, Frame]], num_workers: int, template: int) -> Template:
    return Template(seconds(num_workers, template))


def _fleet_seconds(num_workers: int, day: int) -> dict[Kind, Frame]:
    latencies = joined([latencies_day(day, rule) for rule in range(len(RULES))], as_one=True)
    latencies |= joined([worker_latencies_day(day, role) for role in range(len(ROLES))], as_one=True)
    own = [group_day(num_workers, day) | traffic_days(day, is_fleet=True)[0]]
    return as_frames(own) | {kind: merge(frame) for kind, frame in latencies.items()}


def _role_seconds(num_workers: int, day: int) -> dict[Kind, Frame]:
    latencies = joined([worker_latencies_day(day, role) for role in range(len(ROLES))], as_one=False)
    return as_frames([group_day(num_workers, day, [role]) for role in ROLES]) | latencies


def _rule_seconds(num_workers: int, day: int) -> dict[Kind, Frame]:
    latencies = joined([latencies_day(day, rule) for rule in range(len(RULES))], as_one=False)
    return as_frames(traffic_days(day, is_fleet=False)) | latencies


# --- writing ---------------------------------------------------------------------------------------------------------


def fill_all(history: History, demo: Demo) -> Iterator[tuple[int, int]]:
    """Fill a database that has no line of this fleet, shelf by shelf; after each how many are done, and of how many."""
    with history.filling() as connection:
        begin(connection, demo)
    wanted = shelves(demo)
    for done, shelf in enumerate(wanted, 1):
        with history.filling() as connection:
            fill(connection, demo, shelf)
        yield done, len(wanted)


def begin(connection: Connection, demo: Demo) -> None:
    """What is told of the workers beside their points: who they are and which role they have, all the time."""
    write_mark(connection, "pruned-1", demo.until_s - demo.raw_days * DAY_S)
    epochs, intervals = [], []
    for number in range(demo.num_workers):
        life = {"fleet_id": demo.fleet_id, "worker_id": f"w{number}", "epoch": 1}
        of = {"model_id": _MODEL, "simulated": True, "hostname": "", "started_unix_s": float(demo.since_s)}
        epochs.append({**life, **of, "basis": "assumed", "device": msgspec.json.encode(_DEVICE)})
        held = {"role": role_of(number).value, "state": WorkerState.READY.value, "reason": "simulated"}
        times = {"start_unix_s": float(demo.since_s), "end_unix_s": float(demo.until_s)}
        intervals.append({**life, **held, **times})
    connection.execute(schema.worker_epochs.insert(), epochs)
    connection.execute(schema.role_intervals.insert(), intervals)


def fill(connection: Connection, demo: Demo, shelf: Shelf) -> int:
    """Write one shelf, in this transaction; shelves in order, each once, of a fleet that has no line yet. Returns how
    many values it stores."""
    ids = line_ids(connection, demo.fleet_id, shelf.lines, {})
    first_line = min(ids.values())
    wanted = select(schema.lines.c.shelf_id).where(schema.lines.c.line_id == first_line)
    shelf_id = int(connection.execute(wanted).scalar_one())
    hours: dict[Kind, list[Frame]] = {}
    made: dict[tuple[Any, ...], Template] = {}
    num_values = 0
    for day_s in range(demo.since_s, demo.until_s, DAY_S):
        key = shelf.template(day_s // DAY_S)
        if key not in made:
            made[key] = shelf.make(*key)
        template = made[key]
        is_raw = day_s >= demo.until_s - demo.raw_days * DAY_S
        steps = schema.STEPS[:-1] if is_raw else schema.STEPS[1:-1]
        connection.execute(schema.chunks.insert(), list(template.rows(shelf_id, first_line, day_s, steps)))
        num_values += sum(template.num_values[step_s] for step_s in (*steps, schema.STEPS[-1]))
        for kind, frame in template.hours.items():
            moved = Frame(frame.line_ids + first_line, frame.t + day_s, frame.bucket, frame.columns)
            hours.setdefault(kind, []).append(moved)
    _put_hours(connection, shelf_id, hours)
    return num_values


def _put_hours(connection: Connection, shelf_id: int, hours: Mapping[Kind, list[Frame]]) -> None:
    hour_s = schema.STEPS[-1]
    for kind, frames in hours.items():
        frame = merge(concat(frames))
        starts = frame.t - frame.t % schema.CHUNK_S[hour_s]
        for start in np.unique(starts):
            connection.execute(
                schema.chunks.insert(), chunk_rows(shelf_id, kind, hour_s, int(start), frame.where(starts == start))
            )
