"""What happened, in words: one spelling for console and command line. Pure; nothing is left out that was measured."""

from __future__ import annotations

from typing import Final

from control.types.commands import Departure
from control.types.events import FleetEvent
from control.types.requests import RequestMove
from control.types.workers import LossCause

UNITS: Final = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
#: Workers that are named before the rest is only counted.
MAX_NAMED: Final = 4


def event_words(event: FleetEvent) -> str:
    """One event in one line."""
    worker, why = event.worker_id, f": {event.reason}" if event.reason else ""
    match event.kind:
        case "started":
            return f"{worker} started{why}"
        case "stopped":
            return f"{worker} stopped in order{why}"
        case "died":
            return f"{worker} died{why}"
        case "restarted":
            away = "" if event.away_s is None else f" after {time_words(event.away_s)}"
            return f"{worker} was back{away}{why}"
        case "plane":
            return f"a plane took over{why}"
        case "history":
            return f"the history could not be written for {time_words(event.away_s or 0.0)}{why}"
        case "bottleneck" | "permission":
            return event.reason
        case "failover":
            return (
                f"{_requests(event)} continued{_where(event)} after {loss_words(worker, event.cause)}{_figures(event)}"
            )
        case "migration":
            where = _where(event).replace(" on ", " to ", 1)
            return f"{_requests(event)} moved from {worker}{where} while decoding{_figures(event)}"
        case "recompute":
            return f"{_requests(event)} left {worker} and were computed anew{_where(event)}{_figures(event)}"


def loss_words(worker_id: str, cause: LossCause | None) -> str:
    """How it was lost: "w1 died"."""
    match cause:
        case LossCause.STOPPED:
            return f"{worker_id} was stopped"
        case None:
            return f"{worker_id} was lost"
        case _:
            return f"{worker_id} {cause}"


def _requests(event: FleetEvent) -> str:
    return f"{event.num_requests} request{'' if event.num_requests == 1 else 's'}"


def _where(event: FleetEvent) -> str:
    """ " on w2 (8) and w3 (6)", the most first."""
    ranked = sorted(event.to_workers.items(), key=lambda each: (-each[1], each[0]))
    if len(ranked) == 1:
        return f" on {ranked[0][0]}"
    named = [f"{worker_id} ({count})" for worker_id, count in ranked[:MAX_NAMED]]
    if len(ranked) > MAX_NAMED:
        named.append(f"{len(ranked) - MAX_NAMED} more")
    return f" on {', '.join(named[:-1])} and {named[-1]}" if named else ""


def _figures(event: FleetEvent) -> str:
    found = [size_words(event.num_bytes)] if event.num_bytes else []
    found += [f"noticed after {time_words(event.notice_s)}"] if event.notice_s is not None else []
    found += [f"worst stall {time_words(event.stall_s)}"] if event.stall_s is not None else []
    found += [f"{event.num_failed} failed all the same"] if event.num_failed else []
    return f": {', '.join(found)}" if found else ""


def move_words(move: RequestMove) -> str:
    """One move of one request, as it is told on its page."""
    target = move.to_worker or "another worker"
    if move.stall_s is not None:
        stall = f"stall {time_words(move.stall_s)}"
    else:  # nothing stands still before the first token: its client waits from arrival on
        stall = "before its first token" if move.to_worker else "it ended before its next token"
    why = f": {move.reason}" if move.reason else ""
    if move.kind == "failover" and not move.to_worker:
        return f"ended when {loss_words(move.from_worker, move.cause)} ({stall}){why}"
    if move.kind == "failover":
        noticed = "" if move.notice_s is None else f"noticed after {time_words(move.notice_s)}, "
        return f"continued on {target} after {loss_words(move.from_worker, move.cause)} ({noticed}{stall}){why}"
    if move.kind == "migration":
        return (
            f"moved from {move.from_worker} to {target} while it decoded ({size_words(move.num_bytes)}, {stall}){why}"
        )
    return f"left {move.from_worker} and was computed anew on {target} ({stall}){why}"


def departure_words(departure: Departure) -> str:
    """ "5 of 11 sequences moved, 1.2 GiB, worst stall 61 ms"; then what became of the others."""
    d = departure
    if d.kind == "lost":
        went = d.num_continued
        parts = [f"{went} request{'' if went == 1 else 's'} continued elsewhere"]
    else:
        went = d.num_moved
        parts = [f"{went} of {d.num_sequences} sequence{'' if d.num_sequences == 1 else 's'} moved"]
    ended = d.num_sequences - d.num_moved - d.num_recomputed - d.num_continued - d.num_left
    parts += [size_words(d.num_bytes)] if d.num_bytes else []
    parts += [f"worst stall {time_words(d.stall_s)}"] if d.stall_s is not None else []
    parts += [f"{d.num_recomputed} computed anew elsewhere"] if d.num_recomputed else []
    parts += [f"{ended} ended there"] if ended > 0 else []
    parts += [f"{d.num_given_up} tries came to nothing"] if d.num_given_up else []
    return ", ".join(parts)


def time_words(seconds: float) -> str:
    """Three significant digits: 340 ms, 3.2 s, 12 min 3 s."""
    if 0.0 < seconds < 1.0:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120.0:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size_words(num_bytes: int) -> str:
    """Binary prefixes: 12.3 MiB."""
    for scale, unit in UNITS:
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes} B"
