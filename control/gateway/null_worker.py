"""A worker that computes nothing and speaks the real wire: for the gateway's tests and its benchmark.

It answers every request with canned tokens: all at once, some per message, or on a clock as an engine with a batch
does. It takes part in a handoff (the KV is never read). `Faults` lets it refuse, fail and die on purpose. Its layout
says `seeded`: it is always simulated.

    python -m control.gateway.null_worker --token SECRET [--worker-id null-0] [--step-s 0.01]     prints its address
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from dataclasses import dataclass, field
from typing import Any

import uvloop

from engine.connection import Connection, bound_port, listen
from engine.server import HEARTBEAT_S
from engine.types import FinishReason, KvLayout, Load, Role, WorkerState, WorkKind
from engine.wire import (
    FEATURES,
    CacheDelta,
    Cancel,
    Hello,
    Lease,
    Message,
    Offer,
    Offered,
    Ping,
    Pong,
    Prefetch,
    Prefetched,
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
    Yield,
    Yielded,
)

HOST = "127.0.0.1"


@dataclass(slots=True)
class Faults:
    """What the worker does wrong. Counted ones happen that many times, then no more."""

    reject_code: str = ""
    num_rejects: int = 0
    num_failed_pulls: int = 0
    die_after_tokens: int | None = None  # of one request: then every connection is cut
    is_silent: bool = False  # takes work and never answers
    never_yields: bool = False  # takes a Yield and goes on
    num_failed_prefetches: int = 0
    dies_on: str = ""  # name of a message: when it comes, every connection is cut
    hang_after_tokens: int | None = None  # of one request: then it lives and gives nobody a token


@dataclass(slots=True, kw_only=True)
class NullConfig:
    """Shape and pace. `tokens` are repeated as long as a request wants; `tokens_per_step` 0 sends all at once."""

    worker_id: str = "null-0"
    epoch: int = 1
    role: Role = Role.MIXED
    token: str = "secret"
    model_id: str = "null"
    max_context: int = 8192
    block_tokens: int = 16
    num_blocks: int = 65536
    tokens: tuple[int, ...] = tuple(range(100, 116))
    tokens_per_step: int = 0
    step_s: float = 0.0  # above 0: one token of every running request each `step_s`, in one message
    copy_s: float = 0.0  # how long a copy ahead takes
    features: tuple[str, ...] = FEATURES
    faults: Faults = field(default_factory=Faults)


class NullWorker:
    """Call `start`, then it answers until `close`. `seen` keeps what it was asked, for tests."""

    def __init__(self, config: NullConfig) -> None:
        self.config = config
        self.state = WorkerState.READY
        self.load = Load(kv_blocks_total=config.num_blocks)
        self.seen: list[Message] = []
        self.keeps_seen = True
        self._connections: set[Connection] = set()
        self._running: dict[tuple[str, int], Submit] = {}
        self._batch: dict[tuple[str, int], tuple[Connection, Submit, int]] = {}
        self._clock: asyncio.TimerHandle | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None
        self._step_id = 0

    async def start(self, port: int = 0) -> str:
        """Listen on loopback; returns the address."""
        self._server = await listen(HOST, port, self.config.token, self._on_peer)
        self._beat()
        return f"{HOST}:{bound_port(self._server)}"

    async def close(self) -> None:
        """Stop listening and cut every connection, as a process that dies does."""
        if self._server is not None:
            self._server.close()
        for timer in (self._clock, self._heartbeat):
            if timer is not None:
                timer.cancel()
        self._clock = None
        self._batch.clear()
        for connection in list(self._connections):
            connection.abort("the null worker ends")

    def _beat(self) -> None:
        """As a worker with nothing to say does."""
        self._heartbeat = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)
        for connection in self._connections:
            self._send_step(connection, [], None)

    def set_state(self, state: WorkerState, role: Role | None = None, *, leaves_decode: bool = False) -> None:
        """Change state or role and tell everybody."""
        self.state = state
        self.config.role = role or self.config.role
        config = self.config
        for connection in self._connections:
            status = Status(config.worker_id, config.epoch, config.role, state, 1, "", self.load, leaves_decode)
            connection.send(status)

    def set_load(self, load: Load, cache: CacheDelta | None = None) -> None:
        """Change what the next messages say of the load, and send one."""
        self.load = load
        for connection in self._connections:
            self._send_step(connection, [], cache)

    def tell(self, message: Message) -> None:
        """Send any message to everybody."""
        for connection in self._connections:
            connection.send(message)

    def resume(self) -> None:
        """Take up what came while it was silent."""
        waiting = list(self._running.values())
        self._running.clear()
        for ask in waiting:
            for connection in self._connections:
                self._on_submit(connection, ask)

    # --- peers -------------------------------------------------------------------------------------------------------

    def _on_peer(self, connection: Connection, hello: Hello) -> None:
        self._connections.add(connection)
        connection.on_message = self._on_message
        connection.on_close = lambda closed, _reason: self._connections.discard(closed)
        config = self.config
        connection.send(
            Welcome(
                config.worker_id,
                config.epoch,
                config.role,
                self.state,
                config.model_id,
                self._layout(),
                config.max_context,
                True,
                self.load,
                features=config.features,
            )
        )

    def _layout(self) -> KvLayout:
        config = self.config
        return KvLayout(
            model_id=config.model_id,
            weights_digest="null",
            dtype="seeded",
            num_layers=1,
            block_tokens=config.block_tokens,
            num_kv_heads=1,
            head_dim=1,
        )

    def _on_message(self, connection: Connection, message: Any) -> None:
        if self.keeps_seen:
            self.seen.append(message)
        if type(message).__name__ == self.config.faults.dies_on:
            connection.abort("the null worker dies on purpose")
        elif isinstance(message, Submit):
            self._on_submit(connection, message)
        elif isinstance(message, Offer | Yield):
            self._on_source(connection, message)
        elif isinstance(message, Prefetch):
            self._on_prefetch(connection, message)
        elif isinstance(message, Pull):
            self._on_pull(connection, message)
        elif isinstance(message, Cancel):
            self._running.pop((message.req_id, message.attempt), None)
            self._batch.pop((message.req_id, message.attempt), None)
        elif isinstance(message, Ping):
            connection.send(Pong(message.nonce, self.load))
        elif not isinstance(message, ReleaseLease):
            connection.refuse(f"a null worker takes no {type(message).__name__}")

    # --- work --------------------------------------------------------------------------------------------------------

    def _on_submit(self, connection: Connection, ask: Submit) -> None:
        faults = self.config.faults
        if faults.num_rejects > 0:
            faults.num_rejects -= 1
            connection.send(Rejected(ask.req_id, ask.attempt, faults.reject_code, "on purpose", 2.0))
        elif faults.is_silent:
            self._running[ask.req_id, ask.attempt] = ask
        elif ask.kind is WorkKind.DECODE:
            self._running[ask.req_id, ask.attempt] = ask
            connection.send(Reserved(ask.req_id, ask.attempt, 0))
        elif ask.kind is WorkKind.PREFILL:
            self._prefill(connection, ask)
        else:
            self._running[ask.req_id, ask.attempt] = ask
            self._decode(connection, ask, len(ask.prompt))

    def _prefill(self, connection: Connection, ask: Submit) -> None:
        first = self._token_at(ask, len(ask.prompt))
        is_last = len(ask.prompt) + 1 - ask.num_prompt >= ask.sampling.max_tokens
        lease = self._lease(ask.req_id, ask.attempt, len(ask.prompt))
        finish = FinishReason.LENGTH if is_last else None
        times = StageTimes(0.001, 0.002, 0.0, 0.0, 0)
        connection.send(Prefilled(ask.req_id, ask.attempt, first, finish, None if is_last else lease, times))

    def _lease(self, req_id: str, attempt: int, num_tokens: int) -> Lease:
        config = self.config
        num_blocks = -(-num_tokens // config.block_tokens)
        return Lease(
            f"lease-{req_id}-{attempt}-{num_tokens}", config.worker_id, config.epoch, f"{HOST}:1", self._layout(),
            num_tokens, list(range(num_blocks)), "", "null", 30.0,
        )  # fmt: skip

    def _on_source(self, connection: Connection, message: Offer | Yield) -> None:
        """Migration away from here; only of what runs on the clock."""
        req_id, attempt = key = (message.req_id, message.attempt)
        running = self._batch.get(key)
        if isinstance(message, Offer):
            if running is None:
                connection.send(Offered(req_id, attempt, None, "the request does not decode here"))
                return
            num_tokens = (running[2] - 1) // self.config.block_tokens * self.config.block_tokens
            connection.send(Offered(req_id, attempt, self._lease(req_id, attempt, num_tokens) if num_tokens else None))
        elif not self.config.faults.never_yields:
            if running is None:
                connection.send(Yielded(req_id, attempt, None, "the request does not decode here"))
                return
            del self._batch[key], self._running[key]
            connection.send(Yielded(req_id, attempt, self._lease(req_id, attempt, running[2] - 1), "", StageTimes()))

    def _on_prefetch(self, connection: Connection, message: Prefetch) -> None:
        num_tokens, error = message.lease.num_tokens, ""
        if self.config.faults.num_failed_prefetches > 0:
            self.config.faults.num_failed_prefetches -= 1
            num_tokens, error = 0, "on purpose"
        answer = Prefetched(message.req_id, message.attempt, num_tokens, num_tokens * 8, 0.001, error)
        asyncio.get_running_loop().call_later(self.config.copy_s, connection.send, answer)

    def _on_pull(self, connection: Connection, pull: Pull) -> None:
        ask = self._running.get((pull.req_id, pull.attempt))
        if ask is None:
            connection.send(Rejected(pull.req_id, pull.attempt, "unknown", "no reservation is held for this request"))
        elif self.config.faults.num_failed_pulls > 0:
            self.config.faults.num_failed_pulls -= 1
            del self._running[pull.req_id, pull.attempt]
            connection.send(Rejected(pull.req_id, pull.attempt, "handoff", "on purpose"))
        else:
            self._decode(connection, ask, len(ask.prompt) + len(pull.more) + 1)

    def _decode(self, connection: Connection, ask: Submit, position: int) -> None:
        """Send tokens [position, end): in one message, in pieces, or on the clock."""
        if self.config.step_s > 0:
            self._batch[ask.req_id, ask.attempt] = (connection, ask, position)
            if self._clock is None:
                self._clock = asyncio.get_running_loop().call_later(self.config.step_s, self._step)
            return
        end = ask.num_prompt + ask.sampling.max_tokens
        size = self.config.tokens_per_step or end - position
        self._piece(connection, ask, position, end, size)

    def _piece(self, connection: Connection, ask: Submit, position: int, end: int, size: int) -> None:
        key = (ask.req_id, ask.attempt)
        if key not in self._running:
            return
        until = min(position + size, end)
        tokens = [self._token_at(ask, each) for each in range(position, until)]
        finish = FinishReason.LENGTH if until == end else None
        times = StageTimes(0.001, 0.002, 0.003, 0.004, 0) if finish else None
        if finish:
            del self._running[key]
        self._send_step(connection, [TokenEvent(ask.req_id, ask.attempt, position, tokens, finish, "", times)], None)
        if self._dies_at(until - ask.num_prompt):
            connection.abort("the null worker dies on purpose")
        elif self._hangs_at(until - ask.num_prompt):
            return
        elif finish is None:
            asyncio.get_running_loop().call_soon(self._piece, connection, ask, until, end, size)

    def _step(self) -> None:
        """One token of every request in the batch, in one message per peer."""
        events: dict[Connection, list[TokenEvent]] = {}
        for key, (connection, ask, position) in list(self._batch.items()):
            is_last = position + 1 == ask.num_prompt + ask.sampling.max_tokens
            finish, times = (FinishReason.LENGTH, StageTimes()) if is_last else (None, None)
            event = TokenEvent(*key, position, [self._token_at(ask, position)], finish, "", times)
            events.setdefault(connection, []).append(event)
            if is_last:
                del self._batch[key], self._running[key]
            else:
                self._batch[key] = (connection, ask, position + 1)
        for connection, new in events.items():
            self._send_step(connection, new, None)
        self._clock = asyncio.get_running_loop().call_later(self.config.step_s, self._step) if self._batch else None

    def _dies_at(self, num_tokens: int) -> bool:
        limit = self.config.faults.die_after_tokens
        if limit is None or num_tokens < limit:
            return False
        self.config.faults.die_after_tokens = None
        return True

    def _hangs_at(self, num_tokens: int) -> bool:
        """From there on it takes work and never answers, but its connections stay."""
        limit = self.config.faults.hang_after_tokens
        if limit is not None and num_tokens >= limit:
            self.config.faults.is_silent = True
        return self.config.faults.is_silent

    def _token_at(self, ask: Submit, position: int) -> int:
        """By position in the answer, so that any worker continues another's answer."""
        return self.config.tokens[(position - ask.num_prompt) % len(self.config.tokens)]

    def _send_step(self, connection: Connection, events: list[TokenEvent], cache: CacheDelta | None) -> None:
        self._step_id += 1
        connection.send(Step(self.config.worker_id, self.config.epoch, self._step_id, events, self.load, cache))


async def _serve(config: NullConfig) -> None:
    worker = NullWorker(config)
    worker.keeps_seen = False
    print(await worker.start(), flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="control.gateway.null_worker")
    parser.add_argument("--token", required=True)
    parser.add_argument("--worker-id", default="null-0")
    parser.add_argument("--role", type=Role, default=Role.MIXED)
    parser.add_argument("--step-s", type=float, default=0.0)
    options = parser.parse_args()
    config = NullConfig(
        worker_id=options.worker_id, role=options.role, token=options.token, step_s=options.step_s, tokens=_WORDS
    )
    uvloop.run(_serve(config))


#: Tokens that are words in most byte-level vocabularies.
_WORDS = tuple(range(1000, 1016))

if __name__ == "__main__":
    main()
