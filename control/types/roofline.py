"""Workers' steps under the rooflines of their devices."""

from __future__ import annotations

from dataclasses import dataclass

from control.types.values import Provenance
from control.types.workers import Phase, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """The roofline of one kind of device: its peaks, and the ceiling that is achievable under them. None is unknown."""

    name: str
    peak_flops: float | None
    peak_bytes_per_s: float | None
    achievable_flops: float | None
    achievable_bytes_per_s: float | None
    basis: str  # of the peaks: datasheet, calibrated, assumed, unknown
    achievable_provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflinePoint:
    """What one worker did in one phase over [t, t + length): FLOP per byte, and FLOP/s while that phase ran."""

    worker_id: str
    role: Role
    phase: Phase
    roof: str  # name of its device's roof
    t_unix_s: float
    length_s: float
    intensity: float
    flops_per_s: float
    tokens_per_step: float | None  # of decode: the batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Workers under the rooflines of their devices."""

    fleet_id: str
    since_unix_s: float
    until_unix_s: float
    roofs: tuple[Roof, ...]
    points: tuple[RooflinePoint, ...]
    simulated: bool
    provenance: Provenance = "derived"
