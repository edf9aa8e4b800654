"""When an engine's running step is overdue: far beyond what steps of this worker have taken. Pure.

Decided here: the limit. Not decided here: what is done about such a worker; it is only shown.
"""

from __future__ import annotations

from engine.readings import MeterReading

LEAST_S = 10.0
TIMES_USUAL = 20.0


def usual_step_s(reading: MeterReading) -> float | None:
    """Mean length of a step since the worker began, of the slowest (role, phase); None before the first."""
    means = [each.busy_s / each.steps for each in reading.counters.values() if each.steps]
    return max(means, default=None)


def overdue_step_s(reading: MeterReading) -> float | None:
    """How long the running step has been running, when that is overdue; else None."""
    running_s = reading.step_running_s
    limit_s = max(LEAST_S, TIMES_USUAL * (usual_step_s(reading) or 0.0))
    return running_s if running_s is not None and reading.alive and running_s > limit_s else None
