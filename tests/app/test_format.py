"""Numbers as a person reads them."""

from __future__ import annotations

from datetime import UTC

import pytest

from app import format, words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (float("nan"), "n/a"),
        (0, "0"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (999.6, "1,000"),
        (12_345, "12,300"),
        (0.0123456, "0.0123"),
        (-4.567, "-4.57"),
    ],
)
def test_a_number_has_three_significant_digits_and_unknown_is_not_zero(value: float | None, text: str) -> None:
    assert format.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "n/a"),
        (0, "0 s"),
        (0.00085, "850 µs"),
        (0.3404, "340 ms"),
        (0.9999, "1.00 s"),
        (12.34, "12.3 s"),
        (99.97, "1 min 40 s"),
        (723, "12 min 3 s"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (180_000, "2 d 2 h"),
    ],
)
def test_a_duration_takes_the_unit_that_fits(seconds: float | None, text: str) -> None:
    assert format.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9241, "fraction", "92.4%"),
        (1.0, "fraction", "100%"),
        (None, "fraction", "n/a"),
        (0.25, "s", "250 ms"),
        (3.2e9, "bytes/s", "3.20 GB/s"),
        (1.98e15, "flop/s", "1.98 PFLOP/s"),
        (536_870_912, "bytes", "512 MiB"),
        (3.21, "rps", "3.21 req/s"),
        (7, "count", "7"),
        (7.25, "workers", "7.25 workers"),
        (None, "count", "n/a"),
    ],
)
def test_a_quantity_carries_its_unit(value: float | None, unit: str, text: str) -> None:
    assert format.quantity(value, unit) == text


def test_an_unknown_time_zone_falls_back_to_utc() -> None:
    assert format.zone("Middle/Earth") is UTC
    assert format.clock(0.0, format.zone(None)) == "00:00:00"


def test_a_bucket_width_reads_in_its_own_unit() -> None:
    assert [format.step(step) for step in (1, 10, 60, 600, 3600)] == ["1 s", "10 s", "1 min", "10 min", "1 h"]


@pytest.mark.parametrize(
    ("now", "then", "unit", "told"),
    [
        (0.62, 0.58, "fraction", "Decode 62.0%: 4.00 points more than yesterday (58.0%)."),
        (3.0, 4.0, "requests/s", "Decode 3.00 req/s: 25.0% less than yesterday (4.00 req/s)."),
        (0.5, 0.5, "fraction", "Decode 50.0%: as yesterday."),
        (0.5, None, "fraction", "Decode: nothing to compare."),
        (3.0, 0.0, "requests/s", "Decode 3.00 req/s: 3.00 req/s more than yesterday (0 req/s)."),
    ],
)
def test_a_difference_is_in_words(now: float | None, then: float | None, unit: str, told: str) -> None:
    assert words.difference("Decode", now, then, "yesterday", unit) == told
