"""A history that nobody measured: the same numbers each time, marked simulated in every row, with known extremes.

Decided here: what such a fleet did. A day of a shelf is one of NUM_TEMPLATES days, so thirty days of two hundred
workers are written in the time that the disk takes. In each hour of each day one second of each worker is its largest
and one its smallest, at seconds that `extremes` tells. Seconds are written for the last `raw_days`, rollups for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, select

from control.history import schema
from control.history.chunks import PHASE_KINDS, STATE, Kind, chunk_rows
from control.history.codec import Floats, encode_ints
from control.history.frames import Frame, concat, merge, roll, with_bands
from control.history.marks import write_mark
from control.history.points import line_ids
from control.points import Line

DAY_S: Final = 86_400
NUM_TEMPLATES: Final = 3
PEAK_FLOPS: Final = 989e12
PEAK_BYTES_S: Final = 3.35e12
_QUANTUM: Final = 2.0**24
_MODEL: Final = "demo"
Chunks = dict[tuple[Kind, int, int], dict[str, bytes]]  # kind, step, start within the day -> columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What is to be filled: [until - days, until) of a fleet; `until_s` is the start of a day."""

    fleet_id: str
    until_s: int
    num_workers: int
    days: int = 30
    raw_days: int = 1


def template_of(shelf: int, day: int) -> int:
    """Which template this day of this shelf is; `day` counts days since 1970."""
    return (shelf + 2 * day) % NUM_TEMPLATES


def utilization(template: int, slot: int, phase: int) -> Floats:
    """Share of the peak, second by second, of one worker's place in a template: a day's wave, noise, and extremes."""
    dice = np.random.default_rng((template, slot, phase))
    t = np.arange(DAY_S)
    wave = 0.45 + 0.25 * np.sin(2 * np.pi * (t / DAY_S - 0.3 + slot / 64))
    found = np.clip(wave + dice.normal(0.0, 0.04, DAY_S), 0.05, 0.9)
    hours = np.arange(0, DAY_S, 3600)
    found[hours + dice.integers(0, 3600, len(hours))] = 0.95 + 0.0001 * (slot + 16 * template)
    found[hours + dice.integers(0, 3600, len(hours))] = 0.01 + 0.0001 * (slot + 16 * template)
    return np.rint(found * _QUANTUM) / _QUANTUM


def seconds_of(template: int, num_lines: int) -> dict[Kind, Frame]:
    """A day of a shelf, from second 0, lines numbered from 0."""
    t = np.tile(np.arange(DAY_S), num_lines)
    lines, zero = np.repeat(np.arange(num_lines), DAY_S), np.zeros(num_lines * DAY_S, np.int64)
    one = np.ones(len(t))
    dice = np.random.default_rng((template, 999))
    running = dice.integers(0, 64, len(t)).astype(np.float64)
    state = {"num_cover_s": one, "worker_s": one, "device_s": one, "flops_peak": one * PEAK_FLOPS}
    state |= {"bytes_peak": one * PEAK_BYTES_S, "num_load": one, "num_kv": one, "sum_num_workers": one}
    state |= {"sum_num_running": running, "sum_kv_usage": running / 64, "sum_queued_prefill_tokens": 128 * running}
    state |= {"sum_num_waiting": np.floor(running / 8), "sum_oldest_wait_s": np.rint(running * 1e3) / 1e4}
    for name in [name for name in state if name.startswith("sum_")]:
        for side in ("min", "max"):
            state[f"{side}_{name[4:]}"] = state[name]
    found = {STATE: Frame(lines, t, zero, state)}
    for number, kind in enumerate(PHASE_KINDS):
        share = np.concatenate([utilization(template, slot, number) for slot in range(num_lines)])
        busy = np.rint((0.3 + 0.6 * share) * _QUANTUM) / _QUANTUM
        flops, size = np.rint(share * PEAK_FLOPS), np.rint(share * PEAK_BYTES_S)
        work = {"num_s": one, "busy_s": busy, "cpu_s": busy, "flops": flops, "bytes": size}
        work |= {"tokens": np.rint(share * 4000), "steps": np.rint(share * 30)}
        work |= {"flops_room": np.rint(busy * PEAK_FLOPS), "bytes_room": np.rint(busy * PEAK_BYTES_S)}
        found[kind] = Frame(lines, t, zero, work)
    return found


class Template:
    """One day of a shelf as chunks, and its hours, which lie in chunks of a week."""

    def __init__(self, number: int, num_lines: int) -> None:
        self.chunks: Chunks = {}
        self.hours: dict[Kind, Frame] = {}
        self._times: dict[tuple[Kind, int, int], Frame] = {}
        seconds = seconds_of(number, num_lines)
        for kind, frame in seconds.items():
            self._add(kind, 1, frame)
            if kind in PHASE_KINDS:
                frame = with_bands(frame, seconds[STATE])
            for step_s in schema.STEPS[1:-1]:
                frame = roll(frame, step_s)
                self._add(kind, step_s, frame)
            self.hours[kind] = roll(frame, schema.STEPS[-1])

    def _add(self, kind: Kind, step_s: int, frame: Frame) -> None:
        for start in range(0, DAY_S, schema.CHUNK_S[step_s]):
            part = frame.where((frame.t >= start) & (frame.t < start + schema.CHUNK_S[step_s]))
            rows = chunk_rows(0, kind, step_s, start, part)
            self.chunks[kind, step_s, start] = {row["name"]: row["data"] for row in rows if row["name"][0] != "#"}
            self._times[kind, step_s, start] = Frame(part.line_ids, part.t, part.bucket, {})

    def rows(self, shelf_id: int, first_line: int, day_s: int, steps: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        """The day as rows of `chunks`, of this shelf, beginning at `day_s`."""
        for (kind, step_s, start), columns in self.chunks.items():
            if step_s in steps:
                keys = self._times[kind, step_s, start]
                placed = {"#line": keys.line_ids + first_line, "#t": keys.t + day_s, "#bucket": keys.bucket}
                found: Mapping[str, bytes] = columns | {name: encode_ints(each) for name, each in placed.items()}
                key = {"shelf_id": shelf_id, "kind": kind, "step_s": step_s, "t": day_s + start}
                yield from ({**key, "name": name, "data": data} for name, data in found.items())


def num_shelves(demo: Demo) -> int:
    return -(-demo.num_workers // schema.SHELF_LINES)


def fill(connection: Connection, demo: Demo, shelf: int) -> None:
    """Write one shelf, in this transaction; shelves in order, each once, of a fleet that has no line yet."""
    write_mark(connection, "pruned-1", demo.until_s - demo.raw_days * DAY_S)
    first = shelf * schema.SHELF_LINES
    names = [f"w{n}" for n in range(first, min(first + schema.SHELF_LINES, demo.num_workers))]
    lines = [Line("worker", name, _MODEL, True, 1, "mixed") for name in names]
    ids = line_ids(connection, demo.fleet_id, lines, {})
    first_line = min(ids.values())
    wanted = select(schema.lines.c.shelf_id).where(schema.lines.c.line_id == first_line)
    shelf_id = int(connection.execute(wanted).scalar_one())
    _fill_shelf(connection, demo, shelf, shelf_id, first_line, len(names))


def _fill_shelf(connection: Connection, demo: Demo, shelf: int, shelf_id: int, first_line: int, num_lines: int) -> None:
    hours: dict[Kind, list[Frame]] = {}
    for day_s in range(demo.until_s - demo.days * DAY_S, demo.until_s, DAY_S):
        template = _template(template_of(shelf, day_s // DAY_S), num_lines)
        is_raw = day_s >= demo.until_s - demo.raw_days * DAY_S
        steps = schema.STEPS[:-1] if is_raw else schema.STEPS[1:-1]
        connection.execute(schema.chunks.insert(), list(template.rows(shelf_id, first_line, day_s, steps)))
        for kind, frame in template.hours.items():
            moved = Frame(frame.line_ids + first_line, frame.t + day_s, frame.bucket, frame.columns)
            hours.setdefault(kind, []).append(moved)
    hour_s = schema.STEPS[-1]
    for kind, frames in hours.items():
        frame = merge(concat(frames))
        starts = frame.t - frame.t % schema.CHUNK_S[hour_s]
        for start in np.unique(starts):
            connection.execute(
                schema.chunks.insert(), chunk_rows(shelf_id, kind, hour_s, int(start), frame.where(starts == start))
            )


_made: dict[tuple[int, int], Template] = {}


def _template(number: int, num_lines: int) -> Template:
    if (number, num_lines) not in _made:
        _made[number, num_lines] = Template(number, num_lines)
    return _made[number, num_lines]
