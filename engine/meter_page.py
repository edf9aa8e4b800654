"""The meter page's layout: where each value lies, and how indices and cursors are made. No reading, no writing.

    fixed head | info (msgpack) | counters (role x phase) | histograms (kind x bucket) | ring of step records

All little endian and 8-byte aligned. Enum values are stored as indices into append-only tuples, so a page of an earlier
version stays readable; any other change of the layout counts LAYOUT up, and a reader refuses what it does not know.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from engine.histogram import NUM_BUCKETS
from engine.readings import LATENCY_KINDS, DeviceInfo, RoleChange
from engine.types import PHASES, ROLES, WorkerState

DEFAULT_RING_RECORDS: Final = 4096
SUFFIX: Final = ".meter"
#: Append only, like ROLES and PHASES: the page outlives a version.
STATES: Final = tuple(WorkerState)

MAGIC: Final = b"PHLMETR1"
LAYOUT: Final = 1
MAX_CHANGES: Final = 24  # of role and state that a page tells of: more than there are between two reads
INFO_BYTES: Final = 4096

FIXED = struct.Struct("<8sqqqqq")  # magic, layout, ring records, epoch, pid, process start ticks; written once
SEQ: Final = 48
STEP_BEGIN: Final = 56  # monotonic second, -1.0 when idle
HEARTBEAT: Final = 64  # monotonic second
ANCHOR: Final = 72  # Unix minus monotonic seconds
CLOSED: Final = 80
STATE = struct.Struct("<qqqd")  # role, state, fence, role_since_unix_s
STATE_AT: Final = 88
LOAD = struct.Struct("<7qd")
LOAD_AT: Final = 120
NUM_RECORDS: Final = 184
INFO_LEN: Final = 192
INFO_AT: Final = 200
#: What the load says of the running step: the info's last bytes, 0 in the pages of versions that did not say.
STEP = struct.Struct("<2d")
STEP_AT: Final = INFO_AT + INFO_BYTES - STEP.size
COUNTERS = struct.Struct("<6d")  # busy_s, cpu_s, flops, bytes, tokens, steps
COUNTERS_AT: Final = INFO_AT + INFO_BYTES
HISTOGRAMS_AT: Final = COUNTERS_AT + len(ROLES) * len(PHASES) * COUNTERS.size
HISTOGRAM_BYTES: Final = NUM_BUCKETS * 8
RING_AT: Final = HISTOGRAMS_AT + len(LATENCY_KINDS) * HISTOGRAM_BYTES
# start_s, end_s (monotonic), role * 2 + phase, tokens, context_tokens, batch, flops, bytes, cpu_s
RECORD = struct.Struct("<ddqqqqddd")
F64 = struct.Struct("<d")
I64 = struct.Struct("<q")

ROLE_INDEX = {role: index for index, role in enumerate(ROLES)}
PHASE_INDEX = {phase: index for index, phase in enumerate(PHASES)}
STATE_INDEX = {state: index for index, state in enumerate(STATES)}
KIND_INDEX = {kind: index for index, kind in enumerate(LATENCY_KINDS)}

# A cursor is opaque to its holder: low bits of the epoch, then the number of records ever written, so that a cursor
# kept from an earlier epoch is recognised and starts over.
CURSOR_SHIFT: Final = 43
EPOCH_MASK: Final = (1 << 20) - 1


@dataclass(frozen=True, slots=True)
class Clock:
    """Where a meter takes 'now' from when it is read; SimFleet passes its own."""

    monotonic: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time


class Info(msgspec.Struct, kw_only=True):
    """The rarely changing part of a page."""

    worker_id: str
    epoch: int
    model_id: str
    address: str
    hostname: str
    host_id: str
    simulated: bool
    device: DeviceInfo
    max_context: int
    started_unix_s: float
    reason: str = ""
    changes: list[RoleChange] = []  # the last MAX_CHANGES, oldest first
    num_changes: int = 0  # since the epoch began


def page_bytes(ring_records: int) -> int:
    return RING_AT + ring_records * RECORD.size


def process_start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, as /proc says; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def cursor_records(cursor: int) -> int:
    """Number of step records that a cursor stands behind, since its epoch began."""
    return cursor & ((1 << CURSOR_SHIFT) - 1)
