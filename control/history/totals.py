"""Everything that lines did in a range, added up: the sums of a view, to compare with the workers' own counters."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor
from typing import Final

from sqlalchemy import Connection

from control.buckets import number
from control.history import schema
from control.history.chunks import phase_kind
from control.history.marks import read_marks
from control.history.series import find_lines
from control.history.sums import Range, Source, Sums
from control.history.tail import Tail
from control.points import PHASE_SUMS
from control.types.workers import Phase

#: (scope, name, phase) -> column -> sum; name "fleet" is the fleet. Only where there was a step.
Totals = Mapping[tuple[str, str, str], Mapping[str, float]]
_SCOPES: Final = ("fleet", "role", "worker")


def read_totals(connection: Connection, tail: Tail, fleet_id: str, since_unix_s: float, until_unix_s: float) -> Totals:
    """From the coarsest points that the range begins with; its last block by seconds, where they are kept."""
    raw_since = read_marks(connection, "pruned-").get(1, 0)
    since, until = floor(since_unix_s), ceil(until_unix_s)
    base_s = next(step_s for step_s in reversed(schema.STEPS) if since % step_s == 0)
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for scope in _SCOPES:
        lines = find_lines(connection, fleet_id, scope)
        source = Source(connection, tail, lines, Range(since, until, (until // 3600 + 1) * 3600, base_s, raw_since))
        for phase in Phase:
            sums = Sums(source, (phase_kind(phase),))
            columns = {column: number(sums.column(column)).tolist() for column in PHASE_SUMS}
            for cell, name in enumerate(lines.names):  # one bucket: a cell is a group
                if columns["steps"][cell]:
                    found[scope, name, phase.value] = {column: each[cell] for column, each in columns.items()}
    return found
