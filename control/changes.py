"""The difference between two desired states, as keys: what a command touched, what an undo restores.

Pure. A key is a worker's role, a worker's drain, a worker's weight, one field of the routing policy, or a pool's size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from control.types.commands import Desired
from control.types.routing import RoutingPolicy
from control.types.workers import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Keys whose values differ. Falsy when there are none."""

    roles: frozenset[str] = frozenset()
    drained: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    policy: frozenset[str] = frozenset()
    pools: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.roles or self.drained or self.weights or self.policy or self.pools)

    @property
    def workers(self) -> frozenset[str]:
        """Workers that get orders (a weight is the gateways' matter)."""
        return self.roles | self.drained

    @property
    def routes(self) -> bool:
        return bool(self.weights or self.policy)

    def touches(self, other: Changes) -> bool:
        """Some key is in both."""
        return bool(
            self.roles & other.roles
            or self.drained & other.drained
            or self.weights & other.weights
            or self.policy & other.policy
            or self.pools & other.pools
        )

    def differing(self, one: Desired, two: Desired) -> Changes:
        """Those of our keys on which the two states differ."""
        found = changes_between(one, two)
        return Changes(
            roles=self.roles & found.roles,
            drained=self.drained & found.drained,
            weights=self.weights & found.weights,
            policy=self.policy & found.policy,
            pools=self.pools & found.pools,
        )

    def restored(self, desired: Desired, former: Desired) -> Desired:
        """`desired` with the values of `former` under our keys."""
        roles = {**desired.roles, **{w: former.roles[w] for w in self.roles if w in former.roles}}
        weights = {w: weight for w, weight in desired.weights.items() if w not in self.weights}
        weights |= {w: former.weights[w] for w in self.weights if w in former.weights}
        return replace(
            desired,
            roles=roles,
            drained=(desired.drained - self.drained) | (former.drained & self.drained),
            weights=weights,
            policy=replace(desired.policy, **{name: getattr(former.policy, name) for name in self.policy}),
            pools={**desired.pools, **{name: former.pools[name] for name in self.pools if name in former.pools}},
        )

    def words(self) -> str:
        """ "the role of w3, remote_share"."""
        parts = [f"the role of {w}" for w in sorted(self.roles)] + [f"the drain of {w}" for w in sorted(self.drained)]
        parts += [f"the weight of {w}" for w in sorted(self.weights)] + sorted(self.policy)
        return ", ".join(parts + [f"the size of the {name} pool" for name in sorted(self.pools)])

    def routing_words(self, before: Desired, after: Desired) -> list[str]:
        """ "remote_share 1 -> 0.5", one per changed routing value."""
        found = [f"{n} {getattr(before.policy, n):g} -> {getattr(after.policy, n):g}" for n in sorted(self.policy)]
        return found + [
            f"weight of {w} {before.weights.get(w, 1.0):g} -> {after.weights.get(w, 1.0):g}"
            for w in sorted(self.weights)
        ]


def changes_between(before: Desired, after: Desired) -> Changes:
    """What differs, whatever the versions."""
    workers = before.roles.keys() | after.roles.keys()
    weighted = before.weights.keys() | after.weights.keys()
    return Changes(
        roles=frozenset(w for w in workers if role_of(before, w) != role_of(after, w)),
        drained=before.drained ^ after.drained,
        weights=frozenset(w for w in weighted if before.weights.get(w, 1.0) != after.weights.get(w, 1.0)),
        policy=frozenset(n for n in POLICY_NAMES if getattr(before.policy, n) != getattr(after.policy, n)),
        pools=frozenset(
            n for n in before.pools.keys() | after.pools.keys() if before.pools.get(n) != after.pools.get(n)
        ),
    )


def role_of(desired: Desired, worker_id: str) -> Role:
    return desired.roles.get(worker_id, Role.UNASSIGNED)


POLICY_NAMES: tuple[str, ...] = tuple(each.name for each in dataclasses.fields(RoutingPolicy))
