"""What ticks write: sums equal the counters at every step, late work lands where it belongs, everything once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError

from control.accounting import Accountant
from control.errors import CommandRefused, HistoryError, NotFound
from control.fleets.base import WorkerLife
from control.history import schema
from control.history.chunks import phase_kind, read_chunk
from control.history.database import writing
from control.history.marks import read_marks
from control.history.retention import Retention
from control.history.series import choose_step
from control.history.store import EventQuery, History, RequestQuery, SeriesQuery
from control.metrics import METRICS
from control.points import Ingested
from control.traffic_stats import TrafficStats
from control.types.requests import RequestMove, Slo
from control.types.series import Series
from control.types.workers import Phase, Role
from engine.histogram import of_values
from tests.control.metered import T0, FakeWorker, observe
from tests.control.records import record


def nothing(at_s: float) -> Ingested:
    return Ingested(fleet_id="f", at_unix_s=T0 + at_s)


def run(
    history: History, seconds: int, *workers: FakeWorker, accountant: Accountant | None = None, start: int = 0
) -> Accountant:
    """Each worker decodes for the first half of each second; one tick a second."""
    accountant = accountant or Accountant("f")
    for second in range(start, start + seconds):
        for worker in workers:
            worker.step(second, second + 0.5, flops=100, bytes=10, tokens=5)
        history.write_tick(observe(accountant, second + 1.0, *workers), accountant.snapshot())
    return accountant


def values(
    history: History, metric: str, until_s: float, step_s: int, by: str = "fleet", since_s: float = 0
) -> dict[str, list[Any]]:
    found = lines(history, metric, until_s, step_s, by, since_s)
    return {line.label: [point.value for point in line.points] for line in found}


def wholes(history: History, metric: str, until_s: float, step_s: int) -> dict[str, float | None]:
    return {line.label: line.whole for line in lines(history, metric, until_s, step_s)}


def lines(
    history: History, metric: str, until_s: float, step_s: int, by: str = "fleet", since_s: float = 0
) -> tuple[Series, ...]:
    query = SeriesQuery(
        fleet_id="f", metric=metric, since_unix_s=T0 + since_s, until_unix_s=T0 + until_s, step_s=step_s, by=by
    )
    return history.series(query).series


def total(history: History, column: str, step_s: int) -> float:
    """Of all decode points of this step that are stored for workers, once all is rolled up."""
    history.settle(T0 + 5_000)
    kind, c, lines = phase_kind("decode"), schema.chunks.c, schema.lines.c
    with history._transactions.reading() as connection:
        shelves = connection.execute(select(lines.shelf_id).where(lines.scope == "worker").distinct()).scalars().all()
        places = connection.execute(select(c.shelf_id, c.t).where(c.kind == kind, c.step_s == step_s).distinct()).all()
        frames = [read_chunk(connection, *place, kind, step_s, t) for *place, t in places if place[0] in shelves]
    return float(sum(frame.columns[column].sum() for frame in frames))


def flops(history: History) -> float:
    """Of w0's decode steps, wherever they are stored."""
    return history.totals("f").get(("worker", "w0", "decode"), {}).get("flops", 0.0)


def test_sums_at_every_rolled_up_step_equal_the_counters(history: History) -> None:
    workers = FakeWorker("w0"), FakeWorker("w1")
    accountant = run(history, 130, *workers)
    for worker in workers:
        worker.step(130.0, 131.7, flops=77)
    history.write_tick(observe(accountant, 145.0, *workers), accountant.snapshot())
    counted = sum(worker.reader.read(0).counters["decode/decode"].flops for worker in workers)
    assert [total(history, "flops", step_s) for step_s in schema.STEPS] == [pytest.approx(counted)] * 5


def test_one_metric_reads_the_same_at_every_step(history: History) -> None:
    run(history, 120, FakeWorker("w0"), FakeWorker("w1"))
    for step_s in (1, 2, 10, 20, 60, 120):
        for label, found in values(history, "decode_compute_wall", 120, step_s).items():
            assert (label, found) == ("fleet", [pytest.approx(0.1)] * (120 // step_s))
    assert values(history, "decode_compute_in_phase", 120, 60) == {"fleet": [pytest.approx(0.2)] * 2}
    assert values(history, "decode_tokens_per_s", 120, 60, "worker") == {"w0": [5.0] * 2, "w1": [5.0] * 2}
    assert values(history, "decode_busy", 120, 60, "role") == {"decode": [pytest.approx(0.5)] * 2}


def test_a_band_keeps_the_extreme_seconds(history: History) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    for second, flops in enumerate([100, 900, 500, 0, 500, 500, 500, 500, 500, 500] * 2):
        if flops:
            worker.step(second, second + 1.0, flops=flops)
        history.write_tick(observe(accountant, second + 1.0, worker), accountant.snapshot())
    history.write_tick(observe(accountant, 30.0, worker), accountant.snapshot())
    query = SeriesQuery(
        fleet_id="f", metric="decode_compute_wall", since_unix_s=T0, until_unix_s=T0 + 20, step_s=10, by="fleet"
    )
    for point in history.series(query).series[0].points:
        assert (point.value, point.min, point.max) == (pytest.approx(0.45), 0.0, pytest.approx(0.9))


def test_work_that_is_known_late_lands_in_its_own_seconds(history: History) -> None:
    """A step of 70 s is seen when it ends; buckets that were rolled up already are corrected."""
    worker, accountant = FakeWorker(), Accountant("f")
    worker.meter.step_begin(0.0)
    for second in range(1, 70):
        history.write_tick(observe(accountant, second, worker), accountant.snapshot())
    assert values(history, "prefill_compute_wall", 60, 60) == {"fleet": [0.0]}
    worker.step(0.0, 70.0, phase=Phase.PREFILL, flops=700 * 70)
    history.write_tick(observe(accountant, 70.0, worker), accountant.snapshot())
    for step_s in (1, 10, 60):
        assert values(history, "prefill_compute_wall", 60, step_s) == {"fleet": [pytest.approx(0.7)] * (60 // step_s)}


def test_a_gap_stays_a_gap(history: History) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    history.write_tick(observe(accountant, 5.0, worker), accountant.snapshot())
    worker.meter.close()
    other = FakeWorker("w0", epoch=2, at_s=8.0)
    history.write_tick(observe(accountant, 10.0, other), accountant.snapshot())
    assert values(history, "decode_busy", 12, 1) == {"fleet": [0.0] * 5 + [None] * 3 + [0.0] * 2 + [None] * 2}
    assert values(history, "decode_compute_in_phase", 12, 1) == {"fleet": [None] * 12}


def test_nothing_known_is_no_line(history: History) -> None:
    assert values(history, "decode_busy", 10, 1) == {}
    assert values(history, "ttft_p99_s", 10, 1) == {}


def test_counts_of_workers_per_role_follow_a_flip(history: History) -> None:
    workers = FakeWorker("w0"), FakeWorker("w1")
    accountant = run(history, 10, *workers)
    workers[0].now_s = 10.0
    workers[0].place(Role.PREFILL)
    run(history, 10, *workers, accountant=accountant, start=10)
    found = values(history, "num_workers", 20, 10, "role", since_s=0)
    assert found == {"decode": [2.0, pytest.approx(1.1)], "prefill": [0.0, pytest.approx(0.9)]}


def test_a_restart_of_the_plane_counts_nothing_twice_and_loses_nothing(
    url: str, opened: Callable[[str], History]
) -> None:
    worker, first = FakeWorker(), opened(url)
    run(first, 10, worker)
    first.close()
    for second in range(10, 20):
        worker.step(second, second + 0.5, flops=100)
    history, accountant = opened(url), Accountant("f")
    accountant.restore(history.load_cursors("f"))
    worker.cursor = 0
    history.write_tick(observe(accountant, 20.0, worker), accountant.snapshot())
    assert flops(history) == pytest.approx(2000)
    assert values(history, "decode_compute_wall", 20, 10) == {"fleet": [pytest.approx(0.1)] * 2}


def test_an_unsaved_tick_leaves_cursors_and_points_as_they_were(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    worker.step(0.0, 0.5, flops=100)
    ingested, cursors = observe(accountant, 1.0, worker), accountant.snapshot()
    with monkeypatch.context() as patch:
        patch.setattr("control.history.cursors.put_cursors", _fail)
        with pytest.raises(HistoryError, match="disk full"):
            history.write_tick(ingested, cursors)
    assert (flops(history), history.load_cursors("f")) == (0.0, {})
    history.write_tick(ingested, cursors)
    assert flops(history) == 100.0
    assert history.load_cursors("f") == cursors


def test_a_tick_whose_commit_was_done_but_not_answered_counts_once(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    worker.step(0.0, 0.5, flops=100)
    ingested, cursors = observe(accountant, 1.0, worker), accountant.snapshot()
    with monkeypatch.context() as patch:
        patch.setattr("control.history.transactions.writing", _lose_the_answer)
        with pytest.raises(HistoryError, match="connection is lost"):
            history.write_tick(ingested, cursors, [("g", 1, record())])
    history.write_tick(ingested, cursors, [("g", 1, record())])
    assert (flops(history), history.last_seq("g")) == (100.0, 1)
    worker.step(1.0, 1.5, flops=100)
    history.write_tick(observe(accountant, 2.0, worker), accountant.snapshot())
    assert flops(history) == 200.0


@contextlib.contextmanager
def _lose_the_answer(engine: Engine, limit_s: float) -> Iterator[Connection]:
    with writing(engine, limit_s) as connection:
        yield connection
    raise DBAPIError("COMMIT", None, Exception("the connection is lost"))


def _fail(*_: object) -> None:
    raise HistoryError("disk full")


# --- records and traffic ----------------------------------------------------------------------------------------------


def test_each_record_is_written_once_however_often_it_is_sent(history: History) -> None:
    rows = [("g", seq, record(request_id=f"r{seq}", arrival_unix_s=T0 + seq)) for seq in (1, 2, 3)]
    history.write_tick(nothing(5), {}, rows[:2])
    history.write_tick(nothing(6), {}, rows)
    assert history.last_seq("g") == 3
    assert history.last_seq("other") == 0
    assert [each.request_id for each in history.requests(RequestQuery(fleet_id="f"))] == ["r3", "r2", "r1"]
    assert values(history, "offered_rps", 5, 5) == {"fleet": [0.6]}


def test_a_record_comes_back_as_it_was_written(history: History) -> None:
    moves = (
        RequestMove(
            kind="failover", from_worker="w1", to_worker="w2", at_s=1.5, notice_s=0.02, stall_s=0.3, reason="x"
        ),
        RequestMove(kind="migration", from_worker="w2", to_worker="w3", at_s=2.5, num_bytes=2**33),
    )
    sent = record(itl_buckets={3: 4, 500: 1}, traceparent="00-ab", good=None, tpot_s=None, moves=moves)
    history.write_tick(nothing(5), {}, [("g", 1, sent)])
    assert history.request("r") == sent
    assert history.request("other") is None


def test_records_are_found_by_rule_worker_verdict_and_slowness(history: History) -> None:
    changes: list[dict[str, Any]] = [
        {"e2e_s": 1.0},
        {"e2e_s": 9.0, "rule": "short_local", "prefill_worker": "", "good": False},
        {"e2e_s": None, "status": 429, "good": False},
        {"e2e_s": 4.0, "decode_worker": "w9"},
    ]
    rows = [("g", i, record(request_id=f"r{i}", arrival_unix_s=T0 + i, **each)) for i, each in enumerate(changes, 1)]
    history.write_tick(nothing(5), {}, rows)

    def ids(**query: Any) -> list[str]:
        return [each.request_id for each in history.requests(RequestQuery(fleet_id="f", **query))]

    assert ids(order="slowest") == ["r2", "r4", "r1", "r3"]
    assert ids(order="slowest", limit=1) == ["r2"]
    assert ids(rule="short_local") == ["r2"]
    assert ids(worker_id="w9") == ["r4"]
    assert ids(good=False) == ["r3", "r2"]
    assert ids(since_unix_s=T0 + 2, until_unix_s=T0 + 4) == ["r3", "r2"]


def test_late_requests_count_at_their_arrival_at_every_step(history: History) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    for second in range(1, 80):
        history.write_tick(observe(accountant, second, worker), accountant.snapshot())
    sent = record(arrival_unix_s=T0 + 5, ttft_s=0.2, e2e_s=75.0, itl_buckets=of_values([0.05] * 9))
    history.write_tick(observe(accountant, 81.0, worker), accountant.snapshot(), [("g", 1, sent)])
    for step_s in (1, 10, 60):
        index = 5 // step_s
        assert values(history, "offered_rps", 60, step_s)["fleet"][index] == pytest.approx(1 / step_s)
        assert values(history, "ttft_p99_s", 60, step_s)["fleet"][index] == pytest.approx(0.2, rel=0.01)
        assert values(history, "itl_p50_s", 60, step_s, "rule")["remote"][index] == pytest.approx(0.05, rel=0.01)


def test_percentiles_are_of_merged_histograms_and_not_averages(history: History) -> None:
    rows = [("g", i + 1, record(arrival_unix_s=T0 + i, ttft_s=0.1 if i < 9 else 10.0)) for i in range(10)]
    history.write_tick(nothing(30), {}, rows)
    assert values(history, "ttft_p50_s", 10, 10) == {"fleet": [pytest.approx(0.1, rel=0.01)]}
    assert values(history, "ttft_p99_s", 10, 10) == {"fleet": [pytest.approx(10.0, rel=0.01)]}
    assert wholes(history, "ttft_p99_s", 10, 1) == {"fleet": pytest.approx(10.0, rel=0.01)}  # of the seconds together
    assert wholes(history, "ttft_p50_s", 10, 1) == {"fleet": pytest.approx(0.1, rel=0.01)}
    assert wholes(history, "goodput_rps", 10, 1) == {"fleet": None}


def test_attainment_counts_rejections_and_leaves_cancels_out(history: History) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"status": 429, "good": False},
        {"status": 499, "good": None},
        {"status": 400, "good": False},
    ]
    rows = [("g", i, record(arrival_unix_s=T0 + 1, **each)) for i, each in enumerate(changes, 1)]
    history.write_tick(nothing(5), {}, rows)
    assert values(history, "attainment", 10, 10) == {"fleet": [0.5]}
    assert values(history, "rejected_rps", 10, 10) == {"fleet": [0.1]}
    assert values(history, "route_rps", 10, 10, "rule") == {"remote": [0.3]}


def test_a_quiet_gateway_is_zero_and_no_gateway_is_a_gap(history: History) -> None:
    from tests.control.test_traffic_stats import beat

    worker, accountant, stats = FakeWorker(), Accountant("f"), TrafficStats(Slo())
    history.write_tick(observe(accountant, 1.0, worker), accountant.snapshot(), [], stats.status(T0 + 1))
    stats.beat("g", beat(T0 + 2, num_in_flight=4))
    history.write_tick(observe(accountant, 2.0, worker), accountant.snapshot(), [], stats.status(T0 + 2))
    assert values(history, "offered_rps", 3, 1) == {"fleet": [None, None, 0.0]}
    assert values(history, "in_flight", 3, 1) == {"fleet": [None, None, 4.0]}


def test_a_range_that_ends_inside_a_bucket_counts_the_seconds_that_were_read(history: History) -> None:
    """One request a second: a window of the past, or one up to now, reads 1 rps to its last point."""
    rows = [("g", i + 1, record(arrival_unix_s=T0 + i + 0.5)) for i in range(100)]
    history.write_tick(nothing(100.05), {}, rows)
    assert values(history, "offered_rps", 30.05, 1, since_s=28) == {"fleet": [1.0] * 3}
    assert values(history, "offered_rps", 30.05, 10) == {"fleet": [1.0] * 4}  # the last one is rolled up, and whole
    assert values(history, "offered_rps", 97.3, 10, since_s=80) == {"fleet": [1.0] * 2}  # seconds up to 98
    assert values(history, "offered_rps", 98.0, 60) == {"fleet": [1.0] * 2}


# --- intervals, series queries, retention -----------------------------------------------------------------------------


def test_role_intervals_close_and_keep_their_reason(history: History) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    history.write_tick(observe(accountant, 1.0, worker), accountant.snapshot())
    worker.now_s = 5.0
    worker.place(Role.PREFILL)
    history.write_tick(observe(accountant, 6.0, worker), accountant.snapshot())
    found = history.role_intervals("f", T0, T0 + 10)
    assert [(each.role, each.start_unix_s - T0, each.end_unix_s, each.reason) for each in found] == [
        (Role.DECODE, 0.0, T0 + 5.0, "placed"),
        (Role.PREFILL, 5.0, None, "placed"),
    ]
    assert [each.role for each in history.role_intervals("f", T0 + 5.5, T0 + 10)] == [Role.PREFILL]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"metric": "magic"}, NotFound, "unknown metric 'magic'"),
        ({"by": "moon"}, CommandRefused, "by is moon, must be one of fleet, role, worker"),
        ({"metric": "in_flight", "by": "worker"}, CommandRefused, "must be one of fleet for in_flight"),
        ({"since_unix_s": T0 + 9, "until_unix_s": T0}, CommandRefused, "since_unix_s"),
        ({"since_unix_s": float("nan")}, CommandRefused, "since_unix_s"),
        ({"step_s": 0}, CommandRefused, "step_s is 0, must be 1 to 86400 seconds"),
        ({"step_s": 1, "until_unix_s": T0 + 1e6}, CommandRefused, "at least 50 s for this range"),
    ],
)
def test_a_bad_query_names_field_value_and_bound(
    history: History, changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    good: dict[str, Any] = {"fleet_id": "f", "metric": "decode_busy", "since_unix_s": T0, "until_unix_s": T0 + 60}
    with pytest.raises(error, match=words):
        history.series(SeriesQuery(**good | changes))


@pytest.mark.parametrize(
    ("length_s", "pruned", "step_s"),
    [
        (300, {}, 1),
        (3600, {}, 5),
        (86_400, {}, 120),
        (30 * 86_400, {}, 3600),
        (300, {1: int(T0) + 1}, 10),
        (3600, {1: int(T0) + 1}, 10),
    ],
)
def test_a_line_has_at_most_a_thousand_points_and_is_read_where_it_is_kept(
    length_s: int, pruned: dict[int, int], step_s: int
) -> None:
    query = SeriesQuery(fleet_id="f", metric="decode_busy", since_unix_s=T0, until_unix_s=T0 + length_s)
    assert choose_step(query, pruned) == step_s


def test_only_the_groups_that_were_named_are_read(history: History) -> None:
    run(history, 12, FakeWorker("w0"), FakeWorker("w1"), FakeWorker("w2"))
    query = SeriesQuery(
        fleet_id="f",
        metric="decode_busy",
        since_unix_s=T0,
        until_unix_s=T0 + 12,
        by="worker",
        names=("w2", "w0", "gone"),
    )
    assert [line.label for line in history.series(query).series] == ["w0", "w2"]


def test_buckets_that_are_not_whole_are_marked(history: History) -> None:
    worker = FakeWorker(at_s=5.0)
    run(history, 20, worker, start=5)
    query = SeriesQuery(fleet_id="f", metric="decode_busy", since_unix_s=T0, until_unix_s=T0 + 24, step_s=5, by="fleet")
    points = history.series(query).series[0].points
    assert [point.value is None for point in points] == [True, False, False, False, False]
    assert [point.partial for point in points] == [False, False, False, False, True]


def test_every_metric_answers_for_every_group_it_names(history: History) -> None:
    run(history, 12, FakeWorker("w0"), FakeWorker("w1"))
    history.write_tick(nothing(13), {}, [("g", 1, record(arrival_unix_s=T0 + 1, itl_buckets={5: 1}))])
    for name, info in METRICS.items():
        for by in info.groups:
            query = SeriesQuery(fleet_id="f", metric=name, since_unix_s=T0, until_unix_s=T0 + 12, by=by)
            result = history.series(query)
            assert (result.metric, result.unit, result.by) == (name, info.unit, by)
            assert all(len(line.points) == 12 for line in result.series)


def forget(history: History, now_s: float, **keep: float) -> None:
    """Roll all up that is over, and delete everything that is too old."""
    history.settle(T0 + 1.0)
    while history.upkeep(T0 + now_s, 10.0):
        pass
    while history.prune(T0 + now_s, Retention(**keep)):
        pass


def test_seconds_are_forgotten_by_whole_blocks_and_their_rollups_stay(history: History) -> None:
    history.write_tick(nothing(600), {}, [("g", i + 1, record(arrival_unix_s=T0 + 7 + 130 * i)) for i in range(10)])
    forget(history, 5_003, raw_s=4_000, rollup_s=1e6, requests_s=1e6)
    with history._transactions.engine.connect() as connection:
        assert read_marks(connection, "pruned-") == {1: T0 + 600}
    assert values(history, "offered_rps", 1_200, 600) == {"fleet": [pytest.approx(5 / 600)] * 2}
    assert values(history, "offered_rps", 600, 60)["fleet"][0] == pytest.approx(1 / 60)


def test_one_batch_of_forgetting_is_one_shelf_and_a_bounded_number_of_records(history: History) -> None:
    """The plane's writer waits for it, and so does a command."""
    history.write_tick(nothing(600), {}, [("g", i + 1, record(arrival_unix_s=T0 + 20 * i)) for i in range(30)])
    history.settle(T0 + 5_000)
    keep = Retention(raw_s=401, rollup_s=1e6, requests_s=10)
    with history._transactions.reading() as connection:
        wanted = select(schema.chunks.c.shelf_id).where(schema.chunks.c.step_s == 1).distinct()
        shelves = connection.execute(wanted).scalars().all()
    assert len(shelves) == 2  # of the fleet, of the rules
    assert history.prune(T0 + 5_003, keep)
    with history._transactions.reading() as connection:
        assert connection.execute(wanted).scalars().all() == shelves[1:]
    assert not history.prune(T0 + 5_003, keep)
    assert history.requests(RequestQuery(fleet_id="f")) == []
    assert values(history, "offered_rps", 600, 60)["fleet"] == [pytest.approx(0.05)] * 10


def test_a_history_that_has_grown_too_large_gives_up_its_oldest_seconds_first(history: History) -> None:
    for hour in range(3):
        sent = record(arrival_unix_s=T0 + 3_600 * hour, request_id=f"r{hour}")
        history.write_tick(nothing(3_600 * hour), {}, [("g", hour + 1, sent)])
    forget(history, 10_000, max_bytes=1.0)
    with history._transactions.reading() as connection:
        assert read_marks(connection, "pruned-") == {1: T0 + 4_200}
    assert values(history, "offered_rps", 7_800, 600)["fleet"][0] == pytest.approx(1 / 600)


def test_a_record_older_than_the_kept_seconds_is_added_to_coarser_steps(history: History) -> None:
    """A gateway that was cut off for a day still has its records."""
    first = [("g", 1, record(arrival_unix_s=T0 + 1, ttft_s=0.1))]
    history.write_tick(nothing(5), {}, first)
    history.write_tick(nothing(20_000), {}, [("g", 2, record(arrival_unix_s=T0 + 19_990))])
    forget(history, 20_000, raw_s=3_600, rollup_s=1e6, requests_s=1e6)
    late = [("g", seq, record(arrival_unix_s=T0 + seq, ttft_s=0.1)) for seq in (3, 4, 5)]
    history.write_tick(nothing(20_001), {}, late)
    for is_folded in (False, True):
        if is_folded:
            history.settle(T0 + 20_100)
        for step_s in (10, 60, 600, 3600):
            assert values(history, "offered_rps", step_s, step_s) == {"fleet": [pytest.approx(4 / step_s)]}
            assert values(history, "ttft_p50_s", step_s, step_s) == {"fleet": [pytest.approx(0.1, rel=0.01)]}


def test_forgetting_keeps_rollups_and_the_series_says_them(history: History) -> None:
    run(history, 30, FakeWorker())
    history.write_tick(nothing(20_000), {}, [("g", 1, record(arrival_unix_s=T0 + 1))])
    forget(history, 20_000, raw_s=3_600, rollup_s=1e6, requests_s=3_600)
    assert (total(history, "flops", 1), total(history, "flops", 10)) == (0.0, pytest.approx(3000))
    assert values(history, "decode_compute_wall", 30, 1) == {"fleet": [pytest.approx(0.1)] * 3}
    assert history.request("r") is None
    assert history.last_seq("g") == 1
    assert history.load_cursors("f").keys() == {"w0"}


# --- events ---


def moved(at_s: float, **changes: Any) -> RequestMove:
    values: dict[str, Any] = {"kind": "failover", "from_worker": "w1", "to_worker": "w2", "at_s": at_s, "stall_s": 0.2}
    return RequestMove(**{**values, **changes})


def test_moves_are_added_up_over_ticks_and_each_record_counts_once(history: History) -> None:
    first = ("g@1", 1, record(arrival_unix_s=T0, moves=(moved(1.5),)))
    second = ("g@1", 2, record(arrival_unix_s=T0, moves=(moved(1.25, stall_s=0.6, to_worker="w3"),)))
    history.write_tick(nothing(3), {}, [first])
    history.write_tick(nothing(4), {}, [first, second])
    found = history.events(EventQuery(fleet_id="f", since_unix_s=T0))
    assert [(each.kind, each.num_requests, each.at_unix_s - T0) for each in found] == [("failover", 2, 1.25)]
    assert (found[0].to_workers, found[0].stall_s) == ({"w2": 1, "w3": 1}, 0.6)
    asked = [history.requests(RequestQuery(fleet_id="f", moved=moved)) for moved in (True, False)]
    assert [len(each) for each in asked] == [2, 0]


def test_a_worker_that_dies_and_comes_back_is_told_in_order(history: History) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    history.write_tick(observe(accountant, 5.0, worker), accountant.snapshot())
    worker.meter.close()
    life = WorkerLife(worker_id="w0", num_restarts=1, last_restart_reason="killed")
    again = FakeWorker("w0", epoch=2, at_s=8.0)
    history.write_tick(observe(accountant, 10.0, again, lives=(life,)), accountant.snapshot())
    found = history.events(EventQuery(fleet_id="f", since_unix_s=T0))
    assert [(each.kind, each.epoch, each.at_unix_s - T0) for each in reversed(found)] == [
        ("started", 1, 0.0),
        ("died", 1, 5.0),
        ("restarted", 2, 8.0),
    ]
    assert (found[0].away_s, found[0].reason) == (3.0, "killed")
    deaths = EventQuery(fleet_id="f", since_unix_s=T0, kinds=("died",), worker_id="w0", until_unix_s=T0 + 6)
    assert [each.kind for each in history.events(deaths)] == ["died"]


def test_events_past_their_retention_are_forgotten(history: History) -> None:
    history.write_tick(nothing(3), {}, [("g@1", 1, record(arrival_unix_s=T0, moves=(moved(1.0),)))])
    history.prune(T0 + 100, Retention(rollup_s=200.0))
    assert len(history.events(EventQuery(fleet_id="f"))) == 1
    history.prune(T0 + 300, Retention(rollup_s=200.0))
    assert history.events(EventQuery(fleet_id="f")) == []
