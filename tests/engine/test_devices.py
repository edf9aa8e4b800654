"""Devices: what the catalogue says, what NVML says through a fake, and that no driver failure is an exception."""

from __future__ import annotations

import json
import time
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pynvml
import pytest

from engine import calibrate, devices
from engine.calibrate import Calibration
from engine.device_catalogue import (
    cost_model,
    device_by_driver_name,
    device_names,
    device_spec,
    model_names,
    model_spec,
    paced_device,
)
from engine.errors import CatalogueError

CALIBRATION = Calibration(
    cpu=devices.cpu_name(),
    num_cores=calibrate.num_cores(),
    flops=2e11,
    bytes_per_s=3e10,
    thread_flops=1e11,
    thread_bytes_per_s=2e10,
    measured_unix_s=0.0,
    how="test",
)


@pytest.mark.parametrize("name", device_names())
def test_every_device_has_dense_peaks_and_a_source(name: str) -> None:
    spec = device_spec(name)
    assert spec.flops["bfloat16"] == spec.flops["float16"] > spec.flops["float32"] > 1e12
    assert spec.bytes_per_s > 1e11
    assert spec.memory_bytes > 20e9
    assert "datasheet" in spec.source
    if "float8" in spec.flops:
        assert spec.flops["float8"] == pytest.approx(2 * spec.flops["bfloat16"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-3.1-8b", 8.03), ("llama-3.1-70b-fp8", 70.55), ("smollm2-135m-instruct", 0.1345)]
)
def test_model_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    model = model_spec(name).model
    attention = model.hidden_size * model.head_dim * (2 * model.num_q_heads + 2 * model.num_kv_heads)
    layer = attention + 3 * model.hidden_size * model.intermediate_size + 2 * model.hidden_size
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    assert (model.num_layers * layer + embeddings + model.hidden_size) / 1e9 == pytest.approx(billions, rel=0.001)


@pytest.mark.parametrize("name", model_names())
def test_costs_of_models_are_tagged_assumed_and_make_a_cost_model(name: str) -> None:
    assert model_spec(name).cost["provenance"] == "assumed"
    assert cost_model("h100-sxm-80gb", name).provenance == "assumed"


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(CatalogueError, match="h100-sxm-80gb"):
        device_spec("h1000")
    with pytest.raises(CatalogueError, match=r"llama-3\.1-8b"):
        model_spec("gpt-9")
    with pytest.raises(CatalogueError, match="float8"):
        cost_model("a100-sxm-80gb", "llama-3.1-70b-fp8")


def test_a_dtype_that_the_device_lacks_is_an_unknown_peak() -> None:
    assert paced_device("a100-sxm-80gb", dtype="float8").peak_flops is None
    assert paced_device("h100-sxm-80gb", dtype="float8").peak_flops == 1979e12


def test_a_driver_name_finds_its_device() -> None:
    found = device_by_driver_name("NVIDIA H200")
    assert found is not None
    assert found.name == "h200-sxm-141gb"
    assert device_by_driver_name("Some GPU") is None


def test_a_cpu_without_calibration_has_unknown_ceilings() -> None:
    device = devices.cpu_device("h0", None)
    assert (device.ceiling_flops, device.peak_flops, device.peak_source) == (None, None, "unknown")


def test_a_calibrated_cpu_has_ceilings_and_no_datasheet_peak() -> None:
    device = devices.cpu_device("h0", CALIBRATION, num_shared_by=4)
    assert (device.ceiling_flops, device.thread_bytes_per_s, device.peak_flops) == (2e11, 2e10, None)
    assert (device.peak_source, device.num_shared_by, device.host_id) == ("calibrated", 4, "h0")


def test_a_cached_calibration_is_used_only_for_the_same_cpu_and_cores(tmp_path: Path) -> None:
    path = tmp_path / calibrate.FILE_NAME
    assert calibrate.load(tmp_path) is None
    path.write_text(json.dumps(asdict(CALIBRATION)))
    assert calibrate.calibrate(tmp_path) == CALIBRATION
    path.write_text(json.dumps(asdict(CALIBRATION) | {"num_cores": 4096}))
    assert calibrate.load(tmp_path) is None
    path.write_text("{broken")
    assert calibrate.load(tmp_path) is None


def test_a_calibration_of_an_earlier_method_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / calibrate.FILE_NAME
    path.write_text(json.dumps({key: value for key, value in asdict(CALIBRATION).items() if key != "method"}))
    assert calibrate.load(tmp_path) is None


def test_the_best_round_is_one_whose_threads_had_the_cores() -> None:
    alone_by_turns = calibrate.Round(rate=60e9, part=0.5)  # each had the memory to itself
    together = [calibrate.Round(rate=38e9, part=0.98), calibrate.Round(rate=41e9, part=0.93)]
    assert calibrate.best([alone_by_turns, *together]) == 41e9
    assert calibrate.best([alone_by_turns]) == 60e9


def test_time_in_which_a_thread_has_no_core_does_not_lower_its_rate() -> None:
    def half_asleep() -> None:
        start_s = time.thread_time()
        while time.thread_time() - start_s < 0.002:
            pass
        time.sleep(0.02)

    found = calibrate.run_round(1.0, [half_asleep], 0.0)
    assert found.rate > 1 / 0.01  # by the wall clock it is at most 1 / 0.022
    assert found.part < 0.5


@pytest.mark.integration
def test_measuring_gives_four_positive_ceilings() -> None:
    found = calibrate.measure(budget_s=0.02)
    assert found.flops >= found.thread_flops > 0
    assert found.bytes_per_s >= found.thread_bytes_per_s > 0


# --- NVML through a fake of pynvml -----------------------------------------------------------------------------------


def fake_nvml(*, gpm: bool = True, fail: str = "") -> Any:
    """One GPU, 70% busy, behind pynvml's own names and structures; `fail` names a function that raises."""
    names = (
        "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
        "NVML_GPM_METRIC_DRAM_BW_UTIL",
        "NVML_GPM_METRIC_SM_UTIL",
        "NVML_GPM_METRICS_GET_VERSION",
        "NVML_SUCCESS",
    )
    nvml = types.SimpleNamespace(samples=0, freed=0, **{name: getattr(pynvml, name) for name in names})

    def sample_alloc() -> Any:
        nvml.samples += 1
        return pynvml.c_nvmlGpmSample_t()

    def sample_free(_: object) -> None:
        nvml.freed += 1

    def metrics_get(request: Any) -> None:
        told = {names[0]: 90.0, names[1]: 40.0, names[2]: 95.0}
        by_id = {getattr(pynvml, name): value for name, value in told.items()}
        assert request.numMetrics == len(by_id)
        for metric in request.metrics[: request.numMetrics]:
            metric.value = by_id[metric.metricId]

    functions: dict[str, Any] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: f"handle-{index}",
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle-{uuid}",
        "nvmlDeviceGetName": lambda handle: b"NVIDIA H200",
        "nvmlDeviceGetUUID": lambda handle: "GPU-1",
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(total=150_000, used=5_000),
        "nvmlDeviceGetUtilizationRates": lambda handle: types.SimpleNamespace(gpu=70),
        "nvmlDeviceGetPowerUsage": lambda handle: 350_000,
        "nvmlGpmQueryDeviceSupport": lambda handle: types.SimpleNamespace(isSupportedDevice=int(gpm)),
        "nvmlGpmSampleAlloc": sample_alloc,
        "nvmlGpmSampleGet": lambda handle, sample: None,
        "nvmlGpmSampleFree": sample_free,
        "nvmlGpmMetricsGet": metrics_get,
    }

    def refuse(*_: object) -> None:
        raise RuntimeError("Not Supported")

    for name, function in functions.items():
        setattr(nvml, name, refuse if name == fail else function)
    nvml.c_nvmlGpmMetricsGet_t = pynvml.c_nvmlGpmMetricsGet_t
    return nvml


def test_gpm_needs_two_reads_and_then_gives_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml()
    monkeypatch.setattr(devices, "_nvml", lambda: nvml)
    reader = devices.NvmlReader()
    (first,) = reader.read(1.0)
    (second,) = reader.read(2.0)
    assert (first.tensor_active, first.gpu_utilization, first.power_w) == (None, 0.7, 350.0)
    assert "second read" in first.note
    assert (second.tensor_active, second.dram_active, second.sm_active, second.note) == (0.9, 0.4, 0.95, "")
    reader.close()
    assert nvml.samples == nvml.freed == 2


@pytest.mark.parametrize(
    ("fail", "missing"),
    [
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetUtilizationRates", "gpu_utilization"),
        ("nvmlGpmMetricsGet", "tensor_active"),
        ("nvmlGpmQueryDeviceSupport", "dram_active"),
    ],
)
def test_what_nvml_refuses_is_none_with_a_note(monkeypatch: pytest.MonkeyPatch, fail: str, missing: str) -> None:
    nvml = fake_nvml(fail=fail)
    monkeypatch.setattr(devices, "_nvml", lambda: nvml)
    reader = devices.NvmlReader()
    reader.read(1.0)
    (reading,) = reader.read(2.0)
    assert getattr(reading, missing) is None
    assert "Not Supported" in reading.note
    assert reading.memory_used_bytes == 5_000


@pytest.mark.parametrize("fail", ["nvmlGpmSampleAlloc", "nvmlGpmSampleGet", "nvmlGpmMetricsGet"])
def test_gpm_is_asked_again_a_while_after_an_error(monkeypatch: pytest.MonkeyPatch, fail: str) -> None:
    nvml, broken = fake_nvml(), fake_nvml(fail=fail)
    monkeypatch.setattr(devices, "_nvml", lambda: nvml)
    reader = devices.NvmlReader()
    reader.read(1.0)
    works = getattr(nvml, fail)
    setattr(nvml, fail, getattr(broken, fail))
    assert "Not Supported; asked again after 60 s" in reader.read(2.0)[0].note
    setattr(nvml, fail, works)
    assert "Not Supported" in reader.read(61.0)[0].note
    reader.read(62.0)
    (reading,) = reader.read(63.0)
    assert (reading.tensor_active, reading.note) == (0.9, "")
    reader.close()
    assert nvml.samples == nvml.freed


def test_a_device_before_hopper_says_that_it_has_no_gpm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_nvml", lambda: fake_nvml(gpm=False))
    (reading,) = devices.NvmlReader().read(1.0)
    assert reading.tensor_active is None
    assert "not supported" in reading.note


def test_a_host_without_a_driver_reads_nothing_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_nvml", lambda: fake_nvml(fail="nvmlDeviceGetCount"))
    reader = devices.NvmlReader()
    assert reader.read(1.0) == []
    assert "Not Supported" in reader.note
    assert devices.num_cuda_devices() == 0


def test_a_known_gpu_gets_its_datasheet_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_nvml", lambda: fake_nvml())
    device = devices.cuda_device(0, dtype="bfloat16", host_id="h0")
    assert (device.name, device.uuid, device.peak_flops, device.peak_bytes_per_s) == (
        "h200-sxm-141gb",
        "GPU-1",
        989e12,
        4.8e12,
    )
    assert device.memory_bytes == 150_000


def test_a_gpu_that_does_not_answer_has_unknown_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_nvml", lambda: fake_nvml(fail="nvmlDeviceGetName"))
    device = devices.cuda_device(1)
    assert (device.name, device.peak_flops, device.memory_bytes, device.peak_source) == (
        "cuda:1",
        None,
        None,
        "unknown",
    )
