"""NVIDIA Dynamo (1.6.1 tried) outside Kubernetes: its workers by its frontend, its pools by its virtual connector.

The connector is four keys in etcd: how many workers of each kind somebody wants, the number of that wish, and the
number of the last one that was carried out. We write the wish; the operator's own controller (`VirtualConnectorClient`)
carries it out. That it says so is not enough: the workers are counted. A wish that is not ours while ours is under way
is another planner's: then we stop. etcd is asked over its JSON gateway, in one transaction: no wish is lost unseen.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Final

from control.errors import FleetError
from control.facts import PoolFacts
from control.fleets.attached.steering.calls import Caller, rows, table
from control.fleets.attached.steering.roster import Member, Roster
from control.fleets.base import FleetStep, StepOutcome
from control.types import Role

KEYS: Final = {Role.PREFILL: "num_prefill_workers", Role.DECODE: "num_decode_workers"}
#: Names of Dynamo's components that serve one phase.
COMPONENTS: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE, "backend": Role.DECODE}


class DynamoSteering:
    """`etcd` None: there is no virtual connector, so it is only looked at."""

    def __init__(self, frontend: Caller, etcd: Caller | None, namespace: str) -> None:
        self._frontend = frontend
        self._etcd = etcd
        self._root = f"v1/{namespace}/planner/"
        self._ours: int | None = None  # the number of our last wish
        self._turn = asyncio.Lock()  # both pools are in one wish

    async def look(self) -> Roster:
        health = await self._frontend.json("GET", "/health")
        members = [each for row in rows(health, "instances") if (each := member_of(row)) is not None]
        keys = {} if self._etcd is None else await self._read()
        pools = {}
        for role, name in KEYS.items() if self._etcd is not None else ():
            num = sum(1 for each in members if each.role is role)
            told = _number(keys.get(name))
            target = told if told is not None and told >= 0 else None
            pools[role] = PoolFacts(target=target, num_ready=num, rival=self._rival(keys))
        return Roster(members=tuple(members), pools=pools)

    async def apply(self, step: FleetStep) -> StepOutcome:
        if self._etcd is None or step.verb != "scale" or step.role not in KEYS:
            return StepOutcome(accepted=False, detail="only a virtual connector in etcd is resized", retry_helps=False)
        async with self._turn:
            before = _number((await self._read()).get("decision_id"))
            number = 0 if before is None else before + 1
            written = await self._write(before, {KEYS[step.role]: str(step.size), "decision_id": str(number)})
            if not written:
                return StepOutcome(accepted=False, detail="another planner has written its wish meanwhile")
            self._ours = number
        return StepOutcome(accepted=True)

    async def close(self) -> None:
        await self._frontend.close()
        if self._etcd is not None:
            await self._etcd.close()

    def _rival(self, keys: dict[str, str]) -> str:
        now = _number(keys.get("decision_id"))
        if self._ours is None or now is None or now <= self._ours:
            return ""
        wish = ", ".join(f"{role} {keys.get(name, '?')}" for role, name in KEYS.items())
        return f"another planner has written wish {now} ({wish}) over ours ({self._ours})"

    async def _read(self) -> dict[str, str]:
        assert self._etcd is not None
        body = {"key": _coded(self._root), "range_end": _coded(self._root[:-1] + chr(ord(self._root[-1]) + 1))}
        found = rows(await self._etcd.json("POST", "/v3/kv/range", body), "kvs")
        return {_plain(each.get("key")).removeprefix(self._root): _plain(each.get("value")) for each in found}

    async def _write(self, before: int | None, values: dict[str, str]) -> bool:
        """False: the last wish is another one than `before`, so nothing was written."""
        assert self._etcd is not None
        key = _coded(f"{self._root}decision_id")
        same: dict[str, Any] = {"key": key, "target": "VERSION", "version": "0"}
        if before is not None:
            same = {"key": key, "target": "VALUE", "value": _coded(str(before))}
        puts = [{"requestPut": {"key": _coded(f"{self._root}{k}"), "value": _coded(v)}} for k, v in values.items()]
        body = {"compare": [{**same, "result": "EQUAL"}], "success": puts}
        said = await self._etcd.json("POST", "/v3/kv/txn", body)
        if not table(said, "header"):
            raise FleetError(f"etcd does not answer as etcd does: {str(said)[:80]}")
        return bool(said.get("succeeded"))


def member_of(row: dict[str, Any]) -> Member | None:
    """A worker that generates; its other endpoints are no workers. Ids are hex, as on its own pages."""
    role, number = COMPONENTS.get(str(row.get("component"))), row.get("instance_id")
    if row.get("endpoint") != "generate" or role is None or not isinstance(number, int):
        return None
    return Member(worker_id=f"{number:x}", role=role)


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError as error:
        raise FleetError(f"the virtual connector holds {text!r} where a number is meant") from error


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _plain(value: Any) -> str:
    return base64.b64decode(str(value)).decode("utf-8", "replace")
