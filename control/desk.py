"""Where commands are handed in: checked, planned, recorded; and where their journals are kept up.

Decided here: the order of the checks (idempotency, stale version, refusal, confirmation), all before anything is
recorded; and that nothing acts before its record is durable. Not decided here: what a command means
(`control.commands`), how far it has come (`control.progress`).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from functools import partial

from control.changes import changes_between
from control.commands import ENDED, Planned, advance, plan_action
from control.errors import CommandRefused, ControlError, HistoryError, NotFound, StaleVersion
from control.events import Events
from control.facts import FleetFacts, Refusal
from control.first_desired import starting_command
from control.guards import pools_of
from control.history.deferred import JournalWrite, encode
from control.history.store import History
from control.progress import Progress, departed, departed_in_all, departures_of, superseded_by
from control.recorder import Recorder
from control.types.api import Principal
from control.types.commands import (
    Action,
    Command,
    CommandRequest,
    CommandState,
    CommandStep,
    Departure,
    Desired,
    Preview,
    Verb,
)
from control.words import action_words

#: After its end a command waits this long for the gateways' word of what left its workers: a beat may be on its way.
LATE_WORD_S = 5.0
#: How far back an undo and a stale form look for who changed what.
LOOK_BACK = 200


@dataclass(slots=True)
class Desk:
    """Desired state and the unfinished commands of one fleet, as the history has them."""

    fleet_id: str
    history: History
    recorder: Recorder
    events: Events
    desired: Desired
    unfinished: dict[int, Command] = field(default_factory=dict)
    departures: tuple[Departure, ...] = ()  # as the gateways told last
    failed: dict[int, Command] | None = None  # that may have to be taken back; None: of this fleet nothing is
    _ended: dict[int, Command] = field(default_factory=dict)  # just now: what left their workers is not all told yet
    _newest_id: int = 0  # of the commands that this desk knows
    _is_unsure: bool = False  # the answer to a command's commit was lost: it may be durable
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _catching_up: asyncio.Task[None] | None = None

    async def preview(self, request: CommandRequest, fleet: FleetFacts) -> Preview:
        """What the tick would do. A stale version is part of the answer here, not an error."""
        planned = await self._plan(request.action, fleet)
        refused = planned.refused.detail if planned.refused else ""
        if not refused and request.base_version not in (None, self.desired.version):
            refused = (await self._stale(request.base_version or 0, 0.0)).detail
        return Preview(
            base_version=self.desired.version,
            steps=planned.steps,
            pools_before=pools_of(self.desired),
            pools_after=pools_of(planned.desired_after),
            warnings=planned.warnings,
            needs_confirmation=planned.needs_confirmation,
            refused=refused,
            expected_s=planned.expected_s,
            effect=planned.effect,
        )

    async def submit(
        self, request: CommandRequest, principal: Principal, fleet: FleetFacts, now_unix_s: float
    ) -> Command:
        """Record one command. Raises CommandRefused, StaleVersion, NotFound, or HistoryError: then nothing happens."""
        async with self._lock:
            await self._catch_up(now_unix_s)
            if request.idempotency_key:
                earlier = await self._repeated(request, principal)
                if earlier is not None:
                    return self.annotated(earlier)
            if request.base_version not in (None, self.desired.version):
                raise await self._stale(request.base_version or 0, now_unix_s)
            planned = await self._plan(request.action, fleet)
            self._check(planned, request)
            draft = self._draft(request, principal, planned, now_unix_s)
            self._is_unsure = True
            command = await self.recorder.write(self.history.record_command, draft)
            self._is_unsure = False
            self.desired = planned.desired_after
            self._take(command, now_unix_s)
        return self.annotated(command)

    def kick(self, now_unix_s: float) -> None:
        """Begin to find out what is durable, when the answer to a command's commit was lost. Called by each tick."""
        if self._is_unsure and not self._lock.locked() and (self._catching_up is None or self._catching_up.done()):
            self._catching_up = asyncio.create_task(self._catch_up_alone(now_unix_s), name="desk-catch-up")

    async def settled(self) -> None:
        """Wait until that is found out, or cannot be now."""
        if self._catching_up is not None:
            await self._catching_up

    def settle(self, now_unix_s: float) -> None:
        """At start: what the last plane had no time to write about commands that newer ones took over from."""
        for command in sorted(self.unfinished.values(), key=lambda each: each.command_id):
            self._take(command, now_unix_s)

    def apply(self, progress: Progress) -> None:
        """Journal what was seen of one command. Waits in memory while the history is away."""
        command = self.unfinished[progress.command_id]
        state = advance(command.state, progress.event) if progress.event else command.state
        if not progress.steps and state == command.state:
            return
        self._journal(command, state, progress.steps, progress.result)

    def note_departures(self, departures: tuple[Departure, ...], now_unix_s: float) -> None:
        """Journal what has left the workers of commands that run or have just ended."""
        self.departures = departures
        for command in (*self.unfinished.values(), *self._ended.values()):
            steps = departed(command, departures, now_unix_s)
            in_all = departed_in_all(command, departures) if command.state in ENDED else ""
            if steps or in_all:
                result = "; ".join(each for each in (command.result, in_all) if each)
                self._journal(command, command.state, steps, result)
            if in_all or now_unix_s - command.updated_unix_s > LATE_WORD_S:
                self._ended.pop(command.command_id, None)

    def note_failed(self, command: Command) -> None:
        """Whether it is taken back is decided by `control.amends`."""
        if self.failed is not None and command.state is CommandState.FAILED:
            self.failed[command.command_id] = command

    def give_up(self, why: str, now_unix_s: float) -> None:
        """Whatever is under way has failed: nobody will look at it any more."""
        for command in list(self.unfinished.values()):
            step = CommandStep(at_unix_s=now_unix_s, text=why)
            self._journal(command, advance(command.state, "fail"), (step,), why)

    def remark(self, command: Command, text: str, now_unix_s: float) -> None:
        """A line in the journal of a command that has ended."""
        step = CommandStep(at_unix_s=now_unix_s, text=text)
        self._journal(command, command.state, (step,), "; ".join(filter(None, (command.result, text))))

    async def follow(self, after: Desired, why: str, now_unix_s: float) -> None:
        """The registry has other workers now. Durable before anything acts on it. Raises HistoryError."""
        async with self._lock:
            await self._catch_up(now_unix_s)
            if after.version != self.desired.version + 1:
                return  # a command came in between: the next look compares again
            draft = starting_command(self.fleet_id, self.desired, after, now_unix_s, why, "targets")
            self._is_unsure = True
            await self.recorder.write(self.history.record_command, draft)
            self._is_unsure = False
            self.desired = after

    async def command(self, command_id: int) -> Command:
        """One command with its journal. Raises NotFound."""
        found = await self.recorder.look_up(self.history.command, command_id)
        if found is None or found.fleet_id != self.fleet_id:
            raise NotFound(f"no command {command_id}", field="command_id", value=command_id)
        return self.annotated(self._known(found))

    async def commands(
        self,
        limit: int,
        before_id: int | None,
        since_unix_s: float | None = None,
        until_unix_s: float | None = None,
    ) -> list[Command]:
        """Newest first, recorded in [since, until)."""
        read = self.history.commands
        found = await self.recorder.read(read, self.fleet_id, limit, before_id, (), since_unix_s, until_unix_s)
        return [self.annotated(self._known(each)) for each in found]

    def _known(self, found: Command) -> Command:
        """As it is here, where its newest lines may not be written yet."""
        known = self.unfinished.get(found.command_id) or self._ended.get(found.command_id)
        return found if known is None else replace(known, undone_by=found.undone_by)

    def annotated(self, command: Command) -> Command:
        """With `can_undo`: what it changed is still as it left it; and with what leaves its workers now."""
        before, after = command.desired_before, command.desired_after
        changes = changes_between(before, after) if before and after else None
        can = bool(changes) and command.undone_by is None
        if can and changes is not None and after is not None:
            can = not changes.differing(self.desired, after)
        is_moving = command.command_id in self.unfinished or command.command_id in self._ended
        return replace(command, can_undo=can, departures=departures_of(command, self.departures) if is_moving else ())

    @property
    def under_way(self) -> frozenset[str]:
        """Workers and pools that a command wants something of that has not ended."""
        return frozenset(s.worker_id for each in self.unfinished.values() for s in each.steps if s.worker_id)

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _plan(self, action: Action, fleet: FleetFacts) -> Planned:
        if action.verb != Verb.UNDO or action.command_id is None:
            return plan_action(action, self.desired, fleet)
        target = await self.recorder.look_up(self.history.command, action.command_id)
        recent = await self.recorder.look_up(self.history.commands, self.fleet_id, LOOK_BACK, None)
        later = [each for each in reversed(recent) if each.command_id > action.command_id]
        return plan_action(action, self.desired, fleet, target, later)

    async def _repeated(self, request: CommandRequest, principal: Principal) -> Command | None:
        """The command that this key stands for already. Raises CommandRefused (409) when its body was another."""
        key = request.idempotency_key
        earlier = await self.recorder.look_up(self.history.find_by_idempotency, key, principal.name)
        if earlier is None:
            return None
        if (earlier.action, earlier.why) != (request.action, request.why):
            error = CommandRefused(
                f"idempotency key {key} was used for command {earlier.command_id} ({action_words(earlier.action)})",
                field="idempotency_key",
                value=key,
                bound="one key, one body",
            )
            error.status = 409
            raise error
        return self.unfinished.get(earlier.command_id, earlier)

    async def _stale(self, base_version: int, now_unix_s: float) -> StaleVersion:
        """What changed since `base_version`, by whom, and when."""
        recent = await self.recorder.look_up(self.history.commands, self.fleet_id, LOOK_BACK, None)
        since = [
            each for each in recent if each.version_after > base_version and each.version_after > each.base_version
        ]
        told = "; ".join(
            f"command {each.command_id} by {each.who}"
            + (f" {now_unix_s - each.created_unix_s:.0f} s ago" if now_unix_s else "")
            + f": {action_words(each.action)}"
            for each in since[:5]
        )
        return StaleVersion(
            f"desired state is at version {self.desired.version}, this was based on {base_version}"
            + (f". Since then: {told}" if told else ""),
            field="base_version",
            value=base_version,
            bound=str(self.desired.version),
        )

    def _check(self, planned: Planned, request: CommandRequest) -> None:
        if planned.refused is not None:
            raise refusal_error(planned.refused)
        word = planned.needs_confirmation
        if word and request.confirmation != word:
            raise CommandRefused(
                f"this takes half or more of the {word} pool, or more than its load leaves room for: "
                "type its name to confirm",
                field="confirmation",
                value=request.confirmation,
                bound=word,
            )

    def _draft(self, request: CommandRequest, principal: Principal, planned: Planned, now_unix_s: float) -> Command:
        """The command as it will be recorded; the history gives it its number."""
        steps = (
            CommandStep(at_unix_s=now_unix_s, text=each.text, worker_id=each.worker_id, state="planned")
            for each in planned.steps
        )
        return Command(
            command_id=0,
            fleet_id=self.fleet_id,
            action=request.action,
            state=CommandState.ACCEPTED,
            who=principal.name,
            why=request.why,
            idempotency_key=request.idempotency_key,
            base_version=self.desired.version,
            version_after=planned.desired_after.version,
            created_unix_s=now_unix_s,
            updated_unix_s=now_unix_s,
            steps=tuple(steps),
            desired_before=self.desired,
            desired_after=planned.desired_after,
            undo_of=request.action.command_id,
        )

    async def _catch_up_alone(self, now_unix_s: float) -> None:
        async with self._lock:
            with contextlib.suppress(HistoryError):  # it cannot be read either: the next tick tries again
                await self._catch_up(now_unix_s)

    async def _catch_up(self, now_unix_s: float) -> None:
        if not self._is_unsure:
            return
        desired = await self.recorder.look_up(self.history.load_desired, self.fleet_id)
        unfinished = await self.recorder.look_up(self.history.unfinished_commands, self.fleet_id)
        self._is_unsure = False
        if desired is not None and desired.version > self.desired.version:
            self.desired = desired
        for command in unfinished:
            if command.command_id > self._newest_id:
                self._take(command, now_unix_s)

    def _take(self, command: Command, now_unix_s: float) -> None:
        """A durable command is carried out from now on, and takes over from older ones."""
        for older in [each for each in self.unfinished.values() if each.command_id < command.command_id]:
            why = superseded_by(command, older)
            if why:
                step = CommandStep(at_unix_s=now_unix_s, text=f"superseded {why}")
                self._journal(older, advance(older.state, "supersede"), (step,), f"superseded {why}")
        self._newest_id = max(self._newest_id, command.command_id)
        self.unfinished[command.command_id] = command
        self._announce(command)

    def _journal(self, command: Command, state: CommandState, steps: tuple[CommandStep, ...], result: str) -> None:
        """Keep one command up, here at once and in the history as soon as it can be written."""
        has_ended = command.state in ENDED  # what is told after the end does not move it
        at = steps[-1].at_unix_s if steps and not has_ended else command.updated_unix_s
        changed = replace(command, state=state, steps=(*command.steps, *steps), result=result, updated_unix_s=at)
        lines = [JournalWrite(command.command_id, command.state, step, "") for step in steps[:-1]]
        lines.append(JournalWrite(command.command_id, state, steps[-1] if steps else None, result))
        for line in lines:
            arguments = (line.command_id, line.state, line.step, line.result)
            self.recorder.later(self.history.update_command, *arguments, frame=partial(encode, line))
        self.unfinished[command.command_id] = changed
        if state in ENDED:
            self.unfinished.pop(command.command_id, None)
            self._ended[command.command_id] = changed
            self.note_failed(changed)
        self._announce(changed)

    def _announce(self, command: Command) -> None:
        self.events.publish(
            "command",
            fleet_id=self.fleet_id,
            command_id=command.command_id,
            state=command.state.value,
            text=action_words(command.action),
            result=command.result,
            who=command.who,
        )


def refusal_error(refusal: Refusal) -> ControlError:
    """A refusal as the error that the API answers with."""
    kind = NotFound if refusal.status == 404 else CommandRefused
    return kind(refusal.detail, field=refusal.field, value=refusal.value, bound=refusal.bound)
