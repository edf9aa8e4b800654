"""One worker on the wire: peers in, messages to the core, outboxes to the peers.

Decided here: who is told what and when (one Step per engine step and gateway, everything else at once, a heartbeat when
nothing changes), what happens when a peer or a holder is lost, and that the core is touched under its lock only. Not
here: admission, scheduling, leases (`engine.core`), and when a step runs (`engine.real`, `engine.paced`).

The lock is let go while a forward runs, so a cancel, an order to an idle worker or an acknowledgement never waits for a
long prefill chunk.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from engine.connection import Connection, listen
from engine.core import EngineCore, Outbox, PullPlan
from engine.errors import HandoffError, WireError
from engine.handoff import Carry, HandoffAsker, HandoffHolder
from engine.pool_file import KvStore
from engine.step_watch import LOOK_S
from engine.types import KvLayout, Load, WorkerState
from engine.wire import (
    FEATURES,
    CacheDelta,
    Cancel,
    Fetch,
    HandoffAck,
    Hello,
    Message,
    Offer,
    Order,
    Ping,
    Pong,
    Prefetch,
    Pull,
    ReleaseLease,
    Status,
    Step,
    Submit,
    TokenEvent,
    Welcome,
    Yield,
    encode,
)

#: A gateway hears from a worker at least this often.
HEARTBEAT_S: Final = 0.5
#: A beat that marks a step as overdue comes so much later, or it would find it one rounding short of that.
_PAST_MARK_S: Final = 0.001
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """What a Welcome says that never changes within an epoch."""

    worker_id: str
    epoch: int
    model_id: str
    layout: KvLayout
    max_context: int
    simulated: bool


class WorkerServer:
    """Runs on one asyncio loop. `on_work` is called, on that loop, after anything that may give the engine work."""

    def __init__(
        self,
        *,
        identity: WorkerIdentity,
        core: EngineCore,
        lock: threading.Lock,
        store: KvStore,
        asker: HandoffAsker,
        clock: Callable[[], float],
        on_work: Callable[[], None],
        verify: Callable[[PullPlan], str] | None = None,
        on_stopped: Callable[[], None] = lambda: None,
        give_out: Carry | None = None,
    ) -> None:
        self._identity = identity
        self._core = core
        self._lock = lock
        self._asker = asker
        self._clock = clock
        self._on_work = on_work
        self._verify = verify
        self._on_stopped = on_stopped
        self._unsent: list[dict[str, Outbox]] = []  # guarded by the lock
        self._holder = HandoffHolder(
            layout=identity.layout,
            store=store,
            leased_blocks=self._leased_blocks,
            acknowledge=self._acknowledge,
            carry=give_out,
        )
        self._peers: dict[str, Connection] = {}
        self._gateways: dict[str, Connection] = {}
        self._num_connections = 0
        self._step_id = 0
        self._last_sent_s = 0.0
        self._told_limits = 0  # whole limits that the running step had been overdue by at the last beat
        self._tasks: set[asyncio.Task[None]] = set()
        self._heartbeat: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    async def start(self, sock: socket.socket, token: str) -> None:
        """Begin to admit peers on this bound socket."""
        self._server = await listen("127.0.0.1", 0, token, self._on_peer, sock=sock)
        self._beat()

    async def close(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self._peers.values()):
            connection.close("the worker stops")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._holder.close()
        await self._asker.close()

    # --- out -----------------------------------------------------------------------------------------------------

    def post(self, outboxes: dict[str, Outbox]) -> None:
        """From the engine's thread, under the lock: keep what a step produced, in order, for the next `publish`."""
        if outboxes:
            self._unsent.append(outboxes)

    def publish(self) -> None:
        """Send all that is to be told, and to every gateway the load and cache changes that routing needs."""
        core = self._core
        with self._lock:
            unsent, self._unsent = [*self._unsent, core.take_outbox()], []
            load, delta, status = core.load(self._clock()), core.cache_delta(), core.status_changed()
        events: dict[str, list[TokenEvent]] = {}
        has_ended = False
        for outboxes in unsent:
            for key, outbox in outboxes.items():
                self._send(key, outbox.messages)
                has_ended = has_ended or bool(outbox.messages)
                if outbox.events:
                    events[key] = events[key] + outbox.events if key in events else outbox.events
        if events or delta is not None or has_ended:  # what ended, a prefill say, has changed the load
            self._send_steps(events, load, delta)
        for outboxes in unsent:
            for key, outbox in outboxes.items():
                self._send(key, outbox.after)
        if status is not None:
            self._announce(status)

    def _send_steps(self, events: dict[str, list[TokenEvent]], load: Load, delta: CacheDelta | None) -> None:
        self._step_id += 1
        self._last_sent_s = self._clock()
        step = functools.partial(Step, self._identity.worker_id, self._identity.epoch, self._step_id)
        plain: bytes | None = None
        for key, connection in self._in_turn():
            own = events.get(key)
            if own:
                connection.send_frame(encode(step(own, load, delta)))
            else:
                plain = plain or encode(step([], load, delta))
                connection.send_frame(plain)

    def _in_turn(self) -> list[tuple[str, Connection]]:
        """All gateways, each step another one first: who hears first of room takes it."""
        everyone = list(self._gateways.items())
        first = self._step_id % max(1, len(everyone))
        return everyone[first:] + everyone[:first]

    def _announce(self, status: Status) -> None:
        frame = encode(status)
        for connection in list(self._peers.values()):
            connection.send_frame(frame)
        if status.state is WorkerState.STOPPED:
            self._on_stopped()

    def _send(self, key: str, messages: Iterable[Message]) -> None:
        connection = self._peers.get(key)
        if connection is None:
            return
        for message in messages:
            connection.send(message)

    def _beat(self) -> None:
        """Tell gateways that we live, unless a step did so just now; and at once when a step becomes overdue."""
        with self._lock:
            load = self._core.beat(self._clock())
        self._heartbeat = asyncio.get_running_loop().call_later(_next_beat_s(load), self._beat)
        limits = int(load.step_overdue)
        is_news = limits > self._told_limits and limits <= 2
        self._told_limits = limits
        if self._gateways and (is_news or self._clock() - self._last_sent_s >= HEARTBEAT_S / 2):
            with self._lock:
                delta = self._core.cache_delta()
            self._send_steps({}, load, delta)

    # --- peers ---------------------------------------------------------------------------------------------------

    def _on_peer(self, connection: Connection, hello: Hello) -> None:
        self._num_connections += 1
        key = f"{hello.peer_kind}:{hello.peer_id}#{self._num_connections}"
        self._peers[key] = connection
        connection.on_message = functools.partial(self._on_message, key)
        connection.on_close = functools.partial(self._on_close, key)
        with (
            self._lock
        ):  # what changed until now is for the others: what the newcomer has, is taken back by later deltas
            load, delta = self._core.load(self._clock()), self._core.cache_delta()
            snapshot, welcome = self._core.cache_snapshot(), self._welcome(load)
        if delta is not None:
            self._send_steps({}, load, delta)
        connection.send(welcome)
        if hello.peer_kind == "gateway":
            self._gateways[key] = connection
            connection.send(Step(self._identity.worker_id, self._identity.epoch, self._step_id, [], load, snapshot))

    def _welcome(self, load: Load) -> Welcome:
        me = self._identity
        return Welcome(
            me.worker_id, me.epoch, self._core.role, self._core.state, me.model_id, me.layout, me.max_context,
            me.simulated, load, pid=os.getpid(), features=FEATURES,
        )  # fmt: skip

    def _on_close(self, key: str, connection: Connection, reason: str) -> None:
        log.info("worker %s: peer %s is gone: %s", self._identity.worker_id, key, reason)
        self._peers.pop(key, None)
        self._gateways.pop(key, None)
        self._holder.forget(connection)
        with self._lock:
            self._core.drop_peer(key, self._clock())
        self._changed()

    def _on_message(self, key: str, connection: Connection, message: Any) -> None:
        handler = _HANDLERS.get(type(message))
        if handler is None:
            raise WireError(f"a worker takes no {type(message).__name__}")
        handler(self, key, connection, message)

    def _changed(self) -> None:
        """Something outside a step may have changed the core: tell who must know, and wake the engine."""
        self.publish()
        self._on_work()

    # --- one handler per message -----------------------------------------------------------------------------------

    def _submit(self, key: str, connection: Connection, message: Submit) -> None:
        with self._lock:
            answers = self._core.submit(key, message, self._clock())
        self._send(key, answers)
        self._changed()

    def _cancel(self, key: str, connection: Connection, message: Cancel) -> None:
        with self._lock:
            self._core.cancel(key, message.req_id, message.attempt, self._clock())
        self._changed()

    def _release(self, key: str, connection: Connection, message: ReleaseLease) -> None:
        with self._lock:
            self._core.release(message.lease_id)
        self._changed()

    def _order(self, key: str, connection: Connection, message: Order) -> None:
        with self._lock:
            result = self._core.order(message, self._clock())
        connection.send(result)
        self._changed()

    def _ping(self, key: str, connection: Connection, message: Ping) -> None:
        with self._lock:
            load = self._core.load(self._clock())
        connection.send(Pong(message.nonce, load))

    def _fetch(self, key: str, connection: Connection, message: Fetch) -> None:
        self._holder.on_fetch(connection, message)

    def _ack(self, key: str, connection: Connection, message: HandoffAck) -> None:
        self._holder.on_ack(connection, message)

    def _offer(self, key: str, connection: Connection, message: Offer) -> None:
        with self._lock:
            answer = self._core.offer(key, message, self._clock())
        self._send(key, [answer])

    def _yield(self, key: str, connection: Connection, message: Yield) -> None:
        with self._lock:
            answers = self._core.yield_up(key, message, self._clock())
        self._send(key, answers)
        self._changed()

    def _pull(self, key: str, connection: Connection, message: Pull | Prefetch) -> None:
        with self._lock:
            plan: PullPlan | Message
            if isinstance(message, Pull):
                plan = self._core.begin_pull(key, message, self._clock())
            else:
                plan = self._core.begin_prefetch(key, message, self._clock())
        if not isinstance(plan, PullPlan):
            self._send(key, [plan])
            self._changed()
            return
        task = asyncio.create_task(self._handoff(key, message, plan))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- handoff -------------------------------------------------------------------------------------------------

    async def _handoff(self, key: str, pull: Pull | Prefetch, plan: PullPlan) -> None:
        """Copy, then tell the core: it owns the blocks and must learn that nobody writes them any more."""
        ok, detail, num_bytes = False, "the worker stops", 0
        try:
            report = await self._asker.pull(pull.lease, plan.source_blocks, plan.own_blocks)
            num_bytes = report.num_bytes
            detail = self._verify(plan) if self._verify is not None else ""
            ok = not detail
        except HandoffError as error:
            detail = str(error)
        except Exception as error:  # whatever it was, the request must not wait here for ever
            log.exception("worker %s: the handoff of %s broke", self._identity.worker_id, pull.req_id)
            detail = f"{type(error).__name__}: {error}"
        finally:
            with self._lock:
                answers = self._core.pull_done(pull.req_id, pull.attempt, ok, self._clock(), detail, num_bytes)
        self._send(key, answers)
        self._changed()

    def _leased_blocks(self, lease_id: str) -> list[int] | None:
        with self._lock:
            held = self._core.lease(lease_id)
            return None if held is None else held.blocks

    def _acknowledge(self, lease_id: str) -> bool:
        with self._lock:
            ok = self._core.ack(lease_id, self._clock())
        self._changed()
        return ok


def _next_beat_s(load: Load) -> float:
    """Until the next beat is due: soon while a step runs, and no later than it can be overdue, once and twice."""
    marks_s = [each * load.step_limit_s - load.step_running_s for each in (1, 2)]
    longest_s = LOOK_S if load.step_limit_s else HEARTBEAT_S / 2
    return min([longest_s, *[each for each in marks_s if each > 0.0]]) + _PAST_MARK_S


_HANDLERS: dict[type, Callable[[WorkerServer, str, Connection, Any], None]] = {
    Submit: WorkerServer._submit,
    Pull: WorkerServer._pull,
    Prefetch: WorkerServer._pull,
    Offer: WorkerServer._offer,
    Yield: WorkerServer._yield,
    Cancel: WorkerServer._cancel,
    ReleaseLease: WorkerServer._release,
    Order: WorkerServer._order,
    Ping: WorkerServer._ping,
    Fetch: WorkerServer._fetch,
    HandoffAck: WorkerServer._ack,
}
