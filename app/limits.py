"""What limits the fleet now, as one card: the verdict, and what one more unit of each resource would save. Pure.

The sentence and its numbers are the plane's (`control.bottleneck`): nothing is decided or computed here.
"""

from __future__ import annotations

from html import escape

from app import cards, format, theme
from control.types.bottleneck import Bottleneck, Resource

NAMES: dict[Resource, str] = {
    Resource.PREFILL: "Prefill worker",
    Resource.KV_ROOM: "KV room",
    Resource.DECODE_BANDWIDTH: "Decode bandwidth",
    Resource.HANDOFF: "Handoff link",
    Resource.GATEWAY: "Gateway",
}
#: Smaller estimates are nothing.
LEAST_SHOWN = 0.005
SOURCE = (
    "More good requests, of those offered, if the fleet had one more unit of it: a fluid estimate from what was lost."
)


def card(found: Bottleneck | None) -> str:
    """ "" for an older plane, which has no verdict."""
    if found is None:
        return ""
    tag = cards.tag("simulated" if found.simulated else "derived", SOURCE)
    told = f'<div style="font-size:13px;margin:2px 0 6px">{cards.with_code(headline(found))}</div>'
    rows = "".join(_row(each, found) for each in Resource if found.gains.get(each.value, 0.0) >= LEAST_SHOWN)
    note = '<div class="pl-note" style="margin:0 0 2px">One more unit would save</div>' if rows else ""
    return (
        f'<section class="pl pl-card" style="border-left:3px solid {_color(found)};padding:10px 12px">'
        f'<div class="pl-row pl-between"><span class="pl-h">Bottleneck</span>{tag}</div>{told}{note}'
        f'<div class="pl-load">{rows}</div></section>'
    )


def headline(found: Bottleneck) -> str:
    """The verdict without its numbers: they are in the health line, and here as bars."""
    return found.text.partition(": " if found.resources else " (estimated")[0]


def _row(resource: Resource, found: Bottleneck) -> str:
    gain = found.gains[resource.value]
    filled = 100 * min(1.0, max(0.0, gain))
    limits = resource in found.resources
    name = f"<b>{escape(NAMES[resource])}</b>" if limits else escape(NAMES[resource])
    color = theme.ATTENTION if limits else theme.MIXED
    return (
        f'<span style="text-align:left">{name}</span><b>{escape(format.percent(gain))}</b>'
        f'<div class="pl-bar"><i style="width:{filled:.0f}%;background:{color}"></i></div>'
    )


def _color(found: Bottleneck) -> str:
    return theme.ATTENTION if found.resources else theme.OK if found.kind == "none" else theme.MIXED
