"""The roofline chart: points under the roofs of their devices, on log axes, as a constant spec and its datasets. Pure.

A roof is min(FLOP/s, intensity x bytes/s): its slope is the device's bandwidth, its flat its FLOP/s, and they meet at
the ridge. Solid: the peak. Dashed: what is achievable. All arithmetic of the page is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import ceil, floor, log10

import pyarrow as pa

from app import cards, format, frames, theme
from app.layers import AXIS_PX, CONFIG, Spec
from control.types.roofline import Roof, Roofline, RooflinePoint
from control.types.workers import Phase

NAMES = ("prefill", "decode")
COLORS = (theme.PREFILL, theme.DECODE)
SHAPES = ("circle", "diamond")
LEAST_X, MOST_X = 1.0, 10_000.0
POINTS = pa.schema(
    [("x", pa.float64()), ("y", pa.float64()), ("phase", pa.string()), ("batch", pa.float64()), ("label", pa.string()),
     ("words", pa.string())]
)  # fmt: skip
ROOFS = pa.schema([("x", pa.float64()), ("y", pa.float64()), ("roof", pa.string()), ("kind", pa.string())])
RIDGES = pa.schema([("x", pa.float64()), ("y", pa.float64()), ("label", pa.string())])


# --- values ------------------------------------------------------------


def ridge(roof: Roof) -> float | None:
    """FLOP per byte from which on the device's FLOP/s limit, not its bandwidth."""
    if not roof.peak_flops or not roof.peak_bytes_per_s:
        return None
    return roof.peak_flops / roof.peak_bytes_per_s


def limit(roof: Roof, intensity: float) -> float | None:
    """FLOP/s that are achievable at this intensity."""
    if not roof.achievable_flops or not roof.achievable_bytes_per_s:
        return None
    return min(roof.achievable_flops, intensity * roof.achievable_bytes_per_s)


def roof_of(found: Roofline, point: RooflinePoint) -> Roof | None:
    return next((each for each in found.roofs if each.name == point.roof), None)


def of_limit(found: Roofline, point: RooflinePoint) -> float | None:
    """What a point reaches of what is achievable at its own intensity."""
    roof = roof_of(found, point)
    most = limit(roof, point.intensity) if roof is not None else None
    return point.flops_per_s / most if most else None


# --- datasets ------------------------------------------------------------


def datasets(found: Roofline) -> dict[str, bytes]:
    low_x, high_x = _bounds([each.intensity for each in found.points], LEAST_X, MOST_X)
    lines = [row for roof in found.roofs for row in _roof_rows(roof, low_x, high_x)]
    heights = [each.flops_per_s for each in found.points] + [y for x, y, _, _ in lines if x >= LEAST_X]
    low_y, high_y = _bounds(heights)
    return {
        "live": frames.arrow(pa.Table.from_pylist(_point_rows(found), POINTS)),
        "roofs": frames.arrow(_table(lines, ROOFS)),
        "ridges": frames.arrow(_table(_ridge_rows(found.roofs, low_y), RIDGES)),
        "span": frames.arrow(pa.table({"x": [low_x, high_x], "y": [low_y, high_y]})),
    }


def _table(rows: Sequence[tuple[float | str, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _bounds(values: Sequence[float], least: float | None = None, most: float | None = None) -> tuple[float, float]:
    """Whole decades around the values."""
    known = [each for each in (*values, least, most) if each is not None and each > 0] or [1.0, 10.0]
    low, high = 10.0 ** floor(log10(min(known))), 10.0 ** ceil(log10(max(known)))
    return low, max(high, 10 * low)


def _roof_rows(roof: Roof, low_x: float, high_x: float) -> list[tuple[float, float, str, str]]:
    """Both lines of one device, bent at their ridges: x, y, roof, kind."""
    rows = []
    for kind, flops, num_bytes in (
        ("peak", roof.peak_flops, roof.peak_bytes_per_s),
        ("achievable", roof.achievable_flops, roof.achievable_bytes_per_s),
    ):
        if flops and num_bytes:
            corners = sorted({low_x, max(low_x, min(high_x, flops / num_bytes)), high_x})
            rows += [(x, min(flops, x * num_bytes), roof.name, kind) for x in corners]
    return rows


def _ridge_rows(roofs: Sequence[Roof], low_y: float) -> list[tuple[float, float, str]]:
    """x, y, label."""
    known = [(at, roof.name) for roof in roofs if (at := ridge(roof)) is not None]
    return [(at, low_y, f"ridge of {name}: {format.number(at)} FLOP/byte") for at, name in known]


def _point_rows(found: Roofline) -> list[dict[str, float | str | None]]:
    labelled = _outermost(found)
    return [
        {
            "x": point.intensity,
            "y": point.flops_per_s,
            "phase": str(point.phase),
            "batch": point.tokens_per_step if point.phase == Phase.DECODE else None,
            "label": _label(point) if point in labelled else "",
            "words": f"{_label(point)}: {format.number(point.intensity)} FLOP/byte, "
            f"{format.scaled(point.flops_per_s, 'FLOP/s')}, {format.percent(of_limit(found, point))} of achievable",
        }
        for point in found.points
    ]


def _outermost(found: Roofline) -> list[RooflinePoint]:
    """Of each phase the first and the last point along the axis: more labels would cover each other."""
    shown = []
    for name in NAMES:
        own = sorted((each for each in found.points if each.phase == name), key=lambda each: each.intensity)
        shown += own[:1] + own[1:][-1:]
    return shown


def _label(point: RooflinePoint) -> str:
    if point.phase == Phase.DECODE and point.tokens_per_step is not None:
        return f"{point.worker_id}, batch {format.number(point.tokens_per_step)}"
    return point.worker_id


# --- spec ------------------------------------------------------------


@cache
def spec(height: int) -> Spec:
    """Datasets: live, roofs, ridges, span."""
    x = _axis("x", "FLOP per byte: how often each byte that is read is used")
    y = _axis("y", "FLOP/s while the phase runs")
    color = {"field": "phase", "type": "nominal", "legend": None, "scale": {"domain": NAMES, "range": COLORS}}
    shape = {"field": "phase", "type": "nominal", "legend": None, "scale": {"domain": NAMES, "range": SHAPES}}
    tip = {"field": "words", "type": "nominal", "title": "Worker"}
    roofs = {
        "data": {"name": "roofs"},
        "mark": {"type": "line", "tooltip": None, "strokeWidth": 1.5, "color": theme.MIXED},
        "encoding": {
            "x": x,
            "y": y,
            "detail": {"field": "roof", "type": "nominal"},
            "strokeDash": {
                "field": "kind",
                "type": "nominal",
                "legend": None,
                "scale": {"domain": ["peak", "achievable"], "range": [[1, 0], [5, 4]]},
            },
        },
    }
    ridges = {
        "data": {"name": "ridges"},
        "mark": {"type": "rule", "strokeWidth": 1, "strokeDash": [2, 3], "opacity": 0.7, "color": theme.MIXED},
        "encoding": {"x": x},
    }
    ridge_words = {
        "data": {"name": "ridges"},
        "mark": {"type": "text", "align": "left", "dx": 6, "dy": -8, "fontSize": 11, "color": theme.MIXED},
        "encoding": {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}},
    }
    points = {
        "data": {"name": "live"},
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.85},
        "encoding": {"x": x, "y": y, "color": color, "shape": shape, "tooltip": tip},
    }
    labels = {
        "data": {"name": "live"},
        "mark": {"type": "text", "align": "left", "dx": 9, "dy": 1, "fontSize": 11, "tooltip": None},
        "encoding": {"x": x, "y": y, "color": color, "text": {"field": "label", "type": "nominal"}},
    }
    pin = {"data": {"name": "span"}, "mark": {"type": "point", "opacity": 0}, "encoding": {"x": x, "y": y}}
    layers = [pin, ridges, ridge_words, roofs, points, labels]
    padding = {"left": 4, "right": 24, "top": 8, "bottom": 2}
    return {"height": height, "layer": layers, "padding": padding, "config": CONFIG}


def _axis(field: str, title: str) -> Spec:
    axis = {"title": title, "format": "~s", "gridOpacity": 0.35, "domain": False, "ticks": False, "tickCount": 6}
    if field == "y":
        axis |= {"minExtent": AXIS_PX, "maxExtent": AXIS_PX + 24}
    return {"field": field, "type": "quantitative", "scale": {"type": "log", "nice": False}, "axis": axis}


# --- words ------------------------------------------------------------


def legend(found: Roofline) -> list[cards.Line]:
    """Phases with the middle of their points, and the two kinds of roof."""
    shown = []
    for name, color in zip(NAMES, COLORS, strict=True):
        own = sorted(each.intensity for each in found.points if each.phase == name)
        value = f"median {format.number(own[len(own) // 2])} FLOP/byte" if own else "did not run"
        tag = "simulated" if found.simulated else found.provenance
        shown.append(cards.Line(label=name.capitalize(), value=value, color=color, dash="", tag=tag, tag_note=""))
    return shown


def rows(found: Roofline) -> list[tuple[cards.Cell, ...]]:
    """One row per point, the furthest under its roof first."""
    ordered = sorted(found.points, key=lambda each: of_limit(found, each) or 2.0)
    return [
        (
            cards.Cell(point.worker_id),
            cards.Cell(str(point.role)),
            cards.Cell(str(point.phase)),
            cards.Cell(format.number(point.tokens_per_step), num=True),
            cards.Cell(format.number(point.intensity), num=True),
            cards.Cell(format.scaled(point.flops_per_s, "FLOP/s"), num=True),
            cards.Cell(format.percent(of_limit(found, point)), num=True),
            cards.Cell(_limits(found, point)),
        )
        for point in ordered
    ]


HEAD = ("Worker", "Role", "Phase", "Tokens a step", "FLOP/byte", "FLOP/s in phase", "Of achievable", "Limited by")


def _limits(found: Roofline, point: RooflinePoint) -> str:
    roof = roof_of(found, point)
    at = ridge(roof) if roof is not None else None
    if at is None:
        return "n/a: the device's peaks are unknown"
    return "FLOP/s (right of the ridge)" if point.intensity >= at else "bandwidth (left of the ridge)"
