"""Requests of a simulated fleet leave a worker that drains or flips away from decode, on simulated time.

Decided here: nothing that `control.gateway.mover` does not decide for real ones: order, number at once, target and
estimate are the same, and so are the steps at the two cores. Costs come from the cost model, where a real gateway
measures them. One difference: a reservation at a worker that leaves is moved once it decodes, not made anew elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from control.fleets.sim_request import SimRequest
from control.fleets.sim_worker import SimWorker
from control.gateway.move_estimate import MoveChoice, MoveEstimate, MoveFacts, choose_target, estimate, queued_ahead
from engine.core import PullPlan
from engine.types import WorkKind
from engine.wire import Offer, Prefetch, Prefetched, Pull, Rejected, Yield, Yielded

if TYPE_CHECKING:
    from control.fleets.sim_gateway import SimGateway


@dataclass(slots=True, eq=False)
class SimMove:
    """One request on its way; the source decodes on until it has yielded."""

    request: SimRequest
    source: SimWorker
    target: SimWorker
    attempt: int  # at the target
    num_reserved: int  # tokens of the answer that the target was told of
    begun_s: float
    reason: str
    num_bytes: float = 0.0


class SimMover:
    """All moves of one simulated gateway."""

    def __init__(self, gateway: SimGateway, per_worker: int) -> None:
        self._gateway = gateway
        self._per_worker = per_worker
        self._moves: dict[SimWorker, set[SimMove]] = {}

    def leave(self, source: SimWorker) -> None:
        """Begin as many moves away from this worker as may run at once, if it leaves decode."""
        if not source.leaves_decode or source.has_ended or source.stands or not self._per_worker:
            return
        running = self._moves.setdefault(source, set())
        for request in sorted(self._gateway.decoding_on(source), key=lambda each: -each.rest_tokens):
            if len(running) >= self._per_worker:
                break
            if request.move is None:
                self._begin(request, source, running)
        if running:
            self._moves[source] = running  # a request that was rerouted meanwhile may have ended the last one here
        else:
            self._moves.pop(source, None)

    def _begin(self, request: SimRequest, source: SimWorker, running: set[SimMove]) -> None:
        target, decision = self._estimate(request, source)
        if target is None or decision.choice is MoveChoice.FINISH:
            return
        gateway, now_s = self._gateway, self._gateway.clock()
        if decision.choice is MoveChoice.RECOMPUTE:
            request.note_move("recompute", source.worker_id, decision.reason, now_s)
            gateway.reroute(request)
            return
        num_reserved = request.num_tokens - 1
        move = SimMove(request, source, target, request.new_attempt(), num_reserved, now_s, decision.reason)
        message = gateway.message(request, WorkKind.DECODE, move.attempt, num_reserved)
        if any(isinstance(each, Rejected) for each in target.core.submit(gateway.gateway_id, message, now_s)):
            return
        request.move = move
        running.add(move)
        self._offer(move)

    def _estimate(self, request: SimRequest, source: SimWorker) -> tuple[SimWorker | None, MoveEstimate]:
        gateway, cost = self._gateway, source.machine.cost
        view, size = gateway.view(), request.arrival.prompt_tokens + request.num_tokens - 1
        chosen = choose_target((*view.decode, *view.mixed), size + 1 + request.rest_tokens, {source.worker_id})
        target = None if chosen is None else gateway.worker(chosen)
        return target, estimate(
            MoveFacts(
                rest_tokens=request.rest_tokens,
                kv_tokens=size,
                kv_bytes=round(size * cost.work.kv_token_bytes),
                step_s=source.step_s,
                handoff_bytes_per_s=cost.handoff_bytes_per_s,
                prefill_tokens_per_s=size / cost.prefill_seconds(size, size * (size + 1) // 2, size, 1),
                queued_prefill_tokens=queued_ahead(view),
                has_target=target is not None,
            )
        )

    # --- the steps of one move -------------------------------------------------------------------------------------

    def _offer(self, move: SimMove) -> None:
        """Copy the full blocks ahead, if there are any."""
        gateway, request, now_s = self._gateway, move.request, self._gateway.clock()
        offered = move.source.core.offer(gateway.gateway_id, Offer(request.request_id, request.attempt), now_s)
        if offered.reason:
            self.abandon(move)
        elif offered.lease is None:
            self._yield(move)
        else:
            prefetch = Prefetch(request.request_id, move.attempt, offered.lease)
            plan = move.target.core.begin_prefetch(gateway.gateway_id, prefetch, now_s)
            if isinstance(plan, Prefetched):
                move.source.core.release(offered.lease.lease_id, now_s)
                self.abandon(move)
            else:
                gateway.copy(move.source, move.target, plan, lambda: self._prefetched(move, plan))

    def _prefetched(self, move: SimMove, plan: PullPlan) -> None:
        now_s = self._gateway.clock()
        ok = not move.source.has_ended and move.source.core.ack(plan.lease.lease_id, now_s)
        move.target.core.pull_done(plan.req_id, plan.attempt, ok, now_s)
        move.source.kick()
        move.target.kick()
        if move.request.move is not move:
            return
        if ok and not move.source.stands:
            move.num_bytes += self._gateway.bytes_of(plan)
            self._yield(move)
        else:
            self.abandon(move)

    def _yield(self, move: SimMove) -> None:
        """The answer comes at the end of the step, through the gateway, to `on_yielded`."""
        gateway, request = self._gateway, move.request
        message = Yield(request.request_id, request.attempt)
        refused = move.source.core.yield_up(gateway.gateway_id, message, gateway.clock())
        move.source.kick()
        if refused and request.move is move:
            self.abandon(move)

    def on_yielded(self, move: SimMove, message: Yielded) -> None:
        """From here on it is the target's."""
        gateway, request, now_s = self._gateway, move.request, self._gateway.clock()
        assert message.lease is not None
        self._end(move)
        request.note_move("migration", move.source.worker_id, move.reason, move.begun_s, move.num_bytes)
        request.attempt, request.decode, request.is_decoding = move.attempt, move.target, False
        request.decode_worker = move.target.worker_id
        more = [0] * (request.num_tokens - 1 - move.num_reserved)
        pull = Pull(request.request_id, move.attempt, message.lease, 0, more)
        plan = move.target.core.begin_pull(gateway.gateway_id, pull, now_s)
        if isinstance(plan, Rejected):
            move.source.core.release(message.lease.lease_id, now_s)
            gateway.reroute(request)
        else:
            request.rest_bytes = gateway.bytes_of(plan)
            gateway.copy(
                move.source, move.target, plan, lambda: gateway.copied(request, move.source, move.target, plan)
            )

    def abandon(self, move: SimMove) -> None:
        """Free what the target holds; the source goes on, or has ended."""
        gateway = self._gateway
        self._end(move)
        move.target.core.cancel(gateway.gateway_id, move.request.request_id, move.attempt, gateway.clock())
        move.target.kick()

    def _end(self, move: SimMove) -> None:
        move.request.move = None
        self._moves.get(move.source, set()).discard(move)
        self._gateway.at(self._gateway.clock(), lambda: self.leave(move.source))
