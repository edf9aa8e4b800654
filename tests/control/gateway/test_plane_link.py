"""The link to the plane: tables, records until acknowledged, beats; and a gateway that serves on without a plane."""

from __future__ import annotations

from pathlib import Path

import pytest
from gateway_builders import MODEL, until
from link_builders import FakePlane, Gateway, linked, record

from control.gateway import link
from control.gateway.plane_link import load_table, save_table
from control.gateway.records import RecordLog
from control.types.routing import RoutingPolicy, RoutingTable


def table(version: int, fleet_id: str = "test") -> RoutingTable:
    return RoutingTable(
        version=version, fleet_id=fleet_id, model_id=MODEL, fence=1, num_devices=0, policy=RoutingPolicy(), workers=()
    )


async def test_it_says_hello_with_the_service_token_and_beats(run_dir: Path, plane: FakePlane) -> None:
    async with linked(run_dir, await plane.start()) as gateway:
        await until(lambda: len(plane.of(link.Beat)) >= 1)
        assert plane.headers == ["Bearer service-secret"]
        assert isinstance(plane.seen[0], link.GatewayHello)
        beat = plane.of(link.Beat)[0]
        assert (beat.num_in_flight, beat.oldest_waiting_s, beat.table_version) == (0, None, 0)
        assert beat.cpu_s > 0
        assert gateway.fleet.table is None


async def test_only_newer_tables_of_its_fleet_are_taken_and_kept_on_disk(run_dir: Path, plane: FakePlane) -> None:
    async with linked(run_dir, await plane.start()) as gateway:
        await until(lambda: bool(plane.sockets))
        for each in (table(5), table(4), table(9, fleet_id="other"), table(6)):
            await plane.send(link.TablePush(table=each))
        await until(lambda: gateway.fleet.table == table(6))
        assert load_table(run_dir / "gateway" / "table.json") == table(6)
        await until(lambda: any(beat.table_version == 6 for beat in plane.of(link.Beat)))


async def test_a_gateway_that_starts_without_a_plane_serves_with_the_kept_table(run_dir: Path) -> None:
    save_table(run_dir / "gateway" / "table.json", table(7))
    gateway = Gateway(run_dir, 9)
    gateway.link.load_kept_table()
    assert gateway.fleet.table == table(7)


async def test_a_kept_table_gives_way_to_whatever_the_plane_sends_even_after_a_lost_history(
    run_dir: Path, plane: FakePlane
) -> None:
    save_table(run_dir / "gateway" / "table.json", table(7))
    async with linked(run_dir, await plane.start()) as gateway:
        gateway.link.load_kept_table()
        await until(lambda: bool(plane.sockets))
        await plane.send(link.TablePush(table=table(2)))
        await until(lambda: gateway.fleet.table == table(2))


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": "x"}', b"\xff"])
def test_a_kept_table_that_is_broken_is_no_table(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    assert load_table(path) is None


async def test_records_are_numbered_and_sent_again_after_a_break_until_acknowledged(
    run_dir: Path, plane: FakePlane
) -> None:
    port = await plane.start()
    async with linked(run_dir, port) as gateway:
        for number in (1, 2, 3):
            gateway.records.append(record(number))
        await until(lambda: bool(plane.of(link.Records)))
        sent = plane.of(link.Records)[0]
        assert (sent.first_seq, [each.request_id for each in sent.records]) == (1, ["r1", "r2", "r3"])
        assert sent.records[0] == record(1)
        await plane.send(link.RecordsAck(up_to_seq=2))
        await until(lambda: gateway.records.batch_from(0)[0] == 3)
        await plane.stop()
        gateway.records.append(record(4))
        plane.seen.clear()
        await plane.start(port)
        await until(lambda: bool(plane.of(link.Records)))
        again = plane.of(link.Records)[0]
        assert (again.first_seq, [each.request_id for each in again.records]) == (3, ["r3", "r4"])
        await plane.send(link.RecordsAck(up_to_seq=4))
        await gateway.records.all_acknowledged.wait()


async def test_nonsense_from_the_plane_ends_the_connection_and_it_comes_back(run_dir: Path, plane: FakePlane) -> None:
    async with linked(run_dir, await plane.start()):
        await until(lambda: bool(plane.sockets))
        await plane.sockets[0].send(b"\xc1")
        await until(lambda: len(plane.sockets) == 2)


def test_the_oldest_records_are_dropped_beyond_the_bound_and_counted() -> None:
    log = RecordLog(max_records=3)
    for number in range(1, 6):
        log.append(record(number))
    first, kept = log.batch_from(0)
    assert (first, [each.request_id for each in kept], log.num_dropped) == (3, ["r3", "r4", "r5"], 2)
