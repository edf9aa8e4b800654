"""Vega-Lite specs: constant per chart, so that a refresh swaps named datasets and brush, zoom and place survive.

A spec holds no value that changes with the data: both axes are pinned by the invisible dataset `span`. Frames come from
`app.frames`; `app.draw` puts the two together. Times are ms since the epoch and show in the viewer's time zone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from app import theme
from app.layers import (
    AXIS_PX,
    CONFIG,
    LABEL_ROWS,
    PADDING,
    ROW_PX,
    X_AXIS,
    Spec,
    breach_layers,
    by_kind,
    cursor_layers,
    dots,
    line_scales,
    mark_layers,
    pin_layer,
    x_time,
    y_value,
)

__all__ = ["Spec", "day_strip", "explore", "limited", "lines", "role_steps", "routing_steps", "stages", "timeline"]

LANE_PX = 36
BAND_PX = 18
BARE_AXIS: Spec = {"title": None, "labels": False, "ticks": False, "domain": False, "grid": False}
BARE_AXIS |= {"minExtent": AXIS_PX, "maxExtent": AXIS_PX}


@cache
def lines(
    *,
    names: tuple[str, ...],
    colors: tuple[str, ...],
    dashes: tuple[tuple[int, ...], ...],
    number_format: str,
    read_format: str,
    title: str | None,
    height: int,
    labels: bool = True,
    zones: bool = False,
    breaches: bool = False,
    earlier: bool = False,
    zoom: str = "",
) -> Spec:
    """Lines over their min-max bands, with commands, events and a read-out. Datasets: live, span, commands, events.

    `zones`: over light rectangles of the dataset `zones`, as wide as the chart; `breaches`: over those of that name,
    as high as the chart; `earlier`: over lines of that name, in grey. `zoom`: name of a selection to zoom by.
    """
    color, dash = line_scales(names, colors, dashes)
    y = y_value(number_format, title)
    band = {
        "data": {"name": "live"},
        "mark": {"type": "area", "tooltip": None, "opacity": 0.15, "line": False},
        "encoding": {"x": x_time(), "y": {**y, "field": "lo"}, "y2": {"field": "hi"}, "color": color},
    }
    line = {
        "data": {"name": "live"},
        "mark": {"type": "line", "tooltip": None, "strokeWidth": 1.8, "strokeJoin": "round"},
        "encoding": {"x": x_time(), "y": y, "color": color, "strokeDash": dash},
    }
    cursor = cursor_layers(color, y, read_format)
    zone = {
        "data": {"name": "zones"},
        "mark": {"type": "rect", "tooltip": None, "opacity": 0.09},
        "encoding": {"y": {**y, "field": "lo"}, "y2": {"field": "hi"}, "color": color},
    }
    behind = [*([zone] if zones else []), *(breach_layers() if breaches else [])]
    under = [pin_layer(y, zoom), *behind, *mark_layers(labels=labels)]
    grey = {
        "data": {"name": "earlier"},
        "mark": {"type": "line", "tooltip": None, "strokeWidth": 1.4, "strokeJoin": "round", "opacity": 0.75},
        "encoding": {"x": x_time(), "y": y, "strokeDash": dash, "color": {"value": theme.MIXED}},
    }
    layers = [*under, *([grey] if earlier else []), band, line, dots(color, y), *cursor]
    return {"height": height, "layer": layers, "padding": PADDING, "config": CONFIG}


@cache
def role_steps(height: int) -> Spec:
    """Workers per role, as steps under the same time axis. Datasets: live, span, commands, events,
    breaches."""
    names = ("prefill", "decode", "mixed", "unassigned")
    color, dash = line_scales(names, [theme.ROLE_COLORS[n] for n in names], [theme.ROLE_DASHES[n] for n in names])
    y = y_value("d", None, ticks=3)
    y["axis"] = {**y["axis"], "tickMinStep": 1}
    line = {
        "data": {"name": "live"},
        "mark": {"type": "line", "tooltip": None, "interpolate": "step-after", "strokeWidth": 2},
        "encoding": {"x": x_time(), "y": y, "color": color, "strokeDash": dash},
    }
    cursor = cursor_layers(color, y, "d")
    return {
        "height": height,
        "layer": [pin_layer(y), *breach_layers(labels=False), *mark_layers(labels=False), line, *cursor],
        "padding": PADDING,
        "config": CONFIG,
    }


@cache
def routing_steps(num_lanes: int) -> Spec:
    """Routing settings as step lines, one lane each, under the same time axis. Datasets: live, labels, span."""
    y = {"field": "value", "type": "quantitative", "scale": {"nice": False, "zero": False}, "axis": BARE_AXIS}
    x = x_time(axis={**X_AXIS, "labels": False, "ticks": False})
    line = {
        "data": {"name": "live"},
        "mark": {"type": "line", "tooltip": None, "interpolate": "step-after", "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y, "detail": {"field": "line", "type": "nominal"}, "color": {"value": theme.ROUTING}},
    }
    text = {
        "type": "text",
        "tooltip": None,
        "align": {"expr": "datum.late ? 'right' : 'left'"},
        "baseline": "top",
        "fontSize": 11,
        "color": theme.MIXED,
    }
    labels = {
        "data": {"name": "labels"},
        "mark": text,
        "encoding": {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}},
    }
    pin = {"data": {"name": "span"}, "mark": {"type": "point", "opacity": 0}, "encoding": {"x": x, "y": y}}
    return {"height": LANE_PX * num_lanes, "layer": [pin, line, labels], "padding": PADDING, "config": CONFIG}


@cache
def limited() -> Spec:
    """What limited, as a band under the same time axis. Datasets: live, span."""
    x = x_time(axis={**X_AXIS, "labels": False, "ticks": False, "grid": False})
    extent = {"field": "value", "type": "quantitative", "scale": {"nice": False}, "axis": BARE_AXIS}
    pin = {"data": {"name": "span"}, "mark": {"type": "point", "opacity": 0}, "encoding": {"x": x, "y": extent}}
    at, limits = {**x, "field": "start"}, {"type": "rect", "height": BAND_PX, "y": BAND_PX / 2, "stroke": "transparent"}
    color = {"expr": f"datum.none ? '{theme.OK}' : '{theme.ATTENTION}'"}
    text = {"type": "text", "tooltip": None, "align": "left", "dx": 6, "y": BAND_PX / 2, "fontSize": 11}
    bars = {
        "data": {"name": "live"},
        "mark": {**limits, "color": color, "fillOpacity": {"expr": "datum.none ? 0.12 : 0.3"}},
        "encoding": {
            "x": at,
            "x2": {"field": "end"},
            "tooltip": {"field": "words", "type": "nominal", "title": "Limits"},
        },
    }
    names = {
        "data": {"name": "live"},
        "mark": {**text, "color": theme.MIXED},
        "encoding": {"x": at, "text": {"field": "label", "type": "nominal"}},
    }
    return {
        "height": BAND_PX,
        "layer": [pin, bars, names],
        "padding": {**PADDING, "top": 0, "bottom": 0},
        "config": CONFIG,
    }


@cache
def day_strip(height: int, colors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> Spec:
    """The last day, to brush, with what happened and the chosen window. Datasets: live, span, commands, events,
    breaches, window.

    The selection `brush` gives the chosen [from, to].
    """
    color, dash = line_scales([n for n, _, _ in colors], [c for _, c, _ in colors], [d for _, _, d in colors])
    y = y_value(".0%", None, ticks=2)
    x = x_time(axis={**X_AXIS, "tickCount": 12})
    line = {
        "data": {"name": "live"},
        "params": [{"name": "brush", "select": {"type": "interval", "encodings": ["x"]}}],
        "mark": {"type": "line", "tooltip": None, "strokeWidth": 1},
        "encoding": {"x": x, "y": y, "color": color, "strokeDash": dash},
    }
    pin = {
        "data": {"name": "span"},
        "mark": {"type": "point", "tooltip": None, "opacity": 0},
        "encoding": {"x": x, "y": y},
    }
    window = {
        "data": {"name": "window"},
        "mark": {"type": "rect", "tooltip": None, "color": theme.DECODE, "opacity": 0.14},
        "encoding": {"x": {**x, "field": "start"}, "x2": {"field": "end"}},
    }
    layers = [pin, *breach_layers(labels=False), window, *mark_layers(labels=False), line]
    return {"height": height, "layer": layers, "padding": PADDING, "config": CONFIG}


@cache
def explore(
    *, names: tuple[str, ...], number_format: str, title: str, compared: bool, height: int, time_format: str
) -> Spec:
    """Any metric. Drag to zoom (`zoom` gives [from, to]). The earlier window is dashed. Datasets: live, past, span,
    commands, events, breaches."""
    x = x_time(axis={**X_AXIS, "labelExpr": f"timeFormat(datum.value, '{time_format}')"})
    palette = [theme.CATEGORICAL[index % len(theme.CATEGORICAL)] for index in range(len(names))]
    laps = [index // len(theme.CATEGORICAL) for index in range(len(names))]
    legend: Spec = {"title": None, "orient": "bottom", "columns": 6, "labelLimit": 220}
    legend |= {"symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2}
    color, dash = line_scales(names, palette, [[1, 0] if lap == 0 else [4, 2] for lap in laps])
    color["legend"] = legend if len(names) > 1 else None
    y = y_value(number_format, title or None, ticks=6)
    band = {
        "data": {"name": "live"},
        "mark": {"type": "area", "opacity": 0.15, "line": False},
        "encoding": {
            "x": x,
            "y": {**y, "field": "lo"},
            "y2": {"field": "hi"},
            "color": color,
        },
    }
    line = {
        "data": {"name": "live"},
        "mark": {"type": "line", "strokeWidth": 1.8, "strokeJoin": "round"},
        "encoding": {"x": x, "y": y, "color": color, "strokeDash": dash},
    }
    past = {
        "data": {"name": "past"},
        "mark": {"type": "line", "strokeWidth": 1.5, "strokeDash": [5, 4], "opacity": 0.55},
        "encoding": {"x": x, "y": y, "color": color},
    }
    under = [pin_layer(y, "zoom", x), *breach_layers(), *mark_layers(labels=True, cursor=False), band]
    layers = [*under, *([past] if compared else []), line, dots(color, y)]
    return {"height": height, "layer": layers, "padding": PADDING, "config": CONFIG}


@cache
def timeline(num_rows: int) -> Spec:
    """A worker's life as bars, one row per worker, with what happened as rules. Datasets: live, span, commands, events.

    Time in which it was away is a hollow bar: it holds no role.
    """
    names = (*theme.ROLE_COLORS, "away")
    color = {
        "field": "role",
        "type": "nominal",
        "scale": {"domain": list(names), "range": [*(theme.ROLE_COLORS[name] for name in names[:-1]), "transparent"]},
        "legend": None,
    }
    y = {
        "field": "worker",
        "type": "nominal",
        "axis": {"title": None, "minExtent": AXIS_PX, "domain": False, "ticks": False},
    }
    x = {"field": "start", "type": "temporal", "axis": X_AXIS, "scale": {"nice": False}}
    encoding: Mapping[str, Any] = {"x": x, "x2": {"field": "end"}, "y": y}
    outline = {
        "stroke": {"expr": f"datum.role == 'away' ? '{theme.DANGER}' : 'transparent'"},
        "strokeDash": [3, 2],
        "strokeWidth": 1,
    }
    bars = {
        "data": {"name": "live"},
        "mark": {"type": "bar", "height": 22, "cornerRadius": 2, "opacity": 0.85, **outline},
        "encoding": {**encoding, "color": color},
    }
    text = {
        "data": {"name": "live"},
        "mark": {
            "type": "text",
            "align": "left",
            "dx": 6,
            "fontSize": 11,
            "color": {"expr": f"datum.role == 'away' ? '{theme.DANGER}' : '#ffffff'"},
            "clip": True,
        },
        "encoding": {"x": x, "y": y, "text": {"field": "text", "type": "nominal"}},
    }
    pin = {"data": {"name": "span"}, "mark": {"type": "point", "opacity": 0}, "encoding": {"x": {**x, "field": "t"}}}
    layers = [pin, bars, text, *mark_layers(labels=True, cursor=False)]
    return {
        "height": 30 * num_rows + LABEL_ROWS * ROW_PX + 30,
        "layer": layers,
        "padding": {**PADDING},
        "config": CONFIG,
    }


@cache
def stages() -> Spec:
    """One request's life as bars over seconds since its arrival, and where it went on. Datasets: live, marks, moves."""
    names = ["queued", "prefill", "handoff", "decode", "not attributed", "went on"]
    colors = [theme.MIXED, theme.PREFILL, "#a371f7", theme.DECODE, theme.MIXED, theme.MIXED]
    y = {
        "field": "stage",
        "type": "nominal",
        "sort": names,
        "axis": {"title": None, "domain": False, "ticks": False, "minExtent": 90},
    }
    x = {
        "field": "start",
        "type": "quantitative",
        "axis": {"title": "seconds after arrival", "format": "~s", "grid": True, "tickCount": 8},
    }
    bars = {
        "data": {"name": "live"},
        "mark": {"type": "bar", "tooltip": None, "height": 18, "cornerRadius": 2},
        "encoding": {
            "x": x,
            "x2": {"field": "end"},
            "y": y,
            "color": {"field": "stage", "type": "nominal", "scale": {"domain": names, "range": colors}, "legend": None},
        },
    }
    text = {
        "data": {"name": "live"},
        "mark": {"type": "text", "tooltip": None, "align": "left", "dx": 6, "fontSize": 12},
        "encoding": {
            "x": {**x, "field": "end"},
            "y": y,
            "text": {"field": "text", "type": "nominal"},
            "color": {"value": theme.MIXED},
        },
    }
    first = {
        "data": {"name": "marks"},
        "mark": {"type": "rule", "strokeDash": [3, 3], "color": theme.MIXED},
        "encoding": {"x": {**x, "field": "at"}},
    }
    label = {
        "data": {"name": "marks"},
        "mark": {
            "type": "text",
            "align": "left",
            "dx": 4,
            "baseline": "bottom",
            "y": -2,
            "fontSize": 11,
            "color": theme.MIXED,
        },
        "encoding": {"x": {**x, "field": "at"}, "text": {"field": "label", "type": "nominal"}},
    }
    layers = [first, label, bars, text, *_moves(x, y)]
    return {"height": 190, "layer": layers, "padding": {**PADDING, "top": 16}, "config": CONFIG}


def _moves(x: Spec, y: Spec) -> list[Spec]:
    """Moves of a request: a thin rule over its stages, a glyph and the target in a row below them."""
    at = {**x, "field": "at"}
    looks = {"color": by_kind(theme.EVENT_COLORS)}
    dashes = by_kind(theme.EVENT_DASHES)
    label = {
        "type": "text",
        "tooltip": None,
        "fontSize": 12,
        "color": theme.MIXED,
        "align": {"expr": "datum.late ? 'right' : 'left'"},
        "dx": {"expr": "datum.late ? -9 : 9"},
    }
    glyph = {"type": "point", "tooltip": None, "filled": True, "size": 70, "opacity": 1}
    rule = {"type": "rule", "tooltip": None, "strokeWidth": 1, "strokeDash": dashes, **looks}
    data = {"name": "moves"}
    return [
        {"data": data, "mark": rule, "encoding": {"x": at}},
        {"data": data, "mark": {**glyph, "shape": by_kind(theme.EVENT_SHAPES), **looks}, "encoding": {"x": at, "y": y}},
        {"data": data, "mark": label, "encoding": {"x": at, "y": y, "text": {"field": "label", "type": "nominal"}}},
    ]
