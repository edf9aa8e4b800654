"""Random operator actions and hang-ups, for long runs under load. Pure: a generator of random numbers in, one act out.

Decided here: how often each kind comes, and that most of them are possible now. A fleet may still refuse one, with the
reason: that is a guard rail at work, and no act was done.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from control.types.commands import Action, Desired, Verb
from control.types.workers import Role

SERVES_DECODE: Final = (Role.DECODE, Role.MIXED)


@dataclass(frozen=True, slots=True)
class HangUp:
    """Clients of so many open streams go away."""

    count: int


Act = Action | HangUp


def draw(rng: random.Random, desired: Desired) -> Act:
    """One act for a fleet that is wanted like this."""
    kinds, weights = zip(*((kind, weight) for kind, (weight, _) in _KINDS.items()), strict=True)
    act = _KINDS[rng.choices(kinds, weights)[0]][1](rng, desired)
    return act if act is not None else _flip(rng, desired)


def _resize(rng: random.Random, desired: Desired) -> Act:
    """Every worker stays in a pool, at least one of them decodes."""
    total = len(desired.roles)
    decode = rng.randint(1, total)
    prefill = rng.randint(0, total - decode)
    return Action(verb=Verb.RESIZE, prefill=prefill, decode=decode, mixed=total - decode - prefill)


def _flip(rng: random.Random, desired: Desired) -> Act:
    worker_id = rng.choice(sorted(desired.roles))
    others = [each for each in (Role.PREFILL, Role.DECODE, Role.MIXED) if each != desired.roles[worker_id]]
    return Action(verb=Verb.FLIP, worker_id=worker_id, role=rng.choice(others))


def _drain(rng: random.Random, desired: Desired) -> Act | None:
    """Of those that are open; one that decodes is left."""
    open_ones = sorted(desired.roles.keys() - desired.drained)
    decoding = [each for each in open_ones if desired.roles[each] in SERVES_DECODE]
    able = [each for each in open_ones if each not in decoding or len(decoding) > 1]
    return Action(verb=Verb.DRAIN, worker_id=rng.choice(able)) if able else None


def _undrain(rng: random.Random, desired: Desired) -> Act | None:
    drained = sorted(desired.drained)
    return Action(verb=Verb.UNDRAIN, worker_id=rng.choice(drained)) if drained else None


def _weight(rng: random.Random, desired: Desired) -> Act:
    weights = {worker_id: rng.choice((0.25, 0.5, 1.0, 2.0, 4.0)) for worker_id in sorted(desired.roles)}
    return Action(verb=Verb.SET_ROUTING, weights=weights)


def _policy(rng: random.Random, _desired: Desired) -> Act:
    return Action(verb=Verb.SET_ROUTING, policy={"remote_share": rng.choice((0.0, 0.25, 0.5, 0.75, 1.0))})


def _hang_up(rng: random.Random, _desired: Desired) -> Act:
    return HangUp(rng.randint(1, 3))


#: Kind -> how often, and what. What is not possible now becomes a flip.
_KINDS: Final[Mapping[str, tuple[int, Callable[[random.Random, Desired], Act | None]]]] = {
    "resize": (3, _resize),
    "flip": (4, _flip),
    "drain": (3, _drain),
    "undrain": (3, _undrain),
    "weight": (2, _weight),
    "policy": (2, _policy),
    "hang_up": (3, _hang_up),
}
