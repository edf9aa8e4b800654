"""What was measured lately, as values that only change by being replaced: rates and means with a fading memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

#: Busy seconds after which a measurement counts for 1/e.
RATE_MEMORY_S: Final = 20.0
#: Busy seconds before a rate is known: one step of a process that has just started, or was starved, says little.
RATE_KNOWN_S: Final = 1.0
#: Weight of all measurements before, when one more comes.
MEAN_KEEPS: Final = 0.97


@dataclass(frozen=True, slots=True)
class Rate:
    """An amount over the time that it took: busy time only, so idleness does not lower it."""

    amount: float = 0.0
    busy_s: float = 0.0

    def after(self, amount: float, busy_s: float) -> Rate:
        keeps = math.exp(-busy_s / RATE_MEMORY_S)
        return Rate(self.amount * keeps + amount, self.busy_s * keeps + busy_s)

    @property
    def per_s(self) -> float | None:
        """None before enough was measured."""
        return self.amount / self.busy_s if self.busy_s >= RATE_KNOWN_S and self.amount > 0 else None


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean in which each measurement has its weight."""

    total: float = 0.0
    weight: float = 0.0

    def after(self, value: float, weight: float = 1.0) -> Mean:
        return Mean(self.total * MEAN_KEEPS + value * weight, self.weight * MEAN_KEEPS + weight)

    @property
    def value(self) -> float | None:
        return self.total / self.weight if self.weight > 0 else None
