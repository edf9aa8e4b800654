"""What is asked of a foreign engine for each submission, and what its answers mean on our wire.

Decided here: which submission is refused and how, the calls of a split request, and what a failed call does to the
request: refused before its first token, lost after it, computed anew where only the KV did not come. Not decided here:
roles and lives (`control.bridge.worker`), bodies and events (`control.bridge.speech`).
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Coroutine
from typing import Any, Final

from control.bridge.engine_http import EngineAway, EngineHttp, EngineRefused
from control.bridge.handoffs import Handoff
from control.bridge.peers import Peers, Yard
from control.bridge.speech import Asked, Chunk, rendezvous, starts_behind_first
from control.bridge.tally import Work, blocks_of
from engine.types import FinishReason, WorkerState, WorkKind
from engine.wire import Lease, Prefilled, Pull, Rejected, Reserved, StageTimes, Submit, TokenEvent

RETRY_AFTER_S: Final = 1.0


class Asks(Peers):
    """Submissions under way at one engine."""

    def __init__(self, worker_id: str, http: EngineHttp, yard: Yard, token: str, simulated: bool = False) -> None:
        super().__init__(worker_id, http, yard, token, simulated)
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._held: dict[tuple[str, int], asyncio.Future[Pull]] = {}  # rendezvous: what waits for its Pull

    @abstractmethod
    def down(self, reason: str) -> None:
        """The engine is gone."""

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
            if await self.http.is_there() is False:
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
            limit_s = self._yard.handoffs.limit_s
            handoff = Handoff(self.worker_id, words, now_s + limit_s, self.shape.block_tokens)
            lease = Lease(
                self._yard.handoffs.put(handoff), self.worker_id, self.epoch, self.address, self.layout(),
                len(ask.prompt), [], "", "", limit_s,
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
            work.starts_behind_first = handoff.block_tokens == self.shape.block_tokens and starts_behind_first(
                handoff.words, work.ask.sampling, len(work.ask.prompt), handoff.block_tokens
            )
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
        """The answer, token by token. `pull`: the first one was sent already; where it comes again, it is checked."""
        ask, prompt, num_left = work.ask, work.ask.prompt, work.num_left
        if work.starts_behind_first and pull is not None:
            prompt, num_left = [*prompt, pull.first_token], num_left - 1
        asked = Asked(prompt=prompt, max_tokens=num_left, sampling=ask.sampling, handoff=words)
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
        if tokens and work.first_s is None:
            self._begins(work, time.monotonic())
            if work.starts_behind_first:
                work.num_tokens = 1
            elif pull is not None and tokens[0] != pull.first_token:
                self._fail(work, "handoff", f"its first token is {tokens[0]}, the prefill server's {pull.first_token}")
                return False
            if pull is not None:
                self._yard.handoffs.take(pull.lease.lease_id)
        position = len(ask.prompt) + work.num_tokens
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
