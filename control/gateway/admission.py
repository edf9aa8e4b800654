"""What one gateway holds now and has held since it started: the bound on it, and the counts for its beats.

Who is let in is decided in `control.gateway.gatekeeper`.
"""

from __future__ import annotations

import time
from collections import Counter

from control.gateway.errors import overloaded
from control.gateway.fleet import Fleet
from control.gateway.gatekeeper import AdmissionRules, Gatekeeper
from control.gateway.lateness import Lateness
from control.gateway.relay import Relay
from control.traffic_stats import CLIENT_CLOSED, REJECTED, TIMED_OUT
from control.types.bottleneck import Resource
from control.types.requests import Slo

RETRY_AFTER_S = 1.0


class Admission:
    """Requests in flight, by wire id. Every request is counted as arrived and ends in one count,
    but for one that could never fit (400): that was the client's."""

    def __init__(self, fleet: Fleet, rules: AdmissionRules) -> None:
        self.gatekeeper = Gatekeeper(fleet, rules)
        self.in_flight: dict[str, Relay] = {}
        self.num_arrived = 0
        self.num_rejected = 0
        self.num_failed = 0
        self.num_completed = 0
        self.num_cancelled = 0
        self.by_rule: Counter[str] = Counter()
        self.lateness = Lateness()
        self._rules = rules

    def enter(self, wire_id: str, relay: Relay) -> None:
        """Raises GatewayError (429) when it had better come later."""
        self.num_arrived += 1
        max_in_flight = self._rules.max_in_flight
        is_full = len(self.in_flight) >= max_in_flight
        if self._rules.predicts:
            self.gatekeeper.let_in(relay, time.monotonic(), time.time(), is_full=is_full)
        elif is_full:
            bound = f"the gateway holds {max_in_flight} requests, its bound max_in_flight"
            raise overloaded(bound, RETRY_AFTER_S, Resource.GATEWAY)
        self.in_flight[wire_id] = relay

    def review(self, now_s: float, now_unix_s: float) -> None:
        """Called now and then: look again at those who wait."""
        self.gatekeeper.review(now_s, now_unix_s)

    def leave(self, wire_id: str, relay: Relay, status: int) -> None:
        """The request has ended, with this HTTP status."""
        if self.in_flight.pop(wire_id, None) is not None:
            self.gatekeeper.note_end(relay, time.monotonic())
        decision = relay.served.decision
        if decision is not None:
            self.by_rule[decision.rule.value] += 1
        if status == 200:
            self.num_completed += 1
        elif status == CLIENT_CLOSED:
            self.num_cancelled += 1
        elif status == REJECTED:
            self.num_rejected += 1
        elif status >= 500 or status == TIMED_OUT:
            self.num_failed += 1

    def waiting_since_s(self) -> list[float]:
        """Arrival of each request that has no token yet."""
        return [relay.job.arrival_s for relay in self.in_flight.values() if not relay.tokens]

    def num_overdue(self, now_s: float) -> int:
        """Requests that are past a bound of theirs now, and so will not be good however they end."""
        return sum(is_overdue(relay, self._rules.slo, now_s) for relay in self.in_flight.values())


def is_overdue(relay: Relay, slo: Slo, now_s: float) -> bool:
    """Its first token, or the next one, is later than the bound allows."""
    since_s, bound_s = relay.timeline.last_s, slo.max_gap_s
    if not relay.tokens:
        uncached = len(relay.job.prompt) - relay.served.cached_tokens
        since_s, bound_s = relay.job.arrival_s, slo.ttft_base_s + slo.ttft_per_token_s * uncached
    return bool(now_s - since_s > bound_s)
