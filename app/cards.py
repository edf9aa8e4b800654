"""Small pieces of HTML that a page sends with `st.html`: health, figures with sparklines, tags, tables, steps.

Values in, markup out, everything from outside escaped. Nothing here reads or decides; numbers come formatted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from app import theme

TAG_HELP: dict[str, str] = {
    "measured": "Measured: read from a clock, a counter or the device itself.",
    "derived": "Derived: computed from measured counters by a stated formula.",
    "assumed": "Assumed: rests on a setting or a model, not on a measurement.",
    "simulated": "Simulated: the workers behind this number take the time a cost model says; no model was computed.",
    "off": "Off: the engine has this series, and a flag turns it on. It is unknown, not 0.",
    "not exported": "Not exported: the engine's page does not have it. It is unknown, not 0.",
    "refused": "Refused: what the engine says cannot be a value.",
    "not seen": "Not seen: no request of this fleet comes through our gateways.",
    "no data": "No data: nothing is known of it now, which is not 0.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One card: a label, a value with its unit, a short note, where it comes from, and its recent course."""

    label: str
    value: str
    note: str = ""
    tag: str = "measured"
    tag_note: str = ""
    course: tuple[float | None, ...] = ()
    color: str = "currentColor"
    dash: str = ""


def tag(kind: str, note: str = "", *, left: bool = False) -> str:
    text = TAG_HELP.get(kind, kind) + (f" {note.replace('`', '')}" if note else "")
    side = " pl-left" if left else ""
    return (
        f'<span class="pl-tag{side}" tabindex="0" role="note" data-tip="{escape(text)}" '
        f'aria-label="{escape(text)}">{escape(kind)}</span>'
    )


def text(words: str) -> str:
    """Any text from outside, made safe for markup."""
    return escape(words)


def picture(svg: str, *, css: str = "", alt: str = "") -> str:
    """An SVG as an image: the page's sanitizer drops inline SVG elements."""
    source = "data:image/svg+xml," + quote(svg, safe="")
    return f'<img src="{source}" alt="{escape(alt)}" style="{css}">'


def sample(color: str, dash: str, width: int = 28) -> str:
    """A piece of line, as a chart draws it."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 8"><line x1="0" x2="{width}" y1="4" y2="4" '
        f'stroke="{color}" stroke-width="2.5"{dashed}/></svg>'
    )
    return picture(svg, css=f"width:{width}px;height:8px;display:inline-block;vertical-align:middle;margin:0 8px 2px 0")


def brand(text: str) -> str:
    return (
        f'<div class="pl pl-brand">{picture(theme.LOGO, css="width:24px;height:24px")}<span>{escape(text)}</span></div>'
    )


def heading(text: str, note: str = "") -> str:
    extra = f'<span class="pl-muted">{escape(note)}</span>' if note else ""
    title = f'<h1 class="pl-title">{escape(text)}</h1>'
    return f'<div class="pl pl-row pl-between" style="padding-right:40px">{title}{extra}</div>'


def note(words: str, kind: str, why: str = "") -> str:
    """A small line under a table: what its numbers are and where they come from."""
    return f'<div class="pl pl-note">{escape(words)} {tag(kind, why, left=True)}</div>'


def heading_small(text: str) -> str:
    return f'<div class="pl pl-h" style="margin-top:12px">{escape(text)}</div>'


def health(word: str, text: str, state: str, facts: Sequence[str], at_unix_s: float) -> str:
    """The first line of a page: in words, with a dot whose colour repeats the word, and the plane's time behind it."""
    color = theme.STATE_COLORS.get(state, theme.MIXED)
    right = " &middot; ".join(escape(fact) for fact in facts if fact)
    return (
        f'<div class="pl pl-row pl-between" role="status" data-at="{at_unix_s:.3f}"><div class="pl-health">'
        f'<span class="pl-dot" style="background:{color}"></span>'
        f'<span><span class="pl-word">{escape(word)}</span>&ensp;{with_code(text)}</span></div>'
        f'<span class="pl-muted" style="font-size:13px">{right}</span></div>'
    )


def banner(text: str, state: str = "attention", *, alert: bool = False) -> str:
    return _banner(with_code(text), theme.STATE_COLORS.get(state, theme.MIXED), "alert" if alert else "note")


def notices(found: Sequence[str]) -> str:
    """What a person must know to read the numbers right, in one banner."""
    items = "".join(f"<span>{with_code(notice)}</span>" for notice in found)
    return _banner(items, theme.STATE_COLORS["attention"], "note", "pl-notices")


def _banner(markup: str, color: str, role: str, also: str = "") -> str:
    style = (
        f"border-color:color-mix(in srgb,{color} 50%,transparent);background:color-mix(in srgb,{color} 9%,transparent)"
    )
    return f'<div class="pl pl-banner {also}" role="{role}" style="{style}">{markup}</div>'


def with_code(words: str) -> str:
    """Text from outside, made safe; what stands between `backticks` is set as code."""
    parts = escape(words).split("`")
    if len(parts) % 2 == 0:  # one without its other half is just a character
        return escape(words)
    return "".join(part if index % 2 == 0 else f"<code>{part}</code>" for index, part in enumerate(parts))


def empty(title: str, text: str) -> str:
    return f'<div class="pl pl-empty"><b>{escape(title)}</b><span class="pl-muted">{with_code(text)}</span></div>'


def figures(cards: Sequence[Figure]) -> str:
    return f'<div class="pl pl-kpis">{"".join(_figure(card) for card in cards)}</div>'


def _figure(card: Figure) -> str:
    return (
        f'<section class="pl-kpi" aria-label="{escape(card.label)}: {escape(card.value)}">'
        f'<div class="pl-kpi-label"><span>{escape(card.label)}</span>{tag(card.tag, card.tag_note)}</div>'
        f'<div class="pl-kpi-value">{escape(card.value)}</div>'
        f'<div class="pl-kpi-note">{with_code(card.note) or "&nbsp;"}</div>'
        f"{sparkline(card.course, card.color, card.dash)}</section>"
    )


def sparkline(course: Sequence[float | None], color: str, dash: str = "", width: int = 160, height: int = 32) -> str:
    """The shape of the last minutes, from zero to its largest value, over a light area; a gap stays a gap."""
    known = [value for value in course if value is not None]
    top = max(known, default=0.0) or 1.0
    step = width / max(1, len(course) - 1)
    path, area, began = [], [], None
    for index, value in enumerate((*course, None)):
        if value is None:
            if began is not None:
                area.append(f"L{(index - 1) * step:.1f} {height} L{began * step:.1f} {height} Z")
            began = None
            continue
        y = height - 2 - (height - 4) * max(0.0, value) / top
        path.append(f"{'M' if began is None else 'L'}{index * step:.1f} {y:.1f}")
        area.append(path[-1])
        began = index if began is None else began
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" preserveAspectRatio="none">'
        f'<path d="{" ".join(area)}" fill="{color}" fill-opacity=".12"/>'
        f'<path d="{" ".join(path)}" fill="none" stroke="{color}" stroke-width="1.5"{dashed} '
        'vector-effect="non-scaling-stroke" stroke-linejoin="round"/></svg>'
    )
    return picture(svg, css=f"display:block;width:100%;height:{height}px;margin-top:4px")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry of a legend: how the line looks, what it is, what it reads now and where that comes from."""

    label: str
    value: str
    color: str
    dash: str = ""
    tag: str = ""
    tag_note: str = ""


def legend(lines: Sequence[Line], title: str = "") -> str:
    head = f'<span class="pl-h" style="margin:0">{escape(title)}</span>' if title else ""
    return f'<div class="pl pl-legend">{head}{"".join(_legend_entry(line) for line in lines)}</div>'


def _legend_entry(line: Line) -> str:
    mark = tag(line.tag, line.tag_note, left=True) if line.tag else ""
    return (
        f"<span>{sample(line.color, line.dash)}{escape(line.label)}&ensp;<b>{escape(line.value)}</b>&ensp;{mark}</span>"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How full, beside how hard: one pool's load with its headroom."""

    title: str
    rows: tuple[tuple[str, str], ...]
    color: str
    fill: float | None = None  # 0..1 of the bar; None draws no bar
    tag: str = "derived"
    tag_note: str = ""


def loads(pools: Sequence[Load]) -> str:
    return f'<div class="pl" style="display:grid;gap:8px">{"".join(_load(pool) for pool in pools)}</div>'


def _load(pool: Load) -> str:
    rows = "".join(f'<span class="pl-muted">{escape(name)}</span><b>{escape(value)}</b>' for name, value in pool.rows)
    bar = ""
    if pool.fill is not None:
        filled = min(1.0, max(0.0, pool.fill)) * 100
        bar = f'<div class="pl-bar"><i style="width:{filled:.0f}%;background:{pool.color}"></i></div>'
    return (
        f'<section class="pl-card" style="border-left:3px solid {pool.color};padding:10px 12px">'
        f'<div class="pl-row pl-between"><span class="pl-h">{escape(pool.title)}</span>'
        f"{tag(pool.tag, pool.tag_note)}</div>"
        f'<div class="pl-load">{bar}{rows}</div></section>'
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a small table; `html` marks text that is already markup of this module."""

    text: str
    num: bool = False
    mono: bool = False
    html: bool = False


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str) -> str:
    """A small table in the page's own type. Large ones are `st.dataframe`."""
    numeric = [cell.num for cell in rows[0]] if rows else [False] * len(head)
    top = "".join(
        f'<th scope="col"{" class=num" if num else ""}>{escape(name)}</th>'
        for name, num in zip(head, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    head_row = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<table class="pl pl-table" aria-label="{escape(caption)}">{head_row}<tbody>{body}</tbody></table>'


def _cell(cell: Cell) -> str:
    names = " ".join(name for name, on in (("num", cell.num), ("pl-mono", cell.mono)) if on)
    return f'<td class="{names}">{cell.text if cell.html else escape(cell.text)}</td>'


def state(word: str) -> str:
    """A state as a dot and its word."""
    color = theme.STATE_COLORS.get(word, theme.MIXED)
    pulse = " pl-pulse" if word in ("accepted", "running") else ""
    return (
        f'<span class="pl-nowrap"><span class="pl-dot pl-small{pulse}" style="background:{color}"></span>'
        f"{escape(word)}</span>"
    )


def event(kind: str) -> str:
    """A kind of event as the glyph that a chart draws at its rule, and its word."""
    color = theme.EVENT_COLORS[kind]
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><path d="{theme.EVENT_PATHS[kind]}" '
        f'fill="{color}"/></svg>'
    )
    mark = picture(svg, css="width:9px;height:9px;display:inline-block;margin-right:5px;vertical-align:baseline")
    return f'<span class="pl-nowrap">{mark}{escape(kind)}</span>'


def role(word: str) -> str:
    """A role as a line sample in its colour and dash, and its word."""
    color = theme.ROLE_COLORS.get(word, theme.MIXED)
    dash = " ".join(str(part) for part in theme.ROLE_DASHES.get(word, [1, 0]))
    return f'<span style="white-space:nowrap">{sample(color, dash, 18)}{escape(word)}</span>'


def progress(words: str, share: float) -> str:
    """How far something has come: words over a bar."""
    return (
        f'<div class="pl-load" style="margin-top:6px"><span>{escape(words)}</span><div class="pl-bar">'
        f'<i style="width:{100 * min(1.0, max(0.0, share)):.0f}%;background:{theme.DECODE}"></i></div></div>'
    )


def steps(rows: Sequence[tuple[str, str, str]], caption: str) -> str:
    """Journal lines: (time, state, text)."""
    items = "".join(
        f'<div role="listitem"><span class="pl-muted">{escape(at)}</span><span>{escape(word)}</span>'
        f"<span>{escape(line)}</span></div>"
        for at, word, line in rows
    )
    return f'<div role="list" class="pl pl-steps" aria-label="{escape(caption)}">{items}</div>'
