"""Numbers as a person reads them: at most three significant digits, always with a unit, "n/a" for unknown.

Only text is made here; a missing value is never shown as 0, and units of the metric catalogue are spelt out once.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

NA = "n/a"
PREFIXES: tuple[tuple[float, str], ...] = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
BINARY: tuple[tuple[float, str], ...] = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))

#: Unit of the catalogue -> the words beside the number. Units that need scaling have a branch in `quantity`.
UNIT_WORDS: dict[str, str] = {
    "rps": "req/s",
    "req/s": "req/s",
    "requests/s": "req/s",
    "tokens": "tokens",
    "tokens/s": "tok/s",
    "tokens_per_s": "tok/s",
    "count": "",
    "workers": "workers",
    "requests": "requests",
    "sequences": "sequences",
    "w": "W",
    "watts": "W",
}

COUNTED = frozenset({"count", "workers", "requests", "sequences", "tokens"})  # whole unless they are means


def number(value: float | None) -> str:
    """Three significant digits with thousands separators: 1.23, 12.3, 123, 12,300. Exact zero is "0"."""
    if value is None or not math.isfinite(value):
        return NA
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    rounded = round(value, 2 - magnitude)
    magnitude = math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{min(max(0, 2 - magnitude), 12)}f}"


def count(value: float | None) -> str:
    """A whole number, exact: 12,345."""
    return NA if value is None else f"{round(value):,}"


def percent(fraction: float | None) -> str:
    """A fraction 0..1 as a percentage: 92.4%, 3.10%, 100%."""
    if fraction is None or not math.isfinite(fraction):
        return NA
    return f"{number(fraction * 100)}%"


def duration(seconds: float | None) -> str:
    """850 µs, 340 ms, 1.20 s, 12 min 3 s, 3 h 20 min, 4 d 2 h."""
    if seconds is None or not math.isfinite(seconds):
        return NA
    if seconds == 0:
        return "0 s"
    size = abs(seconds)
    if size < 1e-3:
        return f"{number(seconds * 1e6)} µs"
    if size < 0.9995:
        return f"{number(seconds * 1e3)} ms"
    if size < 99.95:
        return f"{number(seconds)} s"
    return _long_duration(seconds)


def _long_duration(seconds: float) -> str:
    whole = round(seconds)
    for big, small, words in ((86_400, 3_600, ("d", "h")), (3_600, 60, ("h", "min")), (60, 1, ("min", "s"))):
        if abs(whole) >= big:
            large, rest = divmod(whole, big)
            tail = f" {rest // small} {words[1]}" if rest // small else ""
            return f"{large} {words[0]}{tail}"
    return f"{whole} s"


def scaled(value: float | None, unit: str) -> str:
    """Decimal prefixes: 12.3 TFLOP/s."""
    if value is None or not math.isfinite(value):
        return NA
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{number(value / size)} {prefix}{unit}"
    return f"{number(value)} {unit}".rstrip()


def size(num_bytes: float | None) -> str:
    """Bytes with binary prefixes: 512 MiB."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return NA
    for scale, unit in BINARY:
        if abs(num_bytes) >= scale:
            return f"{number(num_bytes / scale)} {unit}"
    return f"{number(num_bytes)} B"


def rate(value: float | None) -> str:
    return NA if value is None else f"{number(value)} req/s"


def quantity(value: float | None, unit: str) -> str:
    """A value of the metric catalogue in its unit."""
    plain = unit.strip().lower()
    if plain in ("fraction", "0..1"):
        return percent(value)
    if plain in ("s", "seconds"):
        return duration(value)
    if plain in ("bytes", "b"):
        return size(value)
    if plain in ("bytes/s", "b/s"):
        return scaled(value, "B/s")
    if plain in ("flop/s", "flops", "flops/s"):
        return scaled(value, "FLOP/s")
    if plain == "flop":
        return scaled(value, "FLOP")
    if value is None:
        return NA
    if plain in COUNTED and value == round(value) and abs(value) < 1000:
        return f"{value:.0f} {UNIT_WORDS[plain]}".rstrip()
    return f"{number(value)} {UNIT_WORDS.get(plain, unit)}".rstrip()


def axis_format(unit: str) -> tuple[str, str]:
    """(d3 number format, axis title) for a metric's unit."""
    plain = unit.strip().lower()
    if plain in ("fraction", "0..1"):
        return ".0%", ""
    if plain in ("s", "seconds"):
        return "~s", "seconds"
    return "~s", UNIT_WORDS.get(plain, unit)


def zone(name: str | None) -> tzinfo:
    """The viewer's time zone, or UTC where the browser's name for it is unknown here."""
    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def clock(unix_s: float | None, tz: tzinfo) -> str:
    """14:03:07"""
    return NA if unix_s is None else datetime.fromtimestamp(unix_s, tz).strftime("%H:%M:%S")


def moment(unix_s: float | None, tz: tzinfo) -> str:
    """2026-05-12 14:03:07"""
    return NA if unix_s is None else datetime.fromtimestamp(unix_s, tz).strftime("%Y-%m-%d %H:%M:%S")


def step(seconds: int) -> str:
    """A bucket's width: 1 s, 10 s, 1 min, 1 h."""
    for big, unit in ((3600, "h"), (60, "min")):
        if seconds >= big and seconds % big == 0:
            return f"{seconds // big} {unit}"
    return f"{seconds} s"


def time_axis(range_s: float) -> str:
    """d3 time format of an axis over `range_s`."""
    if range_s <= 600:
        return "%H:%M:%S"
    return "%H:%M" if range_s <= 86_400 else "%d %b %H:%M"
