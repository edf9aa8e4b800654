"""What one gateway holds now and has held since it started: the bound on it, and the counts for its beats."""

from __future__ import annotations

from collections import Counter
from typing import Final

from control.gateway.errors import overloaded
from control.gateway.relay import Relay
from control.traffic_stats import CLIENT_CLOSED, REJECTED, is_error
from control.types import RequestRecord

RETRY_AFTER_S: Final = 1.0


class Admission:
    """Requests in flight, by wire id. Every request is counted as arrived and ends in one count,
    but for one that could never fit (400): that was the client's."""

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight: dict[str, Relay] = {}
        self.num_arrived = 0
        self.num_rejected = 0
        self.num_failed = 0
        self.num_completed = 0
        self.num_cancelled = 0
        self.by_rule: Counter[str] = Counter()

    def enter(self, wire_id: str, relay: Relay) -> None:
        """Raises GatewayError (429) when the gateway holds all that it may."""
        self.num_arrived += 1
        if len(self.in_flight) >= self.max_in_flight:
            raise overloaded(f"the gateway holds {self.max_in_flight} requests, its bound max_in_flight", RETRY_AFTER_S)
        self.in_flight[wire_id] = relay

    def leave(self, wire_id: str, record: RequestRecord) -> None:
        """The request has ended, and this is how."""
        self.in_flight.pop(wire_id, None)
        if record.rule:
            self.by_rule[record.rule] += 1
        if record.status == 200:
            self.num_completed += 1
        elif record.status == CLIENT_CLOSED:
            self.num_cancelled += 1
        elif record.status == REJECTED:
            self.num_rejected += 1
        elif is_error(record):
            self.num_failed += 1

    def waiting_since_s(self) -> list[float]:
        """Arrival of each request that has no token yet."""
        return [relay.job.arrival_s for relay in self.in_flight.values() if not relay.tokens]
