"""Tables of the documentation that are printed from the code, so that they cannot drift.

A region of a page between `<!-- begin NAME -->` and `<!-- end NAME -->` is replaced; a test compares the pages with the
code. `python -m control.reference` rewrites them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from control.exposition.families import families_markdown
from control.exposition.plane_page import FAMILIES as PLANE_FAMILIES
from control.gateway.metrics_page import FAMILIES as GATEWAY_FAMILIES
from control.gateway.move_estimate import rules_markdown
from control.gateway.schema import parameters_markdown
from control.metrics import METRICS
from control.settings import Settings
from control.types.routing import RoutingPolicy
from engine.lifecycle import markdown_table, role_changes_markdown

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/operations.md", "docs/architecture.md", "docs/api.md")


def settings_markdown() -> str:
    """Every setting: environment variable, default, bounds, what it is."""
    rows = ["| setting | default | what |", "|---|---|---|"]
    for name, info in Settings.model_fields.items():
        rows.append(
            f"| `PHASELINE_{name.upper()}` | {_shown(info.default)} | {info.description}{_bounds(info.metadata)} |"
        )
    return "\n".join(rows)


def routing_markdown() -> str:
    """Every field of the routing policy."""
    rows = ["| key | default | unit | what |", "|---|---|---|---|"]
    for each in dataclasses.fields(RoutingPolicy):
        rows.append(f"| `{each.name}` | {each.default} | {each.metadata['unit']} | {each.metadata['help']} |")
    return "\n".join(rows)


def metrics_markdown() -> str:
    """The catalogue of series."""
    rows = ["| metric | unit | by | provenance | what |", "|---|---|---|---|---|"]
    for info in METRICS.values():
        rows.append(f"| `{info.name}` | {info.unit} | {', '.join(info.groups)} | {info.provenance} | {info.help} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_markdown,
    "routing": routing_markdown,
    "metrics": metrics_markdown,
    "prometheus_plane": lambda: families_markdown(PLANE_FAMILIES),
    "prometheus_gateway": lambda: families_markdown(GATEWAY_FAMILIES),
    "parameters": parameters_markdown,
    "lifecycle": markdown_table,
    "role_changes": role_changes_markdown,
    "move_estimate": rules_markdown,
}


def rendered(page: str) -> str:
    """The page with its regions as the code says now. Raises KeyError for a region that has no table."""

    def replace(match: re.Match[str]) -> str:
        return f"<!-- begin {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- begin (\w+) -->.*?<!-- end \1 -->", replace, page, flags=re.S)


def _shown(default: Any) -> str:
    if default is None or default == "":
        return "empty"
    return f"`{default}`"


def _bounds(metadata: list[Any]) -> str:
    signs = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<"}
    found = [
        f"{signs[type(each).__name__]} {getattr(each, type(each).__name__.lower())}"
        for each in metadata
        if type(each).__name__ in signs
    ]
    return f" ({', '.join(found)})" if found else ""


def main() -> None:
    for name in PAGES:
        path = ROOT / name
        path.write_text(rendered(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
