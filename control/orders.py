"""Orders under way: one errand per worker, beside the tick and beside each other, so that a hung worker delays nobody.

Decided here: that a worker has at most one errand at a time, and which outcome still counts. Not decided here: which
orders to give and when again (`control.reconcile`), what an outcome means for a command (`control.progress`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from control.fleets.base import FleetStep, StepOutcome

_log = logging.getLogger("phaseline.plane")


@dataclass(slots=True)
class _Errand:
    """The orders that one worker is being given. `counts`: no newer command concerns this worker."""

    steps: list[FleetStep]
    counts: bool = True
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Orders:
    """`apply` gives one order, `on_end` is called after each errand; `outcomes` holds each worker's newest."""

    apply: Callable[[FleetStep], Awaitable[StepOutcome]]
    on_end: Callable[[], None]
    outcomes: dict[str, StepOutcome] = field(default_factory=dict)
    _errands: dict[str, _Errand] = field(default_factory=dict)

    @property
    def busy(self) -> frozenset[str]:
        """Workers with an errand under way: they get no other one before it has ended."""
        return frozenset(self._errands)

    def give(self, steps: Iterable[FleetStep]) -> None:
        """Begin to give these orders, each worker's in order; a refusal ends its errand. None of them may be busy."""
        by_worker: dict[str, list[FleetStep]] = {}
        for step in steps:
            by_worker.setdefault(step.worker_id, []).append(step)
        for worker_id, own in by_worker.items():
            assert worker_id not in self._errands, f"{worker_id} has an errand already"
            errand = self._errands[worker_id] = _Errand(own)
            errand.task = asyncio.create_task(self._run(worker_id, errand), name=f"orders-{worker_id}")
            errand.task.add_done_callback(partial(self._ended, worker_id))

    def forget(self, worker_id: str) -> None:
        """A new command concerns this worker: what earlier orders led to says nothing about it."""
        self.outcomes.pop(worker_id, None)
        if worker_id in self._errands:
            self._errands[worker_id].counts = False

    async def settled(self) -> None:
        """Wait until no errand is under way."""
        while tasks := [each.task for each in self._errands.values() if each.task]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Wait for no more answers: the next plane compares everything again."""
        for errand in self._errands.values():
            if errand.task:
                errand.task.cancel()
        await self.settled()

    async def _run(self, worker_id: str, errand: _Errand) -> None:
        for step in errand.steps:
            outcome = await self._given(step)
            _log.info("%s %s %s: %s", step.verb, step.worker_id, step.role, outcome.detail or outcome.accepted)
            if errand.counts:
                self.outcomes[worker_id] = outcome
            if not outcome.accepted:
                return

    def _ended(self, worker_id: str, _: asyncio.Task[None]) -> None:
        del self._errands[worker_id]
        self.on_end()

    async def _given(self, step: FleetStep) -> StepOutcome:
        try:
            return await self.apply(step)
        except Exception as error:  # a fleet that breaks its word: told as a refusal, ordered again later
            _log.exception("%s %s failed", step.verb, step.worker_id)
            return StepOutcome(accepted=False, detail=f"{type(error).__name__}: {error}")
