"""How much of what decodes batch requests may hold together, so that they cannot fill the fleet. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from control.gateway.forecast import NOTHING, Need
from control.routing import WorkerView


@dataclass(slots=True)
class BatchRoom:
    """What batch requests hold, here and (by the plane's word) at other gateways, against their share of the whole."""

    share: float = 0.5
    here: Need = NOTHING
    elsewhere: Need = NOTHING

    @property
    def held(self) -> Need:
        return self.here.plus(self.elsewhere)

    def take(self, need: Need) -> None:
        self.here = self.here.plus(need)

    def give_back(self, need: Need) -> None:
        self.here = self.here.plus(need, -1.0)

    def left(self, workers: Sequence[WorkerView]) -> Need:
        """KV tokens and slots that batch requests may still take of these workers' whole."""
        kv_tokens = sum(each.kv_total_tokens for each in workers)
        slots = sum(each.num_free_slots + each.num_taken_slots for each in workers if each.num_free_slots is not None)
        held = self.held
        return Need(kv_tokens=self.share * kv_tokens - held.kv_tokens, num_slots=self.share * slots - held.num_slots)

    def problem(self, need: Need, workers: Sequence[WorkerView]) -> str:
        """Why one more batch request must wait; "" when it need not. One alone may always run."""
        if self.held.num_slots < 1:
            return ""
        left = self.left(workers)
        if need.kv_tokens > left.kv_tokens:
            wanted = f"{need.kv_tokens:.0f} KV tokens, {max(0.0, left.kv_tokens):.0f} are left"
        elif any(each.num_free_slots is not None for each in workers) and left.num_slots < 1:
            wanted = "a decode slot, none is left"
        else:
            return ""
        return f"a batch request wants {wanted} of the share {self.share:g} that batch may hold"
