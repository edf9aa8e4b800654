"""A bottleneck's verdict in words, and the numbers that it rests on, each with where it comes from. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from control.evidence import Evidence
from control.lost import Loss, LossKind
from control.types.bottleneck import Bottleneck, BottleneckKind, EvidenceLine, Resource
from control.types.values import Provenance

#: Of the offered requests: what one more unit must save, to be worth a word.
LEAST_GAIN: Final = 0.05
NAMES: Final[Mapping[Resource, str]] = {
    Resource.PREFILL: "Prefill",
    Resource.KV_ROOM: "KV room",
    Resource.DECODE_BANDWIDTH: "Decode bandwidth",
    Resource.HANDOFF: "The handoff link",
    Resource.GATEWAY: "The gateway",
}
_KINDS: Final[Mapping[Resource, BottleneckKind]] = {
    Resource.PREFILL: "prefill",
    Resource.KV_ROOM: "kv_room",
    Resource.DECODE_BANDWIDTH: "decode_bandwidth",
    Resource.HANDOFF: "handoff",
    Resource.GATEWAY: "gateway",
}
UNITS: Final[Mapping[Resource, str]] = {
    Resource.PREFILL: "one more prefill worker",
    Resource.KV_ROOM: "one more decode worker's KV blocks",
    Resource.DECODE_BANDWIDTH: "one more decode worker's bandwidth",
    Resource.HANDOFF: "a link twice as fast",
    Resource.GATEWAY: "one more gateway",
}


def limits(evidence: Evidence, resources: tuple[Resource, ...], gains: Mapping[Resource, float]) -> Bottleneck:
    kind: BottleneckKind = _KINDS[resources[0]] if len(resources) == 1 else "two"
    if len(resources) == 1:
        head = f"{NAMES[resources[0]]} is the bottleneck"
    else:
        head = f"{NAMES[resources[0]]} and {_lower(NAMES[resources[1]])} limit together"
    because = "; ".join(_because(each, evidence) for each in resources)
    estimate = ", ".join(f"{UNITS[each]} about {gains[each]:.0%} more good requests" for each in resources
                         if gains.get(each, 0.0) >= LEAST_GAIN)  # fmt: skip
    text = f"{head}: {because}" + (f" (estimated: {estimate})" if estimate else "")
    return told(evidence, kind, text, resources, gains)


def _lower(name: str) -> str:
    return name if name.startswith("KV") else name[0].lower() + name[1:]


def _because(resource: Resource, evidence: Evidence) -> str:
    """Its numbers: what is lost to it, and how full it is."""
    requests, prefill, decode, gateways = (
        evidence.requests, evidence.prefill, evidence.decode, evidence.gateways,
    )  # fmt: skip
    refused, late = requests.share([Loss("refused", resource)]), requests.share([Loss("late", resource)])
    parts = [f"{refused:.0%} of requests are refused for want of it"] if refused else []
    parts += [f"{late:.0%} are late because of it"] if late else []
    match resource:
        case Resource.PREFILL:
            parts += _known("{:.2g} s of prompts queued", prefill.queue_s) + _known("{:.0%} busy", prefill.busy)
        case Resource.KV_ROOM:
            parts += _known("{:.0%} of KV blocks in use", decode.kv_used)
        case Resource.DECODE_BANDWIDTH:
            parts += _known("{:.0%} of the achievable bandwidth while it decodes", decode.bandwidth)
            parts += _known("{:.0f} ms a token", None if decode.tpot_s is None else 1000 * decode.tpot_s)
        case Resource.HANDOFF:
            parts += _known("{:.2g} s for a handoff", requests.mean_s("handoff_s"))
        case Resource.GATEWAY:
            parts += _known("{:.0%} of a core", gateways.cpu)
            parts += _known("{:.0%} of the time it has work and no core", gateways.cpu_wait)
            parts += _known("its event loop is {:.2g} s late", gateways.loop_late_s)
    return ", ".join(parts) or "nothing was measured of it"


def _known(words: str, value: float | None) -> list[str]:
    return [] if value is None else [words.format(value)]


def nothing_limits(evidence: Evidence, gains: Mapping[Resource, float]) -> Bottleneck:
    requests = evidence.requests
    good = f"{requests.num_good / requests.num_decided:.0%} of requests are good"
    others: dict[str, float] = {
        "have a prefill of their own that is over its bound": requests.share([Loss("alone")]),
        "failed": requests.share([Loss("failed")]),
        "are lost for a reason that their records do not say": requests.share([Loss("unknown")]),
    }
    for resource in Resource:
        share = requests.share([Loss("refused", resource), Loss("late", resource)])
        others[f"are lost to {_lower(NAMES[resource])}, of which one more unit is not enough"] = share
    rest = [f"{share:.0%} {words}" for words, share in others.items() if share >= LEAST_GAIN]
    return told(evidence, "none", f"No bottleneck: {', '.join([good, *rest])}", gains=gains)


def told(
    evidence: Evidence,
    kind: BottleneckKind,
    text: str,
    resources: tuple[Resource, ...] = (),
    gains: Mapping[Resource, float] | None = None,
) -> Bottleneck:
    return Bottleneck(
        kind=kind,
        resources=resources,
        text=text,
        at_unix_s=evidence.at_unix_s,
        since_unix_s=evidence.at_unix_s,
        window_s=evidence.window_s,
        gains={each.value: gain for each, gain in (gains or {}).items()},
        evidence=lines_of(evidence),
        simulated=evidence.simulated,
    )


def lines_of(evidence: Evidence) -> tuple[EvidenceLine, ...]:
    """All that the verdict rests on, each with where it comes from. What nobody says has no value."""
    requests, prefill, decode, gateways = (
        evidence.requests, evidence.prefill, evidence.decode, evidence.gateways,
    )  # fmt: skip
    decided = requests.num_decided
    measured: Provenance = "simulated" if evidence.simulated else "measured"
    derived: Provenance = "simulated" if evidence.simulated else "derived"
    ceiling: Provenance = "simulated" if evidence.simulated else evidence.ceiling_source

    def line(name: str, value: float | None, unit: str, source: Provenance, text: str) -> EvidenceLine:
        return EvidenceLine(name=name, value=value, unit=unit, provenance=source, text=text)

    lost = [
        line(f"lost_{how}_{each.value}", requests.share([Loss(how, each)]) if decided else None, "fraction", "derived",
             f"{words} {_lower(NAMES[each])}, of the requests that count")
        for how, words in _LOST_WORDS.items()
        for each in Resource
    ]  # fmt: skip
    stages = [
        line(f"mean_{stage}", requests.mean_s(stage), "s", measured, f"mean {words}, over the served requests")
        for stage, words in _STAGE_WORDS.items()
    ]
    return (
        line("requests", decided, "requests", "measured", "that ended in the window and count"),
        line("good", requests.num_good / decided if decided else None, "fraction", "derived", "of them are good"),
        *lost,
        line("lost_alone", requests.share([Loss("alone")]) if decided else None, "fraction", "derived",
             "whose own prefill is over its bound"),
        line("lost_failed", requests.share([Loss("failed")]) if decided else None, "fraction", "derived",
             "errors, and stalls of lost workers"),
        line("lost_unknown", requests.share([Loss("unknown")]) if decided else None, "fraction", "derived",
             "whose records do not say where their time went"),
        line("prefill_queue_s", prefill.queue_s, "s", derived, "prompts that wait on the prefill workers"),
        line("prefill_queue_growth", prefill.queue_growth, "s/s", derived, "how fast that grows"),
        line("prefill_busy", prefill.busy, "fraction", measured, "of the prefill workers' time is prefill"),
        line("prefill_compute", prefill.compute, "fraction", ceiling, "of the achievable FLOP/s, while it prefills"),
        line("kv_used", decode.kv_used, "fraction", measured, "of the decode workers' KV blocks held or reserved"),
        line("decode_bandwidth", decode.bandwidth, "fraction", ceiling,
             "of the achievable bytes/s, while it decodes"),
        line("decode_batch", decode.batch, "sequences", measured, "that one decode worker runs"),
        line("tpot_s", decode.tpot_s, "s", "measured", f"median; its bound is {decode.tpot_bound_s:g} s"),
        line("gateway_cpu", gateways.cpu, "fraction", "measured", "of a core, of the gateway that is pressed hardest"),
        line("gateway_cpu_wait", gateways.cpu_wait, "fraction", "measured",
             "of the time that gateway has work and is given no core"),
        line("gateway_loop_late_s", gateways.loop_late_s, "s", "measured", "the event loop is late, half of the time"),
        *stages,
    )  # fmt: skip


_LOST_WORDS: Final[Mapping[LossKind, str]] = {"refused": "refused for want of", "late": "late because of"}
_STAGE_WORDS: Final[Mapping[str, str]] = {
    "line_s": "wait in the gateway's line",
    "queue_s": "wait on a worker",
    "prefill_s": "prefill",
    "handoff_s": "handoff",
    "decode_s": "time on the decode worker",
}
