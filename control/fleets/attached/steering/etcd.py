"""etcd (3.4 tried) over its JSON gateway: all keys under a prefix, and a write that happens only if nobody was faster.

What the keys mean is not known here.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from control.errors import FleetError
from control.fleets.attached.steering.calls import Caller, rows, table


class Etcd:
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def under(self, root: str) -> dict[str, str]:
        """Values by the rest of their keys. `root` ends with a slash. Raises FleetError."""
        body = {"key": _coded(root), "range_end": _coded(root[:-1] + chr(ord("/") + 1))}
        found = rows(await self._caller.json("POST", "/v3/kv/range", body), "kvs")
        return {_plain(each.get("key")).removeprefix(root): _plain(each.get("value")) for each in found}

    async def put(self, values: Mapping[str, str], *, while_key: str, holds: str | None) -> bool:
        """All or nothing. False: `while_key` holds something else (None: it should not exist), nothing was written."""
        key = _coded(while_key)
        same: dict[str, Any] = {"key": key, "target": "VERSION", "version": "0"}
        if holds is not None:
            same = {"key": key, "target": "VALUE", "value": _coded(holds)}
        puts = [{"requestPut": {"key": _coded(name), "value": _coded(value)}} for name, value in values.items()]
        said = await self._caller.json(
            "POST", "/v3/kv/txn", {"compare": [{**same, "result": "EQUAL"}], "success": puts}
        )
        if not table(said, "header"):
            raise FleetError(f"etcd does not answer as etcd does: {str(said)[:80]}")
        return bool(said.get("succeeded"))

    async def close(self) -> None:
        await self._caller.close()


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _plain(value: Any) -> str:
    return base64.b64decode(str(value)).decode("utf-8", "replace")
