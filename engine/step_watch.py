"""How long the running step has run, and from when on that is overdue. Clocks come in; nobody is judged here.

The limit comes from steps like it: the longest of the last few of the same phase and size, several times over. A step
that computes on the CPU is counted in CPU seconds of its thread, because a machine that is busy meanwhile makes it slow
and not hung; and by how long its thread has neither run nor wanted to, which no step has a reason for. Time is counted
from look to look: one that comes late shows that this process was kept from running, not that the step hangs.

    begin(plan) ... age() ... age() ... end(result)        age: (0, 0) between steps
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from engine.types import Phase, StepPlan, StepResult

#: Nothing shorter is overdue: a scheduling hiccup, a page fault.
LEAST_S: Final = 0.25
#: A thread of a CPU worker that stands for so long waits for something that does not come: it computes alone, and what
#: else makes it sleep (the interpreter's lock, a page on disk) lets it run in between, or is seen.
STUCK_S: Final = 0.25
#: How often a running step is to be looked at: a hang is seen so much later than it could be.
LOOK_S: Final = 0.1
#: A step such as has never been seen may have to load or compile what it needs.
FIRST_LIMIT_S: Final = 5.0
TIMES_USUAL: Final = 4.0
#: Looks are due more often than that; the time beyond it was no time in which the step's end could have been seen.
LONGEST_LOOK_S: Final = 0.3
_NUM_KEPT: Final = 32


class Progress(NamedTuple):
    """Of the thread that computes: CPU seconds it has used, and whether it runs, or waits for a CPU or a disk."""

    cpu_s: float
    is_runnable: bool


class StepAge(NamedTuple):
    running_s: float
    limit_s: float  # 0: no step runs

    @property
    def limits(self) -> float:
        """How many limits it has run for."""
        return self.running_s / self.limit_s if self.limit_s else 0.0


_NONE: Final = StepAge(0.0, 0.0)


class StepWatch:
    """One worker's steps. `progress`: of the computing thread; None where steps are not computed by the CPU."""

    def __init__(self, progress: Callable[[], Progress] | None = None) -> None:
        self._progress = progress
        self._took_s: dict[tuple[Phase, int], deque[float]] = {}
        self._plan: StepPlan | None = None
        self._limit_s = 0.0
        self._looked_s = 0.0
        self._counted_s = 0.0
        self._begun_cpu_s = 0.0
        self._last_cpu_s = 0.0
        self._stood_s = 0.0  # since the thread was last seen to compute, or to want to

    def begin(self, plan: StepPlan, now_s: float) -> None:
        self._plan, self._looked_s, self._counted_s, self._stood_s = plan, now_s, 0.0, 0.0
        self._limit_s = self._limit_of(plan)
        if self._progress is not None:
            self._begun_cpu_s = self._last_cpu_s = self._progress().cpu_s

    def end(self, result: StepResult) -> None:
        """Remember what it took, by phase."""
        plan, self._plan = self._plan, None
        if plan is None:
            return
        for timing in result.timings:
            took_s = timing.end_s - timing.start_s if self._progress is None else timing.cpu_s
            self._took_s.setdefault(_kind(plan, timing.phase), deque(maxlen=_NUM_KEPT)).append(took_s)

    def abandon(self) -> None:
        """It will never end."""
        self._plan = None

    def age(self, now_s: float) -> StepAge:
        """Of the running step, counted against the limit that it is nearest to."""
        if self._plan is None:
            return _NONE
        looked_for_s = min(max(0.0, now_s - self._looked_s), LONGEST_LOOK_S)
        self._looked_s = now_s
        self._counted_s += looked_for_s
        if self._progress is None:
            return StepAge(self._counted_s, self._limit_s)
        cpu_s, is_runnable = self._progress()
        has_moved = is_runnable or cpu_s > self._last_cpu_s
        self._stood_s = 0.0 if has_moved else self._stood_s + looked_for_s
        self._last_cpu_s = cpu_s
        computed = StepAge(cpu_s - self._begun_cpu_s, self._limit_s)
        return max(computed, StepAge(self._stood_s, STUCK_S), key=lambda age: age.limits)

    def _limit_of(self, plan: StepPlan) -> float:
        kinds = [
            _kind(plan, phase) for phase, part in ((Phase.PREFILL, plan.prefill), (Phase.DECODE, plan.decode)) if part
        ]
        if any(kind not in self._took_s for kind in kinds):
            return FIRST_LIMIT_S
        return max(LEAST_S, TIMES_USUAL * sum(max(self._took_s[kind]) for kind in kinds))


def _kind(plan: StepPlan, phase: Phase) -> tuple[Phase, int]:
    """Steps that are alike: the same phase, and as many tokens within a factor of two."""
    if phase is Phase.DECODE:
        return phase, len(plan.decode).bit_length()
    return phase, sum(len(chunk.token_ids) for chunk in plan.prefill).bit_length()
