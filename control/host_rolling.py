"""One worker host at a time is emptied, renewed and filled again: which commands that takes. Pure.

Decided here: the order of hosts, and who stands in so that every role with workers keeps one: where a host holds the
last worker of a role, a worker of another host and the host's own turn mixed first, and back at the end. Not here: who
gives the commands and waits for them (`control.upgrade`), and when an empty host is renewed
(`control.fleets.host_watch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from control.facts import natural
from control.types.commands import Action, Verb
from control.types.workers import Role, WorkerState, WorkerStatus

SERVING = (Role.PREFILL, Role.DECODE, Role.MIXED)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPlan:
    """`before` is done in order, then the host is renewed, then `after` is done in order."""

    worker_ids: tuple[str, ...]
    before: tuple[Action, ...]
    after: tuple[Action, ...]
    refused: str = ""  # why this host cannot be emptied; "" when it can


def outdated_hosts(workers: Sequence[WorkerStatus]) -> list[tuple[str, ...]]:
    """Workers that share a process which runs other code than the plane, by their ids, in id order."""
    by_pid: dict[tuple[str, int], list[str]] = {}
    for each in sorted(workers, key=lambda worker: natural(worker.worker_id)):
        if each.is_outdated:
            by_pid.setdefault((each.hostname, each.pid), []).append(each.worker_id)
    return [tuple(ids) for ids in by_pid.values()]


def plan_host(worker_ids: Sequence[str], workers: Sequence[WorkerStatus]) -> HostPlan:
    """How to empty and refill this host. Workers that are drained already, or spare, stay so."""
    own = [each for each in workers if each.worker_id in worker_ids and _serves(each)]
    others = [each for each in workers if each.worker_id not in worker_ids and _serves(each) and _is_ready(each)]
    if own and not others:
        listed = ", ".join(worker_ids)
        return HostPlan(
            worker_ids=tuple(worker_ids),
            before=(),
            after=(),
            refused=f"no other process has a worker that could serve while {listed} are away",
        )
    widened = _widened(own, others)
    roles = {each.worker_id: each.desired_role for each in (*own, *others)}
    return HostPlan(
        worker_ids=tuple(worker_ids),
        before=(
            *(Action(verb=Verb.FLIP, worker_id=each, role=Role.MIXED) for each in widened),
            *(Action(verb=Verb.DRAIN, worker_id=each.worker_id) for each in own),
        ),
        after=(
            *(Action(verb=Verb.UNDRAIN, worker_id=each.worker_id) for each in own),
            *(Action(verb=Verb.FLIP, worker_id=each, role=roles[each]) for each in reversed(widened)),
        ),
    )


def _widened(own: Sequence[WorkerStatus], others: Sequence[WorkerStatus]) -> list[str]:
    """Who turns mixed: one stand-in, unless a mixed worker is there already, then the host's own of the lost roles."""
    left = {each.desired_role for each in others}
    lost = {each.desired_role for each in own} - left
    if not lost or (lost == {Role.MIXED} and {Role.PREFILL, Role.DECODE} <= left):
        return []
    stand_in = [] if Role.MIXED in left else [_stand_in(others)]
    return stand_in + [each.worker_id for each in own if each.desired_role in lost - {Role.MIXED}]


def _stand_in(others: Sequence[WorkerStatus]) -> str:
    """Of the largest pool, the last one by id."""

    def rank(worker: WorkerStatus) -> tuple[int, tuple[str, int, str]]:
        return sum(1 for each in others if each.desired_role == worker.desired_role), natural(worker.worker_id)

    return max(others, key=rank).worker_id


def _serves(worker: WorkerStatus) -> bool:
    return worker.desired_role in SERVING and not worker.drained


def _is_ready(worker: WorkerStatus) -> bool:
    return worker.alive and worker.state == WorkerState.READY
