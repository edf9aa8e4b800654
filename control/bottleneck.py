"""What limits a fleet now: the resource of which one more unit would let most more requests be good. Pure.

Decided here: from what was lost, and where (`control.lost`), how much of it one more unit of each resource would save:

    one more prefill worker    n -> n + 1: what was refused for want of prefill, up to 1/n of what is served
    more KV room               (n + 1)/n blocks on n decode workers: so many more sequences at a time
    more decode bandwidth      (n + 1)/n on n decode workers: the part of a step that moves bytes is shorter, and with
                               it the time for which KV, slots and the gateways' room are held
    links twice as fast        KV is held for half of the handoff less
    one more gateway           n -> n + 1: of what gateways hold, and of what they can pass on

None of this can save more than the next resource has room for; two that stand in each other's way limit together, and
so do two of which one more unit would save alike. What was lost for another reason (errors, a prompt whose own prefill
is over its bound) is no resource's. It is a fluid estimate: it says which, and only roughly how much.

Not decided here: how evidence is gathered (`control.evidence`), which requests are good (`control.traffic_stats`), and
how a verdict is worded (`control.bottleneck_words`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from control.bottleneck_words import LEAST_GAIN, limits, nothing_limits, told
from control.evidence import Decode, Evidence
from control.lost import Loss
from control.traffic_stats import Gateways
from control.types.bottleneck import Bottleneck, Resource

#: A second resource that saves this part of what the best one saves limits as well.
ALIKE: Final = 0.75
#: Fewer requests in the window say nothing.
LEAST_REQUESTS: Final = 20
#: Where a resource has no room for more, as a share of what it has.
FULL: Final = 0.97
#: A gateway holds everything up when its event loop is so late in most seconds, when it has work for so much of the
#: time (it runs, or waits for a core), or waits for a core so much of it. What its records say of others is then too
#: good, as a request counts from when the gateway has read it.
STARVED_LATE_S: Final = 0.25
STARVED_WANTED: Final = 0.9
STARVED_WAIT: Final = 0.8
#: Time per token at this share of its bound: a larger batch would break it.
TIGHT_TPOT: Final = 0.9
NEAR_TPOT: Final = 1.1
#: Of what is refused most: this part of it is many.
MANY: Final = 0.33
#: A gateway that is full refuses at once: of the room that shorter stays make there, so much meets an arrival.
LOSS_SYSTEM: Final = 0.5
#: A new verdict is told when it was found for so long.
HOLD_S: Final = 5.0


def verdict(evidence: Evidence) -> Bottleneck:
    """What limits now, before any hold."""
    requests = evidence.requests
    if not evidence.gateways.num:
        return told(evidence, "unknown", "Unknown: no gateway is heard, so nobody says what is lost")
    if not requests.num_decided:
        return told(evidence, "none", "No bottleneck: nothing is asked of the fleet")
    if requests.num_decided < LEAST_REQUESTS:
        return told(evidence, "unknown", f"Unknown: {requests.num_decided} requests in {evidence.window_s:g} s say "
                     f"too little, {LEAST_REQUESTS} are needed")  # fmt: skip
    if is_starved(evidence.gateways):
        return limits(evidence, (Resource.GATEWAY,), {})
    saved = possible(evidence)
    gains = {each: min(saved[each], room_beside(each, evidence)) for each in saved}
    first, second = sorted(gains, key=lambda each: -gains[each])[:2]
    if gains[first] >= LEAST_GAIN:
        alike = gains[second] >= max(LEAST_GAIN, ALIKE * gains[first])
        return limits(evidence, (first, second) if alike else (first,), gains)
    wanted = max(saved, key=lambda each: saved[each])
    if saved[wanted] >= LEAST_GAIN:  # it would help, had another one not run out as well
        return limits(evidence, (wanted, _fullest_beside(wanted, evidence)), gains)
    return nothing_limits(evidence, gains)


# --- what one more unit would save --------------------------------------------------------------------------------


def possible(evidence: Evidence) -> dict[Resource, float]:
    """Requests that one more unit would save if nothing else ran out, as a share of the offered ones."""
    prefill, decode, gateways = evidence.prefill, evidence.decode, evidence.gateways
    refused, late, served = refused_of(evidence), late_of(evidence), served_of(evidence)
    held = refused[Resource.KV_ROOM] + refused[Resource.DECODE_BANDWIDTH]
    stuck = refused[Resource.PREFILL] if (prefill.kv_used or 0.0) >= FULL else 0.0  # KV that waits to be fetched
    in_line = late[Resource.KV_ROOM]  # served late, as the KV of others came free late
    bandwidth, link = served * sooner_by_bandwidth(evidence), served * sooner_by_link(evidence)
    at_once = min(refused[Resource.GATEWAY], LOSS_SYSTEM * bandwidth)
    more_kv = served / max(1, decode.num_workers)
    saved = {
        Resource.PREFILL: min(refused[Resource.PREFILL], served / max(1, prefill.num_workers)),
        Resource.KV_ROOM: min(refused[Resource.KV_ROOM], more_kv),
        Resource.DECODE_BANDWIDTH: in_line * min(1.0, bandwidth / more_kv) + max(min(held, bandwidth), at_once),
        Resource.HANDOFF: in_line * min(1.0, link / more_kv) + min(held + stuck, link),
        Resource.GATEWAY: min(refused[Resource.GATEWAY], served / max(1, gateways.num)),
    }
    if not is_fast_enough(decode):
        late[Resource.DECODE_BANDWIDTH] = 0.0
    if is_tight(decode) or late[Resource.HANDOFF] >= LEAST_GAIN:  # more sequences would make what is late later
        saved[Resource.KV_ROOM] = late[Resource.KV_ROOM] = 0.0
    return {each: late[each] + saved[each] for each in saved}


def refused_of(evidence: Evidence) -> dict[Resource, float]:
    return {each: evidence.requests.share([Loss("refused", each)]) for each in Resource}


def late_of(evidence: Evidence) -> dict[Resource, float]:
    return {each: evidence.requests.share([Loss("late", each)]) for each in Resource}


def served_of(evidence: Evidence) -> float:
    return 1.0 - sum(refused_of(evidence).values())


def sooner_by_bandwidth(evidence: Evidence) -> float:
    """Only moving bytes is faster. Not known how much of a step that is: taken as all, so that it is not left out."""
    return _sooner(evidence, shorter_by(evidence.decode) * (evidence.requests.mean_s("decode_s") or 0.0))


def shorter_by(decode: Decode) -> float:
    """The part of a step that (n + 1)/n of the bandwidth saves."""
    moves = min(1.0, decode.bandwidth) if decode.bandwidth is not None else 1.0
    return moves / (max(1, decode.num_workers) + 1)


def is_fast_enough(decode: Decode) -> bool:
    """With one more unit of bandwidth the median would be near its bound; not known is taken as yes.

    Near, as shorter stays make smaller batches too, which this does not count."""
    return decode.tpot_s is None or decode.tpot_s * (1.0 - shorter_by(decode)) <= NEAR_TPOT * decode.tpot_bound_s


def sooner_by_link(evidence: Evidence) -> float:
    return _sooner(evidence, (evidence.requests.mean_s("handoff_s") or 0.0) / 2)


def is_tight(decode: Decode) -> bool:
    """Steps are as long as they may be: with more sequences in them they would break the bound."""
    return decode.tpot_s is not None and decode.tpot_s > TIGHT_TPOT * decode.tpot_bound_s


def is_starved(gateways: Gateways) -> bool:
    has_no_core = (gateways.wanted or 0.0) >= STARVED_WANTED or (gateways.cpu_wait or 0.0) >= STARVED_WAIT
    return has_no_core or (gateways.loop_late_s or 0.0) >= STARVED_LATE_S


def _sooner(evidence: Evidence, saved_s: float) -> float:
    """How many more pass, as a share, when each is held for so much less: Little's law."""
    stages = ("queue_s", "prefill_s", "handoff_s", "decode_s")
    held_s = sum(evidence.requests.mean_s(each) or 0.0 for each in stages)
    return saved_s / (held_s - saved_s) if held_s > saved_s else 0.0


# --- what stands in the way ---------------------------------------------------------------------------------------


def used(evidence: Evidence) -> dict[Resource, float]:
    """How much of a resource is in use, where that is known and where it limits as such.

    What many are refused for want of has run out at times, whatever its mean says."""
    refused = refused_of(evidence)
    many = max(LEAST_GAIN, MANY * max(refused.values()))
    known: dict[Resource, float | None] = {
        Resource.PREFILL: evidence.prefill.busy,
        Resource.KV_ROOM: evidence.decode.kv_used,
        Resource.GATEWAY: evidence.gateways.wanted,
    }
    out = {each: FULL for each in Resource if refused[each] >= many}
    return {each: share for each, share in known.items() if share is not None} | out


#: What else a unit of these relieves: a sequence that is done sooner gives its KV back sooner.
_RELIEVES: Final[Mapping[Resource, tuple[Resource, ...]]] = {
    Resource.DECODE_BANDWIDTH: (Resource.KV_ROOM, Resource.GATEWAY),
    Resource.HANDOFF: (Resource.KV_ROOM, Resource.DECODE_BANDWIDTH),
}


def _beside(resource: Resource, evidence: Evidence) -> dict[Resource, float]:
    relieved = (resource, *_RELIEVES.get(resource, ()))
    return {each: share for each, share in used(evidence).items() if each not in relieved}


def room_beside(resource: Resource, evidence: Evidence) -> float:
    """How much more could be served before another resource runs out, as a share of the offered requests.

    What is lost for being late needs no more room elsewhere: it is served already.
    """
    served, late = served_of(evidence), late_of(evidence)[resource]
    rooms = [served * max(0.0, FULL / share - 1.0) for share in _beside(resource, evidence).values() if share > 0]
    return late + min(rooms, default=1.0)


def _fullest_beside(resource: Resource, evidence: Evidence) -> Resource:
    others = _beside(resource, evidence)
    return max(others, key=lambda each: others[each])


# --- hysteresis ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Standing:
    """What is told, and what was found since when instead."""

    told: Bottleneck
    other: tuple[Resource, ...] | str = ""
    other_since_unix_s: float = 0.0


def settle(before: Standing | None, found: Bottleneck, now_unix_s: float) -> Standing:
    """What is told now: `found`, once it was found for HOLD_S; what was unknown gives way at once."""
    if before is None:
        return Standing(replace(found, since_unix_s=now_unix_s))
    if _key(found) == _key(before.told):
        return Standing(replace(found, since_unix_s=before.told.since_unix_s))
    since = before.other_since_unix_s if before.other == _key(found) else now_unix_s
    if now_unix_s - since >= HOLD_S or before.told.kind == "unknown":
        return Standing(replace(found, since_unix_s=since))
    return Standing(before.told, _key(found), since)


def _key(found: Bottleneck) -> tuple[Resource, ...] | str:
    """Two verdicts that say the same; which of two resources saves a little more does not matter."""
    return tuple(sorted(found.resources)) if found.resources else found.kind
