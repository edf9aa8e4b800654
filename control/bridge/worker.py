"""One foreign engine as a worker on our wire: gateways and the plane speak with it as with any worker of ours.

Decided here: what each message means as HTTP calls to the engine, when its death is certain (a broken connection and no
answer to a probe), and that a role is ours alone to give: a flip drains what the new role does not serve, proves the
new role with a canary, and then holds, while the engine itself is never restarted. One that comes back, or that comes
to a fleet which serves already, proves the role that it is given before anything is sent to it. Not decided here:
which request gets which worker (`control.routing`), how an engine is spoken to (`control.bridge.speech`), what a canary
is (`control.bridge.canary`).

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
    """`up` and `down` begin and end its lives; between them it answers on `address`. `is_newcomer`: others serve."""

    def __init__(
        self,
        worker_id: str,
        http: EngineHttp,
        yard: Yard,
        token: str,
        simulated: bool = False,
        *,
        is_newcomer: bool = False,
    ) -> None:
        super().__init__(worker_id, http, yard, token, simulated)
        self._can_prove = http.speech.splits and not http.speech.is_rendezvous  # else its role is not ours to give
        self._owes_proof = is_newcomer and self._can_prove
        self.distrust_s = DISTRUST_S
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
        self._owes_proof = self._can_prove
        for task in tasks:
            if task is not asyncio.current_task():
                task.cancel()
        for connection in list(self._peers.values()):
            connection.abort(f"the engine is gone: {reason}")

    @property
    def problem(self) -> str:
        """Why nothing is sent to it although the targets list it; "" where that has another reason."""
        if not self.is_up or not self._owes_proof or self.duty.wanted is Role.UNASSIGNED:
            return self.why_down
        return self._distrust[1] if self._distrust else f"a canary has to show that it serves as {self.duty.wanted}"

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
        is_flip = order.verb == "flip" and order.role is not self.duty.role
        return self._distrust[1] if is_flip and self._distrust and self._is_distrusted(order.role) else ""

    def _is_distrusted(self, role: Role) -> bool:
        """Its canary in this role has just failed."""
        return self._distrust is not None and self._distrust[0] is role and time.monotonic() < self._distrust[2]

    def _settle(self) -> None:
        """Move as far as work and proof allow, and tell everybody of a change."""
        if not self.is_up:
            return
        duty = self.duty
        before = (duty.role, duty.state, duty.leaves_decode)
        if not self._awaits_proof(duty.wanted):
            duty.settle(self._busy)
        elif self._proof is None and not self._is_distrusted(duty.wanted):
            self._proof = asyncio.create_task(self._prove(duty.wanted), name=f"canary {self.worker_id}")
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

    def _awaits_proof(self, role: Role) -> bool:
        """Nothing but that keeps it from this role. One that shall be closed before it ever served needs none."""
        is_closed = self._owes_proof and not self.duty.stays_for
        return self._lacks_proof(role) and not self._leaving(role) and not is_closed

    def _lacks_proof(self, role: Role) -> bool:
        if role in (Role.UNASSIGNED, self._proven):
            return False
        return self._owes_proof or self.duty.role not in (Role.UNASSIGNED, role)

    async def _prove(self, role: Role) -> None:
        """One canary; where it fails, the worker keeps its role, or serves in none yet, and says why."""
        self._yard.changed()
        try:
            problem = await self._yard.prove(self, role)
        finally:
            self._proof = None
        if problem:
            log.warning("engine %s does not become %s: %s", self.worker_id, role, problem)
            self._distrust = (role, f"the canary as {role} failed: {problem}", time.monotonic() + self.distrust_s)
            self.duty.take(Order("canary", self.duty.fence, "flip", self.duty.role, self._distrust[1]))
        elif role is self.duty.wanted:
            self._proven, self._distrust, self._owes_proof = role, None, False
        self._yard.changed()
        self._settle()
