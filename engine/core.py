"""The engine without I/O: requests and orders in, step plans out, results in, messages out. No torch, clock or socket.

Decided here: what each message does to a sequence. Not decided here: what is taken in (`engine.refusal`), what a step
computes (`engine.scheduler`), which orders hold (`engine.duty`), how a finished step turns into messages
(`engine.completion`), when steps run (the worker).

A step, the same in the real worker, the paced worker and SimFleet:

    plan = core.next_step(now_s)                      # None: nothing to do; wait for a message or until `next_timer_s`
    result = runner.run(plan)                         # or a cost model's `paced_result`, waited out
    outboxes = core.finish_step(plan, result, now_s)  # peer -> token events and messages

After any other call, send what `take_outbox()` holds. The core is not thread-safe: hold one lock around each call (not
around the run). While a step is in flight its sequences keep their blocks and block tables: a cancel or a lost peer
takes effect in `finish_step`. `now_s` is monotonic everywhere; `unix_offset_s` leads to Unix time, for deadlines.
"""

from __future__ import annotations

from engine.completion import Completion
from engine.core_types import CoreConfig, Outbox, PullPlan
from engine.duty import Duty
from engine.leases import HeldLease
from engine.lifecycle import SERVES, keeps_leases
from engine.meter import Meter
from engine.refusal import refusal_of
from engine.sequence import SeqState, Sequence
from engine.step_watch import StepWatch
from engine.transfers import Transfers
from engine.types import Load, Role, StepPlan, StepResult, WorkerState, WorkKind
from engine.wire import (
    CacheDelta,
    Message,
    Offer,
    Offered,
    Order,
    OrderResult,
    Prefetch,
    Prefetched,
    Pull,
    Rejected,
    Reserved,
    Status,
    Submit,
    Yield,
)

__all__ = ["CoreConfig", "EngineCore", "Outbox", "PullPlan"]

#: When a refused peer may ask again. Long enough for a few steps, short beside a request.
_RETRY_S = 1.0


class EngineCore:
    """One worker's whole state. A fresh one has its model loaded and no role."""

    def __init__(self, *, config: CoreConfig, meter: Meter | None = None, watch: StepWatch | None = None) -> None:
        self.config = config
        self._watch = watch or StepWatch()
        self._duty = Duty()
        self._duty.loaded()
        self._work = Completion(config, meter)
        self._scheduler = self._work.scheduler
        self._transfers = Transfers(self._work)
        self._plan: StepPlan | None = None
        self._plan_role = Role.UNASSIGNED
        self._num_steps = 0
        self._num_seqs = 0
        self._eos = frozenset(config.model.eos_token_ids)
        self._now_s = -config.unix_offset_s
        self._told = self._standing
        self._work.meter.state(self._duty)

    # --- what it is ----------------------------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        return self._duty.role

    @property
    def state(self) -> WorkerState:
        return self._duty.state

    @property
    def fence(self) -> int:
        return self._duty.fence

    @property
    def reason(self) -> str:
        """Why it is not ready; '' when it is."""
        return self._duty.reason

    @property
    def _standing(self) -> tuple[Role, WorkerState, str]:
        return self._duty.role, self._duty.state, self._duty.reason

    @property
    def has_work(self) -> bool:
        """Sequences or leases: something that a drain waits for."""
        return bool(self._work.seqs) or len(self._work.leases) > 0

    @property
    def step_in_flight(self) -> bool:
        return self._plan is not None

    def set_endpoint(self, *, address: str, pool_path: str, host_id: str) -> None:
        """Where leases of this worker are fetched; known only once its socket is bound."""
        self._work.endpoint = (address, pool_path, host_id)

    def load(self, now_s: float) -> Load:
        """How full the worker is."""
        return self._work.load(now_s, self._watch.age(now_s))

    def beat(self, now_s: float) -> Load:
        """The load, told to the meter's readers too: what a running step has to say of itself."""
        load = self.load(now_s)
        self._work.meter.load(load)
        return load

    def cache_delta(self) -> CacheDelta | None:
        """Change of the prefix index since the last call; None when there is none."""
        return self._scheduler.pool.take_delta()

    def cache_snapshot(self) -> CacheDelta:
        """The whole prefix index, for a peer that has just connected."""
        return self._scheduler.pool.snapshot()

    def status_changed(self) -> Status | None:
        """The new role and state, once per change; None when nothing changed since the last call."""
        if self._told == self._standing:
            return None
        self._told = self._standing
        config, duty = self.config, self._duty
        load, leaves = self.load(self._now_s), duty.leaves_decode
        return Status(config.worker_id, config.epoch, duty.role, duty.state, duty.fence, duty.reason, load, leaves)

    def take_outbox(self) -> dict[str, Outbox]:
        """All that is to be told since the last call, by peer."""
        return self._work.take_outbox()

    # --- requests ------------------------------------------------------------------------------------------------

    def submit(self, peer: str, msg: Submit, now_s: float) -> list[Message]:
        """Queue a request ([]), reserve for it (Reserved), or refuse it (Rejected: nothing is held)."""
        refusal = refusal_of(msg, self._duty, self._work, now_s)
        if refusal is not None:
            code, detail = refusal
            retry_s = _RETRY_S if code in ("queue_full", "no_kv", "draining") else 0.0
            return [Rejected(msg.req_id, msg.attempt, code, detail, retry_s)]
        seq = self._new_sequence(peer, msg, now_s)
        if msg.kind is not WorkKind.DECODE:
            self._work.enter(seq)
            self._scheduler.enqueue(seq)
            return []
        if not self._scheduler.reserve(seq):
            room = self._scheduler.pool.num_available - self._scheduler.reserved_blocks
            detail = f"{len(seq.tokens)} tokens and what they may generate do not fit into {room} free KV blocks"
            return [Rejected(msg.req_id, msg.attempt, "no_kv", detail, _RETRY_S)]
        self._work.enter(seq)
        return [Reserved(seq.req_id, seq.attempt, seq.num_cached)]

    def _new_sequence(self, peer: str, msg: Submit, now_s: float) -> Sequence:
        limit = min(msg.num_prompt + msg.sampling.max_tokens, self.config.model.max_context)
        eos = frozenset[int]() if msg.sampling.ignore_eos else self._eos
        stop_ids = eos.union(msg.sampling.stop_token_ids) if msg.sampling.stop_token_ids else eos
        self._num_seqs += 1
        seq = Sequence(self._num_seqs, peer, msg, limit=limit, stop_ids=stop_ids, now_s=now_s)
        if msg.deadline_unix_s is not None:
            seq.deadline_s = msg.deadline_unix_s - self.config.unix_offset_s
        return seq

    def cancel(self, peer: str, req_id: str, attempt: int, now_s: float) -> bool:
        """End a request of `peer`, or give up its lease. Its blocks are free at once, or when its step ends.

        The peer is told with a last TokenEvent (cancelled). False: no such request, which may just have ended.
        """
        seq = self._work.by_key.get((req_id, attempt))
        if seq is not None and seq.peer == peer:
            self._drop(seq, now_s)
            self._settle(now_s)
            return True
        lease = self._work.leases.find(req_id, attempt)
        return lease is not None and self.release(lease.lease_id, now_s)

    def drop_peer(self, peer: str, now_s: float) -> int:
        """A peer is gone: end its requests, tell nobody. Its leases stay until acknowledged or expired."""
        dropped = list(self._work.by_peer.get(peer, {}).values())
        for seq in dropped:
            self._drop(seq, now_s)
        self._work.mute(peer)
        self._settle(now_s)
        return len(dropped)

    def _drop(self, seq: Sequence, now_s: float, error: str = "") -> None:
        """End a sequence now, or mark it when somebody is writing its blocks."""
        seq.end_error = error
        if seq.state is SeqState.PULLING or self._in_flight(seq):
            seq.cancelled = True
        else:
            self._work.end_cancelled(seq, now_s)

    def _in_flight(self, seq: Sequence) -> bool:
        plan = self._plan
        if plan is None:
            return False
        return seq.seq_id in {item.seq_id for item in plan.decode} | {chunk.seq_id for chunk in plan.prefill}

    # --- handoff and migration -----------------------------------------------------------------------------------

    def begin_pull(self, peer: str, msg: Pull, now_s: float) -> PullPlan | Rejected:
        """Which blocks to copy for a reserved sequence. A lease that does not fit ends it: nothing is held then."""
        answer = self._transfers.begin_pull(peer, msg, now_s)
        self._settle(now_s)
        return answer

    def begin_prefetch(self, peer: str, msg: Prefetch, now_s: float) -> PullPlan | Prefetched:
        """Which full blocks to copy ahead for a reserved sequence, or why not: it stays reserved either way."""
        return self._transfers.begin_prefetch(peer, msg, now_s)

    def pull_done(
        self, req_id: str, attempt: int, ok: bool, now_s: float, detail: str = "", num_bytes: int = 0
    ) -> list[Message]:
        """The copy is whole (it decodes from its first token) or failed (Rejected `handoff`, nothing is held).

        One that was ahead of its time is answered with Prefetched, and the reservation goes on.
        """
        answer = self._transfers.pull_done(req_id, attempt, ok, now_s, detail, num_bytes)
        self._settle(now_s)
        return answer

    def offer(self, peer: str, msg: Offer, now_s: float) -> Offered:
        """Lease the full blocks of a sequence that goes on decoding."""
        return self._transfers.offer(peer, msg, now_s)

    def yield_up(self, peer: str, msg: Yield, now_s: float) -> list[Message]:
        """End a decoding sequence here, now or when its step ends, with all its KV under a lease."""
        seq = self._work.by_key.get((msg.req_id, msg.attempt))
        answer = self._transfers.yield_up(peer, msg, now_s, in_flight=seq is not None and self._in_flight(seq))
        self._settle(now_s)
        return answer

    # --- handoff, the holder's side ------------------------------------------------------------------------------

    def lease(self, lease_id: str) -> HeldLease | None:
        """The blocks kept under a lease; None when it is over."""
        return self._work.leases.get(lease_id)

    def ack(self, lease_id: str, now_s: float) -> bool:
        """The asker has copied all. True: the lease held until now, so its copy is good. The blocks go to the cache."""
        return self.release(lease_id, now_s)

    def release(self, lease_id: str, now_s: float | None = None) -> bool:
        """The lease is given up. False when it was over already."""
        taken = self._work.release_lease(lease_id)
        if taken:
            self._settle(self._now_s if now_s is None else now_s)
        return taken

    # --- time ----------------------------------------------------------------------------------------------------

    def expire(self, now_s: float) -> None:
        """End overdue leases, reservations that nobody pulls, and requests past their deadline in any state."""
        work = self._work
        for lease in work.leases.take_due(now_s):
            self._scheduler.pool.release(lease.blocks)
        for seq in self._scheduler.take_overdue(now_s):
            seq.is_overdue = True
            self._drop(seq, now_s)
        for seq in self._overdue_reservations(now_s):
            work.discard(seq)
            work.reject(seq, "handoff", f"no Pull came within {self._reserve_s:g} s of the reservation")
        self._settle(now_s)

    @property
    def _reserve_s(self) -> float:
        return self.config.lease_s if self.config.reserve_s is None else self.config.reserve_s

    def _overdue_reservations(self, now_s: float) -> list[Sequence]:
        before = now_s - self._reserve_s
        held = self._scheduler.held.values()
        return [seq for seq in held if seq.submit_s <= before and seq.state is SeqState.RESERVED]

    def next_timer_s(self) -> float | None:
        """When `expire` has something to do next; None when nothing is timed."""
        reserved = [seq.submit_s for seq in self._scheduler.held.values() if seq.state is SeqState.RESERVED]
        timers = [
            self._work.leases.next_expiry_s,
            self._scheduler.next_deadline_s,
            min(reserved) + self._reserve_s if reserved else None,
        ]
        return min((at for at in timers if at is not None), default=None)

    # --- steps ---------------------------------------------------------------------------------------------------

    def next_step(self, now_s: float) -> StepPlan | None:
        """What to compute next; None when there is nothing. One step at a time: finish it before the next."""
        assert self._plan is None, "a step is in flight already"
        self.expire(now_s)
        self._work.meter.heartbeat(now_s)
        if self._duty.state in (WorkerState.FAILED, WorkerState.STOPPED):
            return None
        plan = self._scheduler.plan(self._num_steps + 1, now_s)
        if plan is None:
            self.beat(now_s)
            return None
        self._num_steps += 1
        self._plan, self._plan_role = plan, self._duty.role
        self._watch.begin(plan, now_s)
        self._work.meter.begin(now_s)
        return plan

    def finish_step(self, plan: StepPlan, result: StepResult, now_s: float) -> dict[str, Outbox]:
        """Take a step's tokens; returns what each peer has to be told, everything since the last outbox included."""
        if plan is not self._plan:  # the worker failed meanwhile: its sequences have ended
            return self._work.take_outbox()
        self._plan = None
        self._watch.end(result)
        self._work.finish_step(plan, result, now_s)
        self._work.meter.end(plan, result, self._plan_role)
        self._settle(now_s)
        self.beat(now_s)
        return self._work.take_outbox()

    # --- orders --------------------------------------------------------------------------------------------------

    def order(self, msg: Order, now_s: float) -> OrderResult:
        """Carry out an order as far as the running work allows; an idle worker has completed it when this returns.

        Queued requests that it will not serve any more are bounced (Rejected `draining`): no token of theirs was sent,
        so the gateway routes them again.
        """
        refusal = self._duty.take(msg)
        if not refusal:
            if self._duty.state is WorkerState.STOPPED:
                self._end_all("the worker was stopped", now_s)
            else:
                self._bounce()
            self._settle(now_s)
            self._work.meter.state(self._duty, now_s + self.config.unix_offset_s)
        return OrderResult(msg.order_id, not refusal, self._duty.role, self._duty.state, refusal)

    def fail(self, reason: str, now_s: float) -> None:
        """The worker cannot go on: every request ends with an error, a step in flight is given up."""
        self._plan = None
        self._watch.abandon()
        self._work.meter.abandon()
        self._duty.fail(reason)
        self._end_all(reason, now_s)
        self._work.meter.state(self._duty, now_s + self.config.unix_offset_s)

    def _end_all(self, error: str, now_s: float) -> None:
        for seq in list(self._work.seqs.values()):
            if seq.has_started:
                self._drop(seq, now_s, error)
            else:
                self._work.discard(seq)
                self._work.reject(seq, "draining", error)

    def _bounce(self) -> None:
        stays = self._duty.stays_for
        for seq in list(self._scheduler.waiting.values()):
            if not seq.has_started and seq.kind not in stays:
                self._work.discard(seq)
                self._work.reject(seq, "draining", "the worker drains; nothing was computed", _RETRY_S)

    def _settle(self, now_s: float) -> None:
        """After anything ended: complete the order that waited for it."""
        self._now_s = now_s
        before = self._standing
        self._duty.settle(self._busy)
        if before != self._standing:
            self._work.meter.state(self._duty, now_s + self.config.unix_offset_s)

    def _busy(self, role: Role | None) -> bool:
        """Is there work that `role` does not serve (None: any work)? Leases are work of a prefill worker."""
        if role is None:
            return self.has_work
        serves = SERVES[role]
        if len(self._work.leases) and not keeps_leases(serves):
            return True
        return any(count and kind not in serves for kind, count in self._work.num_by_kind.items())
