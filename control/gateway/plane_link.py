"""The gateway's end of its WebSocket to the plane: tables and acknowledgements in, records and beats out.

Decided here: what is sent again after a break, and that the newest table is kept on disk, so that a gateway that starts
while the plane is away serves with it, and that records which could not be handed in outlive the gateway
(`control.gateway.unsent`). A gateway never waits for the plane. Not here: the messages (`control.gateway.link`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from control.auth import read_token
from control.errors import SettingsError
from control.gateway import link, unsent
from control.gateway.admission import Admission
from control.gateway.cpu_wait import cpu_waited_s
from control.gateway.fleet import Fleet
from control.gateway.records import RecordLog
from control.types.routing import RoutingTable

log = logging.getLogger(__name__)

BEAT_S: Final = 1.0
#: What leaves a worker is told sooner.
SOON_S: Final = 0.1
#: Records wait this long for company, so that a busy gateway sends few messages.
GATHER_S: Final = 0.2
FIRST_BACKOFF_S: Final = 0.2
LAST_BACKOFF_S: Final = 3.0
MAX_MESSAGE_BYTES: Final = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneAddress:
    """Where planes may listen, tried in turn, and where the token lies that they want to see."""

    urls: tuple[str, ...]
    run_dir: Path


class PlaneLink:
    """Keeps one connection to the plane. `run` lasts until cancelled."""

    def __init__(
        self,
        *,
        plane: PlaneAddress,
        hello: link.GatewayHello,
        fleet: Fleet,
        records: RecordLog,
        admission: Admission,
        accepts: Callable[[RoutingTable], bool],
        folder: Path | None = None,
    ) -> None:
        """`folder`: where table and records are kept; None: that of this run folder's own gateways."""
        self._plane = plane
        self._hello = hello
        self._fleet = fleet
        self._records = records
        self._admission = admission
        self._accepts = accepts
        self._is_linked = False
        self._turn = 0  # of the addresses
        kept = folder or plane.run_dir / "gateway"
        self._table_path = kept / "table.json"
        self._unsent_dir = kept / "unsent"

    async def run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            started_s = time.monotonic()
            try:
                await self._connect_once()
            except (OSError, TimeoutError, WebSocketException, SettingsError, msgspec.MsgspecError) as error:
                log.info("no link to the plane at %s: %s", self._url, error)
                self._turn += 1
            if time.monotonic() - started_s > LAST_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    @property
    def _url(self) -> str:
        return self._plane.urls[self._turn % len(self._plane.urls)]

    async def _connect_once(self) -> None:
        """One connection, from hello to its end."""
        async with self._opened(self._hello) as socket:
            log.info("linked to the plane at %s", self._url)
            senders = [
                asyncio.create_task(each)
                for each in (self._send_records(socket), self._send_beats(socket), self._hand_in_unsent())
            ]
            self._is_linked = True
            try:
                await self._receive(socket)
            finally:
                self._is_linked = False
                for sender in senders:
                    sender.cancel()
                await asyncio.gather(*senders, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _opened(self, hello: link.GatewayHello) -> AsyncIterator[ClientConnection]:
        """A socket to the plane that has said this hello."""
        token = read_token(self._plane.run_dir, "service")
        headers = {"Authorization": f"Bearer {token}"}
        async with connect(
            self._url, additional_headers=headers, max_size=MAX_MESSAGE_BYTES, compression=None, proxy=None
        ) as socket:
            await socket.send(link.encode(hello))
            yield socket

    async def _hand_in_unsent(self) -> None:
        """What earlier gateways have left; a file that cannot be handed in now is tried again at the next link."""
        for path in unsent.found_in(self._unsent_dir):
            try:
                async with contextlib.AsyncExitStack() as stack:
                    await unsent.hand_in(path, lambda hello: stack.enter_async_context(self._opened(hello)))
            except (OSError, WebSocketException, SettingsError, msgspec.MsgspecError) as error:
                log.warning("the records in %s are not handed in yet: %s", path, error)

    def keep_unsent(self) -> None:
        """At the end, after `flush`: what the plane does not have is left for the next gateway."""
        first, records = self._records.waiting
        if records:
            unsent.keep(self._unsent_dir, unsent.Unsent(self._hello, first, records))

    async def flush(self, limit_s: float = 3.0) -> None:
        """At the end: wait until the plane has all records, but not for long."""
        self._records.catch_up()
        if self._is_linked:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._records.all_acknowledged.wait()

    async def _receive(self, socket: ClientConnection) -> None:
        async for payload in socket:
            if isinstance(payload, str):
                raise msgspec.ValidationError("the plane sent text, not a link message")
            message = link.decode(payload)
            if isinstance(message, link.TablePush):
                self._take(message.table)
            elif isinstance(message, link.RecordsAck):
                self._records.acknowledge(message.up_to_seq)
            elif isinstance(message, link.Elsewhere):
                self._admission.gatekeeper.learn(message.usage, time.monotonic())

    def _take(self, table: RoutingTable) -> None:
        if self._accepts(table) and self._fleet.take_table(table):
            save_table(self._table_path, table)

    async def _send_records(self, socket: ClientConnection) -> None:
        """Everything that is not acknowledged, from the oldest on, then what comes."""
        seq = 0
        while True:
            self._records.has_new.clear()
            first, batch = self._records.batch_from(seq)
            if batch:
                await socket.send(link.encode(link.Records(first_seq=first, records=batch)))
                seq = first + len(batch)
            else:
                await self._records.has_new.wait()
            await asyncio.sleep(GATHER_S)

    async def _send_beats(self, socket: ClientConnection) -> None:
        while True:
            news = self._fleet.mover.departures.has_news
            news.clear()
            await socket.send(link.encode(self.beat(time.time(), time.monotonic())))
            await asyncio.sleep(SOON_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S - SOON_S):
                    await news.wait()

    def beat(self, now_unix_s: float, now_s: float) -> link.Beat:
        """What this gateway holds now, and its counts since it started."""
        admission = self._admission
        waiting = admission.waiting_since_s()
        return link.Beat(
            at_unix_s=now_unix_s,
            num_in_flight=len(admission.in_flight),
            num_waiting_first_token=len(waiting),
            oldest_waiting_s=now_s - min(waiting) if waiting else None,
            num_arrived=admission.num_arrived,
            num_rejected=admission.num_rejected,
            num_failed=admission.num_failed,
            num_completed=admission.num_completed,
            num_cancelled=admission.num_cancelled,
            num_records_dropped=self._records.num_dropped,
            by_rule=dict(admission.by_rule),
            cpu_s=time.process_time(),
            table_version=self._fleet.table.version if self._fleet.table else 0,
            usage=admission.gatekeeper.usage(),
            departures=self._fleet.mover.departures.told(),
            loop_late_s=admission.lateness.take(),
            num_overdue=admission.num_overdue(now_s),
            cpu_wait_s=cpu_waited_s(),
        )

    def load_kept_table(self) -> None:
        """Serve with the table of the last run until the plane sends one."""
        table = load_table(self._table_path)
        if table is not None and self._accepts(table):
            self._fleet.take_table(table, is_kept=True)


def save_table(path: Path, table: RoutingTable) -> None:
    """Replace the kept table in one step. A disk that cannot be written costs only the next start without a plane."""
    scratch = path.with_suffix(f".{os.getpid()}.new")  # gateways of one host keep the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(msgspec.json.encode(table))
        os.replace(scratch, path)
    except OSError as error:
        log.warning("the routing table cannot be kept in %s: %s", path, error)


def load_table(path: Path) -> RoutingTable | None:
    """The kept table; None when there is none or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=RoutingTable)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("the kept routing table %s cannot be read: %s", path, error)
        return None
