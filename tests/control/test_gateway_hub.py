from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec
import pytest

from control.gateway import link
from control.gateway.forecast import Need
from control.gateway.usage import Usage
from control.gateway_hub import POLICY_VIOLATION, REPLACED, TRY_AGAIN_LATER, GatewayHub, SocketClosed
from control.intake import Intake, IntakeFull
from control.progress import TablesSeen
from control.types.requests import RequestRecord
from control.types.routing import RoutingPolicy, RoutingTable
from tests.control.builders import NOW, record

HELLO = link.GatewayHello(gateway_id="g1", address="", version="1", started_unix_s=NOW)


class FakeSocket:
    """Both ends of a WebSocket in memory."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.sent: asyncio.Queue[link.LinkMessage] = asyncio.Queue()
        self.code: int | None = None
        self.idle = asyncio.Event()

    async def receive_bytes(self) -> bytes:
        self.idle.set()
        data = await self.inbox.get()
        self.idle.clear()
        if data is None:
            raise SocketClosed
        return data

    async def send_bytes(self, data: bytes) -> None:
        self.sent.put_nowait(link.decode(data))

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        self.code = code
        self.inbox.put_nowait(None)

    async def read(self) -> None:
        """Until the hub has taken all that was said."""
        async with asyncio.timeout(10):
            while not self.inbox.empty():
                self.idle.clear()
                await self.idle.wait()

    def say(self, message: link.LinkMessage) -> None:
        self.inbox.put_nowait(link.encode(message))


@dataclass
class Heard:
    """A hub and what it told its owner."""

    records: list[tuple[str, int, int]] = field(default_factory=list)
    beats: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    full: bool = False

    def hub(self) -> GatewayHub:
        return GatewayHub(
            durable_seq=self.durable, on_records=self.on_records, on_beat=self.on_beat, on_gone=self.gone.append
        )

    async def durable(self, spool: str) -> int:
        return 7

    def on_records(self, spool: str, first_seq: int, records: list[RequestRecord]) -> None:
        if self.full:
            raise IntakeFull("full")
        self.records.append((spool, first_seq, len(records)))

    def on_beat(self, gateway_id: str, beat: link.Beat) -> None:
        self.beats.append(gateway_id)


def table(version: int) -> RoutingTable:
    return RoutingTable(
        version=version, fleet_id="test", model_id="tiny", fence=1, num_devices=4, policy=RoutingPolicy(), workers=()
    )


def beat(table_version: int, usage: Usage | None = None) -> link.Beat:
    return link.Beat(
        at_unix_s=NOW,
        num_in_flight=0,
        num_waiting_first_token=0,
        oldest_waiting_s=None,
        num_arrived=0,
        num_rejected=0,
        num_failed=0,
        num_completed=0,
        num_cancelled=0,
        num_records_dropped=0,
        by_rule={},
        cpu_s=0.0,
        table_version=table_version,
        usage=usage,
    )


async def test_a_gateway_gets_the_table_and_its_last_durable_record_when_it_connects() -> None:
    heard = Heard()
    hub, socket = heard.hub(), FakeSocket()
    hub.push(table(5))
    socket.say(HELLO)
    serving = asyncio.create_task(hub.serve(socket))
    assert await socket.sent.get() == link.TablePush(table=table(5))
    assert await socket.sent.get() == link.RecordsAck(up_to_seq=7)
    assert hub.tables_seen() == TablesSeen(num_gateways=1, num_current=0)
    socket.say(beat(5))
    socket.say(link.Records(first_seq=8, records=[record()]))
    socket.inbox.put_nowait(None)
    await serving
    assert heard.beats == ["g1"]
    assert heard.records == [(f"g1@{NOW:.3f}", 8, 1)]
    assert heard.gone == ["g1"]
    assert hub.gateway_ids == []


async def test_a_beat_with_the_new_table_counts_as_current() -> None:
    hub, socket = Heard().hub(), FakeSocket()
    socket.say(HELLO)
    socket.say(beat(9))
    serving = asyncio.create_task(hub.serve(socket))
    await socket.sent.get()
    hub.push(table(9))
    assert isinstance(await socket.sent.get(), link.TablePush)
    assert hub.tables_seen() == TablesSeen(num_gateways=1, num_current=1)
    hub.acknowledge(f"g1@{NOW:.3f}", 12)
    assert await socket.sent.get() == link.RecordsAck(up_to_seq=12)
    await hub.close()
    await serving


async def test_gateways_are_told_what_the_others_take_and_what_they_used_once() -> None:
    hub, sockets = Heard().hub(), [FakeSocket(), FakeSocket()]
    tasks = []
    for number, socket in enumerate(sockets):
        socket.say(msgspec.structs.replace(HELLO, gateway_id=f"g{number}"))
        tasks.append(asyncio.create_task(hub.serve(socket)))
        assert isinstance(await socket.sent.get(), link.RecordsAck)
    first, second = sockets
    waiting = Need(prefill_tokens=10, kv_tokens=20, num_slots=1)
    second.say(beat(0, Usage()))
    assert await second.sent.get() == link.Elsewhere(usage=Usage())
    for _ in range(2):
        first.say(beat(0, Usage({"key": 1.5}, waiting, Need(kv_tokens=5))))
        assert await first.sent.get() == link.Elsewhere(usage=Usage())
    second.say(beat(0, Usage()))
    assert await second.sent.get() == link.Elsewhere(usage=Usage({"key": 3.0}, waiting, Need(kv_tokens=5)))
    second.say(beat(0, Usage()))
    assert await second.sent.get() == link.Elsewhere(usage=Usage({}, waiting, Need(kv_tokens=5)))
    await hub.close()
    await asyncio.gather(*tasks)


async def test_a_gateway_of_an_earlier_version_is_told_nothing_that_it_does_not_know() -> None:
    hub, socket = Heard().hub(), FakeSocket()
    socket.say(HELLO)
    socket.say(beat(0))
    serving = asyncio.create_task(hub.serve(socket))
    assert isinstance(await socket.sent.get(), link.RecordsAck)
    await socket.read()
    assert socket.sent.empty()
    await hub.close()
    await serving


async def test_a_second_connection_of_one_gateway_replaces_the_first() -> None:
    heard = Heard()
    hub, first, second = heard.hub(), FakeSocket(), FakeSocket()
    for socket in (first, second):
        socket.say(HELLO)
    serving = [asyncio.create_task(hub.serve(first))]
    await first.sent.get()
    serving.append(asyncio.create_task(hub.serve(second)))
    await serving[0]
    assert first.code == REPLACED
    assert heard.gone == []
    assert hub.gateway_ids == ["g1"]
    await hub.close()
    await serving[1]


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"not ours", link.encode(beat(1))])
async def test_anything_but_a_hello_first_closes_the_socket(payload: bytes) -> None:
    hub, socket = Heard().hub(), FakeSocket()
    socket.inbox.put_nowait(payload)
    await hub.serve(socket)
    assert socket.code == POLICY_VIOLATION
    assert hub.gateway_ids == []


async def test_a_gateway_is_sent_away_while_the_intake_is_full() -> None:
    heard = Heard(full=True)
    hub, socket = heard.hub(), FakeSocket()
    socket.say(HELLO)
    socket.say(link.Records(first_seq=1, records=[record()]))
    await hub.serve(socket)
    assert socket.code == TRY_AGAIN_LATER


def test_the_intake_takes_each_record_once_and_acknowledges_what_is_durable() -> None:
    intake = Intake()
    intake.open("g1", 2)
    batch = [record(f"r{i}") for i in range(1, 5)]
    assert [each.request_id for each in intake.add("g1", 1, batch)] == ["r3", "r4"]
    assert intake.add("g1", 1, batch) == []
    rows = intake.take()
    assert [(spool, seq) for spool, seq, _ in rows] == [("g1", 3), ("g1", 4)]
    assert intake.committed(rows) == {"g1": 4}
    assert intake.take() == []


def test_the_intake_is_bounded_until_rows_are_committed() -> None:
    intake = Intake(max_records=2)
    intake.add("g1", 1, [record("a"), record("b")])
    with pytest.raises(IntakeFull):
        intake.add("g1", 3, [record("c")])
    rows = intake.take()
    with pytest.raises(IntakeFull):
        intake.add("g1", 3, [record("c")])
    intake.committed(rows)
    assert len(intake.add("g1", 3, [record("c")])) == 1


def test_rows_that_were_not_written_are_handed_over_again() -> None:
    intake = Intake()
    intake.add("g1", 1, [record("a")])
    rows = intake.take()
    intake.add("g1", 2, [record("b")])
    intake.restore(rows)
    assert [seq for _, seq, _ in intake.take()] == [1, 2]
