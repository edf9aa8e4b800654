"""One worker as an sglang-router or smg lists it: read from its answer, written to it, and kept while it is out of it.

Decided here: which rows of the router's list are workers that we can do something with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from control.types.workers import Role

TYPES: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE, "regular": Role.MIXED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """As it is listed, or was last. `port`: where prefill hands off from."""

    uuid: str
    url: str
    role: Role
    is_healthy: bool = True
    is_leaving: bool = False  # smg: it gets nothing new, and goes when what it holds has ended
    port: int | None = None

    @property
    def worker_id(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def body(self) -> dict[str, Any]:
        """What enters it."""
        told: dict[str, Any] = {"url": self.url, "worker_type": word_of(self.role)}
        return told | ({"bootstrap_port": self.port} if self.role is Role.PREFILL else {})


def word_of(role: Role) -> str:
    return next(name for name, each in TYPES.items() if each is role)


def entry_of(row: dict[str, Any]) -> Entry | None:
    """None: a worker that we know nothing to do with, or one whose address holds a password."""
    url, role, port = (
        str(row.get("url", "")).rstrip("/"),
        TYPES.get(str(row.get("worker_type"))),
        row.get("bootstrap_port"),
    )
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if role is None or parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        return None
    return Entry(
        uuid=str(row.get("id", "")),
        url=url,
        role=role,
        is_healthy=bool(row.get("is_healthy", True)),
        is_leaving=row.get("status") == "draining",
        port=port if type(port) is int else None,
    )


def written(entries: dict[str, Entry]) -> str:
    return msgspec.json.encode(list(entries.values())).decode() if entries else ""


def read(text: str) -> dict[str, Entry]:
    """{} of what cannot be read: it was written by another version."""
    try:
        found = msgspec.json.decode(text, type=list[Entry]) if text else []
    except msgspec.MsgspecError:
        return {}
    return {each.worker_id: each for each in found}
