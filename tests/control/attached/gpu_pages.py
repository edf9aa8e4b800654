"""Pages in the form of dcgm-exporter 4.5.3-4.8.2: its template's labels in their order. No GPU was asked."""

from __future__ import annotations

UUIDS = ("GPU-604ac76c-d9cf-fef3-62e9-d92044ab6e52", "GPU-0d4ef1a6-3a0b-64c5-a1e4-3c1c6b1b3f7e")
#: Of an H100 that is busy with prefill; percent, MiB and W as DCGM counts.
BUSY = {
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.61,
    "DCGM_FI_PROF_DRAM_ACTIVE": 0.35,
    "DCGM_FI_PROF_SM_ACTIVE": 0.93,
    "DCGM_FI_DEV_GPU_UTIL": 100,
    "DCGM_FI_DEV_FB_USED": 71000,
    "DCGM_FI_DEV_POWER_USAGE": 612.4,
    "DCGM_FI_PROF_NVLINK_TX_BYTES": 4e9,
    "DCGM_FI_PROF_NVLINK_RX_BYTES": 1e9,
}
DEFAULT_COUNTERS = ("TENSOR_ACTIVE", "DRAM_ACTIVE", "GPU_UTIL", "FB_USED", "POWER_USAGE")


def gpu_lines(index: int = 0, host: str = "node-1", extra: str = "", **changed: float | str) -> str:
    """One GPU. `changed`: the end of a series' name and its value instead; "" leaves it out."""
    series = {
        name: next((v for end, v in changed.items() if name.endswith(end)), value) for name, value in BUSY.items()
    }
    labels = (
        f'gpu="{index}",UUID="{UUIDS[index]}",pci_bus_id="00000000:0{index}:00.0",device="nvidia{index}",'
        f'modelName="NVIDIA H100 80GB HBM3",Hostname="{host}",DCGM_FI_DRIVER_VERSION="580.95.05"{extra}'
    )
    return "".join(f"{name}{{{labels}}} {value}\n" for name, value in series.items() if value != "")


def default_page(index: int = 0) -> str:
    """What the exporter has without -f."""
    lines = gpu_lines(index).splitlines(keepends=True)
    return "".join(line for line in lines if line.split("{")[0].endswith(DEFAULT_COUNTERS))


def pod(name: str, namespace: str = "serving") -> str:
    return f',container="engine",namespace="{namespace}",pod="{name}"'
