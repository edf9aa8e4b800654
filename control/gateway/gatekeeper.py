"""Who may come in: asks the forecast, keeps the shares and the promises, and words the refusals. The thin layer.

Decided here: nothing but the order of the questions. The policies are pure and elsewhere: `forecast` (how late it would
be), `turns` and `fair_share` (who is ahead), `promises` (who was told to come back), `batch_room`.

    arrives -> was it promised a place, and is that due?  -> in
            -> would it be late?                           -> 429, with the time until it would not be, and a place
            -> does the gateway hold all that it may?      -> whoever has the worst turn gives way
    waits   -> would it be late by now? has it waited out? -> 429, the same way
    ends    -> its key is charged for what it really used
"""

from __future__ import annotations

import hashlib
import random
from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from control.gateway.errors import GatewayError, overloaded
from control.gateway.fleet import Fleet
from control.gateway.forecast import (
    NOTHING,
    Capacity,
    Forecast,
    Lateness,
    Limits,
    Need,
    Store,
    excess_of,
    forecast,
    kv_store,
    lateness,
    prefill_capacity,
    slot_store,
)
from control.gateway.line import MAX_WAIT_S
from control.gateway.promises import Promise, PromiseBook, window
from control.gateway.rates import Mean
from control.gateway.relay import Relay
from control.gateway.usage import Usage, sum_of
from control.routing import RouteRequest, cached_tokens, has_place
from control.types.bottleneck import Resource
from control.types.requests import Slo

#: A promise is for the time that was told, with this much added, so that those refused together do not return together.
JITTER_SHARE: Final = 0.1
JITTER_S: Final = 0.25
#: What the plane said of other gateways holds for so long; it says it once a second.
ELSEWHERE_FRESH_S: Final = 5.0
MAX_RETRY_AFTER_S: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """Bounds of one gateway's admission, from the settings."""

    max_in_flight: int = 256
    predicts: bool = True  # False: only max_in_flight bounds, first come first served
    at_share: float = 0.8  # of the SLO's bound on TTFT: above it a request is refused; forecasts are of the mean
    slo: Slo = field(default_factory=Slo)
    batch_ttft_s: float = 60.0


class Gatekeeper:
    """One gateway's. Times are monotonic and passed in."""

    def __init__(self, fleet: Fleet, rules: AdmissionRules, jitter: Callable[[], float] = random.random) -> None:
        self.rules = rules
        self.promises = PromiseBook()
        self._fleet = fleet
        self._jitter = jitter
        self._kv_held_s = Mean()
        self._slot_held_s = Mean()
        self._learned_s = 0.0

    # --- coming in -----------------------------------------------------------------------------------------------

    def let_in(self, relay: Relay, now_s: float, now_unix_s: float, *, is_full: bool) -> None:
        """Give it its place in the order. Raises GatewayError (429) when it had better come later."""
        self._size(relay)
        standing, shares = relay.standing, self._fleet.shares
        standing.start_tag = shares.tag(standing.api_key_id)
        promise = self.promises.find(_identity(relay), now_s) if len(self.promises) else None
        if promise is not None and promise.due_s <= now_s:
            standing.is_promised = True
            standing.start_tag, standing.since_s = promise.turn.start_tag, promise.turn.arrival_s
        elif not self._goes_at_once(relay):
            late = self._lateness(relay, now_s, now_unix_s)
            if late is not None:
                raise self._refusal(relay, late.reason, now_s, late.excess_s, promise)
        if is_full:
            self._make_room(relay, now_s)
        if promise is not None:
            self.promises.keep(promise)
        self._by_own_priority(relay)
        relay.place.max_wait_s = max(MAX_WAIT_S, self._ttft_bound_s(relay))
        standing.charged_s = self._device_s(standing.need, self._kv_held_s.value)
        shares.charge(standing.api_key_id, standing.charged_s)

    def _goes_at_once(self, relay: Relay) -> bool:
        """Nobody waits, here or elsewhere, and there is room: no forecast is needed, unless a deadline is close."""
        fleet, standing = self._fleet, relay.standing
        if fleet.waiters or len(self.promises) or fleet.waiting_elsewhere.num_slots or standing.is_batch:
            return False
        has_room = any(has_place(each, standing.need.kv_tokens) for each in fleet.decoding())
        return (
            has_room
            and relay.job.deadline_unix_s is None
            and not all(each.is_backlogged for each in fleet.prefilling())
        )

    def _size(self, relay: Relay) -> None:
        """What of its prompt some worker has already need not be computed."""
        job, view = relay.job, self._fleet.view()
        request = RouteRequest(job.request_id, len(job.prompt), job.sampling.max_tokens, job.block_hashes)
        cached = max(cached_tokens(request, view).values(), default=0)
        relay.standing.need = replace(relay.standing.need, prefill_tokens=len(job.prompt) - cached)

    def _by_own_priority(self, relay: Relay) -> None:
        """Between requests of one key its own priorities decide: a better one takes the turn of the others."""
        mine = relay.standing
        rivals = [
            each.standing
            for each in self._fleet.waiters
            if isinstance(each, Relay)
            and each.standing.api_key_id == mine.api_key_id
            and each.standing.is_batch == mine.is_batch
            and each.standing.priority > mine.priority
        ]
        tags = sorted(each.start_tag for each in [mine, *rivals])
        for standing, tag in zip([mine, *rivals], tags, strict=True):
            standing.start_tag = tag
        if rivals:
            self._fleet.reorder()

    def _make_room(self, relay: Relay, now_s: float) -> None:
        """The gateway holds all that it may: whoever waits with a worse turn gives way, else the newcomer does."""
        bound = f"the gateway holds {self.rules.max_in_flight} requests, its bound max_in_flight"
        for other in reversed(self._fleet.waiters):
            if isinstance(other, Relay) and other.turn > relay.turn and not other.standing.is_promised:
                why = f"{bound}, and one of a better turn came"
                other.fail(self._refusal(other, why, now_s, lacks=Resource.GATEWAY))
                return
        raise self._refusal(relay, bound, now_s, lacks=Resource.GATEWAY)

    # --- waiting -------------------------------------------------------------------------------------------------

    def review(self, now_s: float, now_unix_s: float) -> None:
        """Refuse those in the line who would be late by now, as others went first, or have waited for too long."""
        if now_s - self._learned_s > ELSEWHERE_FRESH_S:  # the plane is away: better nothing than what was once
            self._fleet.waiting_elsewhere = self._fleet.batch.elsewhere = NOTHING
        if not self.rules.predicts:
            return
        ahead = self._fleet.waiting_elsewhere
        for relay in [each for each in self._fleet.waiters if isinstance(each, Relay)]:
            if relay.tokens:  # it has begun: its own limit holds, and no 429 can be told any more
                ahead = ahead.plus(relay.standing.need)
                continue
            if not relay.standing.is_promised:
                late = self._lateness(relay, now_s, now_unix_s, ahead)
                if late is not None:
                    relay.fail(self._refusal(relay, late.reason, now_s, late.excess_s))
                    continue
            if relay.place.is_over(now_s, has_begun=False):
                waited = f"no room within {relay.place.max_wait_s:g} s: {relay.place.why.message}"
                relay.fail(self._refusal(relay, waited, now_s))
                continue
            ahead = ahead.plus(relay.standing.need)

    # --- ending --------------------------------------------------------------------------------------------------

    def note_end(self, relay: Relay, now_s: float) -> None:
        """Charge its key for what it took, and remember for how long that was."""
        standing, used_s = relay.standing, 0.0
        if standing.began_s is not None:
            held_s = now_s - standing.began_s
            used_s = self._device_s(standing.need, held_s)
            if relay.tokens:
                self._kv_held_s = self._kv_held_s.after(held_s, standing.need.kv_tokens)
                self._slot_held_s = self._slot_held_s.after(held_s)
            if standing.is_batch:
                self._fleet.batch.give_back(standing.need)
        self._fleet.shares.settle(standing.api_key_id, standing.charged_s, used_s)

    # --- other gateways ------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """What is taken through this gateway: for the others to know."""
        fleet = self._fleet
        waiting = sum_of(each.standing.need for each in fleet.waiters)
        return Usage(fleet.shares.take_used(), waiting, fleet.batch.here)

    def learn(self, elsewhere: Usage, now_s: float) -> None:
        """What is taken through all others together."""
        self._learned_s = now_s
        self._fleet.shares.learn_elsewhere(elsewhere.used_s)
        self._fleet.waiting_elsewhere = elsewhere.waiting
        self._fleet.batch.elsewhere = elsewhere.batch

    # --- what is known -------------------------------------------------------------------------------------------

    def _capacity(self, relay: Relay) -> Capacity:
        prefilling, decoding = self._fleet.prefilling(), self._fleet.decoding()
        queues_s, rate = prefill_capacity(prefilling)
        kv = kv_store(decoding, relay.standing.need.kv_tokens, self._kv_held_s.value)
        slots = slot_store(decoding, self._slot_held_s.value)
        if relay.standing.is_batch:
            held, left = self._fleet.batch.held, self._fleet.batch.left(decoding)
            kv = Store(room=max(0.0, min(kv.room, left.kv_tokens)), used=held.kv_tokens, held_s=kv.held_s)
            if slots is not None:
                room = max(0.0, min(slots.room, left.num_slots))
                slots = Store(room=room, used=held.num_slots, held_s=slots.held_s)
        return Capacity(queues_s=queues_s, tokens_per_s=rate, kv=kv, slots=slots)

    def _ahead(self, relay: Relay) -> Need:
        """Those of better turn in the line here, and as large a part of the lines at other gateways."""
        waiters = self._fleet.waiters
        at = bisect_left(waiters, relay.turn, key=lambda each: each.turn)
        total = NOTHING.plus(self._fleet.waiting_elsewhere, (at + 1) / (len(waiters) + 1))
        for each in waiters[:at]:
            total = total.plus(each.standing.need)
        return total

    def _lateness(self, relay: Relay, now_s: float, now_unix_s: float, ahead: Need | None = None) -> Lateness | None:
        """`ahead` is given for one that waits already; a newcomer lets those pass who are about to come back."""
        limits = self._limits(relay, now_unix_s)
        if ahead is None:
            soon = self.promises.ahead_soon(relay.turn, now_s + limits.ttft_s)
            predicted = self._forecast(relay, self._ahead(relay).plus(soon))
        else:
            predicted = self._forecast(relay, ahead)
            limits = replace(limits, at_share=max(1.0, limits.at_share))
        if predicted is None:
            return None
        relay.standing.waits_for = predicted.lacks
        return lateness(predicted, limits, now_s - relay.job.arrival_s)

    def _forecast(self, relay: Relay, ahead: Need) -> Forecast | None:
        return forecast(relay.standing.need, ahead, self._capacity(relay))

    def _limits(self, relay: Relay, now_unix_s: float) -> Limits:
        deadline = relay.job.deadline_unix_s
        table, step_s = self._fleet.table, self._fleet.step_s()
        expected = min(relay.job.sampling.max_tokens, table.expected_output_tokens if table else 0)
        return Limits(
            ttft_s=self._ttft_bound_s(relay),
            queue_s=self.rules.batch_ttft_s if relay.standing.is_batch else self.rules.slo.ttft_base_s,
            at_share=self.rules.at_share,
            deadline_left_s=None if deadline is None else deadline - now_unix_s,
            answer_s=(step_s or 0.0) * max(0, expected - 1),
        )

    def _ttft_bound_s(self, relay: Relay) -> float:
        slo = self.rules.slo
        if relay.standing.is_batch:
            return self.rules.batch_ttft_s
        return slo.ttft_base_s + slo.ttft_per_token_s * relay.standing.need.prefill_tokens

    def _device_s(self, need: Need, held_s: float | None) -> float:
        """Device-seconds: its prefill, and its KV for as long as it is held, as a share of one worker's."""
        prefilling, decoding = self._fleet.prefilling(), self._fleet.decoding()
        rate = prefill_capacity(prefilling)[1]
        kv_tokens = sum(each.kv_total_tokens for each in decoding)
        prefill_s = need.prefill_tokens / rate if rate else 0.0
        decode_s = need.kv_tokens * held_s * len(decoding) / kv_tokens if held_s is not None and kv_tokens else 0.0
        return prefill_s + decode_s

    # --- refusing ------------------------------------------------------------------------------------------------

    def _refusal(
        self,
        relay: Relay,
        reason: str,
        now_s: float,
        excess_s: float = 0.0,
        kept: Promise | None = None,
        lacks: Resource | None = None,
    ) -> GatewayError:
        """A 429 that says when such a request would get in, and keeps it a place from then on.

        `lacks` None: what it waits for."""
        lacks = lacks or relay.standing.waits_for
        if kept is not None:  # it came too early
            return overloaded(f"{reason}; its place is kept as it was told", max(kept.due_s - now_s, 0.0), lacks)
        predicted = self._forecast(relay, self._ahead(relay).plus(self.promises.ahead_of(relay.turn)))
        if predicted is not None:
            excess_s = max(excess_s, excess_of(predicted, self._limits(relay, 0.0)))
        retry_after_s = min(MAX_RETRY_AFTER_S, max(1.0, excess_s) * (1 + JITTER_SHARE * self._jitter()))
        retry_after_s += JITTER_S * self._jitter()
        due_s, until_s = window(now_s, retry_after_s)
        promise = Promise(
            identity=_identity(relay), turn=relay.turn, need=relay.standing.need, due_s=due_s, until_s=until_s
        )
        if self.promises.make(promise, now_s):
            reason += f"; a place is kept for the same request from {retry_after_s:.1f} s on"
        return overloaded(reason, retry_after_s, lacks)


def _identity(relay: Relay) -> str:
    """The same for the same request under the same key, whatever it is called."""
    job = relay.job
    digest = hashlib.blake2b(array("I", job.prompt).tobytes(), digest_size=12)
    digest.update(f"{job.sampling.max_tokens} {job.priority}".encode())
    return f"{job.api_key_id}:{digest.hexdigest()}"
