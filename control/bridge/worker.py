"""One foreign engine as a worker on our wire: gateways and the plane speak with it as with any worker of ours.

Decided here: what each message means as HTTP calls to the engine, when its death is certain (a broken connection and no
answer to a probe), and that a role is ours alone to give: a flip drains what the new role does not serve, proves the
new role with a canary, and then holds, while the engine itself is never restarted. Not decided here: which request gets
which worker (`control.routing`), how an engine is spoken to (`control.bridge.speech`), what a canary is
(`control.bridge.canary`).

    Submit(decode) -> Reserved                     nothing is asked of the engine yet: room in our own count is kept
    Submit(prefill) -> POST, max_tokens=1, keep KV -> Prefilled with the engine's own words for the handoff as a lease
    Pull -> POST the prompt with those words       -> tokens; the first one again, which must be the one that was sent
    Submit(local) -> POST                          -> tokens
    Cancel -> the connection is closed, which ends it in the engine
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

from control.bridge.asks import Asks
from control.bridge.engine_http import EngineHttp, Shape
from control.bridge.peers import Yard
from engine.connection import Connection
from engine.duty import Duty
from engine.lifecycle import SERVES, keeps_leases
from engine.types import Role, WorkerState
from engine.wire import Cancel, Order, OrderResult, Ping, Pong, Pull, ReleaseLease, Status, Submit

log = logging.getLogger("phaseline.bridge")
#: After a canary that failed, the same flip is refused for so long.
DISTRUST_S: Final = 15.0


class BridgedWorker(Asks):
    """`up` and `down` begin and end its lives; between them it answers on `address`."""

    def __init__(self, worker_id: str, http: EngineHttp, yard: Yard, token: str, simulated: bool = False) -> None:
        super().__init__(worker_id, http, yard, token, simulated)
        self._proven: Role | None = None
        self._proof: asyncio.Task[None] | None = None
        self._distrust: tuple[Role, str, float] | None = None  # role, why, until when

    # --- lives -------------------------------------------------------------------------------------------------------

    def up(self, shape: Shape, now_unix_s: float) -> None:
        """The engine answers: another life begins, without a role until the plane gives one."""
        self.shape, self.is_up, self.why_down = shape, True, ""
        self.epoch = max(self.epoch + 1, int(now_unix_s))
        self.duty = Duty()
        self.duty.loaded()
        log.info("engine %s at %s is there: %s", self.worker_id, self.http.url, shape)
        self._yard.changed()

    def down(self, reason: str) -> None:
        """The engine is gone: every peer sees a worker that died, and goes on elsewhere."""
        if not self.is_up:
            self.why_down = reason
            return
        self.is_up, self.why_down = False, reason
        log.warning("engine %s is gone with %d requests: %s", self.worker_id, len(self._works), reason)
        tasks = [*self._tasks.values(), *([self._proof] if self._proof else [])]
        self._works.clear()
        self._tasks.clear()
        self._held.clear()
        self._yard.handoffs.forget(self.worker_id)
        self._proven = self._proof = self._distrust = None
        for task in tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for connection in list(self._peers.values()):
            connection.abort(f"the engine is gone: {reason}")

    async def close(self) -> None:
        self.down("the bridge ends")
        if self._beat is not None:
            self._beat.cancel()
        if self._server is not None:
            self._server.close()

    def leave(self) -> bool:
        """Its engine is of this fleet no more: take nothing new. True once all that ran has ended, and peers know."""
        if not self.is_up or self.duty.state in (WorkerState.DRAINED, WorkerState.UNASSIGNED):
            return True
        self.duty.take(Order("targets", self.duty.fence, "drain", self.duty.role, "the targets list it no more"))
        self._settle()
        return False

    # --- peers -------------------------------------------------------------------------------------------------------

    def _on_close(self, key: str, connection: Connection) -> None:
        if self._peers.get(key) is not connection:
            return
        del self._peers[key]
        self._gateways.pop(key, None)
        for work in [each for each in self._works.values() if each.peer == key]:
            self._end(work)
        self._settle()

    def _on_message(self, key: str, message: Any) -> None:
        match message:
            case Submit():
                self._submit(key, message)
            case Pull():
                self._pull(key, message)
            case Cancel():
                work = self._works.get((message.req_id, message.attempt))
                if work is not None:
                    self._end(work)
                    self._settle()
            case ReleaseLease():
                self._yard.handoffs.take(message.lease_id)
                self._settle()
            case Order():
                self._order(key, message)
            case Ping():
                self._send(key, Pong(message.nonce, self.load()))
            case _:
                self._peers[key].refuse(f"a bridged worker takes no {type(message).__name__}")

    # --- role and state ----------------------------------------------------------------------------------------------

    def _order(self, key: str, order: Order) -> None:
        distrusted = self._distrusted(order)
        problem = distrusted or self.duty.take(order)
        self._settle()
        result = OrderResult(
            order.order_id, not problem, self.duty.role, self.duty.state, problem, is_final=bool(distrusted)
        )
        self._send(key, result)

    def _distrusted(self, order: Order) -> str:
        if order.verb != "flip" or self._distrust is None or self._distrust[0] is not order.role:
            return ""
        return self._distrust[1] if time.monotonic() < self._distrust[2] else ""

    def _settle(self) -> None:
        """Move as far as work and proof allow, and tell everybody of a change."""
        if not self.is_up:
            return
        duty = self.duty
        before = (duty.role, duty.state, duty.leaves_decode)
        if self._lacks_proof(duty.wanted) and not self._leaving(duty.wanted):
            if self._proof is None:
                self._proof = asyncio.create_task(self._prove(duty.wanted), name=f"canary {self.worker_id}")
        else:
            duty.settle(self._busy)
        if (duty.role, duty.state, duty.leaves_decode) != before:
            self._proven = None if duty.wanted is duty.role else self._proven
            status = Status(
                self.worker_id, self.epoch, duty.role, duty.state, duty.fence, duty.reason, self.load(),
                duty.leaves_decode,
            )  # fmt: skip
            for connection in self._peers.values():
                connection.send(status)

    def _busy(self, role: Role | None) -> bool:
        if role is None:
            return bool(self._works) or self._yard.handoffs.num_of(self.worker_id) > 0
        return self._leaving(role) or self._lacks_proof(role)

    def _leaving(self, role: Role) -> bool:
        """There is work here that this role does not serve."""
        serves = SERVES[role]
        is_kept = keeps_leases(serves) or not self._yard.handoffs.num_of(self.worker_id)
        return not is_kept or any(each.ask.kind not in serves for each in self._works.values())

    def _lacks_proof(self, role: Role) -> bool:
        return Role.UNASSIGNED not in (self.duty.role, role) and role not in (self.duty.role, self._proven)

    async def _prove(self, role: Role) -> None:
        """One canary; where it fails, the worker keeps its role and says why."""
        try:
            problem = await self._yard.prove(self, role)
        finally:
            self._proof = None
        if problem:
            log.warning("engine %s does not become %s: %s", self.worker_id, role, problem)
            self._distrust = (role, f"the canary as {role} failed: {problem}", time.monotonic() + DISTRUST_S)
            self.duty.take(Order("canary", self.duty.fence, "flip", self.duty.role, self._distrust[1]))
        elif role is self.duty.wanted:
            self._proven, self._distrust = role, None
        self._settle()
