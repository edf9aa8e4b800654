"""The pool of an sglang-router (0.3.2 tried) or smg (1.13.0 tried), edited while it runs, and its engines' roles.

Decided here: the order in which a role changes: out of the router, until the engine is empty; then the engine's own
role (`/pd_role_switch`, where it has one); then back in under the new role; then it is looked for there, and a request
tries it. What was accepted and does not show is failed: 0.3.2 answers 202 to a changed role (`PUT`) and keeps the old.

What breaks off half-way ends with the worker back in its former role, or told as out, with what brings it back. The
router forgets who left, so workers that are out by our doing are kept, before they leave, in a memory that outlives us.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final
from urllib.parse import quote

from control.errors import FleetError
from control.fleets.attached.steering.calls import Caller, rows
from control.fleets.attached.steering.engine_role import Broken, change_role, is_empty
from control.fleets.attached.steering.memory import Memory
from control.fleets.attached.steering.roster import Member, Roster
from control.fleets.attached.steering.router_entry import Entry, entry_of, read, word_of, written
from control.fleets.base import FleetStep, StepOutcome
from control.types.workers import Role, WorkerState

POLL_S: Final = 0.25
#: A change that the router accepted shows within this time, or was not obeyed (0.3.2: within 4 s).
SHOWS_S: Final = 8.0
#: Somebody who undoes our change so soon after it is another controller.
RIVAL_S: Final = 60.0


class SglangRouterSteering:
    """`in_place`: a role is changed by PUT (smg), else by leaving and coming back. `switch`: engines change theirs.

    `memory`: of workers that we took out. `graph_gb`: see `change_role`.
    """

    def __init__(
        self,
        router: Caller,
        memory: Memory | None = None,
        *,
        in_place: bool = False,
        switch: bool = False,
        graph_gb: float | None = None,
        limit_s: float = 60.0,
        shows_s: float = SHOWS_S,
    ) -> None:
        self._router = router
        self._memory = memory or Memory()
        self._in_place = in_place
        self._switch = switch
        self._graph_gb = graph_gb
        self._limit_s = limit_s
        self._shows_s = shows_s
        self._out = read(self._memory.told)  # by us, as they were or are
        self._known: dict[str, Entry] = dict(self._out)
        self._busy: set[str] = set()  # under change: on their way out, or back in
        self._done: dict[str, tuple[Role | None, float]] = {}  # what we made of a worker last, and when
        self._turn = asyncio.Lock()  # one worker changes at a time: the router's list is one

    async def look(self) -> Roster:
        listed = await self._listed()
        if not self._busy:
            self._out = {
                name: each for name, each in self._out.items() if name not in listed or listed[name].is_leaving
            }
            with contextlib.suppress(FleetError):  # one too many there is forgotten by the next look
                await self._memory.put(written(self._out))
        self._known = self._out | listed
        return Roster(members=tuple(self._member(each, is_listed=name in listed) for name, each in self._known.items()))

    async def apply(self, step: FleetStep) -> StepOutcome:
        async with self._turn:
            entry = self._known.get(step.worker_id)
            if entry is None:
                return StepOutcome(accepted=False, detail=f"the router does not list {step.worker_id}")
            self._busy.add(step.worker_id)
            try:
                if rival := await self._rival(step, entry):
                    return StepOutcome(accepted=False, detail=rival, retry_helps=False)
                await VERBS[step.verb](self, entry, step.role)
            except FleetError as error:
                return StepOutcome(accepted=False, detail=error.detail, retry_helps=False)
            finally:
                self._busy.discard(step.worker_id)
            self._done[step.worker_id] = (None if step.verb == "drain" else step.role, time.monotonic())
            return StepOutcome(accepted=True)

    async def close(self) -> None:
        await self._router.close()

    # --- the changes ------------------------------------------------------------------------------------------------

    async def _flip(self, entry: Entry, role: Role) -> None:
        was_out = entry.worker_id in self._out
        try:
            if self._in_place:
                await self._change_in_place(entry, role)
            else:
                await self._leave(entry)
                await self._enter(await self._switched(entry, role))
            await self._canary()
        except Broken as error:
            raise FleetError(f"{error.detail}; {self._way_back(entry, 'restart the engine, then')}") from error
        except FleetError as error:
            where = self._way_back(entry, "as before,") if was_out else await self._put_back(entry)
            raise FleetError(f"{error.detail}; {where}") from error

    async def _put_back(self, former: Entry) -> str:
        """After a flip that broke off: into its former role. Returns, in words, where it is then. Never raises."""
        try:
            now = (await self._listed()).get(former.worker_id)
            if now is not None and now.role is not former.role:
                await (self._change_in_place(now, former.role) if self._in_place else self._leave(now))
            out = self._out.get(former.worker_id, former)
            if out.role is not former.role:
                out = await self._switched(out, former.role)
            if (await self._listed()).get(former.worker_id) is None:
                await self._enter(replace(out, role=former.role))
        except FleetError as error:
            return f"putting it back as {former.role} failed too ({error.detail}); {self._way_back(former, '')}"
        return f"it is {former.role} as before"

    def _way_back(self, entry: Entry, first: str) -> str:
        """Of one that may be out."""
        return f"it is out of the router: {first} `undrain {entry.worker_id}` brings it back".replace("  ", " ")

    async def _change_in_place(self, entry: Entry, role: Role) -> None:
        body = {"url": entry.url, "worker_type": word_of(role)}
        await self._router.json("PUT", f"/workers/{quote(entry.uuid, safe='')}", body)
        await self._until_listed(entry, role)

    async def _leave(self, entry: Entry) -> None:
        """Out of the router, and empty. Its requests end where they are; half of the limit is left for what follows."""
        await self._remember(self._out | {entry.worker_id: entry})
        listed = (await self._listed()).get(entry.worker_id)
        if listed is not None:
            await self._router.json("DELETE", f"/workers/{quote(listed.uuid, safe='')}")
            await self._until(lambda: self._is_gone(entry), f"the router still lists {entry.worker_id}", self._shows_s)
        await self._until(lambda: is_empty(entry), f"{entry.worker_id} still holds requests", self._limit_s / 2)

    async def _switched(self, entry: Entry, role: Role) -> Entry:
        """In its new role, which is kept before it goes back: that is then the one to bring it back in."""
        if self._switch:
            await change_role(entry, role, self._graph_gb)
            await self._remember(self._out | {entry.worker_id: replace(entry, role=role)})
        return replace(entry, role=role)

    async def _enter(self, entry: Entry) -> None:
        await self._router.json("POST", "/workers", entry.body)
        await self._until_listed(entry, entry.role)

    async def _come_back(self, entry: Entry, role: Role) -> None:
        await self._until(
            lambda: self._is_settled(entry), f"the router still lets {entry.worker_id} go", self._limit_s / 2
        )
        if entry.worker_id not in await self._listed():
            await self._enter(replace(entry, role=role))

    async def _drain(self, entry: Entry, _: Role) -> None:
        try:
            await self._leave(entry)
        except FleetError as error:
            if entry.worker_id in await self._listed():
                raise
            raise FleetError(f"{error.detail}; {self._way_back(entry, '')}") from error

    async def _canary(self) -> None:
        """One request through the router, after the change."""
        models = rows(await self._router.json("GET", "/v1/models"), "data")
        body = {"model": str(models[0].get("id")) if models else "", "prompt": "Hello", "max_tokens": 1}
        try:
            await self._router.json("POST", "/v1/completions", body)
        except FleetError as error:
            raise FleetError(f"the change showed, but a request after it failed: {error.detail}") from error

    async def _remember(self, out: dict[str, Entry]) -> None:
        """Raises FleetError: it could not be kept, so nothing is changed."""
        await self._memory.put(written(out))
        self._out = out

    # --- observation ------------------------------------------------------------------------------------------------

    async def _listed(self) -> dict[str, Entry]:
        found = [entry_of(each) for each in rows(await self._router.json("GET", "/workers"), "workers")]
        return {each.worker_id: each for each in found if each is not None}

    async def _is_gone(self, entry: Entry) -> bool:
        """smg lists one that leaves until it is empty."""
        now = (await self._listed()).get(entry.worker_id)
        return now is None or now.is_leaving

    async def _is_settled(self, entry: Entry) -> bool:
        now = (await self._listed()).get(entry.worker_id)
        return now is None or not now.is_leaving

    async def _until_listed(self, entry: Entry, role: Role) -> None:
        async def shows() -> bool:
            listed = (await self._listed()).get(entry.worker_id)
            return listed is not None and listed.role is role and listed.is_healthy

        what = f"the router accepted {entry.worker_id} as {role} and does not list it so: not obeyed"
        await self._until(shows, what, self._shows_s)

    async def _until(self, holds: Callable[[], Awaitable[bool]], otherwise: str, limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while not await holds():
            if time.monotonic() > deadline_s:
                raise FleetError(f"{otherwise} after {limit_s:g} s")
            await asyncio.sleep(POLL_S)

    async def _rival(self, step: FleetStep, entry: Entry) -> str:
        """Why we stop: what we did a moment ago is undone, and not by us."""
        wanted = None if step.verb == "drain" else step.role
        was, at_s = self._done.get(step.worker_id, (None, -RIVAL_S))
        listed = (await self._listed()).get(step.worker_id)
        now = None if listed is None else listed.role
        if step.worker_id in self._done and was == wanted != now and time.monotonic() - at_s < RIVAL_S:
            return f"{step.worker_id} was {was or 'taken out'} and somebody else made it {now or 'leave'}: we stop"
        return ""

    def _member(self, entry: Entry, *, is_listed: bool) -> Member:
        state, reason = WorkerState.READY, ""
        if not is_listed:
            state, reason = WorkerState.DRAINED, "taken out of the router"
        elif entry.is_leaving:
            state, reason = WorkerState.DRAINING, "the router lets it end what it holds"
        elif not entry.is_healthy:
            state, reason = WorkerState.FAILED, "the router finds it unhealthy"
        return Member(
            worker_id=entry.worker_id,
            role=entry.role,
            state=state,
            reason=reason,
            metrics_url=f"{entry.url}/metrics",
        )


VERBS: Final = {
    "flip": SglangRouterSteering._flip,
    "drain": SglangRouterSteering._drain,
    "undrain": SglangRouterSteering._come_back,
}
