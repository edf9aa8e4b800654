"""What charts are built from, constant pieces of spec: axes, scales, the read-out, commands and events as thin rules.

Commands and events differ in dash and in the glyph at the foot of their rule, never in colour alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app import theme

Spec = dict[str, Any]
AXIS_PX = 46  # every chart of a page starts at the same x

X_AXIS: Spec = {
    "title": None,
    "grid": False,
    "tickSize": 4,
    "labelOverlap": True,
    "labelPadding": 4,
    "labelExpr": "timeFormat(datum.value, seconds(datum.value) ? '%H:%M:%S' : '%H:%M')",
    "tickCount": 10,
}
PADDING: Spec = {"left": 4, "right": 8, "top": 6, "bottom": 2}
CONFIG: Spec = {
    "view": {"stroke": None},
    "axis": {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"},
}


def x_time(**more: Any) -> Spec:
    return {"field": "t", "type": "temporal", "axis": X_AXIS, "scale": {"nice": False}, **more}


def y_value(number_format: str, title: str | None, ticks: int = 4) -> Spec:
    axis = {
        "title": title,
        "format": number_format,
        "tickCount": ticks,
        "minExtent": AXIS_PX,
        "maxExtent": AXIS_PX,
        "domain": False,
        "ticks": False,
        "gridOpacity": 0.5,
    }
    return {"field": "value", "type": "quantitative", "axis": axis, "scale": {"nice": False, "zero": False}}


def line_scales(names: Sequence[str], colors: Sequence[str], dashes: Sequence[Sequence[int]]) -> tuple[Spec, Spec]:
    color = {
        "field": "line",
        "type": "nominal",
        "scale": {"domain": list(names), "range": list(colors)},
        "legend": None,
    }
    dash = {
        "field": "line",
        "type": "nominal",
        "scale": {"domain": list(names), "range": [list(each) for each in dashes]},
        "legend": None,
    }
    return color, dash


def pin_layer(y: Spec, zoom: str = "", x: Spec | None = None) -> Spec:
    """Pins both axes; as the first layer its `x` is the one whose axis is drawn. `zoom`: the name of an interval
    selection over the whole chart."""
    encoding = {"x": x or x_time(), "y": y}
    pin = {"data": {"name": "span"}, "mark": {"type": "point", "opacity": 0}, "encoding": encoding}
    return {**pin, "params": [{"name": zoom, "select": {"type": "interval", "encodings": ["x"]}}]} if zoom else pin


LABEL_ROWS = 4  # further labels at the same time show on hover
ROW_PX = 13
HOVERED = "isValid(cursor) && isArray(cursor.t) && abs(cursor.t[0] - datum.t) < datum.near"


def mark_layers(*, labels: bool, cursor: bool = True) -> list[Spec]:
    """Commands and events. Near the right edge a label stands to the left of its rule.

    Labels that would cover each other take rows; beyond LABEL_ROWS one shows when the read-out is at its rule.
    """
    layers = [_command_rule(), _event_rule(), _event_glyph()]
    if labels:
        for name in ("commands", "events"):
            layers.append(_label(name, f"datum.level < {LABEL_ROWS}"))
            if cursor:
                layers.append(_label(name, f"datum.level >= {LABEL_ROWS} && {HOVERED}"))
    return layers


def breach_layers(*, labels: bool = True) -> list[Spec]:
    """Where the error budget burned: a light rectangle over the chart's whole height, named at its foot.

    One that begins near the right edge has its name to the left, as commands and events do.
    """
    words = {"field": "words", "type": "nominal", "title": "SLO"}
    data, x = {"name": "breaches"}, x_time(field="start")
    shade = {"type": "rect", "opacity": 0.12, "color": theme.DANGER, "y": 0, "y2": "height"}
    side = {"align": {"expr": "datum.late ? 'right' : 'left'"}, "dx": {"expr": "datum.late ? -4 : 4"}}
    label = {"type": "text", "tooltip": None, "baseline": "bottom", "y": "height", "dy": -4, **side}
    rect = {"data": data, "mark": shade, "encoding": {"x": x, "x2": {"field": "end"}, "tooltip": words}}
    name = {
        "data": data,
        "mark": {**label, "fontSize": 11, "color": theme.DANGER},
        "encoding": {"x": x, "text": {"value": "SLO budget burns"}},
    }
    return [rect, name] if labels else [rect]


def _command_rule() -> Spec:
    return {
        "data": {"name": "commands"},
        "mark": {"type": "rule", "strokeWidth": 1, "strokeDash": [3, 3], "opacity": 0.75, "color": theme.MIXED},
        "encoding": {"x": x_time(), "tooltip": {"field": "label", "type": "nominal", "title": "Command"}},
    }


def by_kind(looks: Mapping[str, object]) -> Spec:
    """An event's look by its kind, as an expression: a scale would be shared with the lines' own."""
    *others, last = looks.items()
    cases = "".join(f"datum.kind == '{kind}' ? {json.dumps(look)} : " for kind, look in others)
    return {"expr": cases + json.dumps(last[1])}


def _event_rule() -> Spec:
    return {
        "data": {"name": "events"},
        "mark": {
            "type": "rule",
            "strokeWidth": 1,
            "opacity": 0.9,
            "color": by_kind(theme.EVENT_COLORS),
            "strokeDash": by_kind(theme.EVENT_DASHES),
        },
        "encoding": {"x": x_time(), "tooltip": {"field": "words", "type": "nominal", "title": "Event"}},
    }


def _event_glyph() -> Spec:
    """At the foot of the rule: what kind of event it is, in one shape."""
    return {
        "data": {"name": "events"},
        "mark": {
            "type": "point",
            "filled": True,
            "size": 46,
            "y": "height",
            "opacity": 1,
            "color": by_kind(theme.EVENT_COLORS),
            "shape": by_kind(theme.EVENT_SHAPES),
        },
        "encoding": {"x": x_time(), "tooltip": {"field": "words", "type": "nominal", "title": "Event"}},
    }


def _label(name: str, shown: str) -> Spec:
    return {
        "data": {"name": name},
        "transform": [{"filter": shown}],
        "mark": {
            "type": "text",
            "align": {"expr": "datum.late ? 'right' : 'left'"},
            "dx": {"expr": "datum.late ? -4 : 4"},
            "dy": {"expr": f"{ROW_PX} * datum.level"},
            "baseline": "top",
            "y": 0,
            "fontSize": 11,
            "color": theme.MIXED,
            "tooltip": None,
        },
        "encoding": {"x": x_time(), "text": {"field": "label", "type": "nominal"}},
    }


def dots(color: Spec, y: Spec) -> Spec:
    """Points that a line cannot show: hollow where a bucket is partial, filled where it stands between two gaps."""
    return {
        "data": {"name": "live"},
        "transform": [{"filter": "datum.dot !== ''"}],
        "mark": {
            "type": "point",
            "tooltip": None,
            "size": 18,
            "strokeWidth": 1.2,
            "opacity": 1,
            "fillOpacity": {"expr": "datum.dot === 'alone' ? 1 : 0"},
        },
        "encoding": {"x": x_time(), "y": y, "color": color, "fill": color},
    }


CHOSEN: Spec = {"filter": {"param": "cursor", "empty": False}}


def cursor_layers(color: Spec, y: Spec, number_format: str) -> list[Spec]:
    """The read-out: nearest moment, a rule, its time and each line's value. Vega's tooltips vanish at each refresh."""
    rule = {"type": "rule", "tooltip": None, "strokeWidth": 1, "opacity": 0.5, "color": theme.MIXED}
    dot = {"type": "point", "tooltip": None, "filled": True, "size": 36, "opacity": 1}
    return [
        _cursor_pick(y),
        {"data": {"name": "live"}, "transform": [CHOSEN], "mark": rule, "encoding": {"x": x_time()}},
        {
            "data": {"name": "live"},
            "transform": [CHOSEN],
            "mark": dot,
            "encoding": {"x": x_time(), "y": y, "color": color},
        },
        _cursor_values(color, y, number_format),
        _cursor_moment(),
    ]


def _cursor_pick(y: Spec) -> Spec:
    """The moment that is nearest to the pointer."""
    select = {"type": "point", "encodings": ["x"], "nearest": True, "on": "pointermove", "clear": "pointerout"}
    return {
        "data": {"name": "live"},
        "params": [{"name": "cursor", "select": select}],
        "mark": {"type": "point", "tooltip": None, "opacity": 0},
        "encoding": {"x": x_time(), "y": y},
    }


def _cursor_values(color: Spec, y: Spec, number_format: str) -> Spec:
    text = {"type": "text", "tooltip": None, "align": "left", "dx": 8, "dy": -8, "fontSize": 12, "fontWeight": 600}
    value = {"field": "value", "type": "quantitative", "format": number_format}
    return {
        "data": {"name": "live"},
        "transform": [CHOSEN],
        "mark": text,
        "encoding": {"x": x_time(), "y": y, "color": color, "text": value},
    }


def _cursor_moment() -> Spec:
    at_foot = {"type": "text", "tooltip": None, "align": "center", "baseline": "bottom", "y": "height", "dy": -4}
    return {
        "data": {"name": "live"},
        "transform": [CHOSEN, {"aggregate": [], "groupby": ["t"]}],
        "mark": {**at_foot, "fontSize": 11},
        "encoding": {
            "x": x_time(),
            "text": {"field": "t", "type": "temporal", "format": "%H:%M:%S"},
            "color": {"value": theme.MIXED},
        },
    }
