"""The gateway of a simulated fleet: routes each arrival over the workers' cores, and writes its record. No I/O.

Decided here: what each answer of a worker means to a request, as `control.gateway.relay` decides it for real ones, on
simulated time. Routing itself is `control.routing.route`, unchanged. Not here: tokens' values (nobody reads them).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from control.fleets.sim_link import after_both
from control.fleets.sim_mover import SimMover
from control.fleets.sim_request import SimRequest, sim_record
from control.fleets.sim_traffic import Arrival
from control.fleets.sim_worker import SimWorker
from control.gateway.link import Beat
from control.gateway.timeline import Timeline
from control.routing import FleetView, RouteDecision, RouteRequest, WorkerView, route
from control.types.requests import RequestRecord, Slo
from control.types.routing import RouteRule, RoutingTable
from control.types.workers import Role, WorkerState
from engine.core import Outbox, PullPlan
from engine.types import FinishReason, WorkKind
from engine.wire import Message, Prefilled, Pull, Rejected, Submit, TokenEvent, Yielded

#: As the real gateway's (`control.gateway.relay`).
MAX_TRIES = 8
MAX_WAIT_S = 10.0


class SimGateway:
    """All requests in flight, the records of those that ended, and the counts for its beat."""

    def __init__(
        self,
        gateway_id: str,
        workers: dict[str, SimWorker],
        slo: Slo,
        clock: Callable[[], float],
        at: Callable[[float, Callable[[], None]], None],
        moves_per_worker: int,
    ) -> None:
        """`moves_per_worker`: requests that leave one worker at the same time; 0: a drain waits for them."""
        self.gateway_id = gateway_id
        self.table: RoutingTable | None = None
        self.records: list[RequestRecord] = []
        self.first_seq = 1  # of records[0]
        self._workers = workers
        self._slo = slo
        self.clock = clock
        self.at = at
        self._mover = SimMover(self, moves_per_worker)
        self._in_flight: dict[str, SimRequest] = {}
        self._waiting: deque[SimRequest] = deque()
        self._is_waking = False
        self._num_arrived = 0
        self._counts: Counter[str] = Counter()
        self._by_rule: Counter[str] = Counter()

    # --- arrivals and routing ------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """It has a table and somebody to decode: before that, arrivals have not begun."""
        return self.table is not None and any(
            each.core.state is WorkerState.READY and each.core.role in (Role.DECODE, Role.MIXED)
            for each in self._workers.values()
        )

    def arrive(self, arrival: Arrival) -> str:
        """Its id."""
        self._num_arrived += 1
        request = SimRequest(f"{self.gateway_id}-{self._num_arrived}", arrival, Timeline(arrival.at_unix_s))
        self._in_flight[request.request_id] = request
        if self._waiting or not self._route(request):
            self._wait(request)
        return request.request_id

    def cancel(self, request_id: str) -> bool:
        """The client hangs up: its work ends within one step. False when the request has ended."""
        request = self._in_flight.get(request_id)
        if request is None:
            return False
        if request in self._waiting:
            self._waiting.remove(request)
        self._let_go(request)
        self._end(request, 499, FinishReason.CANCELLED, "the client went away")
        return True

    def lost(self, worker: SimWorker) -> None:
        """A worker has ended: what it had goes on elsewhere from the tokens so far."""
        for request in list(self._in_flight.values()):
            if worker in (request.prefill, request.decode):
                if request.is_decoding:
                    request.note_move("failover", worker.worker_id, "its worker was lost", self.clock())
                self.reroute(request)
            elif request.move is not None and request.move.target is worker:
                self._mover.abandon(request.move)

    def view(self) -> FleetView:
        table = self.table
        assert table is not None
        pools: dict[Role, list[WorkerView]] = {Role.PREFILL: [], Role.DECODE: [], Role.MIXED: []}
        max_context = block_tokens = 0
        for slot, row in enumerate(table.workers):
            worker = self._workers.get(row.worker_id)
            if (
                worker is None
                or worker.stands
                or worker.core.state is not WorkerState.READY
                or worker.core.role not in pools
            ):
                continue
            block_tokens, max_context = worker.machine.block_tokens, worker.machine.cost.model.max_context
            load = worker.core.load(self.clock())
            used = (load.kv_blocks_held + load.kv_blocks_reserved) * block_tokens
            total = load.kv_blocks_total * block_tokens
            view = WorkerView(row.worker_id, slot, row.weight, load.queued_prefill_tokens, used, total)
            pools[worker.core.role].append(view)
        return FleetView(
            table.num_devices,
            max_context or max(each.machine.cost.model.max_context for each in self._workers.values()),
            block_tokens,
            table.expected_output_tokens,
            tuple(pools[Role.PREFILL]),
            tuple(pools[Role.DECODE]),
            tuple(pools[Role.MIXED]),
        )

    def _route(self, request: SimRequest) -> bool:
        """Choose workers and submit. False when there is no room now."""
        assert self.table is not None
        for _ in range(MAX_TRIES):
            asked = RouteRequest(
                request.request_id,
                request.arrival.prompt_tokens + request.num_tokens,
                request.arrival.output_tokens - request.num_tokens,
                (),
                frozenset(request.excluded),
            )
            decision = route(asked, self.view(), self.table.policy)
            if request.decision is None or request.decision.decode_worker is None:
                request.decision = decision
            if decision.rule is RouteRule.CANNOT_FIT:
                self._end(request, 400, None, decision.reason)
                return True
            if decision.decode_worker is None:
                request.waits_for = decision.lacks or request.waits_for
                return False
            if self._submit(request, decision):
                return True
        return False

    def _submit(self, request: SimRequest, decision: RouteDecision) -> bool:
        """One attempt: a whole request to one worker, or a reservation and then the prefill."""
        assert decision.decode_worker is not None
        request.attempt, request.is_decoding = request.new_attempt(), False
        request.decode = self._workers[decision.decode_worker]
        request.prefill = None if decision.prefill_worker is None else self._workers[decision.prefill_worker]
        request.decode_worker = decision.decode_worker
        request.prefill_worker = decision.prefill_worker or decision.decode_worker
        kind = WorkKind.LOCAL if request.prefill is None else WorkKind.DECODE
        if not self._offer(request, request.decode, kind):
            return False
        if request.prefill is not None and not self._offer(request, request.prefill, WorkKind.PREFILL):
            request.decode.core.cancel(self.gateway_id, request.request_id, request.attempt, self.clock())
            request.decode.core.take_outbox()
            return False
        for worker in (request.prefill, request.decode):
            if worker is not None:
                worker.kick()
        return True

    def _offer(self, request: SimRequest, worker: SimWorker, kind: WorkKind) -> bool:
        message = self.message(request, kind, request.attempt, request.num_tokens)
        answers = worker.core.submit(self.gateway_id, message, self.clock())
        if any(isinstance(answer, Rejected) for answer in answers):
            request.excluded.add(worker.worker_id)
            return False
        return True

    def message(self, request: SimRequest, kind: WorkKind, attempt: int, num_tokens: int) -> Submit:
        """Ask a worker to go on after so many tokens of the answer."""
        arrival = request.arrival
        prompt = list(range(arrival.first_token, arrival.first_token + arrival.prompt_tokens))
        prompt += [0] * num_tokens  # of a continuation; which tokens they were changes no length
        return Submit(request.request_id, attempt, kind, prompt, arrival.prompt_tokens, request.sampling)

    # --- waiting for room ----------------------------------------------------------------------------------------

    def _wait(self, request: SimRequest) -> None:
        """In line until there is room, or too long."""
        if request.waits_since_s is None:
            request.waits_since_s = self.clock()
        self._waiting.append(request)
        give_up_s = request.waits_since_s + MAX_WAIT_S
        self.at(give_up_s, lambda: self._give_up(request))

    def _give_up(self, request: SimRequest) -> None:
        since_s = request.waits_since_s
        if since_s is not None and since_s + MAX_WAIT_S <= self.clock() and request in self._waiting:
            self._waiting.remove(request)
            reason = request.decision.reason if request.decision else "no worker takes new requests"
            self._end(request, 429, None, reason)

    def wake(self) -> None:
        """Something ended or a worker opened: those in line try again, in their order."""
        if self._is_waking or self.table is None:
            return
        self._is_waking = True
        while self._waiting:
            request = self._waiting[0]
            request.excluded.clear()
            if not self._route(request):
                break
            self._waiting.popleft()
            if request.waits_since_s is not None:
                request.line_s += self.clock() - request.waits_since_s
            request.waits_since_s = None
        self._is_waking = False

    # --- answers of workers --------------------------------------------------------------------------------------

    def take(self, worker: SimWorker, outbox: Outbox) -> None:
        """What one worker has to tell."""
        now_s = self.clock()
        has_ended = False
        for event in outbox.events:
            request = self._in_flight.get(event.req_id)
            if request is not None and event.attempt == request.attempt:
                self._take_event(request, event, now_s)
                has_ended = has_ended or event.finish is not None
        for message in outbox.messages:
            self._take_message(worker, message, now_s)
        for message in outbox.after:
            self._take_message(worker, message, now_s)
        if worker.leaves_decode:
            self._mover.leave(worker)
        if (has_ended or outbox.messages) and self._waiting:
            self.at(now_s, self.wake)

    def _take_event(self, request: SimRequest, event: TokenEvent, now_s: float) -> None:
        if event.tokens:
            if request.is_moving:
                request.resumed(now_s)
            request.is_decoding = True
            request.timeline.add(len(event.tokens), now_s)
            request.num_tokens += len(event.tokens)
        if event.finish is None:
            return
        if event.times is not None:
            request.decode_s = (request.decode_s or 0.0) + event.times.decode_s
        if event.finish in (FinishReason.STOP, FinishReason.LENGTH):
            if event.times is not None and request.decision is not None and request.decision.prefill_worker is None:
                request.times = event.times
            self._end(request, 200, event.finish, "")
        else:
            self.reroute(request)

    def _take_message(self, worker: SimWorker, message: Message, now_s: float) -> None:
        if isinstance(message, Prefilled):
            request = self._in_flight.get(message.req_id)
            if request is None or message.attempt != request.attempt:
                if message.lease is not None:
                    worker.core.release(message.lease.lease_id, now_s)
            else:
                self._hand_over(request, worker, message, now_s)
        elif isinstance(message, Rejected):
            request = self._in_flight.get(message.req_id)
            if request is not None and message.attempt == request.attempt:
                self.reroute(request)
        elif isinstance(message, Yielded) and message.lease is not None:
            self._yielded(worker, message, message.lease.lease_id)

    def _yielded(self, worker: SimWorker, message: Yielded, lease_id: str) -> None:
        request = self._in_flight.get(message.req_id)
        if request is None or message.attempt != request.attempt:
            worker.core.release(lease_id, self.clock())
        elif request.move is not None:
            self._mover.on_yielded(request.move, message)
        else:  # the move was given up a moment ago
            worker.core.release(lease_id, self.clock())
            request.note_move("recompute", worker.worker_id, "its move was given up after it had stopped", self.clock())
            self.reroute(request)

    def _hand_over(self, request: SimRequest, source: SimWorker, message: Prefilled, now_s: float) -> None:
        """The first token is here; now the KV goes to the worker that has reserved for it."""
        target = request.decode
        assert target is not None
        request.prefill = None
        request.times = message.times
        if request.is_moving:
            request.resumed(now_s)
        request.timeline.add(1, now_s)
        request.num_tokens += 1
        if message.finish is not None:
            target.core.cancel(self.gateway_id, request.request_id, request.attempt, now_s)
            self._end(request, 200, message.finish, "")
            target.kick()
            return
        assert message.lease is not None
        pull = Pull(request.request_id, request.attempt, message.lease, message.first_token)
        plan = target.core.begin_pull(self.gateway_id, pull, now_s)
        if isinstance(plan, Rejected):
            source.core.release(message.lease.lease_id, now_s)
            self.reroute(request)
            return
        self.copy(source, target, plan, lambda: self.copied(request, source, target, plan, now_s))

    def copied(
        self, request: SimRequest, source: SimWorker, target: SimWorker, plan: PullPlan, began_s: float | None = None
    ) -> None:
        """A pull is over; `began_s`: of a handoff, whose time the record tells."""
        now_s = self.clock()
        ok = not source.has_ended and source.core.ack(plan.lease.lease_id, now_s)
        answers = target.core.pull_done(plan.req_id, plan.attempt, ok, now_s)
        if plan.attempt == request.attempt:
            request.handoff_s = request.handoff_s if began_s is None else now_s - began_s
            if answers:
                self.reroute(request)
        source.kick()
        target.kick()

    def copy(self, source: SimWorker, target: SimWorker, plan: PullPlan, done: Callable[[], None]) -> None:
        """Call `done` when both ends have carried it: the holder's from now on, the asker's once it is set up."""
        num_bytes, overhead_s = self.bytes_of(plan), target.machine.cost.handoff_overhead_s
        one_end = after_both(done)
        source.link_out.carry(num_bytes, one_end)
        self.at(self.clock() + overhead_s, lambda: target.link_in.carry(num_bytes, one_end))

    def bytes_of(self, plan: PullPlan) -> float:
        """What the model's KV in these blocks takes."""
        machine = next(iter(self._workers.values())).machine
        return len(plan.source_blocks) * machine.block_tokens * machine.cost.work.kv_token_bytes

    # --- moves -----------------------------------------------------------------------------------------------------

    def decoding_on(self, worker: SimWorker) -> list[SimRequest]:
        """Requests of which all that any worker holds is their decoding there."""
        requests = self._in_flight.values()
        return [each for each in requests if each.decode is worker and each.prefill is None and each.is_decoding]

    def worker(self, worker_id: str) -> SimWorker:
        return self._workers[worker_id]

    def on_status(self, worker: SimWorker) -> None:
        self.wake()
        self._mover.leave(worker)

    def reroute(self, request: SimRequest) -> None:
        """A worker gave the request back: free what is left of this attempt, go on elsewhere from the tokens so far."""
        self._let_go(request)
        request.num_reroutes += 1
        if not self._route(request):
            self._wait(request)

    def _let_go(self, request: SimRequest) -> None:
        """Free what is left of this attempt wherever it is. Whatever workers say of it from now on is stale."""
        if request.move is not None:
            self._mover.abandon(request.move)
        workers = [each for each in (request.prefill, request.decode) if each is not None]
        attempt = request.attempt
        request.attempt, request.is_decoding = request.new_attempt(), False
        request.prefill = request.decode = None
        for worker in workers:
            worker.core.cancel(self.gateway_id, request.request_id, attempt, self.clock())
            worker.kick()

    # --- endings -------------------------------------------------------------------------------------------------

    def _end(self, request: SimRequest, status: int, finish: FinishReason | None, error: str) -> None:
        self._in_flight.pop(request.request_id, None)
        outcome = {200: "completed", 429: "rejected", 499: "cancelled"}.get(status, "failed")
        self._counts[outcome] += 1
        decision = request.decision
        if decision is not None:
            self._by_rule[decision.rule.value] += 1
        if request.move is not None:
            self._mover.abandon(request.move)
        assert self.table is not None
        told = (self.clock(), status, finish, error)
        self.records.append(sim_record(request, self.table, self.gateway_id, self._slo, *told))

    def take_records(self) -> tuple[int, list[RequestRecord]]:
        """(number of the first, records that ended since the last call)."""
        first, records = self.first_seq, self.records
        self.first_seq += len(records)
        self.records = []
        return first, records

    def beat(self) -> Beat:
        now_s = self.clock()
        waiting = [each.arrival.at_unix_s for each in self._in_flight.values() if each.num_tokens == 0]
        return Beat(
            at_unix_s=now_s,
            num_in_flight=len(self._in_flight),
            num_waiting_first_token=len(waiting),
            oldest_waiting_s=now_s - min(waiting) if waiting else None,
            num_arrived=self._num_arrived,
            num_rejected=self._counts["rejected"],
            num_failed=self._counts["failed"],
            num_completed=self._counts["completed"],
            num_cancelled=self._counts["cancelled"],
            num_records_dropped=0,
            by_rule=dict(self._by_rule),
            cpu_s=0.0,
            table_version=self.table.version if self.table else 0,
        )
