"""The roof over one device: what its datasheet or its calibration says, and what of that is achievable. Pure.

Decided here: which achievable ceiling stands beside a peak, and where the target zones lie: fractions of that ceiling,
never of the peak. A ceiling that was measured on the device is used as it is; without one a share of the peak is
assumed, and says so. A CPU's in-phase time is thread seconds, so its roof is one thread's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from control.accounting import peaks_of
from control.types.fleet import Ceilings
from control.types.roofline import Roof
from control.types.values import Provenance
from engine.readings import DeviceInfo, MeterReading

#: Share of a datasheet's peak that is taken as achievable where no ceiling was measured.
ACHIEVABLE_COMPUTE: Final = 0.6
ACHIEVABLE_BANDWIDTH: Final = 0.8
#: Where a line should be, as fractions of what is achievable. In phase: a phase that runs should be near its ceiling.
#: Wall: above it there is no room for a burst, below it there are more workers than the traffic needs.
TARGET_IN_PHASE: Final = (0.75, 1.0)
TARGET_WALL: Final = (0.5, 0.85)


def roof_of(device: DeviceInfo) -> Roof:
    """In-phase peaks and ceilings of one device; None is unknown."""
    peaks = peaks_of(device)
    flops, flops_source = _achievable(device, peaks.in_phase_flops, device.ceiling_flops, ACHIEVABLE_COMPUTE)
    num_bytes, bytes_source = _achievable(
        device, peaks.in_phase_bytes_per_s, device.ceiling_bytes_per_s, ACHIEVABLE_BANDWIDTH
    )
    return Roof(
        name=device.name + (", one thread" if device.kind == "cpu" else ""),
        peak_flops=peaks.in_phase_flops,
        peak_bytes_per_s=peaks.in_phase_bytes_per_s,
        achievable_flops=flops,
        achievable_bytes_per_s=num_bytes,
        basis=peaks.basis,
        achievable_provenance="measured" if flops_source == bytes_source == "measured" else "assumed",
    )


def _achievable(
    device: DeviceInfo, peak: float | None, ceiling: float | None, assumed: float
) -> tuple[float | None, Provenance]:
    if peak is None:
        return None, "assumed"
    if device.kind == "cpu":
        return peak, "measured"  # calibrated: the peak is what was reached
    if ceiling is not None:
        return min(ceiling, peak), "measured"
    return assumed * peak, "assumed"


def ceilings_of(readings: Iterable[MeterReading]) -> Ceilings | None:
    """What of the fleet's peaks is achievable, over all its devices; None where a peak is unknown."""
    roofs = [roof_of(each.device) for each in readings]
    known = [each for each in roofs if each.peak_flops and each.peak_bytes_per_s]
    if not known or len(known) < len(roofs):
        return None
    return Ceilings(
        compute=sum(each.achievable_flops or 0.0 for each in known) / sum(each.peak_flops or 0.0 for each in known),
        bandwidth=sum(each.achievable_bytes_per_s or 0.0 for each in known)
        / sum(each.peak_bytes_per_s or 0.0 for each in known),
        provenance="measured" if all(each.achievable_provenance == "measured" for each in known) else "assumed",
        target_in_phase=TARGET_IN_PHASE,
        target_wall=TARGET_WALL,
    )
