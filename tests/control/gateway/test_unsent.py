"""Records of a gateway that ended without a plane: kept, handed in by the next one, under their own numbers, once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway_builders import until
from link_builders import FakePlane, Gateway, linked, record

from control.gateway import link, unsent

OLD = link.GatewayHello("gw-old", "127.0.0.1:1", "0", 7.0)


def left_by_an_old_gateway(run_dir: Path, num_records: int = 3) -> Path:
    found = unsent.keep(
        run_dir / "gateway" / "unsent", unsent.Unsent(OLD, 5, [record(number) for number in range(num_records)])
    )
    assert found is not None
    return found


async def test_a_gateway_that_ends_keeps_what_the_plane_does_not_have(run_dir: Path) -> None:
    gateway = Gateway(run_dir, 1)
    for number in range(3):
        gateway.records.append(record(number))
    gateway.records.acknowledge(1)
    gateway.link.keep_unsent()
    path = run_dir / "gateway" / "unsent" / "gw.records"
    kept = unsent._decoder.decode(path.read_bytes())
    assert (kept.hello.gateway_id, kept.first_seq, kept.last_seq) == ("gw", 2, 3)
    assert [each.request_id for each in kept.records] == ["r1", "r2"]


async def test_a_gateway_whose_records_are_all_stored_keeps_nothing(run_dir: Path) -> None:
    gateway = Gateway(run_dir, 1)
    gateway.records.append(record(0))
    gateway.records.acknowledge(1)
    gateway.link.keep_unsent()
    assert not (run_dir / "gateway" / "unsent").exists()


async def test_the_next_gateway_hands_them_in_under_the_old_name_and_numbers(run_dir: Path, plane: FakePlane) -> None:
    path = left_by_an_old_gateway(run_dir)
    async with linked(run_dir, await plane.start()):
        await until(lambda: len(plane.of(link.Records)) == 1)
        assert OLD in plane.of(link.GatewayHello)
        assert plane.of(link.Records)[0].first_seq == 5
        await plane.send(link.RecordsAck(up_to_seq=6))
        await asyncio.sleep(0)
        assert path.exists()
        await plane.send(link.RecordsAck(up_to_seq=7))
        await until(lambda: not path.exists())


async def test_a_plane_that_goes_away_before_it_has_them_leaves_the_file(run_dir: Path, plane: FakePlane) -> None:
    path = left_by_an_old_gateway(run_dir)
    async with linked(run_dir, await plane.start()):
        await until(lambda: len(plane.of(link.Records)) == 1)
        await plane.sockets[-1].close()
        await until(lambda: len(plane.of(link.GatewayHello)) >= 2)
    assert path.exists()


async def test_two_gateways_do_not_hand_in_the_same_file(run_dir: Path) -> None:
    path = left_by_an_old_gateway(run_dir)
    with unsent._alone(path) as first, unsent._alone(path) as second:
        assert first is not None
        assert second is None
