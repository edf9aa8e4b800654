"""One look at a fleet as gauge samples: per worker, per role and for the fleet. Pure.

Decided here: how gauges of several workers become one: counts and powers add up, `kv_usage` is blocks held over blocks,
waiting ages take the oldest, device activity is the mean over devices. What nobody measured has no sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from control.points import GAUGES, Line, Row, lines_of
from engine.readings import DeviceReading, MeterReading


def gauge_rows(
    readings: Sequence[MeterReading], devices: Iterable[DeviceReading], second: int
) -> dict[tuple[Line, int], Row]:
    """Samples of this look, all in `second`."""
    measured = {device.uuid: device for device in devices if device.uuid}
    groups: dict[Line, list[MeterReading]] = {}
    for reading in readings:
        for line in lines_of(reading, reading.role):
            groups.setdefault(line, []).append(reading)
    return {(line, second): _sample(_values(members, measured)) for line, members in groups.items()}


def _values(members: list[MeterReading], measured: dict[str, DeviceReading]) -> dict[str, float | None]:
    loads = [reading.load for reading in members]
    blocks = sum(load.kv_blocks_total for load in loads)
    uuids = sorted({reading.device.uuid for reading in members} & measured.keys())
    found = [measured[uuid] for uuid in uuids]
    unknown = {name for reading in members for name in reading.unknown}
    powers = [device.power_w for device in found if device.power_w is not None]
    values: dict[str, float | None] = {
        "num_workers": float(len(members)),
        "queued_prefill_tokens": float(sum(load.queued_prefill_tokens for load in loads)),
        "num_running": float(sum(load.num_running for load in loads)),
        "num_waiting": float(sum(load.num_waiting for load in loads)),
        "oldest_wait_s": max(load.oldest_wait_s for load in loads),
        "kv_usage": sum(load.kv_blocks_held for load in loads) / blocks if blocks else None,
        "tensor_active": _mean([device.tensor_active for device in found]),
        "dram_active": _mean([device.dram_active for device in found]),
        "gpu_utilization": _mean([device.gpu_utilization for device in found]),
        "power_w": sum(powers) if powers else None,
    }
    return {name: None if name in unknown else value for name, value in values.items()}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _sample(values: dict[str, float | None]) -> Row:
    row: Row = {}
    for name, value in values.items():
        if value is not None:
            row[GAUGES[name]] = 1.0
            row[f"sum_{name}"] = row[f"min_{name}"] = row[f"max_{name}"] = value
    return row
