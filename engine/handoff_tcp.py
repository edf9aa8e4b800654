"""Handoff between hosts: the holder streams the leased blocks over the wire's own connection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.errors import HandoffError, KvPoolError
from engine.handoff_link import HandoffJob, HolderLink
from engine.pool_file import KvStore
from engine.wire import MAX_FRAME_BYTES, Blocks

#: Frames of about this size: large enough to make the framing cheap, small enough that tokens get in between.
FRAME_BYTES = 1024 * 1024
_ENVELOPE_BYTES = 1024


def frames(lease_id: str, blocks: Sequence[int], store: KvStore) -> Iterator[Blocks]:
    """The holder's side: `blocks` in the asked order, several whole blocks to a frame, gathered as they go."""
    if store.block_bytes > MAX_FRAME_BYTES - _ENVELOPE_BYTES:
        raise KvPoolError(f"a block of {store.block_bytes} bytes does not fit a frame of {MAX_FRAME_BYTES} bytes")
    per_frame = max(1, FRAME_BYTES // store.block_bytes)
    for first in range(0, len(blocks), per_frame):
        part = blocks[first : first + per_frame]
        yield Blocks(lease_id, first, len(part), store.read_blocks(part))


async def copy(link: HolderLink, job: HandoffJob) -> None:
    """The asker's side: write frames into our blocks as they come, until all are there."""
    done = 0
    while done < len(job.own_blocks):
        frame = await link.blocks()
        if frame.first != done or not 0 < frame.count <= len(job.own_blocks) - done:
            raise HandoffError(f"blocks {frame.first}+{frame.count} came where {done} was due")
        try:
            job.store.write_blocks(job.own_blocks[done : done + frame.count], frame.payload)
        except KvPoolError as error:
            raise HandoffError(str(error)) from error
        done += frame.count
