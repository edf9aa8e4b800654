"""KV that waits in a foreign engine for another one to fetch it: by lease, the words that the fetching one is told.

Decided here: how long we keep those words. The engine has a limit of its own, and no call frees the KV before it. vLLM
0.32 takes the blocks back `kv_lease_duration` (30 s, unless told otherwise) after the prompt, or the last word of a
server that fetches, and tells nobody: who fetches later reads what lies there then. So ours is well below it.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from control.bridge.speech import KEEP_KV

LIMIT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Handoff:
    worker_id: str  # where the KV is
    words: Mapping[str, Any]
    until_s: float
    block_tokens: int  # of that engine


@dataclass(slots=True)
class Handoffs:
    """Of all workers of a fleet."""

    limit_s: float = LIMIT_S
    _kept: dict[str, Handoff] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _name: str = field(default_factory=lambda: secrets.token_hex(4))

    def keep_words(self) -> Mapping[str, Any]:
        """What a prefill server is told so that it keeps the KV."""
        return KEEP_KV

    def new_room(self) -> int:
        """A number that no other request of any gateway has."""
        return secrets.randbits(62)

    def put(self, handoff: Handoff) -> str:
        """Returns the lease's name."""
        lease_id = f"{self._name}-{next(self._numbers)}"
        self._kept[lease_id] = handoff
        return lease_id

    def peek(self, lease_id: str) -> Handoff | None:
        return self._kept.get(lease_id)

    def take(self, lease_id: str) -> None:
        """It was fetched, or nobody will."""
        self._kept.pop(lease_id, None)

    def num_of(self, worker_id: str) -> int:
        return sum(1 for each in self._kept.values() if each.worker_id == worker_id)

    def expire(self, worker_id: str, now_s: float) -> None:
        """Forget what was not fetched in time."""
        late = [k for k, each in self._kept.items() if each.worker_id == worker_id and each.until_s <= now_s]
        for lease_id in late:
            del self._kept[lease_id]

    def forget(self, worker_id: str) -> None:
        """The engine that held them is gone."""
        self._kept = {k: each for k, each in self._kept.items() if each.worker_id != worker_id}
