"""The devices of this host: what they are, and what NVML says they do. A device that does not answer is a note.

Peaks come from the catalogue (datasheet) and from `engine.calibrate` (measured ceiling); both are passed on, and which
of them a utilization uses is decided in `control.accounting`. Nothing here raises because of a driver.
"""

from __future__ import annotations

import math
import os
import time
from typing import Any, Final

from engine.calibrate import Calibration, cpu_name
from engine.device_catalogue import cost_model, device_by_driver_name, device_spec, model_spec, paced_device
from engine.readings import DeviceInfo, DeviceReading

__all__ = [
    "NvmlReader",
    "cost_model",
    "cpu_device",
    "cpu_name",
    "cuda_device",
    "device_spec",
    "model_spec",
    "num_cuda_devices",
    "paced_device",
]


def cpu_device(host_id: str, calibration: Calibration | None, *, num_shared_by: int = 1) -> DeviceInfo:
    """This host's CPU as one device, all cores together. It has no datasheet peak, only measured ceilings."""
    return DeviceInfo(
        name=cpu_name(),
        kind="cpu",
        host_id=host_id,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        ceiling_flops=calibration.flops if calibration else None,
        ceiling_bytes_per_s=calibration.bytes_per_s if calibration else None,
        thread_flops=calibration.thread_flops if calibration else None,
        thread_bytes_per_s=calibration.thread_bytes_per_s if calibration else None,
        dtype="float32",
        peak_source="calibrated" if calibration else "unknown",
        num_shared_by=num_shared_by,
    )


def _nvml() -> Any:
    """The pynvml module, initialised. Raises whatever it raises: callers turn that into a note."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def num_cuda_devices() -> int:
    """GPUs that the driver shows; 0 where there is no driver."""
    try:
        return int(_nvml().nvmlDeviceGetCount())
    except Exception:  # no library, no driver, no permission: all of them mean no usable GPU here
        return 0


def _visible_handle(nvml: Any, index: int) -> Any:
    """NVML handle of CUDA device `index`: CUDA_VISIBLE_DEVICES renumbers CUDA's devices, not NVML's."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    name = visible[index] if visible else str(index)
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


def cuda_device(index: int, *, dtype: str = "bfloat16", host_id: str = "", num_shared_by: int = 1) -> DeviceInfo:
    """CUDA device `index` of this process. Peaks are unknown when it is not in the catalogue or cut up by MIG."""
    try:
        nvml = _nvml()
        handle = _visible_handle(nvml, index)
        name, uuid = _text(nvml.nvmlDeviceGetName(handle)), _text(nvml.nvmlDeviceGetUUID(handle))
        memory_bytes: int | None = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except Exception:  # no driver answers: the device is unknown, which is not an error of the worker
        name, uuid, memory_bytes = f"cuda:{index}", "", None
    spec = device_by_driver_name(name) if not uuid.startswith("MIG-") else None
    return DeviceInfo(
        name=spec.name if spec else name,
        kind="cuda",
        index=index,
        uuid=uuid,
        host_id=host_id,
        memory_bytes=memory_bytes,
        peak_flops=spec.flops.get(dtype) if spec else None,
        peak_bytes_per_s=spec.bytes_per_s if spec else None,
        dtype=dtype,
        peak_source="datasheet" if spec else "unknown",
        num_shared_by=num_shared_by,
    )


_UNSUPPORTED: Final = "GPM: not supported by this device"
#: After an error GPM is left alone for so long: it may be a driver too old for it, or a device that was busy.
GPM_RETRY_S: Final = 60.0


class NvmlReader:
    """Reads every GPU of this host, and GPM between two reads where the device has it (Hopper and newer)."""

    def __init__(self) -> None:
        self._handles: list[tuple[str, Any]] = []
        self._samples: dict[str, Any] = {}  # GPM sample of the previous read, per uuid
        self._no_gpm: dict[str, tuple[str, float]] = {}  # per uuid: why it is not asked for GPM, and until when
        self.note = ""  # why there is nothing to read; "" when there is
        try:
            self._nvml = _nvml()
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                self._handles.append((_text(self._nvml.nvmlDeviceGetUUID(handle)), handle))
        except Exception as error:  # a host without GPUs is the common case
            self.note = f"NVML: {error}"

    def read(self, now_unix_s: float | None = None) -> list[DeviceReading]:
        """One reading per GPU; what a device does not answer is None, and `note` says why."""
        at = time.time() if now_unix_s is None else now_unix_s
        return [self._read_one(uuid, handle, at) for uuid, handle in self._handles]

    def _read_one(self, uuid: str, handle: Any, at_unix_s: float) -> DeviceReading:
        nvml = self._nvml
        notes: list[str] = []
        utilization = _ask(notes, "utilization", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        memory = _ask(notes, "memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
        power = _ask(notes, "power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        tensor, dram, sm = self._read_gpm(uuid, handle, at_unix_s, notes)
        return DeviceReading(
            uuid=uuid,
            at_unix_s=at_unix_s,
            tensor_active=tensor,
            dram_active=dram,
            sm_active=sm,
            gpu_utilization=utilization,
            memory_used_bytes=None if memory is None else int(memory),
            power_w=power,
            note="; ".join(notes),
        )

    def _read_gpm(
        self, uuid: str, handle: Any, at_unix_s: float, notes: list[str]
    ) -> tuple[float | None, float | None, float | None]:
        """Tensor, DRAM and SM activity since the previous read, 0..1."""
        why, until_unix_s = self._no_gpm.get(uuid, ("", -math.inf))
        if at_unix_s < until_unix_s:
            notes.append(why)
            return None, None, None
        try:
            problem, values = self._ask_gpm(uuid, handle)
            if problem == _UNSUPPORTED:
                self._no_gpm[uuid] = (problem, math.inf)
        except Exception as error:  # a missing symbol, an old driver, a lost device
            problem, values = f"GPM: {error}; asked again after {GPM_RETRY_S:.0f} s", (None, None, None)
            self._no_gpm[uuid] = (problem, at_unix_s + GPM_RETRY_S)
        if problem:
            notes.append(problem)
        return values

    def _ask_gpm(self, uuid: str, handle: Any) -> tuple[str, tuple[float | None, float | None, float | None]]:
        """Why there is nothing to read, and the values. Each sample is freed once, whatever fails."""
        nvml = self._nvml
        before = self._samples.pop(uuid, None)
        try:
            if before is None and not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                return _UNSUPPORTED, (None, None, None)
            sample = self._samples[uuid] = nvml.nvmlGpmSampleAlloc()
            try:
                nvml.nvmlGpmSampleGet(handle, sample)
            except Exception:
                nvml.nvmlGpmSampleFree(self._samples.pop(uuid))
                raise
            if before is None:
                return "GPM: needs a second read", (None, None, None)
            return "", _gpm_metrics(nvml, before, sample)
        finally:
            if before is not None:
                nvml.nvmlGpmSampleFree(before)

    def close(self) -> None:
        """Give the samples back."""
        for sample in self._samples.values():
            _ask([], "free", lambda sample=sample: self._nvml.nvmlGpmSampleFree(sample))
        self._samples.clear()
        self._handles.clear()


def _ask(notes: list[str], what: str, question: Any) -> float | None:
    """The answer, or None and a note."""
    try:
        answer = question()
    except Exception as error:  # every NVML failure becomes a note
        notes.append(f"{what}: {error}")
        return None
    return None if answer is None else float(answer)


def _gpm_metrics(nvml: Any, before: Any, after: Any) -> tuple[float | None, float | None, float | None]:
    """GPM percentages between two samples, as fractions; None for a metric that the device refuses."""
    wanted = (nvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, nvml.NVML_GPM_METRIC_DRAM_BW_UTIL, nvml.NVML_GPM_METRIC_SM_UTIL)
    request = nvml.c_nvmlGpmMetricsGet_t()
    request.version = nvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics = len(wanted)
    request.sample1, request.sample2 = before, after
    for index, metric in enumerate(wanted):
        request.metrics[index].metricId = metric
    nvml.nvmlGpmMetricsGet(request)
    tensor, dram, sm = (
        metric.value / 100 if metric.nvmlReturn == nvml.NVML_SUCCESS and 0 <= metric.value <= 100 else None
        for metric in request.metrics[: len(wanted)]
    )
    return tensor, dram, sm
