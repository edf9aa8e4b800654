"""Lines of metrics pages: the quick way to read one says what prometheus_client says, for whatever stands in it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from control.fleets.attached.exposition import MAX_VALUE, PageError, parse_page

Rows = list[tuple[str, dict[str, str], float]]


def ours(text: str) -> Rows:
    return [
        (name, dict(e.labels), e.value)
        for name, found in parse_page(text, ("vllm", "a")).samples.items()
        for e in found
    ]


def theirs(text: str) -> Rows:
    families = text_string_to_metric_families(text)
    return [(s.name, s.labels, s.value) for family in families for s in family.samples if math.isfinite(s.value)]


@pytest.mark.parametrize(
    "line",
    [
        "vllm:tokens_total 5",
        'vllm:tokens_total{model_name="tiny",engine="0"} 5.0',
        'vllm:tokens_total{model_name="tiny",engine="0",} 5e3',
        'vllm:tokens_bucket{le="+Inf"} 5',
        "vllm:tokens_total 5 1700000000000",
        "vllm:info{config=\"{'a': 1}\"} 1",
        'vllm:info{text="a \\"quoted\\" word, and \\\\ more"} 1',
        'vllm:info{text="a # b"} 1',
        'vllm:info{a="1", b="2"} 1',
        "vllm:info{} 1",
        "vllm:tokens_total   5",
        "vllm:tokens_total\t5",
        "vllm:gauge -0.5",
        "vllm:gauge NaN",
        "vllm:gauge +Inf",
    ],
)
def test_a_line_is_read_as_prometheus_reads_it(line: str):
    assert ours(f"{line}\n") == theirs(f"{line}\n")


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.text(alphabet='ab {}\\",=# é', max_size=6), max_size=3
    ),
    st.floats(-MAX_VALUE, MAX_VALUE),
)
def test_whatever_stands_in_labels_is_read_as_prometheus_reads_it(labels: dict[str, str], value: float):
    escaped = {name: each.replace("\\", "\\\\").replace('"', '\\"') for name, each in labels.items()}
    words = ",".join(f'{name}="{each}"' for name, each in escaped.items())
    line = f"a{{{words}}} {value!r}\n"
    assert ours(line) == theirs(line) == [("a", labels, value)]


@pytest.mark.parametrize("line", ["a 1_000", "a one", 'a{b="1" 1', "a", "a 1.2.3", 'a{1b="c"} 1'])
def test_a_line_that_is_none_refuses_the_page(line: str):
    with pytest.raises(PageError, match="not a Prometheus text page"):
        parse_page(f"{line}\n", ("a",))


def test_a_value_that_nothing_counts_up_to_is_refused_by_name():
    page = parse_page("a 1e300\nab -1e300\nac 5\n", ("a",))
    assert set(page.samples) == {"ac"}
    assert page.refused == {"a": "a is 1e+300: beyond 1e+24", "ab": "ab is -1e+300: beyond 1e+24"}
