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
import os
import socket
import time
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, Protocol

from control.bridge.engine_http import EngineAway, EngineHttp, EngineRefused, Shape
from control.bridge.handoffs import Handoff, Handoffs
from control.bridge.speech import Asked, Chunk, rendezvous
from control.bridge.tally import PromptClock, Work, blocks_of, load_of
from engine.connection import Connection, listen
from engine.duty import Duty
from engine.lifecycle import SERVES, keeps_leases
from engine.server import HEARTBEAT_S
from engine.types import FinishReason, KvLayout, Load, Role, WorkerState, WorkKind
from engine.wire import (
    Cancel,
    Hello,
    Lease,
    Message,
    Order,
    OrderResult,
    Ping,
    Pong,
    Prefilled,
    Pull,
    Rejected,
    ReleaseLease,
    Reserved,
    StageTimes,
    Status,
    Step,
    Submit,
    TokenEvent,
    Welcome,
)

log = logging.getLogger("phaseline.bridge")
#: After a canary that failed, the same flip is refused for so long.
DISTRUST_S: Final = 15.0
RETRY_AFTER_S: Final = 1.0


class Yard(Protocol):
    """What the workers of one fleet share."""

    handoffs: Handoffs

    def reserved(self, req_id: str, attempt: int) -> tuple[BridgedWorker, Work] | None:
        """Where room for the decode phase of this attempt is kept."""

    async def prove(self, worker: BridgedWorker, role: Role) -> str:
        """Why this worker does not serve in that role; "" when a canary showed that it does."""

    def changed(self) -> None:
        """A worker has begun another life."""


class BridgedWorker:
    """`up` and `down` begin and end its lives; between them it answers on `address`."""

    def __init__(self, worker_id: str, http: EngineHttp, yard: Yard, token: str, simulated: bool = False) -> None:
        self.worker_id = worker_id
        self.http = http
        self.duty = Duty()
        self.shape = Shape(model="")
        self.epoch = 0
        self.is_up = False
        self.address = ""
        self.why_down = "not looked at yet"
        self._yard = yard
        self._token = token
        self._simulated = simulated
        self._server: asyncio.Server | None = None
        self._peers: dict[str, Connection] = {}
        self._gateways: dict[str, Connection] = {}
        self._works: dict[tuple[str, int], Work] = {}
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._held: dict[tuple[str, int], asyncio.Future[Pull]] = {}  # rendezvous: what waits for its Pull
        self._clock = PromptClock()
        self._step_id = 0
        self._proven: Role | None = None
        self._proof: asyncio.Task[None] | None = None
        self._distrust: tuple[Role, str, float] | None = None  # role, why, until when
        self._beat: asyncio.TimerHandle | None = None

    # --- lives -------------------------------------------------------------------------------------------------------

    async def start(self, sock: socket.socket, address: str) -> None:
        self.address = address
        self._server = await listen("127.0.0.1", 0, self._token, self._on_peer, sock=sock)
        self._send_beat()

    async def close(self) -> None:
        self.down("the bridge ends")
        if self._beat is not None:
            self._beat.cancel()
        if self._server is not None:
            self._server.close()

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

    @property
    def _num_computing(self) -> int:
        return sum(each.computes_prompt for each in self._works.values())

    def work(self, req_id: str, attempt: int) -> Work | None:
        return self._works.get((req_id, attempt))

    # --- peers -------------------------------------------------------------------------------------------------------

    def _on_peer(self, connection: Connection, hello: Hello) -> None:
        if not self.is_up:
            connection.refuse(f"the engine is not there: {self.why_down}")
            return
        key = f"{hello.peer_kind}:{hello.peer_id}"
        if key in self._peers:
            self._peers[key].abort("another connection of the same peer")
        self._peers[key] = connection
        connection.on_message = lambda _connection, message: self._on_message(key, message)
        connection.on_close = lambda closed, _reason: self._on_close(key, closed)
        connection.send(self._welcome())
        if hello.peer_kind == "gateway":
            self._gateways[key] = connection

    def _on_close(self, key: str, connection: Connection) -> None:
        if self._peers.get(key) is not connection:
            return
        del self._peers[key]
        self._gateways.pop(key, None)
        for work in [each for each in self._works.values() if each.peer == key]:
            self._end(work)
        self._settle()

    def _welcome(self) -> Welcome:
        return Welcome(
            self.worker_id, self.epoch, self.duty.role, self.duty.state, self.shape.model, self.layout(),
            self.shape.max_context, self._simulated, self.load(), pid=os.getpid(),
        )  # fmt: skip

    def layout(self) -> KvLayout:
        """The engine keeps its layout to itself; what gateways count in is the size of a block."""
        return KvLayout(
            model_id=self.shape.model, weights_digest="", dtype="float32", num_layers=0,
            block_tokens=self.shape.block_tokens, num_kv_heads=0, head_dim=0,
        )  # fmt: skip

    def load(self) -> Load:
        num_leased = self._yard.handoffs.num_of(self.worker_id)
        now_s = time.monotonic()
        self._clock.note(self._num_computing, now_s)
        return load_of(self._works.values(), num_leased, self._clock, self.shape, now_s)

    def _send(self, key: str, message: Message) -> None:
        connection = self._peers.get(key)
        if connection is not None:
            connection.send(message)

    def _send_step(self, key: str, events: list[TokenEvent]) -> None:
        self._step_id += 1
        self._send(key, Step(self.worker_id, self.epoch, self._step_id, events, self.load()))

    def _send_beat(self) -> None:
        self._beat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._send_beat)
        if self._yard.handoffs.expire(self.worker_id, time.monotonic()):
            self._settle()
        for key in list(self._gateways):
            self._send_step(key, [])

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
        problem = self._distrusted(order) or self.duty.take(order)
        self._settle()
        self._send(key, OrderResult(order.order_id, not problem, self.duty.role, self.duty.state, problem))

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

    # --- work --------------------------------------------------------------------------------------------------------

    def _submit(self, key: str, ask: Submit) -> None:
        problem = self._refusal(ask)
        if problem is not None:
            self._send(key, Rejected(ask.req_id, ask.attempt, *problem, RETRY_AFTER_S))
            return
        work = Work(ask, key, time.monotonic())
        self._works[work.key] = work
        if ask.kind is WorkKind.DECODE:
            self._send(key, Reserved(ask.req_id, ask.attempt, 0))
            return
        self._begin(work, self._prefill(work) if ask.kind is WorkKind.PREFILL else self._decode(work, None, None))

    def _refusal(self, ask: Submit) -> tuple[str, str] | None:
        """(code, why), as a worker of ours refuses; "inexact" is a bridge's own."""
        if not self.duty.admits(ask.kind):
            is_ready = self.duty.state is WorkerState.READY
            return ("role" if is_ready else "draining"), f"it is {self.duty.role}, {self.duty.state}"
        if (ask.req_id, ask.attempt) in self._works:
            return "invalid", "this attempt is here already"
        if ask.kind is not WorkKind.LOCAL and not self.http.speech.splits:
            return "role", f"a server of kind {self.http.speech.kind} cannot hand KV over"
        num_sent = len(ask.prompt) - ask.num_prompt
        if num_sent and (why := self.http.speech.why_inexact(ask.sampling)):
            return "inexact", f"{num_sent} tokens had been sent, and cannot be continued exactly: {why}"
        size = len(ask.prompt) + ask.sampling.max_tokens - num_sent
        if size > self.shape.max_context:
            return "too_long", f"{size} tokens > context of {self.shape.max_context} tokens"
        load = self.load()
        if ask.kind is WorkKind.DECODE and blocks_of(size, self.shape) > load.kv_blocks_room:
            return "no_kv", f"no room for {size} tokens beside what it was given"
        return None

    def _begin(self, work: Work, asking: Coroutine[Any, Any, None]) -> None:
        self._clock.note(self._num_computing, time.monotonic())
        work.asked_s = time.monotonic()
        self._tasks[work.key] = asyncio.create_task(self._guarded(work, asking), name=f"ask {self.worker_id}")
        self.load()

    async def _guarded(self, work: Work, asking: Awaitable[None]) -> None:
        """Whatever goes wrong with the engine is told as a worker of ours tells it."""
        epoch = self.epoch
        try:
            await asking
        except EngineRefused as error:
            if self._works.get(work.key) is work:
                self._fail(work, code_of(error), str(error))
        except EngineAway as error:
            if not await self.http.is_there():
                if self.epoch == epoch:
                    self.down(str(error))
            elif self._works.get(work.key) is work:
                self._fail(work, "queue_full", str(error))

    def _fail(self, work: Work, code: str, detail: str) -> None:
        """Before the first token it is refused, after it the request is lost here; a handoff may be done without."""
        self._end(work, keep_task=True)
        ask = work.ask
        if work.num_tokens:
            position = len(ask.prompt) + work.num_tokens
            event = TokenEvent(ask.req_id, ask.attempt, position, [], FinishReason.ERROR, detail)
            self._send_step(work.peer, [event])
        else:
            is_handoff = ask.kind is WorkKind.DECODE
            self._send(
                work.peer,
                Rejected(ask.req_id, ask.attempt, "handoff" if is_handoff else code, detail, RETRY_AFTER_S),
            )
        self._settle()

    def _end(self, work: Work, *, keep_task: bool = False) -> None:
        """It holds nothing here any more; what was asked of the engine ends with its connection."""
        self._works.pop(work.key, None)
        self._held.pop(work.key, None)
        task = self._tasks.pop(work.key, None)
        if task is not None and not keep_task and task is not asyncio.current_task():
            task.cancel()
        self.load()

    def _begins(self, work: Work, now_s: float) -> float:
        """The first token of this work is there; returns how long it took."""
        assert work.asked_s is not None
        self._clock.note(self._num_computing, now_s)
        if work.ask.kind is not WorkKind.DECODE:
            self._clock.tokens += len(work.ask.prompt)
        work.first_s = now_s
        return now_s - work.asked_s

    # --- a prompt for another worker ---------------------------------------------------------------------------------

    async def _prefill(self, work: Work) -> None:
        ask, speech = work.ask, self.http.speech
        is_last = work.num_left <= 1
        if speech.is_rendezvous and not is_last:
            await self._prefill_at_rendezvous(work)
            return
        words = self._yard.handoffs.keep_words() if not is_last else None
        chunk = await self.http.whole(Asked(prompt=ask.prompt, max_tokens=1, sampling=ask.sampling, handoff=words))
        if self._works.get(work.key) is not work:
            return
        if not chunk.tokens:
            raise EngineRefused(f"{self.http.url}: no token of a prompt")
        finish = chunk.finish if chunk.finish is not FinishReason.LENGTH else FinishReason.LENGTH if is_last else None
        if finish is None and chunk.handoff is None:
            raise EngineRefused(f"{self.http.url}: no kv_transfer_params in its answer: is NIXL on there?")
        self._answer_prefilled(work, chunk.tokens[0], finish, chunk.handoff)

    def _answer_prefilled(self, work: Work, first: int, finish: FinishReason | None, words: Any) -> None:
        ask, now_s = work.ask, time.monotonic()
        times = StageTimes(prefill_s=self._begins(work, now_s))
        lease = None
        if finish is None:
            handoff = Handoff(self.worker_id, words, now_s + self._yard.handoffs.limit_s)
            lease = Lease(
                self._yard.handoffs.put(handoff), self.worker_id, self.epoch, self.address, self.layout(),
                len(ask.prompt), [], "", "", self._yard.handoffs.limit_s,
            )  # fmt: skip
        self._end(work, keep_task=True)
        self._send(work.peer, Prefilled(ask.req_id, ask.attempt, first, finish, lease, times))
        self._send_step(work.peer, [])
        self._settle()

    async def _prefill_at_rendezvous(self, work: Work) -> None:
        """Both servers are asked at once and meet; the decode server's first token is the first there is."""
        ask = work.ask
        found = self._yard.reserved(ask.req_id, ask.attempt)
        if found is None:
            raise EngineRefused("no room is kept for its decoding: it cannot be prefilled for another server")
        target, reserved = found
        host = self.http.url.split("://", 1)[1].rsplit(":", 1)[0]
        words = rendezvous(host, self.shape.bootstrap_port, self._yard.handoffs.new_room())
        first: asyncio.Future[Chunk] = asyncio.get_running_loop().create_future()
        target.meet(reserved, words, first)
        whole = asyncio.ensure_future(
            self.http.whole(Asked(prompt=ask.prompt, max_tokens=1, sampling=ask.sampling, handoff=words))
        )
        try:
            await asyncio.wait((whole, first), return_when=asyncio.FIRST_COMPLETED)
            if whole.done():
                whole.result()
            chunk = await first
            await whole
        finally:
            whole.cancel()
        if self._works.get(work.key) is work:
            finish = chunk.finish if chunk.finish is FinishReason.STOP else None
            self._answer_prefilled(work, chunk.tokens[0], finish, words)

    def meet(self, work: Work, words: Any, first: asyncio.Future[Chunk]) -> None:
        """Ask for the decode phase before its Pull: what comes is held until then."""
        held: asyncio.Future[Pull] = asyncio.get_running_loop().create_future()
        self._held[work.key] = held
        self._begin(work, self._decode(work, words, None, held=held, first=first))

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _pull(self, key: str, pull: Pull) -> None:
        work = self._works.get((pull.req_id, pull.attempt))
        held = self._held.pop((pull.req_id, pull.attempt), None)
        handoff = self._yard.handoffs.peek(pull.lease.lease_id)
        if work is None or handoff is None:
            why = "no reservation is held for this request" if work is None else "the prompt's KV is not kept any more"
            if work is not None:
                self._end(work)
            self._send(key, Rejected(pull.req_id, pull.attempt, "handoff", why))
        elif held is not None:
            held.set_result(pull)
        else:
            self._begin(work, self._decode(work, handoff.words, pull))

    async def _decode(
        self,
        work: Work,
        words: Any,
        pull: Pull | None,
        *,
        held: asyncio.Future[Pull] | None = None,
        first: asyncio.Future[Chunk] | None = None,
    ) -> None:
        """The answer, token by token. `pull`: the first one was sent already, and is checked rather than sent."""
        ask = work.ask
        asked = Asked(prompt=ask.prompt, max_tokens=work.num_left, sampling=ask.sampling, handoff=words)
        stream = self.http.stream(asked)
        try:
            async for chunk in stream:
                if first is not None and not first.done():
                    if not chunk.tokens:
                        continue
                    first.set_result(chunk)
                if held is not None:
                    pull, held = await held, None
                if self._works.get(work.key) is not work:
                    return
                if not self._take(work, chunk, pull):
                    return
        except EngineAway as error:
            if first is not None and not first.done():
                first.set_exception(error)
            raise
        finally:
            await stream.aclose()  # type: ignore[attr-defined]  # an async generator has it
            if pull is not None:
                self._yard.handoffs.take(pull.lease.lease_id)

    def _take(self, work: Work, chunk: Chunk, pull: Pull | None) -> bool:
        """Pass one part of the answer on. False: nothing more of it is wanted."""
        ask, tokens = work.ask, list(chunk.tokens)
        position = len(ask.prompt) + work.num_tokens
        if tokens and work.first_s is None:
            self._begins(work, time.monotonic())
            if pull is not None and tokens[0] != pull.first_token:
                self._fail(work, "handoff", f"its first token is {tokens[0]}, the prefill server's {pull.first_token}")
                return False
            if pull is not None:
                self._yard.handoffs.take(pull.lease.lease_id)
        work.num_tokens += len(tokens)
        if not tokens and chunk.finish is None:
            return True
        times = self._times(work) if chunk.finish is not None else None
        if chunk.finish is not None:
            self._end(work, keep_task=True)
        self._send_step(work.peer, [TokenEvent(ask.req_id, ask.attempt, position, tokens, chunk.finish, "", times)])
        if chunk.finish is not None:
            self._settle()
        return True

    def _times(self, work: Work) -> StageTimes:
        """Of a whole answer: until its first token, and from there on."""
        assert work.asked_s is not None
        first_s = work.first_s if work.first_s is not None else time.monotonic()
        before, after = first_s - work.asked_s, time.monotonic() - first_s
        if work.ask.kind is WorkKind.DECODE:
            return StageTimes(handoff_s=before, decode_s=after)
        return StageTimes(prefill_s=before, decode_s=after)


def code_of(error: EngineRefused) -> str:
    """A refusal as the wire has it: what no other engine would take, and what another one may."""
    text = str(error)
    if error.status in (400, 422):
        return "too_long" if "context length" in text or "max_model_len" in text else "invalid"
    return "queue_full"
