"""Handoff between neighbours: one copy, from the holder's pool to ours, both in shared memory.

The asker reads while the holder keeps the blocks under its lease; the acknowledgement afterwards tells whether it did.
"""

from __future__ import annotations

import asyncio

from engine.errors import HandoffError, KvPoolError
from engine.handoff_link import HandoffJob, HolderLink

#: Below this a copy takes less time than handing it to a thread.
INLINE_BYTES = 256 * 1024


async def copy(link: HolderLink, job: HandoffJob) -> None:
    """Pool to pool. Big copies run in a thread and let go of the interpreter lock, so decoding goes on meanwhile."""
    try:
        source_NB = job.view_of(job.lease.pool_path).blocks_NB
        if len(job.source_blocks) * job.store.block_bytes <= INLINE_BYTES:
            job.store.copy_from(source_NB, job.source_blocks, job.own_blocks)
            return
        loop = asyncio.get_running_loop()
        copying = loop.run_in_executor(job.executor, job.store.copy_from, source_NB, job.source_blocks, job.own_blocks)
        await _finish(copying)
    except KvPoolError as error:
        raise HandoffError(str(error)) from error


async def _finish(copying: asyncio.Future[None]) -> None:
    """Wait even when cancelled: the caller may give the target blocks away as soon as we return."""
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        if not copying.done():
            await asyncio.wait([copying])
        raise
