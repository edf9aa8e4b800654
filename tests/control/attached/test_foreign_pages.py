"""A metrics page becomes samples; one that is broken, hostile or huge becomes one clear error."""

from __future__ import annotations

import pytest

from control.fleets.attached.exposition import MAX_PAGE_BYTES, MAX_SAMPLES, PageError, Sample, parse_page

PAGE = """# HELP vllm:x A thing.
# TYPE vllm:x counter
vllm:x_total{engine="0",model_name="m"} 3.0
vllm:x_total{engine="1",model_name="m"} 4.5
python_info{version="3.11"} 1.0
vllm:bad NaN
vllm:worse{le="+Inf"} +Inf
"""


def test_only_series_that_were_asked_for_are_read():
    page = parse_page(PAGE, ["vllm:x"])
    assert set(page.samples) == {"vllm:x_total"}
    assert page.named("vllm:x_total", engine="1") == (Sample({"engine": "1", "model_name": "m"}, 4.5),)
    assert page.named("vllm:x_total", engine="7") == page.named("vllm:y") == ()


def test_values_that_are_no_numbers_are_refused_and_told():
    page = parse_page(PAGE, ["vllm:"])
    assert set(page.samples) == {"vllm:x_total"}
    assert tuple(page.refused.values()) == ("vllm:bad is nan: unknown", "vllm:worse is inf: unknown")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vllm:x{engine=\"0\" 3.0\n", "not a Prometheus text page"),
        ("vllm:x three\n", "not a Prometheus text page"),
        ("vllm:x{engine=\"" + "0" * 5000 + "\"} 1\n", "has 5019 characters"),
        ("vllm:x 1\n" * (MAX_SAMPLES + 1), f"has {MAX_SAMPLES + 1} samples"),
        ("x" * (MAX_PAGE_BYTES + 1), f"has {MAX_PAGE_BYTES + 1} bytes"),
    ],
)  # fmt: skip
def test_a_page_that_cannot_be_used_says_why(text: str, words: str):
    with pytest.raises(PageError, match=words):
        parse_page(text, ["vllm:"])


def test_a_page_of_something_else_is_empty():
    assert parse_page("<html>\n<body>Not found</body>\n", ["vllm:"]).samples == {}
