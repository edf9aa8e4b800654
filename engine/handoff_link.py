"""One exchange about one lease, seen from the asker: what a transport may use, and what the holder has answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from engine.connection import Connection
from engine.errors import HandoffError
from engine.pool_file import KvStore, PoolView
from engine.wire import Blocks, HandoffReleased, Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffJob:
    """Copy `source_blocks` of the lease's pool into `own_blocks` of `store`, pairwise."""

    lease: Lease
    source_blocks: Sequence[int]
    own_blocks: Sequence[int]
    store: KvStore
    executor: Executor
    view_of: Callable[[str], PoolView]


class HolderLink:
    """The holder's answers about one lease, in order. A refusal or a lost connection ends a wait with HandoffError."""

    def __init__(self, lease_id: str, connection: Connection) -> None:
        self.lease_id = lease_id
        self.connection = connection
        self._answers: asyncio.Queue[Blocks | HandoffReleased | HandoffError] = asyncio.Queue()

    def take(self, message: Blocks | HandoffReleased) -> None:
        refused = isinstance(message, HandoffReleased) and not message.ok
        self._answers.put_nowait(HandoffError(message.reason) if refused else message)  # type: ignore[union-attr]

    def fail(self, reason: str) -> None:
        self._answers.put_nowait(HandoffError(reason))

    async def blocks(self) -> Blocks:
        """The next streamed blocks."""
        answer = await self._next()
        if not isinstance(answer, Blocks):
            raise HandoffError("the holder released the lease before it had sent all blocks")
        return answer

    async def released(self) -> None:
        """Wait for the holder's word that the lease held until our copy had ended."""
        answer = await self._next()
        if not isinstance(answer, HandoffReleased):
            raise HandoffError("the holder sent more blocks than were asked for")

    async def _next(self) -> Blocks | HandoffReleased:
        answer = await self._answers.get()
        if isinstance(answer, HandoffError):
            raise answer
        return answer
