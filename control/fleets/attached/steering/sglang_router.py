"""The pool of an sglang-router (0.3.2 tried) or smg (1.13.0: shape), edited while it runs, and its engines' roles.

Decided here: the order in which a role changes: out of the router, until the engine is empty; then the engine's own
role (`/pd_role_switch`, where it has one); then back in under the new role; then it is looked for there. What was
accepted and does not show is failed: 0.3.2 answers 202 to a changed role (`PUT`) and keeps the old one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlsplit

from control.errors import FleetError
from control.fleets.attached.exposition import parse_page
from control.fleets.attached.steering.calls import Caller, rows
from control.fleets.attached.steering.roster import Member, Roster
from control.fleets.base import FleetStep, StepOutcome
from control.types import Role, WorkerState

TYPES: Final = {"prefill": Role.PREFILL, "decode": Role.DECODE, "regular": Role.MIXED}
POLL_S: Final = 0.25
#: A change that the router accepted shows within this time, or was not obeyed (0.3.2: within 4 s).
SHOWS_S: Final = 8.0
#: Somebody who undoes our change so soon after it is another controller.
RIVAL_S: Final = 60.0
#: What an SGLang engine holds, in all stages; vLLM's names for engines of its kind.
HELD: Final = (
    *("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    *("sglang:num_prefill_inflight_queue_reqs", "sglang:num_prefill_bootstrap_queue_reqs"),
    *("sglang:num_decode_prealloc_queue_reqs", "sglang:num_decode_transfer_queue_reqs"),
    *("vllm:num_requests_running", "vllm:num_requests_waiting"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One worker as the router lists it, or listed it last. `port`: where prefill hands off from."""

    uuid: str
    url: str
    role: Role
    is_healthy: bool = True
    port: int | None = None

    @property
    def worker_id(self) -> str:
        return urlsplit(self.url).netloc


class SglangRouterSteering:
    """`in_place`: a role is changed by PUT (smg), else by leaving and coming back. `switch`: engines change theirs."""

    def __init__(
        self,
        router: Caller,
        *,
        in_place: bool = False,
        switch: bool = False,
        limit_s: float = 60.0,
        shows_s: float = SHOWS_S,
    ) -> None:
        self._router = router
        self._in_place = in_place
        self._switch = switch
        self._limit_s = limit_s
        self._shows_s = shows_s
        self._known: dict[str, Entry] = {}  # the ones that we took out too
        self._out: set[str] = set()  # by us
        self._done: dict[str, tuple[Role | None, float]] = {}  # what we made of a worker last, and when
        self._turn = asyncio.Lock()  # one worker changes at a time: the router's list is one

    async def look(self) -> Roster:
        listed = await self._listed()
        self._known |= listed
        self._out -= listed.keys()
        self._known = {name: each for name, each in self._known.items() if name in listed or name in self._out}
        members = [self._member(each, is_listed=name in listed) for name, each in self._known.items()]
        return Roster(members=tuple(members))

    async def apply(self, step: FleetStep) -> StepOutcome:
        async with self._turn:
            entry = self._known.get(step.worker_id)
            if entry is None:
                return StepOutcome(accepted=False, detail=f"the router does not list {step.worker_id}")
            rival = await self._rival(step, entry)
            if rival:
                return StepOutcome(accepted=False, detail=rival, retry_helps=False)
            try:
                await VERBS[step.verb](self, entry, step.role)
            except FleetError as error:
                return StepOutcome(accepted=False, detail=error.detail, retry_helps=False)
            self._done[step.worker_id] = (None if step.verb == "drain" else step.role, time.monotonic())
            return StepOutcome(accepted=True)

    async def close(self) -> None:
        await self._router.close()

    # --- the changes ------------------------------------------------------------------------------------------------

    async def _flip(self, entry: Entry, role: Role) -> None:
        if self._in_place:
            body = {"url": entry.url, "worker_type": _type(role)}
            await self._router.json("PUT", f"/workers/{quote(entry.uuid)}", body)
            await self._until_listed(entry, role)
        else:
            await self._leave(entry)
            if self._switch:
                await self._switch_engine(entry, role)
            await self._enter(entry, role)
        await self._canary()

    async def _leave(self, entry: Entry) -> None:
        """Out of the router, and empty. Its requests end where they are."""
        self._out.add(entry.worker_id)
        listed = (await self._listed()).get(entry.worker_id)
        if listed is not None:
            await self._router.json("DELETE", f"/workers/{quote(listed.uuid)}")
            await self._until(lambda: self._is_gone(entry), f"the router still lists {entry.worker_id}", self._shows_s)
        await self._until(lambda: _is_empty(entry), f"{entry.worker_id} still holds requests", self._limit_s)

    async def _enter(self, entry: Entry, role: Role) -> None:
        body: dict[str, Any] = {"url": entry.url, "worker_type": _type(role)}
        if role is Role.PREFILL:
            body["bootstrap_port"] = entry.port
        await self._router.json("POST", "/workers", body)
        await self._until_listed(entry, role)

    async def _come_back(self, entry: Entry, role: Role) -> None:
        if entry.worker_id not in await self._listed():
            await self._enter(entry, role)

    async def _drain(self, entry: Entry, _: Role) -> None:
        await self._leave(entry)

    async def _switch_engine(self, entry: Entry, role: Role) -> None:
        """First only asked whether it would: a switch that fails half-way needs a restart of the engine."""
        engine = Caller(entry.url)
        try:
            for prepare_only in (True, False):
                said = await engine.json(
                    "POST", "/pd_role_switch", {"new_role": _type(role), "prepare_only": prepare_only}
                )
                if not said.get("success"):
                    raise FleetError(f"{entry.worker_id} does not change its role: {str(said.get('message'))[:200]}")
        finally:
            await engine.close()

    async def _canary(self) -> None:
        """One request through the router, after the change."""
        models = rows(await self._router.json("GET", "/v1/models"), "data")
        body = {"model": str(models[0].get("id")) if models else "", "prompt": "Hello", "max_tokens": 1}
        try:
            await self._router.json("POST", "/v1/completions", body)
        except FleetError as error:
            raise FleetError(f"the change shows, but a request after it failed: {error.detail}") from error

    # --- observation ------------------------------------------------------------------------------------------------

    async def _listed(self) -> dict[str, Entry]:
        found = [_entry(each) for each in rows(await self._router.json("GET", "/workers"), "workers")]
        return {each.worker_id: each for each in found if each is not None}

    async def _is_gone(self, entry: Entry) -> bool:
        return entry.worker_id not in await self._listed()

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


async def _is_empty(entry: Entry) -> bool:
    """By its own page. Raises FleetError when that does not say."""
    engine = Caller(entry.url)
    try:
        page = parse_page(await engine.text("GET", "/metrics"), HELD)
    finally:
        await engine.close()
    held = [sample.value for name in HELD for sample in page.named(name)]
    if not held:
        raise FleetError(f"{entry.worker_id} does not say what it holds: its page has none of {', '.join(HELD[:2])}")
    return not any(held)


def _entry(row: dict[str, Any]) -> Entry | None:
    """None: a worker that we know nothing to do with."""
    url, role = str(row.get("url", "")), TYPES.get(str(row.get("worker_type")))
    if role is None or not urlsplit(url).netloc:
        return None
    port = row.get("bootstrap_port")
    return Entry(
        uuid=str(row.get("id", "")),
        url=url.rstrip("/"),
        role=role,
        is_healthy=bool(row.get("is_healthy", True)),
        port=port if isinstance(port, int) else None,
    )


def _type(role: Role) -> str:
    return next(name for name, each in TYPES.items() if each is role)
