"""Records of a gateway that ended while the plane was away: kept on disk, and handed in by the next gateway.

They go to the plane under the hello of the gateway that made them, with their own numbers, so the plane knows them
again and writes none twice. Decided here: the files, and that one process hands in a file. Not here: when
(`control.gateway.plane_link`).
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import msgspec

from control.gateway import link
from control.types.requests import RequestRecord

log = logging.getLogger(__name__)

SUFFIX: Final = ".records"
MAX_BATCH: Final = 500


class Unsent(msgspec.Struct, frozen=True):
    """What one gateway could not hand in: its records from `first_seq` on."""

    hello: link.GatewayHello
    first_seq: int
    records: list[RequestRecord]

    @property
    def last_seq(self) -> int:
        return self.first_seq + len(self.records) - 1


class PlaneSocket(Protocol):
    """What is needed of a WebSocket."""

    def send(self, message: bytes, /) -> Awaitable[None]: ...

    def recv(self) -> Awaitable[str | bytes]: ...


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Unsent)


def keep(folder: Path, unsent: Unsent) -> Path | None:
    """Write the file, whole or not at all. None, and a line in the log, when the disk does not take it."""
    path = folder / f"{unsent.hello.gateway_id}{SUFFIX}"
    scratch = path.with_suffix(".new")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(_encoder.encode(unsent))
        os.replace(scratch, path)
    except OSError as error:
        log.error("%d request records are lost: they cannot be kept in %s: %s", len(unsent.records), path, error)
        return None
    log.info("%d request records are kept in %s for the next gateway", len(unsent.records), path)
    return path


def found_in(folder: Path) -> Iterator[Path]:
    """Files that wait to be handed in, oldest name first."""
    return iter(sorted(folder.glob(f"*{SUFFIX}")))


async def hand_in(path: Path, connected: Callable[[link.GatewayHello], Awaitable[PlaneSocket]]) -> bool:
    """Send one file's records and delete it once the plane has them. False when another process is at it.

    `connected` opens a link with this hello. Raises what the link raises; the file then stays.
    """
    with _alone(path) as payload:
        if payload is None:
            return False
        unsent = _decoder.decode(payload)
        socket = await connected(unsent.hello)
        for start in range(0, len(unsent.records), MAX_BATCH):
            batch = unsent.records[start : start + MAX_BATCH]
            await socket.send(link.encode(link.Records(first_seq=unsent.first_seq + start, records=batch)))
        while not _is_durable(await socket.recv(), unsent.last_seq):
            pass
        os.unlink(path)
    log.info("handed in %d request records of gateway %s", len(unsent.records), unsent.hello.gateway_id)
    return True


def _is_durable(payload: str | bytes, last_seq: int) -> bool:
    message = link.decode(payload) if isinstance(payload, bytes) else None
    return isinstance(message, link.RecordsAck) and message.up_to_seq >= last_seq


@contextmanager
def _alone(path: Path) -> Iterator[bytes | None]:
    """The file's content while nobody else reads it; None when somebody does, or has just handed it in."""
    try:
        file = open(path, "rb")  # noqa: SIM115  closed below, with the lock
    except FileNotFoundError:
        yield None
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield file.read() if path.exists() else None
