"""What is different about some requests, as bars: each value's share of them over its share of the rest. Markup."""

from __future__ import annotations

from html import escape

from app import cards, format, theme, words
from control.differences import LEAST_RECORDS
from control.types.latencies import Difference, Explanation

NUM_SHOWN = 7


def bars(found: Explanation) -> str:
    """The largest differences, or that there is none; then what they rest on."""
    noun = "request" if round(found.num_requests) == 1 else "requests"
    asked = (
        f'<div class="pl-note">{escape(format.count(found.num_requests))} {noun}: {escape(found.asked)}. Against the '
        f"other {escape(format.count(found.num_rest))} of this time.</div>"
    )
    if not found.differences:
        return f'<div class="pl">{asked}</div>' + cards.empty(*_nothing(found))
    rows = "".join(_row(each) for each in found.differences[:NUM_SHOWN])
    legend = (
        f'<div class="pl-row pl-note"><span>{_square(theme.PREFILL)} share of these</span>'
        f"<span>{_square(theme.MIXED)} share of the others</span></div>"
    )
    note = f'<div class="pl-note pl-muted">{escape(words.sentence(found.note))}. A difference is not yet a cause.</div>'
    label = "What is different about these requests"
    return f'<div class="pl">{asked}{legend}<div role="list" aria-label="{label}">{rows}</div></div>{note}'


def _nothing(found: Explanation) -> tuple[str, str]:
    """Why there is no bar: a title, and a line."""
    if not found.num_records:
        return "No such request", "None of this time was past a bound, refused or failed."
    if min(found.num_records, found.num_rest_records) < LEAST_RECORDS:
        return "Too few to compare", f"With fewer than {LEAST_RECORDS} requests on a side, chance says as much."
    return "Nothing is different about them", "No value is more frequent among them than chance would make it."


def _square(color: str) -> str:
    return f'<span style="display:inline-block;width:10px;height:10px;border-radius:2px;background:{color}"></span>'


def _row(each: Difference) -> str:
    shares = f"{format.percent(each.share)} against {format.percent(each.rest_share)}"
    what = f'<span class="pl-muted">{escape(each.dimension)}</span> <b>{escape(each.value)}</b>'
    return (
        '<div role="listitem" style="margin:6px 0 10px">'
        f'<div class="pl-row pl-between" style="font-size:13px"><span>{what}</span><span>{escape(shares)}</span></div>'
        f"{_bar(each.share, theme.PREFILL, 6)}{_bar(each.rest_share, theme.MIXED, 4)}</div>"
    )


def _bar(share: float, color: str, height: int) -> str:
    return (
        f'<div style="height:{height}px;margin-top:2px;width:{max(0.4, 100 * share):.1f}%;border-radius:2px;'
        f'background:{color}"></div>'
    )
