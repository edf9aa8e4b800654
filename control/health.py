"""Is the fleet fine? One level and one sentence, the worst first. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from control.departures import total_of
from control.fleets.base import Observation
from control.stories import departure_words, loss_words, time_words
from control.types.bottleneck import Bottleneck
from control.types.commands import Departure
from control.types.fleet import TrafficStatus
from control.types.workers import Role, WorkerState, WorkerStatus

SILENT_S = 5.0
AIM = 0.95
#: A loss is worth a word for this long.
RECENT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    level: Literal["ok", "attention", "broken", "starting"]
    text: str


def health_of(
    workers: tuple[WorkerStatus, ...],
    traffic: TrafficStatus,
    observation: Observation,
    departures: Sequence[Departure] = (),
    bottleneck: Bottleneck | None = None,
    *,
    is_observed_only: bool = False,
) -> Health:
    """The first of these that holds: cannot serve, workers away, a bottleneck, the SLO, no gateway; else fine.

    A fleet that is only observed has no gateway of ours, and its requests are not seen.
    """
    now_unix_s = observation.at_unix_s
    losses = {each.worker_id: each for each in departures if each.kind == "lost"}
    checks = (
        _unlisted(observation),
        _cannot_serve(workers),
        _workers_away(workers, observation, losses),
        _limited(bottleneck),
        None if is_observed_only else _service(traffic),
    )
    fine = _observed(workers) if is_observed_only else _fine(workers, traffic)
    found = next((each for each in checks if each), fine)
    told = _recent_loss(losses, now_unix_s)
    return found if not told or found is checks[2] else replace(found, text=f"{found.text}. {told}")


def _unlisted(observation: Observation) -> Health | None:
    """Of somebody else's fleet: nobody has said yet who its workers are."""
    if observation.is_listed:
        return None
    return Health(level="starting", text=f"Its workers are not known yet: {'; '.join(observation.problems)}")


def _cannot_serve(workers: tuple[WorkerStatus, ...]) -> Health | None:
    able = [w for w in workers if w.alive and w.role in (Role.DECODE, Role.MIXED) and w.state == WorkerState.READY]
    if able:
        return None
    if not workers:
        return Health(level="starting", text="No workers yet")
    coming = [w for w in workers if w.state in (WorkerState.STARTING, WorkerState.UNASSIGNED)]
    if coming:
        return Health(level="starting", text=_count(len(coming), len(workers), "starting"))
    draining = [w for w in workers if w.state in (WorkerState.DRAINING, WorkerState.DRAINED)]
    if draining:
        return Health(
            level="broken", text=f"No worker takes requests: {_count(len(draining), len(workers), 'draining')}"
        )
    why = next((f": {w.worker_id}: {w.reason}" for w in workers if w.reason), "")
    return Health(level="broken", text=f"No worker can decode{why}")


def _workers_away(
    workers: tuple[WorkerStatus, ...], observation: Observation, losses: Mapping[str, Departure]
) -> Health | None:
    dead = [w for w in workers if w.state == WorkerState.FAILED and not w.alive and (w.pid or w.worker_id in losses)]
    if dead:
        return Health(level="attention", text=_death_words(dead, losses, observation.at_unix_s))
    failed = [w for w in workers if w.state in (WorkerState.FAILED, WorkerState.STOPPED)]
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return Health(
            level="attention", text=f"{first.worker_id} is {first.state}{more}: {first.reason or 'no reason given'}"
        )
    stuck = [w for w in workers if w.step_overdue]
    if stuck:
        first = stuck[0]
        more = f" (and {len(stuck) - 1} more)" if len(stuck) > 1 else ""
        return Health(level="attention", text=f"{first.worker_id}{more}: step running for {first.step_running_s:.0f} s")
    silent = [w for w in workers if w.alive and w.heartbeat_age_s > SILENT_S]
    if silent:
        first = silent[0]
        return Health(
            level="attention", text=f"{first.worker_id} has not been heard of for {first.heartbeat_age_s:.0f} s"
        )
    starting = [w for w in workers if w.state == WorkerState.STARTING]
    if starting:
        return Health(level="attention", text=_count(len(starting), len(workers), "starting"))
    if observation.problems:
        return Health(level="attention", text=observation.problems[0])
    return None


def _death_words(dead: Sequence[WorkerStatus], losses: Mapping[str, Departure], now_unix_s: float) -> str:
    """What was lost, what became of its requests, what is done about it."""
    first = dead[0]
    more = f" (and {len(dead) - 1} more)" if len(dead) > 1 else ""
    seen = losses.get(first.worker_id)
    ago_s = first.heartbeat_age_s if first.pid or seen is None else now_unix_s - seen.since_unix_s
    parts = [f"{first.worker_id}{more} died {time_words(max(0, round(ago_s)))} ago"]
    told = total_of(losses[w.worker_id] for w in dead if w.worker_id in losses)
    if told is not None:
        parts.append(departure_words(told))
    return f"{': '.join(parts)}; {'it is' if len(dead) == 1 else 'they are'} being started anew"


def _limited(bottleneck: Bottleneck | None) -> Health | None:
    """`control.bottleneck` says what limits."""
    if bottleneck is None or not bottleneck.resources:
        return None
    return Health(level="attention", text=bottleneck.text)


def _service(traffic: TrafficStatus) -> Health | None:
    if traffic.error_rps:
        return Health(level="attention", text=f"{traffic.error_rps:.2g} requests per second end with an error")
    if traffic.attainment is not None and traffic.attainment < AIM:
        return Health(level="attention", text=f"{traffic.attainment:.0%} of requests are good; the aim is {AIM:.0%}")
    if traffic.num_gateways == 0:
        return Health(level="attention", text="No gateway is connected: no traffic can be seen")
    return None


def _recent_loss(losses: Mapping[str, Departure], now_unix_s: float) -> str:
    """Of the last minute, the newest: "w1 died 12 s ago: 14 requests continued elsewhere"; "" when there was none."""
    recent = [each for each in losses.values() if now_unix_s - each.since_unix_s < RECENT_S]
    if not recent:
        return ""
    newest = max(recent, key=lambda each: each.since_unix_s)
    ago = time_words(max(0, round(now_unix_s - newest.since_unix_s)))
    return f"{loss_words(newest.worker_id, newest.cause)} {ago} ago: {departure_words(newest)}"


def _fine(workers: tuple[WorkerStatus, ...], traffic: TrafficStatus) -> Health:
    ready = sum(1 for w in workers if w.state == WorkerState.READY)
    head = f"All {ready} workers are ready" if ready == len(workers) else f"{ready} of {len(workers)} workers are ready"
    if not traffic.offered_rps and not traffic.num_in_flight:
        return Health(level="ok", text=f"No traffic. {head}")
    good = f", {traffic.attainment:.0%} of requests are good" if traffic.attainment is not None else ""
    return Health(level="ok", text=f"{head}{good}")


def _observed(workers: tuple[WorkerStatus, ...]) -> Health:
    ready = sum(1 for w in workers if w.state == WorkerState.READY)
    return Health(level="ok", text=f"{'All' if ready == len(workers) else f'{ready} of'} {len(workers)} engines answer")


def _count(num: int, total: int, doing: str) -> str:
    return f"{num} of {total} workers {'is' if num == 1 else 'are'} {doing}"
