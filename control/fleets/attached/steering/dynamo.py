"""NVIDIA Dynamo (1.6.1 tried) outside Kubernetes: its workers by its frontend, its pools by its virtual connector.

The connector is four keys in etcd: how many workers of each kind somebody wants, the number of that wish, and the
number of the last one that was carried out. We write the wish; the operator's own controller (`VirtualConnectorClient`)
carries it out. That it says so is not enough: the workers are counted. A wish that is not ours over ours is another
planner's: then we stop, and leave the pools to it for RIVAL_S. Whose it is tells etcd's revision: Dynamo's planner
numbers its wishes by itself and does not look at ours, so that its number may be ours. For the same reason it would not
get over a wish of ours: while it is listed we write none. One transaction writes a wish: none is lost unseen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import httpx

from control.errors import FleetError
from control.facts import PoolFacts
from control.fleets.attached.engine_page import Prompts
from control.fleets.attached.scraper import fetch_page
from control.fleets.attached.steering.calls import Caller, rows, table
from control.fleets.attached.steering.dynamo_frontend import FrontendPage, Routed, mean_prompt, read_frontend, told_of
from control.fleets.attached.steering.dynamo_pages import PageFinder, host_of, page_of_card
from control.fleets.attached.steering.etcd import NOTHING, Etcd, Held
from control.fleets.attached.steering.roster import Member, Roster
from control.fleets.base import FleetStep, StepOutcome
from control.types.workers import Role

NAMESPACE: Final = "dynamo"
RIVAL_S: Final = 300.0
MAX_VERSION: Final = 40  # characters
PLANNED: Final = "Dynamo's own planner is there, and sizes it"
NUMBER: Final = "decision_id"
CARRIED: Final = "scaled_decision_id"
KEYS: Final = {Role.PREFILL: "num_prefill_workers", Role.DECODE: "num_decode_workers"}
#: Names of Dynamo's components that serve one phase; "backend" serves both where no prefill worker was ever seen.
COMPONENTS: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE, "backend": Role.DECODE}


class DynamoSteering:
    """`etcd` None: there is no virtual connector, so it is only looked at. `namespace` "": of all that are listed."""

    def __init__(
        self,
        frontend: Caller,
        etcd: Etcd | None,
        namespace: str = "",
        ports: tuple[int, ...] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._frontend = frontend
        self._etcd = etcd
        self._namespace = namespace
        self._root = f"v1/{namespace or NAMESPACE}/planner/"
        self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False)
        self._finder = PageFinder(ports, lambda url: fetch_page(self._client, url))
        self._routed: Routed | None = None
        self._prompts: Prompts | None = None
        self._is_split = False
        self._version, self._versed = "", frozenset[str]()
        self._now = now
        self._ours: int | None = None  # the revision of our last wish; None: it has been another's for long
        self._theirs: tuple[int, float] | None = None  # of the newest one over ours, and when that was seen
        self._turn = asyncio.Lock()  # both pools are in one wish

    async def look(self) -> Roster:
        health, page = await asyncio.gather(self._frontend.json("GET", "/health"), self._page())
        listed = [row for row in rows(health, "instances") if self._is_worker(row)]
        self._is_split |= "prefill" in page.phases or any(row["component"] == "prefill" for row in listed)
        hosts = {f"{row['instance_id']:x}": host_of(row.get("transport")) for row in listed}
        urls = await self._finder.find(hosts, await self._cards(hosts))
        self._prompts = mean_prompt(self._routed, page.routed, self._prompts)
        self._routed = page.routed
        members = tuple(self._member(row, urls, page) for row in listed)
        planner = PLANNED if any(map(self._is_planner, rows(health, "instances"))) else ""
        return Roster(
            members=members,
            pools={} if self._etcd is None else await self._pools(members, planner),
            version=await self._frontends_version(frozenset(hosts)),
        )

    async def apply(self, step: FleetStep) -> StepOutcome:
        if self._etcd is None or step.verb != "scale" or step.role not in KEYS:
            return StepOutcome(accepted=False, detail="only a virtual connector in etcd is resized", retry_helps=False)
        async with self._turn:
            keys = await self._etcd.under(self._root)
            before = keys.get(NUMBER, NOTHING)
            wish = {KEYS[step.role]: str(step.size), NUMBER: str(_next_number(keys))}
            written = await self._etcd.put(
                {f"{self._root}{name}": value for name, value in wish.items()},
                while_key=f"{self._root}{NUMBER}",
                revision=before.revision,
            )
            if written is None:
                return StepOutcome(accepted=False, detail="another planner has written its wish meanwhile")
            self._ours = written
        return StepOutcome(accepted=True)

    async def close(self) -> None:
        await self._frontend.close()
        await self._client.aclose()
        if self._etcd is not None:
            await self._etcd.close()

    async def _page(self) -> FrontendPage:
        """Its page is a courtesy: without it the workers are still listed, and what it tells is unknown."""
        try:
            return read_frontend(await self._frontend.text("GET", "/metrics"))
        except FleetError:
            return FrontendPage()

    async def _frontends_version(self, workers: frozenset[str]) -> str:
        """Workers do not say theirs. Asked anew when one of them is new: they are upgraded together."""
        if not workers <= self._versed:
            self._versed = workers
            try:
                said = table(await self._frontend.json("GET", "/openapi.json"), "info").get("version", "")
            except FleetError:
                said = ""
            self._version = str(said)[:MAX_VERSION]
        return self._version

    async def _cards(self, workers: dict[str, str]) -> dict[str, str]:
        """Pages by what discovery says in this etcd; asked only while one of them is not known."""
        if self._etcd is None or not self._finder.missing(workers):
            return {}
        cards = await self._etcd.under("v1/mdc/")
        return dict(found for each in cards.values() if (found := page_of_card(each.value)) is not None)

    def _is_planner(self, row: dict[str, Any]) -> bool:
        return self._namespace in ("", row.get("namespace", self._namespace)) and row.get("component") == "Planner"

    def _is_worker(self, row: dict[str, Any]) -> bool:
        """One that generates; its other endpoints are no workers, and other namespaces other fleets."""
        is_ours = self._namespace in ("", row.get("namespace", self._namespace))
        generates = row.get("endpoint") == "generate" and row.get("component") in COMPONENTS
        return is_ours and generates and isinstance(row.get("instance_id"), int)

    def _member(self, row: dict[str, Any], urls: dict[str, str], page: FrontendPage) -> Member:
        """Its id is hex, as on its own page."""
        worker_id, component = f"{row['instance_id']:x}", row["component"]
        is_mixed = component == "backend" and not self._is_split
        role = Role.MIXED if is_mixed else COMPONENTS[component]
        return Member(
            worker_id=worker_id,
            role=role,
            metrics_url=urls.get(worker_id, ""),
            told=told_of(worker_id, role, page, self._prompts),
            has_own_id=True,
        )

    async def _pools(self, members: tuple[Member, ...], planner: str) -> dict[Role, PoolFacts]:
        assert self._etcd is not None
        if not self._is_split:  # its workers have no pools of their own
            return {}
        keys = await self._etcd.under(self._root)
        pools = {}
        for role, name in KEYS.items():
            told = _number(keys.get(name, NOTHING))
            target = told if told is not None and told >= 0 else None
            num = sum(1 for each in members if each.role is role)
            pools[role] = PoolFacts(target=target, num_ready=num, rival=self._rival(keys) or planner)
        return pools

    def _rival(self, keys: dict[str, Held]) -> str:
        newest = max(keys.get(name, NOTHING).revision for name in (NUMBER, *KEYS.values()))
        if self._ours is None or newest <= self._ours:
            return ""
        if self._theirs is None or self._theirs[0] != newest:
            self._theirs = newest, self._now()
        if self._now() - self._theirs[1] > RIVAL_S:
            self._ours = self._theirs = None
            return ""
        wish = ", ".join(f"{role} {keys.get(name, NOTHING).value or '?'}" for role, name in KEYS.items())
        return f"another planner has written its wish ({wish}) over ours"


def _next_number(keys: dict[str, Held]) -> int:
    """One that its controller has not carried out: a planner's wish goes with it, and what was carried out stays."""
    return 1 + max(-1 if (number := _number(keys.get(name, NOTHING))) is None else number for name in (NUMBER, CARRIED))


def _number(held: Held) -> int | None:
    try:
        return int(held.value) if held.revision else None
    except ValueError as error:
        raise FleetError(f"the virtual connector holds {held.value!r} where a number is meant") from error
