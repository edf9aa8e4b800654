"""A controller's list of engines as the registry of a fleet whose requests come through our gateway.

Decided here: who of a list is one of the fleet (a pod that is being deleted is not: it is drained at once), for how
long one that is no longer listed is, that an empty list is not followed, and that what is known outlives us in a file,
which the bridge follows too: so a controller that cannot be reached costs no request, whoever starts meanwhile. A
worker that its controller calls not ready gets nothing new. Not decided here: roles (`routed`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from control.errors import CommandRefused
from control.fleets.attached.roster_watch import RosterWatch
from control.fleets.attached.steering.roster import Roster, Steering, targets_of
from control.fleets.attached.targets import RosterTargets, Target, read_targets, write_targets
from control.types.routing import WorkerRoute
from control.types.workers import WorkerState

EMPTY: Final = "it lists no engine that is to stay: those before stay"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """Who is of the fleet. `missed_s`: since when one of them is not listed."""

    targets: tuple[Target, ...] = ()
    missed_s: Mapping[str, float] = field(default_factory=dict)


def following(known: Registered, listed: Sequence[Target], now_s: float, patience_s: float) -> Registered:
    """After a list came. One that is not in it stays for `patience_s`; where none is in it, all stay."""
    if not listed:
        return known
    names = {each.worker_id for each in listed}
    missed_s = {
        each.worker_id: known.missed_s.get(each.worker_id, now_s)
        for each in known.targets
        if each.worker_id not in names
    }
    missed_s = {name: since_s for name, since_s in missed_s.items() if now_s - since_s < patience_s}
    staying = (each for each in known.targets if each.worker_id in missed_s)
    targets = sorted((*listed, *staying), key=lambda each: each.worker_id)
    return Registered(targets=tuple(targets), missed_s=missed_s)


def held_back(routes: Iterable[WorkerRoute], unready: Collection[str]) -> frozenset[str]:
    """Workers that get nothing new, as their controller calls them not ready.

    None where that is all that serve in a role: they answer, and a probe of the cluster that a busy engine fails
    would end the service of all.
    """
    serving: defaultdict[str, set[str]] = defaultdict(set)
    for each in routes:
        if each.state is WorkerState.READY:
            serving[each.role].add(each.worker_id)
    return frozenset(name for names in serving.values() if names - set(unready) for name in names & set(unready))


class Listing:
    """`source` is set by this alone. `path`: where the list is kept, for the bridge and for the next plane."""

    def __init__(
        self,
        steering: Steering,
        source: RosterTargets,
        path: Path,
        *,
        every_s: float,
        patience_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.unready: Mapping[str, str] = {}  # why, by worker
        self._source = source
        self._path = path
        self._patience_s = patience_s
        self._now = now
        self._watch = RosterWatch(steering, source, every_s, self._follow)
        self._known = Registered(targets=_kept(path))
        self._written = self._known.targets
        self._on_change: Callable[[], None] = lambda: None
        source.listed = self._known.targets

    async def start(self, on_change: Callable[[], None]) -> None:
        """Returns after the first look, whether it came to anything or not."""
        self._on_change = on_change
        await self._watch.start()

    async def look(self) -> None:
        """Now, beside the looks that come anyway. Never raises."""
        await self._watch.look()

    async def close(self) -> None:
        await self._watch.close()

    def _follow(self, roster: Roster) -> None:
        staying = [each for each in roster.members if each.state is not WorkerState.DRAINING]
        listed = targets_of(staying)
        unready = {
            each.worker_id: f"it is not ready, by the word of what lists it: {each.reason or each.state}"
            for each in staying
            if each.state is not WorkerState.READY
        }
        before = self._known.targets, self.unready
        self._known = following(self._known, listed, self._now(), self._patience_s)
        self._source.listed, self.unready = self._known.targets, unready
        if not listed:
            self._source.problem = "; ".join(filter(None, [EMPTY, roster.problem]))
        self._write()
        if (self._known.targets, self.unready) != before:
            self._on_change()

    def _write(self) -> None:
        """Tried again with the next list where it fails."""
        if self._known.targets == self._written:
            return
        try:
            write_targets(self._path, self._known.targets)
            self._written = self._known.targets
        except OSError as error:
            self._source.problem = f"the list of engines cannot be kept in {self._path}: {error.strerror}"


def _kept(path: Path) -> tuple[Target, ...]:
    try:
        return read_targets(path)
    except CommandRefused:
        return ()
