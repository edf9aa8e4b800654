"""A foreign engine's own account of its work beside ours, in words. Pure."""

from __future__ import annotations

from app import format
from control.types.workers import WorkEstimates


def pairs(found: WorkEstimates | None) -> list[tuple[str, str]]:
    """Rows of facts; none where the engine exports no estimate."""
    if found is None:
        return []
    return [
        ("Its own FLOPs", _beside(found.exported_flops, found.derived_flops, found.flops_difference, "FLOP")),
        ("Its own bytes", _beside(found.exported_bytes, found.derived_bytes, found.bytes_difference, "B")),
    ]


def _beside(exported: float | None, derived: float | None, difference: float | None, unit: str) -> str:
    """As exported, then ours as derived, then by how much the first is more."""
    if exported is None:
        return "n/a: not exported"
    words = f"{format.scaled(exported, unit)} as exported"
    if derived is None or difference is None:
        return f"{words}; nothing derived: its model's shape or its steps are not known"
    share = f" ({100 * difference / derived:+,.0f}%)" if derived else ""
    return f"{words}; {format.scaled(derived, unit)} derived; difference {format.scaled(difference, unit)}{share}"
