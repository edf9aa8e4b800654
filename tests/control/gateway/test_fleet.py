"""The gateway's picture of the fleet: prefix index, pending work, tables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.gateway.losses import Losses
from control.gateway.prefix_index import PrefixIndex
from control.gateway.pulse import Pulse, pulse_of, pulse_of_step
from control.gateway.timeline import Timeline
from control.gateway.workers import WorkerLink
from control.processes import asleep_cpu_ticks, is_ending, stands_still
from control.types.routing import WorkerRoute
from control.types.workers import LossCause, Role, WorkerState
from engine.histogram import bucket_of
from engine.wire import CacheDelta

HASHES = st.lists(st.integers(0, 8), max_size=5)
DELTAS = st.lists(st.tuples(st.integers(0, 2), HASHES, HASHES, st.booleans()), max_size=20)


@given(DELTAS)
def test_the_prefix_index_equals_one_set_per_worker(deltas: list[tuple[int, list[int], list[int], bool]]) -> None:
    index = PrefixIndex()
    sets: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for slot, added, removed, reset in deltas:
        removed = [each for each in removed if each not in added]
        index.apply(slot, CacheDelta(added=added, removed=removed, reset=reset))
        sets[slot] = ((set() if reset else sets[slot]) - set(removed)) | set(added)
    expected: dict[int, int] = {}
    for slot, held in sets.items():
        for each in held:
            expected[each] = expected.get(each, 0) | 1 << slot
    assert index.holders == expected
    for slot in sets:
        index.forget(slot)
    assert index.holders == {}


def link(**changes: Any) -> WorkerLink:
    row = WorkerRoute(
        worker_id="w", epoch=1, address="127.0.0.1:1", role=Role.MIXED, state=WorkerState.READY, **changes
    )
    return WorkerLink(row, 0, PrefixIndex(), lambda: None)


def test_a_worker_that_was_never_reached_is_not_ready_and_takes_nothing() -> None:
    worker = link()
    assert not worker.is_ready
    assert worker.send(CacheDelta()) is False


def test_a_timeline_counts_tokens_that_came_together_as_gaps_of_zero() -> None:
    timeline = Timeline(100.0)
    timeline.add(1, 100.5)
    timeline.add(1, 100.7)
    timeline.add(3, 101.0)
    assert timeline.ttft_s == 0.5
    assert timeline.tpot_s is not None
    assert abs(timeline.tpot_s - 0.125) < 1e-9
    assert abs(timeline.gaps.max_s - 0.3) < 1e-9
    assert timeline.gaps.counts == {bucket_of(0.2): 1, bucket_of(0.3): 1, 0: 2}


def test_one_token_has_a_first_token_time_and_no_rate() -> None:
    timeline = Timeline(1.0)
    assert timeline.ttft_s is None
    timeline.add(1, 3.0)
    assert (timeline.ttft_s, timeline.tpot_s, timeline.gaps.counts) == (2.0, None, {})


@pytest.mark.parametrize(
    ("silent_s", "stopped", "pulse"),
    [
        (0.09, True, Pulse.BEATS),
        (0.1, True, Pulse.GONE),
        (1.4, False, Pulse.BEATS),
        (1.5, False, Pulse.LATE),
        (19.9, False, Pulse.LATE),
        (20.0, False, Pulse.GONE),
    ],
)
def test_silence_keeps_new_work_away_and_only_a_stopped_process_is_given_up_at_once(
    silent_s: float, stopped: bool, pulse: Pulse
) -> None:
    assert pulse_of(silent_s, is_stopped=stopped) is pulse


@pytest.mark.parametrize(
    ("silent_s", "frozen_s", "pulse"),
    [(1.4, 1.4, Pulse.BEATS), (2.4, 0.9, Pulse.LATE), (2.5, 1.0, Pulse.GONE), (19.0, 0.0, Pulse.LATE)],
)
def test_a_silent_process_whose_threads_all_sleep_is_given_up_and_a_busy_one_is_waited_for(
    silent_s: float, frozen_s: float, pulse: Pulse
) -> None:
    assert pulse_of(silent_s, frozen_s=frozen_s) is pulse


@pytest.mark.parametrize(
    ("limits", "pulse"), [(0.0, Pulse.BEATS), (0.9, Pulse.BEATS), (1.0, Pulse.LATE), (2.0, Pulse.GONE)]
)
def test_a_step_overdue_once_keeps_new_work_away_and_twice_is_an_end(limits: float, pulse: Pulse) -> None:
    assert pulse_of_step(limits) is pulse


@pytest.mark.parametrize(("then", "is_asleep"), [("input()", True), ("while True: pass", False)])
def test_a_process_is_asleep_while_it_waits_and_not_while_it_computes(then: str, is_asleep: bool) -> None:
    source = f"print(flush=True)\n{then}"
    child = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        deadline_s = time.monotonic() + 10.0
        while (asleep_cpu_ticks(child.pid) is not None) is not is_asleep and time.monotonic() < deadline_s:
            os.sched_yield()
        assert (asleep_cpu_ticks(child.pid) is not None) is is_asleep
    finally:
        child.kill()
        child.communicate()
    assert asleep_cpu_ticks(child.pid) is None


def test_a_stopped_process_is_seen_to_stand_still_and_an_unknown_one_is_not() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not stands_still(sleeper.pid)
        os.kill(sleeper.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
        assert stands_still(sleeper.pid)
    finally:
        sleeper.kill()
        sleeper.communicate()
    assert not stands_still(0)
    assert not stands_still(sleeper.pid)


def test_a_killed_process_is_seen_to_end_and_one_that_lives_or_is_unknown_is_not() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert not is_ending(sleeper.pid)
        os.kill(sleeper.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
        assert not is_ending(sleeper.pid)
    finally:
        sleeper.kill()
        assert is_ending(sleeper.pid)  # from the moment it is sent on
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        assert is_ending(sleeper.pid)  # until it is reaped
        sleeper.communicate()
    assert not is_ending(0)
    assert not is_ending(sleeper.pid)


def test_two_deaths_end_a_request_and_stopped_processes_are_not_its_doing() -> None:
    losses = Losses()
    assert not any(losses.lost(10.0 * at, LossCause.STOPPED) for at in range(4))
    assert not losses.lost(50.0)
    assert losses.lost(60.0)
    assert losses.num_lost == 6


def test_deaths_far_apart_in_a_stream_are_chance_until_there_are_too_many() -> None:
    losses = Losses()
    assert not any(losses.lost(10.0 * at, place=100 + 16 * at) for at in range(7))
    assert losses.lost(70.0, place=300)


def test_a_second_death_a_few_tokens_on_is_at_the_same_place() -> None:
    losses = Losses()
    assert not losses.lost(0.0, place=100)
    assert not losses.lost(10.0, place=116)
    assert losses.lost(20.0, place=131)


def test_the_death_of_a_worker_that_had_only_promised_room_is_not_held_against_a_request() -> None:
    losses = Losses()
    assert not losses.lost(0.0, place=100)
    assert not losses.lost(10.0, place=100, has_work=False)
    assert losses.lost(20.0, place=100)


def test_workers_that_die_together_are_one_death_and_a_token_in_between_makes_them_two() -> None:
    host, poison = Losses(), Losses()
    assert not any(host.lost(at, place=100) for at in (10.0, 10.1, 10.9))
    assert host.lost(11.0, place=100)
    assert not poison.lost(10.0, place=100)
    assert poison.lost(10.1, place=101)


def test_the_first_hang_under_a_request_may_be_chance_and_later_ones_are_deaths() -> None:
    losses = Losses()
    assert not losses.lost(0.0, LossCause.HUNG)
    assert not losses.lost(10.0, LossCause.HUNG)
    assert losses.lost(20.0, LossCause.HUNG)
