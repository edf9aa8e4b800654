"""Reads the meters and devices of one host for the plane. A plain class: the Ray fleet wraps it as an actor.

Decided here: which pages belong to this fleet, and that one call returns a whole host. Not here: what the numbers mean
(`control.accounting`). Cursors are the caller's, by worker, and know their epoch:
an answer that got lost is simply read again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import msgspec

from engine.devices import NvmlReader
from engine.errors import EngineError
from engine.meter_reader import MeterReader, scan
from engine.readings import DeviceReading, MeterReading

ReadDevices = Callable[[], list[DeviceReading]]


class NodeReading(msgspec.Struct, frozen=True):
    """One look at one host."""

    readings: list[MeterReading]
    devices: list[DeviceReading]
    problems: list[str]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(NodeReading)


def decode(payload: bytes) -> NodeReading:
    return _decoder.decode(payload)


class NodeAgent:
    """The meter pages of one host's shared-memory folder; readers stay open between calls."""

    def __init__(self, shm_dir: str, read_devices: ReadDevices | None = None) -> None:
        """`read_devices` None: this host's NVIDIA devices, where it has any."""
        self._shm_dir = Path(shm_dir)
        self._read_devices = read_devices or NvmlReader().read
        self._readers: dict[Path, MeterReader] = {}

    def read(self, worker_ids: Iterable[str], cursors: Mapping[str, int]) -> bytes:
        """An encoded NodeReading of these workers, with the step records since their cursors."""
        wanted = frozenset(worker_ids)
        readings, problems = [], []
        for path in scan(self._shm_dir) if self._shm_dir.is_dir() else []:
            if path.stem not in wanted:
                continue
            try:
                readings.append(self._read_one(path, cursors))
            except EngineError as error:
                self._forget(path)
                problems.append(str(error))
        return _encoder.encode(NodeReading(readings, self._devices(problems), problems))

    def _read_one(self, path: Path, cursors: Mapping[str, int]) -> MeterReading:
        reader = self._readers.get(path)
        if reader is None:
            reader = self._readers[path] = MeterReader(path)
        return reader.read(cursors.get(path.stem, 0))

    def _devices(self, problems: list[str]) -> list[DeviceReading]:
        try:
            return self._read_devices()
        except EngineError as error:
            problems.append(str(error))
            return []

    def _forget(self, path: Path) -> None:
        with contextlib.suppress(KeyError):
            self._readers.pop(path).close()
