"""Whose GPU is whose, and several of them as one reading."""

from __future__ import annotations

import pytest

from control.errors import CommandRefused
from control.fleets.attached.gpu_join import gpus_of, joined, parse_assignments, sharers, unknown_names
from control.fleets.attached.gpu_page import Gpu, read_gpus
from control.types.workers import Role
from tests.control.attached.gpu_pages import UUIDS, gpu_lines, pod

PAGE = gpu_lines(0, extra=pod("prefill-0")) + gpu_lines(1, extra=pod("decode-0"), TENSOR_ACTIVE=0.21, POWER_USAGE=500)
GPUS = read_gpus(PAGE, "10.0.0.1").gpus


def names(gpus: tuple[Gpu, ...]) -> list[str]:
    return [each.name for each in gpus]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (("node-1/1",), ["node-1/1"]),
        (("10.0.0.1/0",), ["node-1/0"]),
        (("node-1/*",), ["node-1/0", "node-1/1"]),
        ((UUIDS[1],), ["node-1/1"]),
        (("pod:serving/prefill-0",), ["node-1/0"]),
        (("pod:decode-0",), ["node-1/1"]),
        (("node-2/0",), []),
    ],
)
def test_a_gpu_is_named_in_several_ways(said: tuple[str, ...], found: list[str]) -> None:
    assert names(gpus_of("w", said, GPUS)) == found


def test_a_worker_of_which_nothing_is_said_has_the_gpus_of_its_pod() -> None:
    assert names(gpus_of("decode-0", (), GPUS)) == ["node-1/1"]
    assert names(gpus_of("serving/prefill-0", (), GPUS)) == ["node-1/0"]
    assert gpus_of("w", (), GPUS) == ()


def test_gpus_of_one_worker_are_one_device() -> None:
    reading = joined("d0", Role.DECODE, GPUS, 5.0)
    assert (reading.uuid, reading.at_unix_s, reading.note) == ("d0", 5.0, "")
    assert reading.tensor_active == pytest.approx(0.41)  # the mean of 0.61 and 0.21
    assert reading.power_w == pytest.approx(1112.4)  # their sum
    assert reading.memory_used_bytes == 2 * 71000 * 2**20
    assert reading.nvlink_bytes_per_s == 1e10


def test_a_sum_that_lacks_a_gpu_is_unknown() -> None:
    half = read_gpus(gpu_lines(0) + gpu_lines(1, POWER_USAGE=-1), "h").gpus
    assert joined("d0", Role.DECODE, half, 5.0).power_w is None
    lone = joined("d0", Role.DECODE, GPUS[:1], 5.0, note="no exporter tells of node-2/0")
    assert (lone.power_w, lone.tensor_active, lone.note) == (None, 0.61, "no exporter tells of node-2/0")


def test_no_gpu_is_no_value() -> None:
    reading = joined("d0", Role.DECODE, (), 5.0, note="nobody knows")
    assert reading.tensor_active is reading.memory_used_bytes is reading.power_w is None


def test_a_mixed_workers_gpu_has_both_phases_in_one_and_says_so() -> None:
    assert "both phases in one" in joined("m0", Role.MIXED, GPUS, 5.0).note


def test_workers_that_share_a_gpu_are_told() -> None:
    of_each = {"a": GPUS, "b": GPUS[1:], "c": ()}
    assert sharers(of_each) == {"a": {"b"}, "b": {"a"}, "c": set()}
    assert joined("b", Role.DECODE, GPUS[1:], 5.0, others={"a"}).note == "shared with a: the work of all of them"


def test_names_that_no_exporter_has_are_found() -> None:
    assert unknown_names(("node-1/0", "node-9/0", "GPU-none"), GPUS) == ("node-9/0", "GPU-none")


def test_assignments_are_read() -> None:
    assert parse_assignments(["p0=node-1/0,node-1/1", f"d0={UUIDS[1]}"]) == {
        "p0": ("node-1/0", "node-1/1"),
        "d0": (UUIDS[1],),
    }


@pytest.mark.parametrize("text", ["p0", "p0=", "p0=7", "p0=node-1/x", "=node-1/0", "p0=node-1/0,"])
def test_an_assignment_that_names_no_gpu_is_refused(text: str) -> None:
    with pytest.raises(CommandRefused, match="GPU"):
        parse_assignments([text])
