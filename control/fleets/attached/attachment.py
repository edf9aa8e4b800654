"""What an operator says to attach a fleet: kind, targets, model, device. Checked here, once, with clear refusals.

Nothing secret is in it: a token is named by the file that holds it, which is read at each look.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from control.errors import CommandRefused
from control.fleets.attached.dialects import DIALECTS
from control.fleets.attached.gpu_join import GPU_FORM, parse_assignments
from control.fleets.attached.gpu_watch import exporter_urls
from control.fleets.attached.ledger import EngineIdentity
from control.fleets.attached.steering.controllers import FORM, WITHOUT_PAGES, Address, address_of
from control.fleets.attached.targets import (
    MAX_TARGETS,
    FileTargets,
    ListedTargets,
    RosterTargets,
    Target,
    TargetSource,
    parse_target,
)
from control.fleets.attached.types import Attachment, Permission
from control.types.workers import Role
from engine.device_catalogue import device_spec, model_spec
from engine.errors import EngineError
from engine.model_config import read_model_config
from engine.readings import DeviceInfo
from engine.work import ModelWork

NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
DTYPE_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "float8": 1.0}
LEAST_EVERY_S: Final = 0.5
LONGEST_EVERY_S: Final = 60.0
LARGEST_PEAK: Final = 1e18
LONGEST_LIMIT_S: Final = 3600.0
KINDS: Final = frozenset(DIALECTS) | WITHOUT_PAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked attachment: what is needed to look."""

    attachment: Attachment
    source: TargetSource
    work: ModelWork | None
    device: DeviceInfo
    allowed: tuple[Permission, ...] = ()
    controller: Address | None = None
    exporters: tuple[str, ...] = ()  # pages of what measures its GPUs
    gpus: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by worker, as the attachment says

    def gpus_said(self) -> dict[str, tuple[str, ...]]:
        """By worker, which GPUs are its by the word of the attachment, or of the registry as of now."""
        return {**{each.worker_id: each.gpus for each in self.source.targets() if each.gpus}, **self.gpus}

    def identity(self, target: Target) -> EngineIdentity:
        return EngineIdentity(
            worker_id=target.worker_id,
            address=target.url,
            simulated=self.attachment.simulated,
            device=self.device,
            num_devices=self.attachment.devices_per_worker,
            work=self.work,
        )

    @property
    def token_file(self) -> Path | None:
        return Path(self.attachment.token_file) if self.attachment.token_file else None


def plan_of(attachment: Attachment, allowed: Sequence[Permission] = ()) -> Plan:
    """Raises CommandRefused; nothing has been asked of any engine yet."""
    if not NAME.fullmatch(attachment.name):
        raise _refused("name", attachment.name, f"{NAME.pattern}")
    if attachment.kind not in KINDS:
        raise _refused("kind", attachment.kind, ", ".join(sorted(KINDS)))
    if not LEAST_EVERY_S <= attachment.every_s <= LONGEST_EVERY_S:
        raise _refused("every_s", attachment.every_s, f"{LEAST_EVERY_S:g}..{LONGEST_EVERY_S:g}")
    if not 1 <= attachment.devices_per_worker <= 1024:
        raise _refused("devices_per_worker", attachment.devices_per_worker, "1..1024")
    if not 1 <= attachment.max_workers <= MAX_TARGETS:
        raise _refused("max_workers", attachment.max_workers, f"1..{MAX_TARGETS}")
    if not 1 <= attachment.limit_s <= LONGEST_LIMIT_S:
        raise _refused("limit_s", attachment.limit_s, f"1..{LONGEST_LIMIT_S:g}")
    if [bool(attachment.targets), bool(attachment.targets_file), bool(attachment.controller)].count(True) != 1:
        raise CommandRefused(
            "give targets, or a file of targets, or a controller that lists them", field="targets", bound="one of them"
        )
    if attachment.kind in WITHOUT_PAGES and not attachment.controller:
        raise CommandRefused(f"{attachment.kind} is attached by its controller", field="controller", bound=FORM)
    controller = address_of(attachment) if attachment.controller else None
    if attachment.token_file and not _is(Path.is_file, attachment.token_file):
        raise _refused("token_file", attachment.token_file, "a file")
    source = _source_of(attachment)
    if attachment.kind == "openai":
        _check_all_mixed(source)
    dtype, work = _work_of(attachment)
    return Plan(
        attachment=attachment,
        source=source,
        work=work,
        device=_device_of(attachment, dtype),
        allowed=tuple(allowed),
        controller=controller,
        exporters=exporter_urls(attachment.gpu_metrics),
        gpus=_gpus_of(attachment, source),
    )


def engines_of(attachment: Attachment) -> frozenset[str]:
    """HOST:PORT of each engine that it lists; none where a controller does, or its file cannot be read now."""
    try:
        return frozenset(urlsplit(each.url).netloc for each in _source_of(attachment).targets())
    except CommandRefused:
        return frozenset()


def _gpus_of(attachment: Attachment, source: TargetSource) -> dict[str, tuple[str, ...]]:
    """By worker, as the attachment says."""
    found = parse_assignments(attachment.gpus)
    if found and not attachment.gpu_metrics:
        raise CommandRefused("GPUs are named, and no exporter that measures them", field="gpu_metrics", bound="a URL")
    unknown = sorted(set(found) - {each.worker_id for each in source.targets()})
    if unknown and not attachment.controller:
        raise CommandRefused(f"no worker is named {unknown[0]}", field="gpus", value=unknown[0], bound=GPU_FORM)
    return found


def _source_of(attachment: Attachment) -> TargetSource:
    if attachment.controller:
        return RosterTargets()
    if attachment.targets:
        return ListedTargets(map(parse_target, attachment.targets))
    return FileTargets(Path(attachment.targets_file).absolute())


def _check_all_mixed(source: TargetSource) -> None:
    """A plain server cannot hand KV over, so it has both phases."""
    for each in source.targets():
        if each.role is not Role.MIXED:
            raise CommandRefused(
                f"{each.worker_id} is a plain server, which serves both phases", field="role", value=each.role.value,
                bound="mixed",
            )  # fmt: skip


def _work_of(attachment: Attachment) -> tuple[str, ModelWork | None]:
    """Dtype of the weights, and the arithmetic of the model where its shape is known."""
    dtype = attachment.dtype
    if dtype and dtype not in DTYPE_BYTES:
        raise _refused("dtype", dtype, ", ".join(DTYPE_BYTES))
    if not attachment.model:
        return dtype or "bfloat16", None
    try:
        if _is(Path.is_dir, attachment.model):
            config = read_model_config(Path(attachment.model))
            num_bytes = DTYPE_BYTES[dtype or "bfloat16"]
            return dtype or "bfloat16", ModelWork(config, num_bytes, num_bytes)
        spec = model_spec(attachment.model)
    except EngineError as error:
        raise CommandRefused(str(error), field="model", value=attachment.model) from error
    if dtype:
        return dtype, ModelWork(spec.model, DTYPE_BYTES[dtype], DTYPE_BYTES[dtype])
    return spec.dtype, ModelWork(spec.model, spec.weight_dtype_bytes, spec.kv_dtype_bytes)


def _is(what: Callable[[Path], bool], path: str) -> bool:
    """What is too long for a name is nothing."""
    try:
        return what(Path(path))
    except OSError:
        return False


def _device_of(attachment: Attachment, dtype: str) -> DeviceInfo:
    """A device of the catalogue, or one that only the operator knows; what they say of its peaks counts."""
    told = {"peak_flops": attachment.peak_flops, "peak_bytes_per_s": attachment.peak_bytes_per_s}
    for name, value in told.items():
        if value is not None and not 0 < value < LARGEST_PEAK:
            raise _refused(name, value, f"above 0, below {LARGEST_PEAK:g}")
    known = {name: value for name, value in told.items() if value is not None}
    device = DeviceInfo(name="unknown", kind="cuda", dtype=dtype)
    if attachment.device:
        try:
            spec = device_spec(attachment.device)
        except EngineError as error:
            raise CommandRefused(str(error), field="device", value=attachment.device) from error
        device = DeviceInfo(
            name=spec.name,
            kind="cuda",
            memory_bytes=spec.memory_bytes,
            peak_flops=spec.flops.get(dtype),
            peak_bytes_per_s=spec.bytes_per_s,
            dtype=dtype,
            peak_source="datasheet",
        )
    return msgspec.structs.replace(device, **known, peak_source="assumed") if known else device


def _refused(field: str, value: object, bound: str) -> CommandRefused:
    return CommandRefused(f"{field} {value!r} cannot be used", field=field, value=value, bound=bound)
