"""The gateway's connections to workers: one to each worker in the table, and what each connection has told us.

Decided here: which worker is usable now (its own word, from Welcome and Status, beats the table's; weight and address
come from the table), what a worker's load is between two of its messages, and when a dead one is tried again. Not here:
which worker a request gets (`control.routing`), and what its answers mean to a request (`control.gateway.relay`).

Everything runs on one event loop; a message is handled in the callback that read it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from control.gateway.prefix_index import PrefixIndex
from control.gateway.pressure import Pressure
from control.gateway.pulse import ASK_S, LATE_S, Pulse, pulse_of, pulse_of_step
from control.processes import asleep_cpu_ticks, is_ending, stands_still
from control.routing import WorkerView
from control.types.routing import WorkerRoute
from control.types.workers import LossCause
from engine.connection import Connection, connect
from engine.errors import ConnectionLost, WireError
from engine.types import Load, Role, WorkerState, WorkKind
from engine.wire import (
    Goodbye,
    Hello,
    Message,
    Offered,
    Pong,
    Prefetched,
    Prefilled,
    Rejected,
    Reserved,
    Status,
    Step,
    TokenEvent,
    Yielded,
)

if TYPE_CHECKING:
    from control.gateway.move import Movable

log = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 0.05
LAST_BACKOFF_S: Final = 2.0
#: A longer time between two steps with tokens is idleness, not a step.
LONGEST_STEP_S: Final = 2.0
#: A worker that was lost is expected back, restarted, within this time.
RETURN_S: Final = 10.0


class Leg(Protocol):
    """A request's end of the work that it has on workers."""

    attempt: int

    def on_reserved(self, link: WorkerLink, message: Reserved) -> None: ...
    def on_rejected(self, link: WorkerLink, message: Rejected) -> None: ...
    def on_prefilled(self, link: WorkerLink, message: Prefilled) -> None: ...
    def on_tokens(self, link: WorkerLink, event: TokenEvent) -> None: ...
    def on_lost(self, link: WorkerLink, reason: str) -> None: ...
    def on_moving(self, link: WorkerLink, message: Any) -> None: ...
    def waits_for(self, link: WorkerLink, since_s: float) -> bool: ...
    def movable(self, link: WorkerLink) -> Movable | None: ...
    def leave_reservation(self, link: WorkerLink) -> None: ...


class WorkerLink:
    """One worker: its row in the table, the connection to it, and what it said last."""

    def __init__(
        self,
        row: WorkerRoute,
        slot: int,
        prefixes: PrefixIndex,
        on_change: Callable[[], None],
        on_leaving: Callable[[WorkerLink], None] = lambda link: None,
        *,
        max_backlog_s: float | None = None,
    ) -> None:
        self.row = row
        self.slot = slot
        self.role = Role.UNASSIGNED
        self.state = WorkerState.STARTING
        self.block_tokens = 0
        self.max_context = 0
        self.simulated = row.simulated
        self.pressure = Pressure(max_backlog_s)
        self.legs: dict[str, Leg] = {}
        self.features: tuple[str, ...] = ()
        self.kv_token_bytes = 0.0
        self.leaves_decode = False  # by its own word: what decodes here may be moved
        self.step_s: float | None = None  # between two steps with tokens, lately
        self.is_retired = False
        self.heard_s = 0.0
        self.gave_s = 0.0  # when it last gave any request here a token
        self.lost_s: float | None = None
        self.is_late = False  # silent for a moment, or its step is overdue: nothing new goes there
        self.cause = LossCause.DIED  # how it was lost, if it was
        self.notice_s: float | None = None  # when it was lost: since its last word, or since it began the hung step
        self._asleep: tuple[int, float] | None = None  # CPU ticks of its sleeping process, and since when they are that
        self._prefixes = prefixes
        self._on_change = on_change
        self._on_leaving = on_leaving
        self._connection: Connection | None = None
        self._closed = asyncio.Event()
        self._view: WorkerView | None = None

    # --- what routing sees ---------------------------------------------------------------------------------------

    @property
    def worker_id(self) -> str:
        return self.row.worker_id

    @property
    def load(self) -> Load:
        """What it said last."""
        return self.pressure.load

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    @property
    def is_ready(self) -> bool:
        is_there = self._connection is not None and not self.is_late
        return is_there and self.state is WorkerState.READY and not self.is_retired

    def was_there(self, now_s: float) -> bool:
        """Connected, or lost so lately that it may be on its way back."""
        return self.is_connected or (self.lost_s is not None and now_s - self.lost_s < RETURN_S)

    def view(self) -> WorkerView:
        if self._view is None:
            self._view = self.pressure.view(self.row, self.slot, self.block_tokens)
        return self._view

    def set_row(self, row: WorkerRoute) -> None:
        self.row = row
        self._view = None

    def _changed(self) -> None:
        self._view = None
        self._on_change()

    # --- out -----------------------------------------------------------------------------------------------------

    def submit(self, leg: Leg, message: Any, *, prefill_tokens: int, kv_tokens: int) -> bool:
        """Send work and count it until the worker's load does. False when the worker is gone."""
        connection = self._connection
        if connection is None:
            return False
        self.legs[message.req_id] = leg
        self.pressure.asked(
            message.req_id,
            time.monotonic(),
            prefill_tokens=prefill_tokens,
            kv_tokens=kv_tokens,
            num_slots=int(message.kind is not WorkKind.PREFILL),
        )
        self._changed()
        if connection.send(message):
            return True
        self.legs.pop(message.req_id, None)
        return False

    def send(self, message: Message) -> bool:
        return self._connection is not None and self._connection.send(message)

    def forget(self, req_id: str) -> None:
        """This request has nothing here any more."""
        self.legs.pop(req_id, None)
        if self.is_retired and not self.legs:
            self.close("the worker left the table")

    def close(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.close(reason)

    # --- in ------------------------------------------------------------------------------------------------------

    def _on_message(self, _connection: Connection, message: Any) -> None:
        kind = type(message)
        if kind is Step:
            self._on_step(message)
        elif kind in _TO_LEG:
            if kind is Prefilled:
                self.gave_s = time.monotonic()
            leg = self.legs.get(message.req_id)
            if leg is not None and leg.attempt == message.attempt:
                if kind is Prefilled:
                    self.pressure.ended(message.req_id)
                _TO_LEG[kind](leg, self, message)
        elif kind is Status:
            self.role, self.state = message.role, message.state
            self.leaves_decode = message.leaves_decode
            self._set_load(message.load)
            self._on_leaving(self)
        elif kind is Pong:
            self._set_load(message.load)
        elif kind is Goodbye:
            self.close(message.reason)
        else:
            raise WireError(f"a gateway takes no {kind.__name__}")

    def _on_step(self, step: Step) -> None:
        if step.cache is not None:
            self._prefixes.apply(self.slot, step.cache)
        if step.events:
            self._note_step(time.monotonic())
        for event in step.events:
            leg = self.legs.get(event.req_id)
            if leg is not None and leg.attempt == event.attempt:
                if event.finish is not None:
                    self.pressure.ended(event.req_id)
                leg.on_tokens(self, event)
        self._set_load(step.load)

    def _note_step(self, now_s: float) -> None:
        gap_s, self.gave_s = now_s - self.gave_s, now_s
        if gap_s < LONGEST_STEP_S:
            self.step_s = gap_s if self.step_s is None else self.step_s + 0.1 * (gap_s - self.step_s)

    def _set_load(self, load: Load) -> None:
        now_s = time.monotonic()
        self.pressure.told(load, now_s)
        self.heard_s = now_s
        self._asleep = None
        pulse = pulse_of_step(load.step_overdue)
        self.is_late = pulse is not Pulse.BEATS
        self._changed()
        if pulse is Pulse.GONE and self.legs:
            self._cut_off(
                LossCause.HUNG,
                f"its step has run for {load.step_running_s:.1f} s, {load.step_overdue:.0f} "
                "times as long as any like it should",
            )

    # --- the connection's life -----------------------------------------------------------------------------------

    async def keep_connected(self, hello: Hello) -> None:
        """Connect, and again whenever the connection ends, until cancelled or retired."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                await self._open(hello)
            except (ConnectionLost, WireError) as error:
                log.debug("worker %s: %s", self.worker_id, error)
            else:
                backoff_s = FIRST_BACKOFF_S
                await self._closed.wait()
            if self.is_retired:
                return
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    async def _open(self, hello: Hello) -> None:
        self._closed.clear()
        connection = await connect(
            self.row.address, hello, self._on_message, self._on_close, on_welcome=self._on_welcome
        )
        if connection.welcome.worker_id != self.worker_id:
            raise ConnectionLost(f"{self.row.address} is worker {connection.welcome.worker_id}, not {self.worker_id}")

    def _on_welcome(self, connection: Connection) -> None:
        """Before the messages behind it, which may say already that it is something else now."""
        welcome = connection.welcome
        if welcome.worker_id != self.worker_id:
            connection.close("another worker than the table says")
            return
        self._connection = connection
        self.role, self.state = welcome.role, welcome.state
        self.leaves_decode = False
        self.features = welcome.features
        self.block_tokens = welcome.layout.block_tokens
        self.kv_token_bytes = welcome.layout.block_bytes / welcome.layout.block_tokens
        self.max_context = welcome.max_context
        self.simulated = welcome.simulated
        self.cause, self.notice_s = LossCause.DIED, None
        self.pressure.restart(welcome.load)
        self._set_load(welcome.load)
        log.info("worker %s connected: %s, %s", self.worker_id, self.role, self.state)

    def _on_close(self, connection: Connection, reason: str) -> None:
        if connection is not self._connection:
            self._closed.set()
            return
        self._connection = None
        self.lost_s = time.monotonic()
        in_step_s = self.load.step_running_s if self.cause is LossCause.HUNG else 0.0
        self.notice_s = self.lost_s - self.heard_s + in_step_s
        self.state = WorkerState.STARTING
        self._prefixes.forget(self.slot)
        self._changed()
        self._closed.set()
        legs, self.legs = list(self.legs.values()), {}
        level = logging.INFO if self.is_retired else logging.WARNING
        log.log(level, "worker %s lost with %d requests: %s", self.worker_id, len(legs), reason)
        for leg in legs:
            leg.on_lost(self, reason)

    def leave_if_hung(self, now_s: float, token_gap_s: float) -> None:
        """It lives, and has given nobody here a token for too long: who waits for one goes on elsewhere."""
        since_s = now_s - token_gap_s
        if self.gave_s > since_s:
            return
        for leg in [each for each in self.legs.values() if each.waits_for(self, since_s)]:
            log.warning("worker %s hangs: a request leaves it after %g s without a token", self.worker_id, token_gap_s)
            leg.on_lost(self, f"it has given no token for {token_gap_s:g} s")

    def leave_if_dying(self) -> None:
        """Nothing goes to a process that was killed or stopped, though its connection has not told yet."""
        pid = 0 if self._connection is None else self._connection.welcome.pid
        cause = LossCause.DIED if is_ending(pid) else LossCause.STOPPED if stands_still(pid) else None
        if cause is not None:
            self.is_late = True
            self._changed()
            self._cut_off(cause, "its process ends" if cause is LossCause.DIED else "its process is stopped")

    def feel_pulse(self, now_s: float) -> None:
        """Late: nothing new goes there until it is heard of. Gone: cut off, so that what it holds goes on elsewhere."""
        connection, silent_s = self._connection, now_s - self.heard_s
        if connection is None or silent_s < (ASK_S if self.legs else LATE_S):
            return
        pid = connection.welcome.pid
        is_stopped = stands_still(pid)
        frozen_s = self._frozen_s(pid, now_s) if silent_s >= LATE_S else 0.0
        pulse = pulse_of(silent_s, is_stopped=is_stopped, frozen_s=frozen_s)
        if pulse is Pulse.GONE:
            why = "its process is stopped, " if is_stopped else "all its threads sleep, " if frozen_s else ""
            self._cut_off(LossCause.STOPPED if is_stopped else LossCause.HUNG, f"{why}silent for {silent_s:.1f} s")
        elif pulse is Pulse.LATE and not self.is_late:
            self.is_late = True
            self._changed()

    def _frozen_s(self, pid: int, now_s: float) -> float:
        """For how long its process has slept without using a CPU, as far as looks at it tell."""
        ticks = asleep_cpu_ticks(pid)
        if ticks is None:
            self._asleep = None
        elif self._asleep is None or self._asleep[0] != ticks:
            self._asleep = (ticks, now_s)
        return now_s - self._asleep[1] if self._asleep is not None else 0.0

    def _cut_off(self, cause: LossCause, reason: str) -> None:
        """End the connection, so that nothing late can come: what it holds goes on elsewhere."""
        if self._connection is not None:
            self.cause = cause
            self._connection.abort(reason)


_TO_LEG: Final[dict[type, Callable[[Leg, WorkerLink, Any], None]]] = {
    Reserved: lambda leg, link, message: leg.on_reserved(link, message),
    Rejected: lambda leg, link, message: leg.on_rejected(link, message),
    Prefilled: lambda leg, link, message: leg.on_prefilled(link, message),
    Offered: lambda leg, link, message: leg.on_moving(link, message),
    Prefetched: lambda leg, link, message: leg.on_moving(link, message),
    Yielded: lambda leg, link, message: leg.on_moving(link, message),
}
