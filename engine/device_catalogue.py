"""What data/devices.toml and data/models.toml say: peaks of devices, shapes of models, assumed costs. No hardware.

Unknown names raise CatalogueError; an unknown dtype of a known device is an unknown peak (None), never zero.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from engine.cost_model import CostModel
from engine.errors import CatalogueError
from engine.readings import DeviceInfo
from engine.types import ModelConfig

DATA_DIR = Path(__file__).resolve().parent.parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One device of data/devices.toml: dense decimal FLOP/s per dtype."""

    name: str
    driver_names: tuple[str, ...]
    memory_bytes: int
    bytes_per_s: float
    flops: dict[str, float]
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model of data/models.toml."""

    model: ModelConfig
    dtype: str
    weight_dtype_bytes: float
    kv_dtype_bytes: float
    cost: dict[str, float | str]  # efficiencies and overheads of CostModel, with their provenance
    source: str


@cache
def _tables(name: str) -> dict[str, dict[str, Any]]:
    path = DATA_DIR / name
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise CatalogueError(f"{path} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(f"{path} is not valid TOML: {error}") from error


def _entry(file: str, kind: str, name: str) -> dict[str, Any]:
    tables = _tables(file)
    if name not in tables:
        raise CatalogueError(f"unknown {kind} {name!r}; data/{file} knows {', '.join(sorted(tables))}")
    return tables[name]


def device_names() -> tuple[str, ...]:
    return tuple(sorted(_tables("devices.toml")))


def model_names() -> tuple[str, ...]:
    return tuple(sorted(_tables("models.toml")))


def device_spec(name: str) -> DeviceSpec:
    """Raises CatalogueError for an unknown name, listing those that are known."""
    entry = _entry("devices.toml", "device", name)
    return DeviceSpec(
        name=name,
        driver_names=tuple(entry["driver_names"]),
        memory_bytes=int(entry["memory_bytes"]),
        bytes_per_s=float(entry["bytes_per_s"]),
        flops={dtype: float(value) for dtype, value in entry["flops"].items()},
        source=entry["source"],
    )


def device_by_driver_name(driver_name: str) -> DeviceSpec | None:
    """The device that NVML calls `driver_name`; None when it is not in the catalogue."""
    for name in device_names():
        spec = device_spec(name)
        if driver_name in spec.driver_names:
            return spec
    return None


def model_spec(name: str) -> ModelSpec:
    """Raises CatalogueError for an unknown name, or for a shape that is not a ModelConfig."""
    entry = _entry("models.toml", "model", name)
    try:
        model = msgspec.convert({"model_id": name, **entry["shape"]}, ModelConfig)
    except msgspec.ValidationError as error:
        raise CatalogueError(f"data/models.toml: shape of {name}: {error}") from error
    return ModelSpec(
        model=model,
        dtype=entry["dtype"],
        weight_dtype_bytes=float(entry["weight_dtype_bytes"]),
        kv_dtype_bytes=float(entry["kv_dtype_bytes"]),
        cost=dict(entry["cost"]),
        source=entry["source"],
    )


def paced_device(device_name: str, *, dtype: str, index: int = 0, host_id: str = "") -> DeviceInfo:
    """The device that a paced worker pretends to be, with its datasheet peaks for `dtype`."""
    spec = device_spec(device_name)
    return DeviceInfo(
        name=spec.name,
        kind="paced",
        index=index,
        host_id=host_id,
        memory_bytes=spec.memory_bytes,
        peak_flops=spec.flops.get(dtype),
        peak_bytes_per_s=spec.bytes_per_s,
        dtype=dtype,
        peak_source="datasheet",
    )


def cost_model(device_name: str, model_name: str) -> CostModel:
    """Times of one model on one device of the catalogue. Raises CatalogueError when the device lacks the dtype."""
    device, model = device_spec(device_name), model_spec(model_name)
    if model.dtype not in device.flops:
        raise CatalogueError(f"device {device_name} has no peak for {model.dtype}, which model {model_name} needs")
    return CostModel(
        model=model.model,
        peak_flops=device.flops[model.dtype],
        peak_bytes_per_s=device.bytes_per_s,
        weight_dtype_bytes=model.weight_dtype_bytes,
        kv_dtype_bytes=model.kv_dtype_bytes,
        **model.cost,  # type: ignore[arg-type]
    )
