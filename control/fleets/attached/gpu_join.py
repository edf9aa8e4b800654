"""Which GPUs are a worker's, and their readings as one: pure.

Decided here: how GPUs are named, and how those of one worker become one reading. Ratios are the mean over its GPUs,
power, memory and NVLink their sum, and a sum that lacks a GPU is unknown. A GPU measures no phase: of a worker in one
role it is that phase's, of a mixed one both in one, and the note says so.

`UUID` (GPU-..., MIG-...), `HOST/INDEX`, `HOST/*` (all of that host), `pod:NAMESPACE/POD` or `pod:POD`; several are
joined by commas. A worker of which nothing is said has the GPUs of the pod that is named as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from control.errors import CommandRefused
from control.fleets.attached.gpu_page import FIELDS, Gpu
from control.types.workers import Role
from engine.readings import DeviceReading

GPU_FORM: Final = "WORKER=GPU[,GPU...], GPU one of UUID, HOST/INDEX, HOST/*, pod:NAMESPACE/POD"
MAX_GPUS_OF_ONE: Final = 1024
_GPU: Final = re.compile(r"pod:[^\s,]{1,200}|[^\s,/]{1,200}/(\d{1,4}(\.\d{1,4})?|\*)|(GPU|MIG)-[\w-]{1,80}")
_SUMMED: Final = ("memory_used_bytes", "power_w", "nvlink_bytes_per_s")


def parse_gpus(text: str, worker_id: str) -> tuple[str, ...]:
    """The names in `text`. Raises CommandRefused."""
    names = tuple(each.strip() for each in text.split(","))
    for each in names:
        if not _GPU.fullmatch(each):
            raise CommandRefused(f"{worker_id}: {each!r} names no GPU", field="gpus", value=each, bound=GPU_FORM)
    if len(names) > MAX_GPUS_OF_ONE:
        raise CommandRefused(
            f"{worker_id} has {len(names)} GPUs", field="gpus", value=len(names), bound=f"1..{MAX_GPUS_OF_ONE}"
        )
    return names


def parse_assignments(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """`WORKER=GPU,GPU` each. Raises CommandRefused."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        worker_id, equals, gpus = text.partition("=")
        if not equals or not worker_id or worker_id in found:
            raise CommandRefused(f"{text!r} gives no worker its GPUs", field="gpus", value=text, bound=GPU_FORM)
        found[worker_id] = parse_gpus(gpus, worker_id)
    return found


def gpus_of(worker_id: str, names: Sequence[str], gpus: Iterable[Gpu]) -> tuple[Gpu, ...]:
    """Those of one worker. `names`: what was said of it; none: by its pod."""
    wanted = names or (f"pod:{worker_id}",)
    return tuple(gpu for gpu in gpus if any(_is_meant(gpu, name) for name in wanted))


def unknown_names(names: Sequence[str], gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """What was said and no exporter has."""
    return tuple(name for name in names if not any(_is_meant(gpu, name) for gpu in gpus))


def _is_meant(gpu: Gpu, name: str) -> bool:
    if name.startswith("pod:"):
        pod = name.removeprefix("pod:")
        return any(pod in (each, each.rpartition("/")[2]) for each in gpu.pods)
    host, slash, index = name.rpartition("/")
    return (host in gpu.hosts and index in ("*", gpu.index)) if slash else name == gpu.uuid


def joined(
    worker_id: str, role: Role, gpus: Sequence[Gpu], at_unix_s: float, *, note: str = "", others: Iterable[str] = ()
) -> DeviceReading:
    """All GPUs of one worker as one device. `note`: why some are missing; `others`: workers that share one of them."""
    known = {name: [gpu.values[name] for gpu in gpus if name in gpu.values] for name in FIELDS}
    values: dict[str, float | None] = {}
    for name, found in known.items():
        has_all = len(found) == len(gpus) and not note
        values[name] = (sum(found) if has_all else None) if name in _SUMMED else _mean(found)
    shared = ", ".join(sorted(others))
    notes = (
        note,
        "both phases in one: a GPU measures no phase, and this worker serves both" if role is Role.MIXED else "",
        f"shared with {shared}: the work of all of them" if shared else "",
    )
    memory = values.pop("memory_used_bytes")
    return DeviceReading(
        uuid=worker_id,
        at_unix_s=at_unix_s,
        memory_used_bytes=None if not gpus or memory is None else int(memory),
        note="; ".join(each for each in notes if each),
        **(values if gpus else {}),
    )


def sharers(of_each: Mapping[str, Sequence[Gpu]]) -> dict[str, set[str]]:
    """By worker the others that have one of its GPUs too."""
    owners: dict[tuple[str, str], set[str]] = {}
    for worker_id, gpus in of_each.items():
        for gpu in gpus:
            owners.setdefault((gpu.uuid, gpu.name), set()).add(worker_id)
    return {
        worker_id: set().union(*(owners[gpu.uuid, gpu.name] for gpu in gpus)) - {worker_id}
        for worker_id, gpus in of_each.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
