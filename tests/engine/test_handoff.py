from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from engine.connection import Connection, bound_port, listen
from engine.errors import HandoffError, KvPoolError, LayoutMismatch
from engine.handoff import Carry, HandoffAsker, HandoffHolder, choose_transport
from engine.host import format_address
from engine.pool_file import PoolFile, PoolView, copy_blocks, is_owned, remove_stale_pools, runs
from engine.types import KvLayout, Load, Role, WorkerState
from engine.wire import Fetch, HandoffAck, Hello, Lease, Welcome

LAYOUT = KvLayout(
    model_id="m", weights_digest="d", dtype="float32", num_layers=2, block_tokens=4, num_kv_heads=2, head_dim=8
)
HOLDER, ASKER = "w-holder", "w-asker"


class Holder:
    """A prefill worker, as far as a handoff sees it: a pool, leases in a dict, the wire."""

    def __init__(self, shm_dir: Path, layout: KvLayout = LAYOUT, carry: Carry | None = None) -> None:
        self.layout = layout
        self.pool = PoolFile.for_worker(shm_dir, HOLDER, 1, layout.block_bytes, 8)
        self.leases: dict[str, list[int]] = {}
        self.peers: list[Connection] = []
        self.acks: list[str] = []
        self.side = HandoffHolder(
            layout=layout,
            store=self.pool,
            leased_blocks=self.leases.get,
            acknowledge=self.acknowledge,
            carry=carry,
        )

    def acknowledge(self, lease_id: str) -> bool:
        self.acks.append(lease_id)
        return self.leases.pop(lease_id, None) is not None

    def on_peer(self, connection: Connection, hello: Hello) -> None:
        self.peers.append(connection)
        connection.on_message = self.on_message
        connection.send(Welcome(HOLDER, 1, Role.PREFILL, WorkerState.READY, "m", self.layout, 128, False, Load()))

    def on_message(self, connection: Connection, message: object) -> None:
        if isinstance(message, Fetch):
            self.side.on_fetch(connection, message)
        elif isinstance(message, HandoffAck):
            self.side.on_ack(connection, message)

    def lease(self, blocks: list[int], **changes: object) -> Lease:
        for block in blocks:
            self.pool.blocks_NB[block] = block + 1
        self.leases["lease-1"] = blocks
        lease = Lease(
            "lease-1", HOLDER, 1, self.address, self.layout, 4 * len(blocks), blocks, self.pool.path, "host", 5.0
        )
        return msgspec.structs.replace(lease, **changes)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        server = await listen("127.0.0.1", 0, "t", self.on_peer)
        self.address = format_address("127.0.0.1", bound_port(server))
        yield
        server.close()
        for peer in self.peers:
            peer.close()
        await self.side.close()
        self.pool.close()


@contextlib.asynccontextmanager
async def pair(
    tmp_path: Path, wish: str = "auto", holder: Holder | None = None
) -> AsyncIterator[tuple[Holder, HandoffAsker, PoolFile]]:
    holder = holder or Holder(tmp_path)
    pool = PoolFile.for_worker(tmp_path, ASKER, 1, LAYOUT.block_bytes, 8)
    with ThreadPoolExecutor(1) as executor:
        asker = HandoffAsker(
            hello=Hello(ASKER, "worker", "t"),
            layout=LAYOUT,
            store=pool,
            own_host_id="host",
            executor=executor,
            wish=wish,
        )
        async with holder.serve():
            yield holder, asker, pool
            await asker.close()
    pool.close()


@pytest.mark.parametrize("wish", ["shm", "tcp"])
async def test_blocks_arrive_in_order_and_the_lease_is_released(tmp_path: Path, wish: str) -> None:
    async with pair(tmp_path, wish) as (holder, asker, pool):
        report = await asker.pull(holder.lease([2, 3, 7]), [2, 3, 7], [5, 0, 1])
        assert (report.transport, report.num_blocks, report.num_bytes) == (wish, 3, 3 * LAYOUT.block_bytes)
        assert [int(pool.blocks_NB[block].min()) for block in (5, 0, 1)] == [3, 4, 8]
        assert [int(pool.blocks_NB[block].max()) for block in (5, 0, 1, 2)] == [3, 4, 8, 0]
        assert holder.leases == {}


async def test_a_prompt_that_is_wholly_cached_moves_nothing_and_still_releases(tmp_path: Path) -> None:
    async with pair(tmp_path) as (holder, asker, _pool):
        report = await asker.pull(holder.lease([1]), [], [])
        assert report.num_bytes == 0
        assert holder.leases == {}


async def test_many_handoffs_share_one_connection(tmp_path: Path) -> None:
    async with pair(tmp_path) as (holder, asker, _pool):
        leases = [holder.lease([block], lease_id=f"lease-{block}") for block in range(4)]
        holder.leases.update({lease.lease_id: lease.blocks for lease in leases})
        await asyncio.gather(*(asker.pull(lease, lease.blocks, lease.blocks) for lease in leases))
        assert len(holder.peers) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_id", "other"), ("weights_digest", "x"), ("dtype", "bfloat16"), ("block_tokens", 8), ("num_kv_heads", 1)],
)
async def test_an_unequal_layout_is_refused_by_the_asker_naming_the_field(
    tmp_path: Path, field: str, value: object
) -> None:
    async with pair(tmp_path) as (holder, asker, _pool):
        other = msgspec.structs.replace(LAYOUT, **{field: value})
        with pytest.raises(LayoutMismatch, match=f"{field} differs"):
            await asker.pull(holder.lease([1], layout=other), [1], [1])
        assert holder.leases == {"lease-1": [1]}


@pytest.mark.parametrize("wish", ["shm", "tcp"])
async def test_an_unequal_layout_is_refused_by_the_holder_too_and_the_lease_stays(tmp_path: Path, wish: str) -> None:
    holder = Holder(tmp_path, msgspec.structs.replace(LAYOUT, weights_digest="other weights"))
    async with pair(tmp_path, wish, holder) as (_holder, asker, _pool):
        with pytest.raises(HandoffError, match="weights_digest differs: 'other weights' here, 'd' there"):
            await asker.pull(holder.lease([1], layout=LAYOUT), [1], [1])
        assert holder.leases == {"lease-1": [1]}


async def test_a_copy_is_over_when_the_modelled_link_of_its_holder_has_carried_it_too(tmp_path: Path) -> None:
    begun, carried = asyncio.Event(), asyncio.Event()

    async def carry(num_blocks: int) -> None:
        assert num_blocks == 2
        begun.set()
        await carried.wait()

    async with pair(tmp_path, holder=Holder(tmp_path, carry=carry)) as (holder, asker, _pool):
        pulling = asyncio.create_task(asker.pull(holder.lease([2, 3]), [2, 3], [5, 0]))
        await begun.wait()
        assert (holder.acks, pulling.done()) == ([], False)
        carried.set()
        assert (await pulling).num_blocks == 2
        assert holder.leases == {}


@pytest.mark.parametrize("wish", ["shm", "tcp"])
async def test_an_expired_lease_makes_the_copy_worthless(tmp_path: Path, wish: str) -> None:
    async with pair(tmp_path, wish) as (holder, asker, _pool):
        lease = holder.lease([1])
        del holder.leases["lease-1"]
        with pytest.raises(HandoffError, match="unknown or has expired"):
            await asker.pull(lease, [1], [1])


async def test_a_lease_that_ends_during_the_copy_is_not_good(tmp_path: Path) -> None:
    async with pair(tmp_path, "shm") as (holder, asker, _pool):
        lease = holder.lease([1])
        fetch = holder.side.on_fetch

        def expire_after_fetch(connection: Connection, message: Fetch) -> None:
            fetch(connection, message)
            holder.leases.clear()

        holder.side.on_fetch = expire_after_fetch  # type: ignore[method-assign]
        with pytest.raises(HandoffError, match="lease lease-1 has expired"):
            await asker.pull(lease, [1], [1])


async def test_refusals_are_remembered_only_while_the_lease_is_held(tmp_path: Path) -> None:
    async with pair(tmp_path, "tcp") as (holder, asker, _pool):
        for index in range(20):
            lease = holder.lease([1], lease_id=f"lease-{index}")
            holder.leases = {lease.lease_id: [1]} if index % 2 else {}
            holder.side._leased_blocks = holder.leases.get
            with pytest.raises(HandoffError, match=r"block 4 is not under lease|unknown or has expired"):
                await asker.pull(lease, [4], [1])
        assert [lease_id for _connection, lease_id in holder.side._refused] == ["lease-19"]


async def test_a_fetch_that_is_put_right_releases_the_lease(tmp_path: Path) -> None:
    async with pair(tmp_path, "tcp") as (holder, asker, _pool):
        lease = holder.lease([1])
        with pytest.raises(HandoffError, match="block 4 is not under lease"):
            await asker.pull(lease, [4], [1])
        await asker.pull(lease, [1], [1])
        assert holder.leases == {}


async def test_blocks_outside_the_lease_are_not_given_out(tmp_path: Path) -> None:
    async with pair(tmp_path, "tcp") as (holder, asker, _pool):
        with pytest.raises(HandoffError, match="block 4 is not under lease"):
            await asker.pull(holder.lease([1]), [4], [1])


async def test_a_holder_of_another_epoch_is_not_asked(tmp_path: Path) -> None:
    async with pair(tmp_path) as (holder, asker, _pool):
        with pytest.raises(HandoffError, match="epoch 9, at its address is now w-holder epoch 1"):
            await asker.pull(holder.lease([1], epoch=9), [1], [1])


async def test_a_holder_that_dies_in_the_middle_fails_the_handoff(tmp_path: Path) -> None:
    async with pair(tmp_path, "tcp") as (holder, asker, _pool):
        holder.side.on_fetch = lambda connection, _message: connection.abort("killed")  # type: ignore[method-assign]
        with pytest.raises(HandoffError, match="lost in the middle"):
            await asker.pull(holder.lease([1]), [1], [1])


async def test_after_a_lost_holder_the_next_handoff_connects_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as (holder, asker, _pool):
        await asker.pull(holder.lease([1]), [1], [1])
        holder.peers[0].close()
        while holder.peers[0].is_open or asker._connections:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asker.pull(holder.lease([1]), [1], [1])
        assert len(holder.peers) == 2


async def test_a_holder_that_is_silent_fails_at_the_end_of_the_lease(tmp_path: Path) -> None:
    async with pair(tmp_path, "tcp") as (holder, asker, _pool):
        holder.side.on_fetch = lambda _connection, _message: None  # type: ignore[method-assign]
        with pytest.raises(HandoffError, match="took longer than its lease"):
            await asker.pull(holder.lease([1], expires_in_s=0.01), [1], [1])


async def test_a_pool_that_is_gone_fails_the_handoff(tmp_path: Path) -> None:
    async with pair(tmp_path, "shm") as (holder, asker, _pool):
        with pytest.raises(HandoffError, match="cannot be mapped"):
            await asker.pull(holder.lease([1], pool_path=str(tmp_path / "gone.kv")), [1], [1])


@pytest.mark.parametrize(
    ("changes", "is_mappable", "transport"),
    [
        ({}, True, "shm"),
        ({}, False, "tcp"),
        ({"host_id": "elsewhere"}, True, "tcp"),
        ({"host_id": ""}, True, "tcp"),
        ({"pool_path": ""}, True, "tcp"),
    ],
)
def test_shared_memory_is_for_neighbours_with_a_pool_file(
    changes: dict[str, str], is_mappable: bool, transport: str
) -> None:
    lease = Lease("l", HOLDER, 1, "127.0.0.1:1", LAYOUT, 4, [0], "/shm/x.kv", "host", 1.0)
    assert choose_transport(msgspec.structs.replace(lease, **changes), "host", is_mappable) == transport
    assert choose_transport(lease, "host", True, "tcp") == "tcp"


def test_equal_layouts_do_not_differ() -> None:
    assert LAYOUT.difference(msgspec.structs.replace(LAYOUT)) == ""


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ([], [], []),
        ([3], [0], [(3, 0, 1)]),
        ([3, 4, 5], [0, 1, 2], [(3, 0, 3)]),
        ([3, 4, 5], [0, 2, 3], [(3, 0, 1), (4, 2, 2)]),
        ([5, 4], [1, 0], [(5, 1, 1), (4, 0, 1)]),
    ],
)
def test_neighbouring_blocks_are_copied_together(
    source: list[int], target: list[int], expected: list[tuple[int, int, int]]
) -> None:
    assert list(runs(source, target)) == expected


def test_a_pool_is_private_zeroed_and_gone_after_close(tmp_path: Path) -> None:
    pool = PoolFile.for_worker(tmp_path, "w-1", 5, 64, 4)
    path = tmp_path / "w-1-5.kv"
    assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, 256)
    assert is_owned(path)
    pool.write_blocks([3, 1], b"a" * 64 + b"b" * 64)
    assert PoolView(str(path), 64).blocks_NB[1].tobytes() == b"b" * 64
    assert pool.read_blocks([1, 3]) == b"b" * 64 + b"a" * 64
    pool.close()
    assert not path.exists()


def test_pools_of_dead_epochs_are_removed_and_those_of_others_are_kept(tmp_path: Path) -> None:
    for name in ("w-1-4.kv", "w-1-x.kv", "w-10-4.kv"):
        (tmp_path / name).write_bytes(b"old")
    living = PoolFile(tmp_path / "w-1-5.kv", 64, 1)
    assert remove_stale_pools(tmp_path, "w-1") == [tmp_path / "w-1-4.kv"]
    assert sorted(os.listdir(tmp_path)) == ["w-1-5.kv", "w-1-x.kv", "w-10-4.kv"]
    living.close()


def test_a_pool_larger_than_the_room_names_both(tmp_path: Path) -> None:
    with pytest.raises(KvPoolError, match=r"\d+ bytes wanted, \d+ bytes free"):
        PoolFile(tmp_path / "w-1-1.kv", 2**30, 2**20)
    assert os.listdir(tmp_path) == []


def test_pools_that_have_no_pages_yet_count_as_taken(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    half = PoolFile(tmp_path / "w-1-1.kv", free // 2, 1)
    with pytest.raises(KvPoolError, match="bytes free"):
        PoolFile(tmp_path / "w-2-1.kv", free // 2 + 2**24, 1)
    half.close()
    assert os.listdir(tmp_path) == []


def test_a_pool_of_the_same_epoch_is_not_replaced(tmp_path: Path) -> None:
    first = PoolFile(tmp_path / "w-1-1.kv", 64, 1)
    with pytest.raises(KvPoolError, match="cannot be created: File exists"):
        PoolFile(tmp_path / "w-1-1.kv", 64, 1)
    assert os.listdir(tmp_path) == ["w-1-1.kv"]
    first.close()


@pytest.mark.parametrize("blocks", [[4], [-1]])
def test_a_block_outside_the_pool_is_refused(tmp_path: Path, blocks: list[int]) -> None:
    pool = PoolFile(tmp_path / "w-1-1.kv", 64, 4)
    with pytest.raises(KvPoolError, match="outside the pool of 4 blocks"):
        copy_blocks(pool.blocks_NB, blocks, pool.blocks_NB, [0])
    with pytest.raises(KvPoolError, match="do not fill"):
        pool.write_blocks([0], b"short")
    pool.close()
