"""What limits a fleet, and the numbers that say so."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from control.types.values import Provenance


class Resource(StrEnum):
    """What a fleet can have too little of, so that requests are lost; `control.bottleneck` says which it is now."""

    PREFILL = "prefill"  # workers' time for prompts
    KV_ROOM = "kv_room"  # KV blocks of those that decode
    DECODE_BANDWIDTH = "decode_bandwidth"  # how fast a decode step is, and so how many sequences it can carry
    HANDOFF = "handoff"  # the link between a prefill worker and a decode worker
    GATEWAY = "gateway"  # what the gateways can hold, and how fast they pass tokens on


BottleneckKind = Literal["unknown", "none", "prefill", "kv_room", "decode_bandwidth", "handoff", "gateway", "two"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceLine:
    """One number that a verdict rests on."""

    name: str
    value: float | None
    unit: str
    provenance: Provenance
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What limits the fleet: the resource of which one more unit would let most more requests be good."""

    kind: BottleneckKind
    resources: tuple[Resource, ...]  # of which one more unit helps: none, one or two
    text: str  # one sentence, with its numbers
    at_unix_s: float
    since_unix_s: float  # since when this is the verdict
    window_s: float
    gains: dict[str, float] = field(default_factory=dict)  # Resource -> share of the offered requests; derived
    evidence: tuple[EvidenceLine, ...] = ()
    simulated: bool = False
