"""Messages between a gateway and the plane, as msgpack over one WebSocket (`/api/v1/gateways/connect`, service token).

Down: tables (full, versioned), acknowledgements, and what the other gateways take. Up: request records, numbered,
resent until acknowledged and bounded; and one beat a second, which carries what has not ended yet.
"""

from __future__ import annotations

from typing import Any

import msgspec

from control.gateway.usage import Usage
from control.types.commands import Departure
from control.types.requests import RequestRecord
from control.types.routing import RoutingTable


class LinkMessage(msgspec.Struct, frozen=True, tag=True):
    """Base; the tag is the class name."""


class GatewayHello(LinkMessage, frozen=True, tag=True):
    gateway_id: str
    address: str
    version: str
    started_unix_s: float


class TablePush(LinkMessage, frozen=True, tag=True):
    table: RoutingTable


class Records(LinkMessage, frozen=True, tag=True):
    """Records `first_seq ..` in order. The plane writes each (gateway_id, seq) once."""

    first_seq: int
    records: list[RequestRecord]


class RecordsAck(LinkMessage, frozen=True, tag=True):
    up_to_seq: int


class Beat(LinkMessage, frozen=True, tag=True):
    """What a gateway holds now, and its cumulative counts since it started."""

    at_unix_s: float
    num_in_flight: int
    num_waiting_first_token: int
    oldest_waiting_s: float | None
    num_arrived: int
    num_rejected: int
    num_failed: int
    num_completed: int
    num_cancelled: int
    num_records_dropped: int
    by_rule: dict[str, int]
    cpu_s: float
    table_version: int
    departures: list[Departure] = []  # of the last minutes
    usage: Usage | None = None  # None: an older gateway, which takes no Elsewhere
    loop_late_s: float | None = None  # the event loop's worst lateness since the last beat; None: it does not say
    num_overdue: int | None = None  # requests past a bound of theirs now; None: it does not say
    cpu_wait_s: float | None = None  # in which its loop had work and no core, since it started; None: it does not say


class Elsewhere(LinkMessage, frozen=True, tag=True):
    """What all other gateways of the fleet take, and have used since the last one of these."""

    usage: Usage


AnyLinkMessage = GatewayHello | TablePush | Records | RecordsAck | Beat | Elsewhere
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(AnyLinkMessage)


def encode(message: LinkMessage) -> bytes:
    return _encoder.encode(message)


def decode(payload: bytes) -> Any:
    """Raises msgspec.MsgspecError on anything that is not one of our messages."""
    return _decoder.decode(payload)
