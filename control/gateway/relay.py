"""One request's way over the workers: route, hand the KV over, and go on elsewhere when a worker refuses or dies.

Decided here: what each answer of a worker means to the request, and when to give up. What makes it safe: the relay
knows the prompt and every token it has taken, takes each position once and in order, and any worker can continue from
there. Not here: text, HTTP, and the choice of a worker (`control.routing`).

    ROUTE -> (no room) WAIT -> ROUTE
          -> local:  Submit(local)                                              -> tokens ... finish
          -> remote: Submit(decode) -> Reserved -> Submit(prefill) -> Prefilled -> Pull -> tokens ... finish
    refused          -> ROUTE without that worker
    handoff failed   -> Submit(local) on the decode worker, with prompt + tokens so far
    lost or hung     -> RECOVER (in turn) -> ROUTE with prompt + tokens so far; after MAX_DEATHS an error ends it
    worker drains    -> the mover takes it elsewhere while it decodes on (`control.gateway.move`)
"""

from __future__ import annotations

import time
from typing import Any, Final

from control.gateway import errors
from control.gateway.attempt import Attempt
from control.gateway.errors import GatewayError
from control.gateway.fleet import Fleet
from control.gateway.job import Job
from control.gateway.line import Place
from control.gateway.move import Movable, Move
from control.gateway.recovery import Need
from control.gateway.standing import standing_of
from control.gateway.turns import Turn
from control.gateway.workers import WorkerLink
from control.routing import RouteDecision, RouteRequest, route
from control.types.routing import RouteRule
from engine.types import FinishReason, WorkKind
from engine.wire import (
    Cancel,
    Lease,
    Offered,
    Prefilled,
    Pull,
    Rejected,
    ReleaseLease,
    Reserved,
    TokenEvent,
    Yielded,
)

#: Submissions of one request, over all workers, before it waits for the fleet to change.
MAX_TRIES: Final = 8
_BAD_ENDS: Final = (FinishReason.ERROR, FinishReason.CANCELLED)


class Relay(Attempt):
    """Takes the workers' messages in callbacks; its consumer sees tokens and an ending."""

    def __init__(self, job: Job, fleet: Fleet) -> None:
        super().__init__(job, fleet)
        self.standing = standing_of(job)
        self.place = Place(fleet)
        self._excluded: frozenset[str] = frozenset()
        self._num_tries = 0
        self.move_tries = 0
        self.avoids: set[str] = set()
        self._has_migrated = False

    # --- the consumer's side -------------------------------------------------------------------------------------

    @property
    def turn(self) -> Turn:
        """Its place in the line of those that wait for room."""
        return self.standing.turn(has_begun=bool(self.tokens))

    def start(self) -> None:
        """Route it, behind those that wait already. Afterwards `error` may be set."""
        if self._fleet.is_next(self):
            self._route()
        else:
            self._wait_for_room(errors.overloaded("other requests wait for room", 1.0))

    def check_time(self, now_s: float, now_unix_s: float, first_token_timeout_s: float) -> None:
        """Called now and then: ends what waits for longer than its bounds allow."""
        job = self.job
        if self.is_done:
            return
        if job.deadline_unix_s is not None and now_unix_s >= job.deadline_unix_s:
            self.fail(
                errors.timed_out(
                    f"the request's deadline has passed after {len(self.tokens)} tokens (deadline_s)", "deadline"
                )
            )
        elif not self.tokens and now_s - job.arrival_s >= first_token_timeout_s:
            self.fail(errors.timed_out(f"no first token within {first_token_timeout_s:g} s", "first_token_timeout"))
        elif self.place.is_over(now_s, has_begun=bool(self.tokens or self.served.moves)):
            self.fail(self.place.why)

    # --- route ---------------------------------------------------------------------------------------------------

    def _route(self) -> bool:
        """Choose workers and submit. False when there is no room now, so that it waits."""
        is_new_batch = self.standing.is_batch and self.standing.began_s is None
        if is_new_batch and (why := self._fleet.batch.problem(self.standing.need, self._fleet.decoding())):
            self._wait_for_room(errors.overloaded(why, 1.0))
            return False
        while not self.is_done:
            decision = self._decide()
            if decision.decode_worker is None:
                return self._no_worker(decision)
            self._num_tries += 1
            if self._num_tries > MAX_TRIES:
                self._wait_for_room(errors.overloaded(f"{MAX_TRIES} workers refused the request in turn", 1.0))
                return False
            if self._submit(decision, decision.decode_worker):
                return True
            self._excluded |= {decision.decode_worker}
        return True

    def _decide(self) -> RouteDecision:
        job, view, table = self.job, self._fleet.view(), self._fleet.table
        assert table is not None, "admission lets nothing in before there is a table"
        request = RouteRequest(
            job.request_id,
            len(job.prompt) + len(self.tokens),
            job.sampling.max_tokens - len(self.tokens),
            job.block_hashes,
            self._excluded,
        )
        decision = route(request, view, table.policy)
        if self.served.decision is None or self.served.decision.decode_worker is None:
            self.served.decision = decision
        return decision

    def _submit(self, decision: RouteDecision, decode_worker: str) -> bool:
        """First message of an attempt: a whole request to one worker, or a reservation for its decode phase."""
        links, served = self._fleet.links, self.served
        self.standing.begin(time.monotonic(), self._fleet.shares, self._fleet.batch)
        is_local = decision.prefill_worker is None
        self.attempt = self.next_attempt()
        self._decode = links[decode_worker]
        self._prefill = None if decision.prefill_worker is None else links[decision.prefill_worker]
        served.decode_worker = decode_worker
        served.prefill_worker = decision.prefill_worker or decode_worker
        served.simulated = self._decode.simulated
        if not self.tokens:
            served.cached_tokens = decision.cached_tokens
        uncached = self.num_known - decision.cached_tokens
        if self.served.is_moving:
            to_compute = self.num_known - decision.computing_cached_tokens
            self._fleet.recovery.sent(self, served.prefill_worker, to_compute)
        return self._ask(
            self._decode,
            WorkKind.LOCAL if is_local else WorkKind.DECODE,
            prefill_tokens=uncached if is_local else 0,
            kv_tokens=uncached + self.job.sampling.max_tokens - len(self.tokens),
        )

    def _ask(self, link: WorkerLink, kind: WorkKind, *, prefill_tokens: int, kv_tokens: int) -> bool:
        self._progress_s = time.monotonic()
        return link.submit(
            self, self.submission(self.attempt, kind, self.tokens), prefill_tokens=prefill_tokens, kv_tokens=kv_tokens
        )

    def _reroute(self, *, without: WorkerLink) -> None:
        """Leave this attempt and choose anew."""
        self._excluded |= {without.worker_id}
        self.served.num_reroutes += 1
        self._leave()
        self._route()

    # --- no room -------------------------------------------------------------------------------------------------

    def _no_worker(self, decision: RouteDecision) -> bool:
        """Nothing can take it: for ever, or for now."""
        if decision.rule is RouteRule.CANNOT_FIT and not self.tokens:
            self.fail(errors.context_exceeded(decision.reason))
            return True
        self.standing.waits_for = decision.lacks or self.standing.waits_for
        self._wait_for_room(errors.overloaded(decision.reason, decision.retry_after_s, decision.lacks))
        return False

    def _wait_for_room(self, why: GatewayError) -> None:
        """Join the line, unless no worker could serve it however long it waited. Who waits already keeps its place."""
        self.place.why = why
        if not self.is_done and not self.place.join(self, is_new=not self.attempt):
            self.fail(why)

    def on_room(self) -> bool:
        """The fleet changed, and this request is first in line. True when it needs to wait no more."""
        if self.is_done:
            return True
        self._excluded = frozenset()
        self._num_tries = 0
        recovery = self._fleet.recovery
        if self.served.is_moving and not recovery.admits(self.need()):
            recovery.join(self)
        elif not self._route():
            return False
        self.place.leave(self)
        return True

    # --- the workers' answers ------------------------------------------------------------------------------------

    def on_reserved(self, link: WorkerLink, message: Reserved) -> None:
        source = self._prefill
        if link is not self._decode:
            return
        self._is_reserved = True
        if self._prefilled is not None:
            self._pull(self._prefilled)
        if source is None or self._is_prefill_asked:
            return
        self._is_prefill_asked = True
        size = self.num_known
        if not self._ask(source, WorkKind.PREFILL, prefill_tokens=size, kv_tokens=size):
            self._reroute(without=source)

    def on_prefilled(self, link: WorkerLink, message: Prefilled) -> None:
        if link is not self._prefill:
            return
        link.forget(self.job.wire_id)
        self._prefill = None
        self.served.note_prefill(message.times)
        self._fleet.mover.note_prefill(self.num_known - message.times.num_cached, message.times.prefill_s)
        self._accept(self.num_known, [message.first_token])
        if message.finish is not None:
            self.stop(message.finish)
        elif message.lease is None:
            self.on_lost(link, "prefilled without a lease")
        else:
            self._lease = (link, message.lease.lease_id)
            self._prefilled = message
            if self._is_reserved:
                self._pull(message)
            self._notify()

    def _pull(self, prefilled: Prefilled) -> None:
        """The KV is there and so is its room: let the decode worker fetch it."""
        assert prefilled.lease is not None
        assert self._decode is not None
        self._prefilled = None
        self._is_handing_over = True
        self._decode.send(Pull(self.job.wire_id, self.attempt, prefilled.lease, prefilled.first_token))

    def on_tokens(self, link: WorkerLink, event: TokenEvent) -> None:
        if link is not self._decode:
            return
        if event.tokens or event.finish not in (None, *_BAD_ENDS):
            self._lease = None  # the KV was there, so its holder has released it
        if event.tokens:
            self._accept(event.position, event.tokens)
        if event.finish is None:
            is_first, self._is_decoding = not self._is_decoding, True
            self._notify()
            if is_first and link.leaves_decode:
                self._fleet.mover.go_on(link)
            return
        self._decode = None  # it holds nothing any more
        link.forget(self.job.wire_id)
        if event.times is not None:
            self.served.note_end(event.times, handed_over=self._is_handing_over and not self._has_migrated)
        if event.finish in _BAD_ENDS:
            self.on_lost(link, event.error or f"it ended the request: {event.finish}")
        else:
            self.stop(event.finish)

    def on_rejected(self, link: WorkerLink, message: Rejected) -> None:
        link.forget(self.job.wire_id)
        if link is self._decode:
            self._decode = None
        elif link is self._prefill:
            self._prefill = None
        refusal = errors.for_good(message.code, message.detail, has_begun=bool(self.tokens))
        if refusal is not None:
            self.fail(refusal)
        elif self._is_handing_over and self._decode is None:
            self._continue_on(link)
        elif message.code == "handoff" and self._is_prefill_asked and self._reserve_again():
            pass
        else:
            self.place.why = errors.overloaded(f"{message.code}: {message.detail}", message.retry_after_s)
            self._reroute(without=link)

    def _reserve_again(self) -> bool:
        """The reservation lapsed while the prompt still waits for its prefill: keep that place, and reserve anew."""
        decode_worker = self._decide().decode_worker
        if self._prefill is None or decode_worker in (None, self._prefill.worker_id):
            return False  # a worker that prefills it cannot hold a second part of the same attempt
        self._decode = self._fleet.links[decode_worker]
        self._is_reserved = False
        self.served.decode_worker = decode_worker
        kv_tokens = self.num_known + self.job.sampling.max_tokens
        return self._ask(self._decode, WorkKind.DECODE, prefill_tokens=0, kv_tokens=kv_tokens)

    def _continue_on(self, link: WorkerLink) -> None:
        """The KV did not arrive: the decode worker computes it itself from prompt + tokens so far."""
        self.served.rest_bytes = 0
        self._leave()
        self.attempt = self.next_attempt()
        self._decode = link
        self.served.decode_worker = link.worker_id
        self.served.num_reroutes += 1
        size = self.num_known
        if not self._ask(link, WorkKind.LOCAL, prefill_tokens=size, kv_tokens=size):
            self._reroute(without=link)

    def on_lost(self, link: WorkerLink, reason: str) -> None:
        """A worker that held part of this request is gone, or has failed it."""
        if self.is_done:
            return
        if len(self.tokens) >= self.job.sampling.max_tokens:
            self.stop(FinishReason.LENGTH)
            return
        has_work = link is self._prefill or self._prefill is None  # else it had only promised room for its decoding
        now_s, was_lost = time.monotonic(), bool(self._losses.num_lost)
        if self._losses.lost(now_s, link.cause, place=self.num_known, has_work=has_work):
            num = self._losses.num_lost
            message = f"{num} workers failed under this request, the last one {link.worker_id}: {reason}"
            self.fail(errors.internal(message, "workers_failed"))
            return
        self._note_move("failover", link.worker_id, reason, 0, time.monotonic(), link.notice_s, cause=link.cause)
        move = self.move
        if move is not None and move.copied_tokens and move.target.is_ready:
            self._continue_on(move.target)  # most of the KV is there already
            return
        self._excluded |= {link.worker_id}
        self.served.num_reroutes += 1
        self._leave()
        # Lost twice in a row: what takes the workers along may be taking more of them, so look when it is over.
        self._fleet.recovery.join(self, self._losses.hold_s(now_s) if was_lost else 0.0)

    def need(self) -> Need:
        decision, links = self._decide(), self._fleet.links
        worker_id = decision.prefill_worker or decision.decode_worker
        queued = links[worker_id].view().queued_prefill_tokens if worker_id is not None else 0
        uncached = self.num_known - decision.computing_cached_tokens
        return Need(worker_id, uncached, self.num_known, self.job.priority, self.timeline.last_s, queued)

    def recover(self) -> None:
        self._route()

    # --- leaving a worker that drains ------------------------------------------------------------------------------

    def movable(self, link: WorkerLink) -> Movable | None:
        """Itself, when all that any worker holds of it is its decoding on `link`."""
        is_there = link is self._decode and self._is_decoding and self._prefill is None and self._lease is None
        return self if is_there and not self.is_done else None

    def leave_reservation(self, link: WorkerLink) -> None:
        """There is no KV to move yet, only room that was promised: have it promised elsewhere, if that can be."""
        if link is self._decode and self._prefill is not None and self._is_prefill_asked and self._reserve_again():
            link.send(Cancel(self.wire_id, self.attempt))
            link.forget(self.wire_id)

    def on_moving(self, link: WorkerLink, message: Any) -> None:
        if link is not self._decode:
            return
        if self.move is not None:
            self.move.on_source(message)
        elif isinstance(message, Yielded) and message.lease is not None:  # the move was given up a moment ago
            self._lease = (link, message.lease.lease_id)
            self._decode = None
            link.forget(self.wire_id)
            self.recompute_elsewhere(link, "the move was given up after its worker had stopped")
        elif isinstance(message, Offered) and message.lease is not None:
            link.send(ReleaseLease(message.lease.lease_id))

    def go_on_at(self, move: Move, yielded: Yielded, lease: Lease) -> None:
        """The source has ended it: from here on it is the target's."""
        source, target = move.source, move.target
        if yielded.times is not None:
            self.served.note_end(yielded.times, handed_over=self._is_handing_over and not self._has_migrated)
        source.forget(self.wire_id)
        self._lease = (source, lease.lease_id)
        if lease.num_tokens + 1 != self.num_known:
            self._decode = None
            target.send(Cancel(self.wire_id, move.attempt))
            target.forget(self.wire_id)
            reason = f"it yielded {lease.num_tokens} tokens of KV, {self.num_known - 1} are due"
            self.recompute_elsewhere(source, reason)
            return
        self._note_migration(move)
        self._decode, self.attempt = target, move.attempt
        target.legs[self.wire_id] = self
        self.served.decode_worker = target.worker_id
        self._is_handing_over, self._is_decoding, self._has_migrated = True, False, True
        self._progress_s = time.monotonic()
        self.served.rest_bytes = move.rest_bytes(lease)
        more = self.tokens[move.num_reserved - len(self.job.prompt) : -1]
        target.send(Pull(self.wire_id, move.attempt, lease, self.tokens[-1], more))

    def recompute_elsewhere(self, link: WorkerLink, reason: str) -> None:
        """Go on at another worker, which computes the KV anew."""
        self._note_move("recompute", link.worker_id, reason, 0, time.monotonic())
        self._reroute(without=link)

    def _leave(self) -> None:
        """Give up all that this attempt holds, and a place in the line."""
        self._fleet.recovery.leave(self)
        super()._leave()
        self.place.leave(self)
