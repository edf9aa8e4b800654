"""The grid that counters lie on: each counted amount is a whole number of quanta, so that no sum of parts is rounded.

A double holds every multiple of a power of two exactly, up to 2**53 of them. Time is counted in 2**-21 s (0.48 us):
Unix seconds lie on that grid until the year 2106, and 2**32 s of work (136 years of one worker, 49 days of 1,000) add
up exactly. FLOPs and bytes are counted in what the device does in one quantum of time, rounded down to a power of two:
on every device they add up exactly for at least half as long at its peak. In a fleet of unequal devices the smallest
quantum counts. Tokens and steps are whole, and parts of them are multiples of 2**-8.

Decided here: the quanta. Not decided here: who carries the rest (`engine.meter`), how an amount is spread over time
(`control.spreading`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from engine.readings import DeviceInfo

SECONDS: Final = 2.0**-21
COUNTS: Final = 2.0**-8


@dataclass(frozen=True, slots=True)
class WorkQuanta:
    """Of one device."""

    flops: float
    bytes: float


def work_quanta(device: DeviceInfo) -> WorkQuanta:
    """By the peaks that utilization divides by; 1 where a peak is unknown, which is exact up to 2**53 in all."""
    return WorkQuanta(
        flops=_power_of_two(device.peak_flops or device.ceiling_flops),
        bytes=_power_of_two(device.peak_bytes_per_s or device.ceiling_bytes_per_s),
    )


def _power_of_two(per_second: float | None) -> float:
    """The largest that is not above what is done in one quantum of time."""
    return math.ldexp(1.0, math.frexp(per_second * SECONDS)[1] - 1) if per_second else 1.0


def on_grid(amount: float, quantum: float) -> float:
    """The largest multiple of `quantum` that is not above `amount`."""
    return math.floor(amount / quantum) * quantum
