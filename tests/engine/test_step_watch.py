"""From when on a running step is overdue: by steps like it, and on a CPU not because the machine is busy."""

from __future__ import annotations

import pytest

from engine.step_watch import FIRST_LIMIT_S, LEAST_S, LONGEST_LOOK_S, STUCK_S, Progress, StepAge, StepWatch
from engine.types import DecodeItem, Phase, PhaseTiming, PrefillChunk, SamplingParams, StepPlan, StepResult


def decode(batch: int) -> StepPlan:
    return StepPlan(1, (), tuple(DecodeItem(at, 5, 9, [0], SamplingParams()) for at in range(batch)))


def prefill(tokens: int) -> StepPlan:
    return StepPlan(1, (PrefillChunk(0, (5,) * tokens, 0, (0,), None),), ())


def took(wall_s: float, phase: Phase = Phase.DECODE, cpu_s: float | None = None) -> StepResult:
    return StepResult({}, (PhaseTiming(phase, 0.0, wall_s, wall_s if cpu_s is None else cpu_s),))


def ran(watch: StepWatch, plan: StepPlan, *results: StepResult) -> None:
    for each in results:
        watch.begin(plan, 0.0)
        watch.end(each)


def looks(watch: StepWatch, since_s: float, until_s: float) -> StepAge:
    """What the last of the looks says that are due every 0.25 s."""
    num = round((until_s - since_s) / 0.25)
    return [watch.age(since_s + (until_s - since_s) * at / num) for at in range(1, num + 1)][-1]


class Thread:
    """A computing thread as the operating system would tell of it."""

    def __init__(self) -> None:
        self.cpu_s = 100.0
        self.is_runnable = False

    def __call__(self) -> Progress:
        return Progress(self.cpu_s, self.is_runnable)


def test_between_steps_nothing_runs() -> None:
    watch = StepWatch()
    assert watch.age(3.0) == (0.0, 0.0)
    ran(watch, decode(1), took(0.1))
    assert watch.age(3.0).limits == 0.0


def test_the_limit_is_four_times_the_longest_of_steps_like_it() -> None:
    watch = StepWatch()
    ran(watch, decode(8), took(0.1), took(0.3), took(0.2))
    watch.begin(decode(15), 10.0)
    assert looks(watch, 10.0, 10.6) == (pytest.approx(0.6), pytest.approx(1.2))
    assert looks(watch, 10.6, 12.4).limits == pytest.approx(2.0)


def test_a_late_look_is_no_sign_of_a_hang() -> None:
    watch = StepWatch()
    ran(watch, decode(1), took(0.01))
    watch.begin(decode(1), 0.0)
    assert watch.age(9.0).limits == pytest.approx(LONGEST_LOOK_S / LEAST_S)
    assert looks(watch, 9.0, 9.25).limits > 2.0


def test_a_step_such_as_was_never_seen_gets_time_to_load_what_it_needs() -> None:
    watch = StepWatch()
    ran(watch, decode(1), took(0.1))
    for plan in (decode(2), prefill(64)):
        watch.begin(plan, 0.0)
        assert watch.age(1.0).limit_s == FIRST_LIMIT_S
        watch.abandon()


def test_short_steps_have_a_least_limit_and_old_ones_are_forgotten() -> None:
    watch = StepWatch()
    ran(watch, decode(1), took(50.0), *[took(0.01)] * 32)
    watch.begin(decode(1), 0.0)
    assert watch.age(0.1).limit_s == LEAST_S


def test_both_phases_of_a_mixed_step_count() -> None:
    watch = StepWatch()
    ran(watch, prefill(64), took(0.5, Phase.PREFILL))
    ran(watch, decode(4), took(0.25))
    watch.begin(StepPlan(1, prefill(64).prefill, decode(4).decode), 0.0)
    assert watch.age(1.0).limit_s == pytest.approx(3.0)


def test_a_cpu_step_that_waits_for_a_cpu_is_slow_and_not_overdue() -> None:
    thread = Thread()
    watch = StepWatch(thread)
    ran(watch, decode(1), took(0.2))
    watch.begin(decode(1), 0.0)
    thread.is_runnable = True
    for second in range(1, 60):
        assert watch.age(float(second)).limits < 1.0
    thread.is_runnable = False
    thread.cpu_s += 0.01  # a little at last, seen between two sleeps
    assert watch.age(60.0).limits < 1.0


def test_a_cpu_step_whose_thread_stands_is_overdue_soon_whatever_its_like_took() -> None:
    thread = Thread()
    watch = StepWatch(thread)
    watch.begin(decode(1), 0.0)
    thread.cpu_s += 0.1
    assert watch.age(1.0).limits < 1.0
    assert looks(watch, 1.0, 1.0 + STUCK_S).limits == pytest.approx(1.0)
    assert looks(watch, 1.0 + STUCK_S, 1.0 + 2 * STUCK_S).limits == pytest.approx(2.0)


def test_a_cpu_step_that_computes_for_ever_is_overdue_by_its_cpu_seconds() -> None:
    thread = Thread()
    watch = StepWatch(thread)
    ran(watch, decode(1), took(9.0, cpu_s=0.5))
    watch.begin(decode(1), 0.0)
    thread.cpu_s += 4.0
    assert watch.age(4.0) == (pytest.approx(4.0), pytest.approx(2.0))
