"""Target zones of the two lines: bands that are fractions of what is achievable on the fleet's devices. Pure.

The fractions and the ceilings come from the plane. A zone is drawn as far as the axis reaches: it never stretches it.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from app import format, frames
from app.lines import Basis, LineSpec
from control.types.fleet import Ceilings

SCHEMA = pa.schema([("line", pa.string()), ("lo", pa.float64()), ("hi", pa.float64())])


def zone(ceilings: Ceilings | None, line: LineSpec, basis: Basis) -> tuple[float, float] | None:
    """[from, to] as fractions of the peak; None for a line without a target, or an unknown peak."""
    if ceilings is None or line.by != "fleet" or not line.metric.endswith(basis):
        return None
    low, high = ceilings.target_wall if basis == "wall" else ceilings.target_in_phase
    achievable = ceilings.bandwidth if "bandwidth" in line.metric else ceilings.compute
    return low * achievable, high * achievable


def dataset(ceilings: Ceilings | None, drawn: Sequence[LineSpec], basis: Basis, top: float) -> bytes:
    """The zones under an axis that ends at `top`."""
    found = [(line.name, zone(ceilings, line, basis)) for line in drawn]
    rows = [
        {"line": name, "lo": each[0], "hi": min(each[1], top)}
        for name, each in found
        if each is not None and each[0] < top
    ]
    return frames.arrow(pa.Table.from_pylist(rows, SCHEMA))


def both(ceilings: Ceilings | None, line: LineSpec, basis: Basis) -> tuple[str, str]:
    """The target in words, beside a line's value, and what it is a fraction of; "" without one."""
    found = zone(ceilings, line, basis)
    if ceilings is None or found is None:
        return "", ""
    low, high = ceilings.target_wall if basis == "wall" else ceilings.target_in_phase
    achievable = ceilings.bandwidth if "bandwidth" in line.metric else ceilings.compute
    return (
        f", target {found[0]:.0%} to {found[1]:.0%}",
        f"Target: {format.percent(low)} to {format.percent(high)} of what is achievable, "
        f"which is {format.percent(achievable)} of the peak ({ceilings.provenance}).",
    )
