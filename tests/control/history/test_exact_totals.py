"""Whatever happens to a fleet, its history adds up to the workers' own counters: exactly, at every stored step.

Workers flip (several times between two looks), do steps of any length, are replaced, and their hosts' clocks are set;
looks are missed, come late, and end with the plane, which a next one goes on from. Nothing is ever negative, and the
time that is known is the time that was lived: no clock makes more of it.
"""

from __future__ import annotations

import itertools
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from control.accounting import Accountant
from control.fleets.base import Observation
from control.history import schema
from control.history.store import History, SeriesQuery
from control.types.workers import Phase, Role
from engine.readings import MeterReading
from tests.control.metered import CPU, GPU, T0, FakeWorker

Totals = dict[tuple[str, str, Phase], dict[str, float]]  # by scope, name and phase
NAMES = ("w0", "w1")
ROLES = (Role.PREFILL, Role.DECODE, Role.MIXED)
COLUMNS = ("busy_s", "flops", "tokens")
MOST_CLOCK_S = 3_600
MOST_POINTS = 20_000

events = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(0, 1), st.sampled_from(list(Phase)), st.floats(1e-4, 7.0)),
        st.tuples(st.just("flip"), st.integers(0, 1), st.sampled_from(ROLES)),
        st.tuples(st.just("wait"), st.sampled_from((0.01, 0.3, 1.7, 40.0, 1_000.0))),
        st.tuples(st.just("look"), st.sampled_from(("seen", "seen", "missed", "late"))),
        st.tuples(st.just("restart"), st.integers(0, 1)),
        st.tuples(st.just("set clock"), st.integers(0, 1), st.integers(-MOST_CLOCK_S, MOST_CLOCK_S)),
        st.tuples(st.just("next plane")),
        st.tuples(st.just("upkeep")),
    ),
    max_size=40,
)


@dataclass
class Site:
    """A plane's accounting and history, and the pages of all lives that its workers have had."""

    history: History | None
    accountant: Accountant = field(default_factory=lambda: Accountant("f"))
    now_s: float = 0.0
    lives: dict[str, list[FakeWorker]] = field(default_factory=dict)
    late: list[MeterReading] = field(default_factory=list)
    worker_s: float = 0.0
    seconds: Totals = field(default_factory=lambda: defaultdict(lambda: dict.fromkeys(COLUMNS, 0.0)))

    def begin(self, name: str) -> None:
        """A life, which is looked at once: one that nobody ever saw is not told of."""
        epoch = len(self.lives.setdefault(name, [])) + 1
        life = FakeWorker(name, device=(GPU, CPU)[NAMES.index(name)], epoch=epoch, at_s=self.now_s, ring_records=4)
        life.set_by_s = self.lives[name][-1].set_by_s if epoch > 1 else 0.0
        self.lives[name].append(life)
        self.take([life.read(self.now_s)])

    def take(self, readings: list[MeterReading]) -> None:
        added = self.accountant.ingest(Observation(at_unix_s=T0 + self.now_s, readings=tuple(readings)))
        for row in [*added.phases.values(), *added.states.values()]:
            assert all(value >= 0 for value in row.values()), row
        self.worker_s += sum(
            row.get("worker_s", 0.0) for (line, _), row in added.states.items() if line.scope == "worker"
        )
        for (line, phase, _), row in added.phases.items():
            for column in COLUMNS:
                self.seconds[line.scope, line.name or "fleet", phase][column] += row[column]
        if self.history is not None:
            self.history.write_tick(added, self.accountant.snapshot())

    # --- events -----------------------------------------------------------------------------------------------------

    def step(self, number: int, phase: Phase, length_s: float) -> None:
        life = self.lives[NAMES[number]][-1]
        start, self.now_s = self.now_s, self.now_s + length_s
        self.pass_time()
        work = {"flops": length_s * 313.7, "bytes": length_s * 41.3, "tokens": 3, "cpu_s": length_s * 0.6}
        life.step(start, self.now_s, role=life.role, phase=phase, **work)

    def flip(self, number: int, role: Role) -> None:
        self.lives[NAMES[number]][-1].place(role)

    def wait(self, length_s: float) -> None:
        self.now_s += length_s
        self.pass_time()

    def pass_time(self) -> None:
        for lives in self.lives.values():
            lives[-1].now_s = self.now_s
            lives[-1].meter.heartbeat(self.now_s)

    def look(self, how: str) -> None:
        found = [lives[-1].read(self.now_s) for lives in self.lives.values()]
        before, self.late = self.late, found if how == "late" else []
        self.take([*(found if how == "seen" else []), *before])

    def restart(self, number: int) -> None:
        name = NAMES[number]
        self.take([life.read(life.now_s) for life in self.lives[name][-2:-1]])  # of two lives back nobody tells
        self.lives[name][-1].meter.close()
        self.begin(name)

    def set_clock(self, number: int, by_s: int) -> None:
        life = self.lives[NAMES[number]][-1]
        life.set_by_s = max(-MOST_CLOCK_S, min(MOST_CLOCK_S, life.set_by_s + by_s))
        self.pass_time()

    def next_plane(self) -> None:
        after = Accountant("f")
        after.restore(self.accountant.snapshot() if self.history is None else self.history.load_cursors("f"))
        self.accountant = after

    def upkeep(self) -> None:
        if self.history is not None:
            self.history.settle(T0 + self.now_s)

    def end(self) -> None:
        """Every page is read to its end, also those of lives that are over."""
        for number in range(max(map(len, self.lives.values()))):
            self.take([life.read(life.now_s) for lives in self.lives.values() for life in lives[number : number + 1]])


def counters(site: Site) -> Totals:
    """By scope, name and phase: what the pages say."""
    found: Totals = defaultdict(lambda: dict.fromkeys(COLUMNS, 0.0))
    for name, lives in site.lives.items():
        for life in lives:
            for key, each in life.reader.read(0).counters.items():
                role, _, phase = key.partition("/")
                for line in (("fleet", "fleet"), ("role", role), ("worker", name)):
                    for column in COLUMNS:
                        found[*line, Phase(phase)][column] += getattr(each, column)
    return dict(found)


def totals(history: History, site: Site, step_s: int) -> Totals:
    """The same, as series of this step say it."""
    found: Totals = defaultdict(dict)
    since, until = int(T0) - MOST_CLOCK_S, int(T0 + site.now_s) + 2 * MOST_CLOCK_S
    for at in range(since, until, MOST_POINTS * step_s):
        for phase, column, scope in itertools.product(Phase, COLUMNS, ("fleet", "role", "worker")):
            query = SeriesQuery(
                fleet_id="f",
                metric=f"{phase}_{column}",
                since_unix_s=at,
                until_unix_s=min(at + MOST_POINTS * step_s, until),
                step_s=step_s,
                by=scope,
            )
            for line in history.series(query).series:
                values = [point.value for point in line.points if point.value is not None]
                assert all(value >= 0 for value in values)
                into = found[scope, line.label, phase]
                into[column] = into.get(column, 0.0) + sum(values)
    return {key: each for key, each in found.items() if any(each.values())}


def happened(site: Site, events: list[tuple[Any, ...]]) -> None:
    for name in NAMES:
        site.begin(name)
    for what, *values in events:
        do: Callable[..., None] = getattr(site, what.replace(" ", "_"))
        do(*values)
    site.end()
    assert site.worker_s == sum(life.lived_s for lives in site.lives.values() for life in lives)


@settings(max_examples=40, deadline=None)
@given(events)
def test_seconds_add_up_to_the_workers_counters_exactly(events: list[tuple[Any, ...]]) -> None:
    site = Site(None)
    happened(site, events)
    assert {key: each for key, each in site.seconds.items() if any(each.values())} == counters(site)


@settings(max_examples=4, deadline=None)
@given(events)
def test_history_adds_up_to_the_workers_counters_exactly(events: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        history = History.open(f"sqlite:///{folder}/history.db")
        site = Site(history)
        happened(site, events)
        expected = counters(site)
        assert all(history.totals("f")[scope, name, phase.value][column] == value
                   for (scope, name, phase), each in expected.items() for column, value in each.items())  # fmt: skip
        assert totals(history, site, 60) == expected
        history.settle(T0 + site.now_s + 2 * MOST_CLOCK_S)
        for step_s in schema.STEPS:
            assert totals(history, site, step_s) == expected
        history.close()
