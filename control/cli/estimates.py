"""What foreign engines say of their own work beside what follows from their tokens, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from control.types.workers import WorkerStatus

_PREFIXES: Final = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def estimate_lines(workers: Iterable[WorkerStatus]) -> list[str]:
    """One line per engine that exports an estimate: as exported, ours as derived, and the difference."""
    lines = []
    for each in workers:
        found = each.estimates
        if found is None:
            continue
        parts = [
            _beside(found.exported_flops, found.derived_flops, found.flops_difference, "FLOP"),
            _beside(found.exported_bytes, found.derived_bytes, found.bytes_difference, "B"),
        ]
        lines.append(f"- {each.worker_id}, the engine's own estimate: {'; '.join(part for part in parts if part)}")
    return lines


def _beside(exported: float | None, derived: float | None, difference: float | None, unit: str) -> str:
    if exported is None:
        return ""
    words = f"{_scaled(exported, unit)} as exported"
    if difference is None or derived is None:
        return f"{words}, nothing derived: its model's shape or its steps are not known" if derived is None else words
    share = f" ({100 * difference / derived:+.0f}%)" if derived else ""
    return f"{words}, {_scaled(derived, unit)} derived, difference {_scaled(difference, unit)}{share}"


def _scaled(value: float, unit: str) -> str:
    size, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s), (1.0, ""))
    return f"{value / size:.3g} {prefix}{unit}"
