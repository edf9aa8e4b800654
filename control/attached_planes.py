"""The planes of attached fleets: one for each, beside the main fleet's, while this process is the active one.

Decided here: when such a plane lives, and that it lives anew when what it may do changes. What is attached is durable
before anything is looked at, and a fleet whose plane
fails is tried again and says why. Each has its own lease, fence, history connection and spool, as any plane has; the
lease is ours as soon as the main fleet's is, because only the active process asks for it. Not decided here: what may be
attached (`control.fleets.attached.attachment`), who may do it (the API).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace

from pydantic import TypeAdapter

from control.adoption import adopt
from control.errors import CommandRefused, ControlError, NotActive, NotFound
from control.fleets.attached.attachment import Plan, engines_of, plan_of
from control.fleets.attached.bridge_file import served_at
from control.fleets.attached.fleet import AttachedFleet
from control.fleets.attached.permission import can_of, check_grantable, permission_event
from control.fleets.attached.routed import fleet_of
from control.fleets.attached.steering.memory import Memory
from control.fleets.attached.survey import survey
from control.fleets.attached.types import AttachedInfo, Attachment, Looks, Permission, Survey
from control.history.attachments import AttachmentRow
from control.history.store import History
from control.lease import Holder
from control.lease_keeper import LeaseKeeper
from control.plane import Plane
from control.settings import Settings
from control.types.fleet import Capability

_log = logging.getLogger("phaseline.attached")
RETRY_S = 2.0
MAX_ATTACHED = 32
_attachment = TypeAdapter(Attachment)
_permissions = TypeAdapter(tuple[Permission, ...])


class AttachedPlanes:
    """`planes` is the API's: whatever lives here is found there under its fleet's name."""

    def __init__(
        self,
        settings: Settings,
        history: History,
        planes: dict[str, Plane],
        me: Holder,
        open_history: Callable[[], History],
        version: str = "",
    ) -> None:
        self._settings = settings
        self._history = history
        self._planes = planes
        self._me = me
        self._open_history = open_history
        self._version = version
        self._rows: dict[str, AttachmentRow] = {}
        self._problems: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()  # one attaches or detaches at a time
        self.is_loaded = False

    # --- what the API asks --------------------------------------------------------------------------------------------

    def infos(self) -> list[AttachedInfo]:
        """All that are attached. Raises NotActive until that is known: "none" would end what serves them."""
        if not self.is_loaded:
            raise NotActive("the attached fleets are not loaded yet")
        return [self._info(row) for row in self._rows.values()]

    def _info(self, row: AttachmentRow) -> AttachedInfo:
        attachment = _attachment.validate_json(row.told)
        plane = self._planes.get(row.name)
        fleet = plane.fleet if plane is not None else None
        seen = fleet if isinstance(fleet, AttachedFleet) else None
        away = seen.plan.source.problem if seen is not None else ""
        bridge = served_at(self._settings.run_dir, row.name)
        return AttachedInfo(
            attachment=attachment,
            who=row.who,
            at_unix_s=row.at_unix_s,
            problem=self._problems.get(row.name, "") or away,
            can=tuple(sorted(can_of(attachment))),
            allowed=_permissions.validate_json(row.allowed),
            looks=seen.looks() if seen is not None else Looks(),
            missing=seen.missing() if seen is not None else (),
            served_at=bridge.url if bridge else "",
            served_by=bridge.pid if bridge else None,
        )

    async def survey(self, attachment: Attachment) -> Survey:
        """Look, and change nothing. Raises CommandRefused."""
        return await survey(await asyncio.to_thread(plan_of, attachment))

    async def attach(self, attachment: Attachment, who: str) -> AttachedInfo:
        """Record it, then look at it. Attached twice in the same words it stays as it is. Raises CommandRefused."""
        plan = await asyncio.to_thread(plan_of, attachment)
        told = _attachment.dump_json(attachment).decode()
        async with self._turn:
            known = self._rows.get(attachment.name)
            if known is None:
                self._check_room(attachment.name)
                known = AttachmentRow(name=attachment.name, told=told, who=who, at_unix_s=time.time())
                event = permission_event(known.name, f"{who} attached this fleet", known.at_unix_s)
                await asyncio.to_thread(self._history.put_attachment, known, event)
                self._rows[known.name] = known
                self._begin(known.name, self._keep_hosting(plan))
            elif known.told != told:
                raise CommandRefused(
                    f"a fleet named {attachment.name} is attached already, in other words; detach it first",
                    field="name",
                    value=attachment.name,
                )
        return self._info(known)

    async def allow(self, name: str, capability: Capability, who: str) -> AttachedInfo:
        """From now on we may do this to it. Raises NotFound, CommandRefused."""
        async with self._turn:
            info = self._info(self._row(name))
            check_grantable(info.attachment, capability)
            if capability in {each.capability for each in info.allowed}:
                return info
            if capability is Capability.ROUTE:
                await asyncio.to_thread(self._check_routed_alone, info.attachment)
            granted = Permission(capability=capability, who=who, at_unix_s=time.time())
            return await self._set_allowed(name, (*info.allowed, granted), f"{who} allowed {capability}")

    def _check_routed_alone(self, attachment: Attachment) -> None:
        """Raises CommandRefused where another fleet that is routed lists the same engine."""
        for other in [self._info(row) for row in self._rows.values() if row.name != attachment.name]:
            is_routed = Capability.ROUTE in {each.capability for each in other.allowed}
            shared = sorted(engines_of(attachment) & engines_of(other.attachment)) if is_routed else []
            if shared:
                name = other.attachment.name
                raise CommandRefused(
                    f"{shared[0]} is an engine of fleet {name} too, which is routed: neither gateway would count the "
                    f"other's requests; `phaseline forbid {name} route` comes first",
                    field="capability",
                    value=Capability.ROUTE.value,
                    bound="one routed fleet an engine",
                )

    async def forbid(self, name: str, capability: Capability, who: str) -> AttachedInfo:
        """From now on we may not; what is under way ends. Raises NotFound."""
        async with self._turn:
            info = self._info(self._row(name))
            left = tuple(each for each in info.allowed if each.capability != capability)
            if left == info.allowed:
                return info
            return await self._set_allowed(name, left, f"{who} took back {capability}")

    async def _set_allowed(self, name: str, allowed: tuple[Permission, ...], words: str) -> AttachedInfo:
        """Durable first; then its plane lives anew with what it may now."""
        told = _permissions.dump_json(allowed).decode()
        event = permission_event(name, words, time.time())
        await asyncio.to_thread(self._history.allow_attached, name, told, event)
        self._rows[name] = replace(self._rows[name], allowed=told)
        await self._end(name)
        self._begin_recorded(self._rows[name])
        return self._info(self._rows[name])

    def _row(self, name: str) -> AttachmentRow:
        if name not in self._rows:
            known = ", ".join(self._rows) or "none"
            raise NotFound(f"no attached fleet is named {name}", field="name", value=name, bound=known)
        return self._rows[name]

    async def detach(self, name: str, who: str) -> None:
        """Forget it and stop looking; its history stays, and its engines do not notice. Raises NotFound.

        A command that is under way has failed: a fleet attached under this name later may be another one.
        """
        async with self._turn:
            self._row(name)
            now_s, why = time.time(), f"{who} detached this fleet"
            await asyncio.to_thread(self._history.remove_attachment, name, permission_event(name, why, now_s))
            del self._rows[name]
            if (plane := self._planes.get(name)) is not None:
                plane.desk.give_up(why, now_s)
            await self._end(name)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Host all that are attached until cancelled; then all their planes are closed."""
        try:
            async with self._turn:
                for row in await asyncio.to_thread(self._history.attachments):
                    self._rows[row.name] = row
                    self._begin_recorded(row)
                self.is_loaded = True
            await asyncio.Event().wait()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            self._tasks = {}

    def _check_room(self, name: str) -> None:
        if name in (self._settings.fleet_id, "-"):
            raise CommandRefused(f"{name} is the fleet of this plane", field="name", value=name)
        if len(self._rows) >= MAX_ATTACHED:
            raise CommandRefused(
                f"{len(self._rows)} fleets are attached", field="name", value=name, bound=f"{MAX_ATTACHED} fleets"
            )

    def _begin_recorded(self, row: AttachmentRow) -> None:
        self._begin(row.name, self._host_recorded(row))

    def _begin(self, name: str, hosting: Coroutine[None, None, None]) -> None:
        self._problems[name] = "it is starting"
        self._tasks[name] = asyncio.create_task(hosting, name=f"attached {name}")

    async def _host_recorded(self, row: AttachmentRow) -> None:
        """What was good once may not be now: a file that has gone is this fleet's problem, until it is back."""
        while True:
            try:
                told, allowed = _attachment.validate_json(row.told), _permissions.validate_json(row.allowed)
                plan = await asyncio.to_thread(plan_of, told, allowed)
                break
            except (ControlError, ValueError) as error:
                if self._problems[row.name] != str(error):
                    _log.warning("attached fleet %s: %s", row.name, error)
                self._problems[row.name] = str(error)
            await asyncio.sleep(RETRY_S)
        await self._keep_hosting(plan)

    async def _end(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        self._problems.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _memory(self, name: str) -> Memory:
        """What its last plane kept of it; what is kept from now on is durable before it counts."""

        async def keep(text: str) -> None:
            await asyncio.to_thread(self._history.remember_attached, name, text)
            if name in self._rows:
                self._rows[name] = replace(self._rows[name], memory=text)

        return Memory(self._rows[name].memory, keep)

    async def _keep_hosting(self, plan: Plan) -> None:
        name = plan.attachment.name
        while True:
            try:
                async with self._hosted(plan) as plane:
                    self._problems[name] = ""
                    await plane.run()
            except ControlError as error:  # its lease, its history: told, and tried again
                self._problems[name] = str(error)
                _log.warning("attached fleet %s: %s; again in %g s", name, error, RETRY_S)
            await asyncio.sleep(RETRY_S)

    @contextlib.asynccontextmanager
    async def _hosted(self, plan: Plan) -> AsyncIterator[Plane]:
        """A plane under its own lease, known to the API, closed at the end."""
        name = plan.attachment.name
        history = await asyncio.to_thread(self._open_history)
        keeper = LeaseKeeper(history, name, self._me, self._settings.plane_lease_s)
        try:
            lease = await keeper.take()
            history.hold(name, lease.fence)
            fleet = fleet_of(plan, self._settings.run_dir, self._memory(name))
            plane = await adopt(fleet, history, self._settings, lease, self._version)
            keeping = asyncio.create_task(keeper.keep(), name=f"lease of {name}")
            self._planes[name] = plane
            try:
                yield plane
            finally:
                self._planes.pop(name, None)
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
                await plane.close()
                await keeper.release()
        finally:
            await keeper.close()
            history.close()
