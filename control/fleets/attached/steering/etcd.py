"""etcd (3.4 tried) over its JSON gateway: all keys under a prefix, and a write that happens only if nobody was faster.

What the keys mean is not known here.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from control.errors import FleetError
from control.fleets.attached.steering.calls import Caller, rows, table


class Held(NamedTuple):
    """What one key holds. `revision`: of its last write, of the same value too; they grow. 0: there is no such key."""

    value: str
    revision: int


NOTHING: Final = Held("", 0)


class Etcd:
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def under(self, root: str) -> dict[str, Held]:
        """By the rest of their keys. `root` ends with a slash. Raises FleetError."""
        body = {"key": _coded(root), "range_end": _coded(root[:-1] + chr(ord("/") + 1))}
        found = rows(await self._caller.json("POST", "/v3/kv/range", body), "kvs")
        return {_plain(each.get("key")).removeprefix(root): _held(each) for each in found}

    async def put(self, values: Mapping[str, str], *, while_key: str, revision: int) -> int | None:
        """All or nothing, as of which revision. None: `while_key` was written since `revision`, so nothing was."""
        same = {"key": _coded(while_key), "target": "MOD", "mod_revision": str(revision), "result": "EQUAL"}
        puts = [{"requestPut": {"key": _coded(name), "value": _coded(value)}} for name, value in values.items()]
        said = await self._caller.json("POST", "/v3/kv/txn", {"compare": [same], "success": puts})
        if not table(said, "header"):
            raise FleetError(f"etcd does not answer as etcd does: {str(said)[:80]}")
        return _number(table(said, "header").get("revision")) if said.get("succeeded") else None

    async def close(self) -> None:
        await self._caller.close()


def _held(row: dict[str, Any]) -> Held:
    return Held(_plain(row.get("value")), _number(row.get("mod_revision")))


def _number(value: Any) -> int:
    """Its gateway writes 64 bits as text. Raises FleetError."""
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise FleetError(f"etcd says {value!r} where a revision is meant") from error


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _plain(value: Any) -> str:
    return base64.b64decode(str(value)).decode("utf-8", "replace")
