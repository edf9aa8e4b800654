"""What dcgm-exporter says of each GPU, in our units; what is out of bounds is refused, what is missing is unknown."""

from __future__ import annotations

import pytest

from control.fleets.attached.exposition import PageError
from control.fleets.attached.gpu_page import MAX_GPUS, read_gpus
from tests.control.attached.gpu_pages import UUIDS, default_page, gpu_lines, pod


def test_a_gpu_is_read_in_our_units() -> None:
    (gpu,) = read_gpus(gpu_lines(), "10.0.0.1").gpus
    assert (gpu.uuid, gpu.name, gpu.hosts) == (UUIDS[0], "node-1/0", ("node-1", "10.0.0.1"))
    assert gpu.values == {
        "tensor_active": 0.61,
        "dram_active": 0.35,
        "sm_active": 0.93,
        "gpu_utilization": 1.0,
        "memory_used_bytes": 71000 * 2**20,
        "power_w": 612.4,
        "nvlink_bytes_per_s": 5e9,
    }


def test_the_next_versions_spelling_says_the_same() -> None:
    renamed = gpu_lines().replace("Hostname=", "hostname=").replace("UUID=", "uuid=")
    assert read_gpus(renamed, "h").gpus == read_gpus(gpu_lines(), "h").gpus


@pytest.mark.parametrize("value", ["1.2", "-0.1", "NaN", "9223372036854775794", "+Inf"])
def test_a_value_that_no_ratio_can_have_is_refused_and_named(value: str) -> None:
    page = read_gpus(gpu_lines(TENSOR_ACTIVE=value), "h")
    assert "tensor_active" not in page.gpus[0].values
    assert page.gpus[0].values["dram_active"] == 0.35
    (refused,) = [each.series for each in page.findings if each.state == "refused"]
    assert refused.startswith("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE ")


def test_a_percentage_above_a_hundred_is_refused() -> None:
    page = read_gpus(gpu_lines(GPU_UTIL=101), "h")
    assert [each.series for each in page.findings if each.state == "refused"] == [
        "DCGM_FI_DEV_GPU_UTIL of node-1/0 is 101: not within 0..100"
    ]


def test_what_the_default_counters_lack_is_absent_with_what_adds_it() -> None:
    page = read_gpus(default_page(), "h")
    remedies = {each.quantity: each.remedy for each in page.findings if each.state == "absent"}
    assert remedies.keys() == {"sm_active", "nvlink_bytes_per_s"}
    assert "-f FILE" in remedies["sm_active"]
    assert not page.gpus[0].values.keys() & remedies.keys()


def test_a_rate_of_one_direction_alone_is_no_rate() -> None:
    assert "nvlink_bytes_per_s" not in read_gpus(gpu_lines(NVLINK_RX_BYTES=""), "h").gpus[0].values


def test_the_parts_of_a_gpu_that_mig_has_cut_are_told_apart() -> None:
    cut = ',GPU_I_PROFILE="1g.10gb",GPU_I_ID="{}"'
    page = read_gpus(gpu_lines(extra=cut.format(3)) + gpu_lines(extra=cut.format(4), TENSOR_ACTIVE=0.2), "h")
    assert {gpu.index: gpu.values["tensor_active"] for gpu in page.gpus} == {"0.3": 0.61, "0.4": 0.2}


def test_a_gpu_that_several_pods_share_is_one() -> None:
    (gpu,) = read_gpus(gpu_lines(extra=pod("a")) + gpu_lines(extra=pod("b")), "h").gpus
    assert gpu.pods == ("serving/a", "serving/b")


def test_a_page_of_something_else_has_no_gpus_and_one_without_end_is_refused() -> None:
    assert read_gpus("node_load1 2\n", "h").gpus == ()
    many = "".join(f'DCGM_FI_DEV_GPU_UTIL{{gpu="{num}",UUID="GPU-{num}"}} 1\n' for num in range(MAX_GPUS + 1))
    with pytest.raises(PageError, match=f"the page has {MAX_GPUS + 1} GPUs"):
        read_gpus(many, "h")
