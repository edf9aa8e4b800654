"""One page of dcgm-exporter as readings per GPU: names, units and bounds, and what to say of a series that is missing.

Read from dcgm-exporter 4.5.3-4.8.2 (`internal/pkg/rendermetrics`, `etc/default-counters.csv`). The label of the host is
`Hostname` there and `hostname` in what follows it; of a GPU `UUID`, in its 1.x spelling `uuid`. A value outside of its
bounds is refused and named, never clipped: a ratio of 1.2 is not 1, and DCGM's own word for "no value" is a number near
2^63. Not decided here: whose GPU it is (`gpu_join`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from control.fleets.attached.exposition import PageError, Sample, parse_page
from control.fleets.attached.types import Finding

MAX_GPUS: Final = 4096
_MIB: Final = 1024.0 * 1024.0
_PROFILING: Final = (
    "it is one of the exporter's default counters: profiling needs a datacenter GPU (Volta or newer), the right to "
    "profile (SYS_ADMIN), and no other profiler on that GPU"
)


def _counter(*names: str) -> str:
    lines = " and ".join(f"`{name}, gauge, ...`" for name in names)
    return f"add {lines} to a file of counters, and start the exporter with -f FILE"


@dataclass(frozen=True, slots=True)
class Field:
    """One quantity: the sum of its series, times `unit`. Below 0 or above `most` it is refused."""

    names: tuple[str, ...]
    unit: float
    most: float
    remedy: str


_SM: Final = ("DCGM_FI_PROF_SM_ACTIVE",)
_NVLINK: Final = ("DCGM_FI_PROF_NVLINK_TX_BYTES", "DCGM_FI_PROF_NVLINK_RX_BYTES")

#: By field of `engine.readings.DeviceReading`.
FIELDS: Final[Mapping[str, Field]] = MappingProxyType(
    {
        "tensor_active": Field(("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",), 1.0, 1.0, _PROFILING),
        "dram_active": Field(("DCGM_FI_PROF_DRAM_ACTIVE",), 1.0, 1.0, _PROFILING),
        "sm_active": Field(_SM, 1.0, 1.0, _counter(*_SM)),
        "gpu_utilization": Field(("DCGM_FI_DEV_GPU_UTIL",), 0.01, 1.0, "a GPU that is cut by MIG has none"),
        "memory_used_bytes": Field(("DCGM_FI_DEV_FB_USED",), _MIB, 2.0**44, _counter("DCGM_FI_DEV_FB_USED")),
        "power_w": Field(("DCGM_FI_DEV_POWER_USAGE",), 1.0, 20_000.0, _counter("DCGM_FI_DEV_POWER_USAGE")),
        "nvlink_bytes_per_s": Field(_NVLINK, 1.0, 1e13, _counter(*_NVLINK)),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG instance of it, at one look. `values`: of FIELDS, those that are known."""

    uuid: str
    index: str  # as the exporter counts: "0"; of a MIG instance "0.3"
    hosts: tuple[str, ...]  # as the exporter calls its host, and as we reach the exporter
    pods: tuple[str, ...] = ()  # NAMESPACE/POD: who has it on Kubernetes; several where it is shared
    values: Mapping[str, float]

    @property
    def name(self) -> str:
        return f"{self.hosts[0]}/{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPage:
    """One exporter at one look."""

    gpus: tuple[Gpu, ...]
    findings: tuple[Finding, ...]  # of all its GPUs


def read_gpus(text: str, host: str) -> GpuPage:
    """The GPUs of one page. `host`: where the page is from. Raises PageError."""
    page = parse_page(text, (name for field in FIELDS.values() for name in field.names))
    lines: dict[tuple[str, str], list[tuple[str, Sample]]] = {}
    for name, samples in page.samples.items():
        for sample in samples:
            lines.setdefault(_identity(sample), []).append((name, sample))
    if len(lines) > MAX_GPUS:
        raise PageError(f"the page has {len(lines)} GPUs", field="gpus", value=len(lines), bound=f"{MAX_GPUS}")
    refused = dict(page.refused)
    gpus = tuple(_gpu(identity, found, host, refused) for identity, found in lines.items())
    found = (*_states(gpus), *(Finding(quantity="", state="refused", series=words) for words in refused.values()))
    return GpuPage(gpus=gpus, findings=found)


def _identity(sample: Sample) -> tuple[str, str]:
    """(UUID, index with the MIG instance)."""
    labels, instance = sample.labels, sample.labels.get("GPU_I_ID", "")
    index = labels.get("gpu", "?")
    return labels.get("UUID") or labels.get("uuid", ""), f"{index}.{instance}" if instance else index


def _gpu(identity: tuple[str, str], lines: list[tuple[str, Sample]], host: str, refused: dict[str, str]) -> Gpu:
    """`refused` is added to: one line per series."""
    labels = lines[0][1].labels
    hosts = (labels.get("Hostname") or labels.get("hostname", ""), host)
    series = {name: sample.value for name, sample in lines}
    gpu = Gpu(
        uuid=identity[0],
        index=identity[1],
        hosts=tuple(dict.fromkeys(each for each in hosts if each)) or ("?",),
        pods=tuple(sorted({pod for _, sample in lines if (pod := _pod(sample.labels))})),
        values={},
    )
    values = {}
    for quantity, field in FIELDS.items():
        parts = [series.get(name) for name in field.names]
        for name, part in zip(field.names, parts, strict=True):
            if part is not None and not 0.0 <= part * field.unit <= field.most:
                bound = field.most / field.unit
                refused.setdefault(name, f"{name} of {gpu.name} is {part:g}: not within 0..{bound:g}")
                parts = [None]
        known = [part for part in parts if part is not None]
        if len(known) == len(field.names):
            values[quantity] = sum(known) * field.unit
    return Gpu(uuid=gpu.uuid, index=gpu.index, hosts=gpu.hosts, pods=gpu.pods, values=values)


def _pod(labels: Mapping[str, str]) -> str:
    pod, space = labels.get("pod") or labels.get("pod_name", ""), labels.get("namespace") or labels.get("pod_namespace")
    return f"{space}/{pod}" if pod and space else pod


def _states(gpus: Iterable[Gpu]) -> list[Finding]:
    """Found where any GPU has it."""
    known = {quantity for gpu in gpus for quantity in gpu.values}
    return [
        Finding(quantity=quantity, state="found", series=" + ".join(field.names))
        if quantity in known
        else Finding(quantity=quantity, state="absent", series=" + ".join(field.names), remedy=field.remedy)
        for quantity, field in FIELDS.items()
    ]
