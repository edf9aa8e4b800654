"""One worker's KV pool as a file in shared memory: who made it, who may map it, how blocks are copied between two.

Decided here: naming (`<worker_id>-<epoch>.kv`), ownership (a lock that dies with its process), and that a block is
`block_bytes` at offset `index * block_bytes` (pool_NLCPHD: N = blocks first, so a block is contiguous). Not here: which
block belongs to whom (`engine.core`), and what the bytes mean (`engine.kvpool`, `engine.paced`).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from engine.errors import KvPoolError

Bytes_NB = npt.NDArray[np.uint8]  # N = blocks, B = bytes of one block


class KvStore(Protocol):
    """Where a worker's KV lies, as far as a handoff must know. A GPU pool implements the same with its own copies."""

    block_bytes: int
    num_blocks: int
    path: str  # file that neighbours can map; "" when there is none

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        """Gather: the bytes of these blocks, in this order."""

    def write_blocks(self, blocks: Sequence[int], payload: bytes | memoryview) -> None:
        """Scatter: inverse of `read_blocks`."""

    def copy_from(self, source: Bytes_NB, source_blocks: Sequence[int], own_blocks: Sequence[int]) -> None:
        """Copy blocks of a neighbour's mapped pool into our own, pool to pool."""

    def close(self) -> None:
        """Nobody can fetch from it any more."""


def runs(source: Sequence[int], target: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Merge neighbours: (first source, first target, length) of each stretch that is consecutive on both sides."""
    start = 0
    for i in range(1, len(source) + 1):
        if i == len(source) or source[i] != source[i - 1] + 1 or target[i] != target[i - 1] + 1:
            yield source[start], target[start], i - start
            start = i


def copy_blocks(source: Bytes_NB, source_blocks: Sequence[int], target: Bytes_NB, target_blocks: Sequence[int]) -> None:
    """Copy block by block, in as few memory moves as possible; each lets go of the interpreter lock."""
    if len(source_blocks) != len(target_blocks):
        raise KvPoolError(f"{len(source_blocks)} source blocks do not fit {len(target_blocks)} target blocks")
    _check_indices(source_blocks, len(source))
    _check_indices(target_blocks, len(target))
    for first, to, count in runs(source_blocks, target_blocks):
        np.copyto(target[to : to + count], source[first : first + count])


def _check_indices(blocks: Sequence[int], num_blocks: int) -> None:
    if blocks and (min(blocks) < 0 or max(blocks) >= num_blocks):
        raise KvPoolError(f"block index {min(blocks)}..{max(blocks)} is outside the pool of {num_blocks} blocks")


class PoolFile:
    """The owner's read-write mapping. The file is 0600 and goes away at `close`; the lock says that the owner lives."""

    def __init__(self, path: Path, block_bytes: int, num_blocks: int) -> None:
        if block_bytes < 1 or num_blocks < 1:
            raise KvPoolError(
                f"pool {path.name}: block_bytes {block_bytes} and num_blocks {num_blocks} must be at least 1"
            )
        self.path = str(path)
        self.block_bytes = block_bytes
        self.num_blocks = num_blocks
        self._fd = _create_locked(path, block_bytes * num_blocks)
        self.memory = mmap.mmap(self._fd, block_bytes * num_blocks)
        self.blocks_NB: Bytes_NB = np.frombuffer(self.memory, np.uint8).reshape(num_blocks, block_bytes)

    @classmethod
    def for_worker(cls, shm_dir: Path, worker_id: str, epoch: int, block_bytes: int, num_blocks: int) -> Self:
        """Make this epoch's pool, after removing those that dead epochs of the same worker left behind."""
        remove_stale_pools(shm_dir, worker_id)
        return cls(shm_dir / f"{worker_id}-{epoch}.kv", block_bytes, num_blocks)

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        _check_indices(blocks, self.num_blocks)
        return self.blocks_NB[list(blocks)].tobytes()

    def write_blocks(self, blocks: Sequence[int], payload: bytes | memoryview) -> None:
        wanted = len(blocks) * self.block_bytes
        if len(payload) != wanted:
            raise KvPoolError(f"{len(payload)} bytes do not fill {len(blocks)} blocks of {self.block_bytes} bytes")
        source_NB = np.frombuffer(payload, np.uint8).reshape(len(blocks), self.block_bytes)
        copy_blocks(source_NB, range(len(blocks)), self.blocks_NB, blocks)

    def copy_from(self, source: Bytes_NB, source_blocks: Sequence[int], own_blocks: Sequence[int]) -> None:
        copy_blocks(source, source_blocks, self.blocks_NB, own_blocks)

    def close(self) -> None:
        """Unlink the file. Mappings (ours in a tensor, a neighbour's) stay good until they are dropped."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class PoolView:
    """A neighbour's pool, mapped read-only for as long as this object lives."""

    def __init__(self, path: str, block_bytes: int) -> None:
        try:
            with open(path, "rb") as file:
                self._memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise KvPoolError(f"pool {path} cannot be mapped: {error}") from error
        if len(self._memory) % block_bytes:
            raise KvPoolError(
                f"pool {path}: {len(self._memory)} bytes are no whole number of {block_bytes}-byte blocks"
            )
        self.blocks_NB: Bytes_NB = np.frombuffer(self._memory, np.uint8).reshape(-1, block_bytes)


def remove_stale_pools(shm_dir: Path, worker_id: str) -> list[Path]:
    """Unlink pools of this worker whose owner is dead; returns what was removed."""
    pattern = re.compile(re.escape(worker_id) + r"-\d+\.kv")
    stale = [path for path in sorted(shm_dir.glob("*.kv")) if pattern.fullmatch(path.name) and not is_owned(path)]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def is_owned(path: Path) -> bool:
    """Whether a living process owns this pool: the lock cannot be had."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _create_locked(path: Path, size: int) -> int:
    """A fresh 0600 file of `size` zero bytes, locked by this process before anybody can see it.

    Pages come when they are first written, so all pools together must fit: a page that is not there then is a SIGBUS.
    Raises KvPoolError naming path and size.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KvPoolError(f"pool {path} cannot be created: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        room = os.fstatvfs(fd).f_bavail * os.fstatvfs(fd).f_frsize - _promised_bytes(path.parent)
        if size > room:
            raise KvPoolError(f"pool {path}: {size} bytes wanted, {max(0, room)} bytes free in shared memory")
        os.ftruncate(fd, size)
        os.link(hidden, path)
    except OSError as error:
        os.close(fd)
        raise KvPoolError(f"pool {path} cannot be created: {error.strerror}") from error
    except KvPoolError:
        os.close(fd)
        raise
    finally:
        os.unlink(hidden)
    return fd


def _promised_bytes(shm_dir: Path) -> int:
    """Bytes of the pools here that have no page yet."""
    promised = 0
    for path in shm_dir.glob("*.kv"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            promised += max(0, status.st_size - status.st_blocks * 512)
    return promised
