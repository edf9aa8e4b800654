"""Whatever comes late, and whatever is rolled up by then: every sum and every extreme is the true one."""

from __future__ import annotations

import tempfile
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from control.history.store import History, SeriesQuery
from control.points import Ingested, Line
from control.types.workers import Phase

T0 = 300 * 3600
LENGTH_S = 1_800
LINES = [Line("worker", f"w{n}", "m", True, 1, "decode") for n in range(2)]
Add = tuple[int, int, int]  # worker, second, tokens
adds = st.lists(st.tuples(st.integers(0, 1), st.integers(0, LENGTH_S - 1), st.integers(1, 1_000)), max_size=8)
ticks = st.lists(st.tuples(adds, st.sampled_from(("wait", "fold", "roll"))), min_size=1, max_size=12)


def write(history: History, batch: list[Add], at_s: int) -> None:
    phases: dict[tuple[Line, Phase, int], dict[str, float]] = {}
    for worker, second, tokens in batch:
        row = phases.setdefault((LINES[worker], Phase.DECODE, T0 + second), {"num_s": 1.0, "tokens": 0.0, "steps": 0.0})
        row["tokens"] += tokens
        row["steps"] += 1
    history.write_tick(Ingested(fleet_id="f", at_unix_s=float(T0 + at_s), phases=phases), {})


def know_all(history: History) -> None:
    known = {"num_cover_s": 1.0, "worker_s": 1.0}
    states = {(line, T0 + second): dict(known) for line in LINES for second in range(LENGTH_S)}
    history.write_tick(Ingested(fleet_id="f", at_unix_s=float(T0), states=states), {})


def check(history: History, truth: dict[tuple[int, int], int], step_s: int) -> None:
    query = SeriesQuery(
        fleet_id="f",
        metric="decode_tokens_per_s",
        since_unix_s=T0,
        until_unix_s=T0 + LENGTH_S,
        step_s=step_s,
        by="worker",
    )
    for worker, line in enumerate(history.series(query).series):
        for point in line.points:
            start = int(point.t_unix_s) - T0
            values = [truth[worker, second] for second in range(start, start + step_s)]
            assert (point.value, point.min, point.max) == (sum(values) / step_s, min(values), max(values))


@settings(max_examples=20, deadline=None)
@given(ticks)
def test_late_points_land_where_they_belong_at_every_step(ticks: list[tuple[list[Add], str]]) -> None:
    truth: dict[tuple[int, int], int] = defaultdict(int)
    with tempfile.TemporaryDirectory() as folder:
        history = History.open(f"sqlite:///{folder}/history.db")
        know_all(history)
        for number, (batch, then) in enumerate(ticks):
            write(history, batch, number)
            for worker, second, tokens in batch:
                truth[worker, second] += tokens
            if then != "wait":
                history.settle(T0 + (0 if then == "fold" else 900 + 300 * number))
        for step_s in (10, 60, 600, 1_800):
            check(history, truth, step_s)
        totals = history.totals("f")
        for worker in range(2):
            counted = totals.get(("worker", f"w{worker}", "decode"), {}).get("tokens", 0.0)
            assert counted == sum(tokens for (each, _), tokens in truth.items() if each == worker)
        history.close()
