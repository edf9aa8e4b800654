"""A fleet that brings its own arrivals (SimFleet): it hands over what gateways would have sent. Optional."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from control.gateway.link import Beat
from control.types.requests import RequestRecord
from control.types.routing import RoutingTable


@runtime_checkable
class SelfDriving(Protocol):
    """What such a fleet has beside `control.fleets.base.Fleet`."""

    def take_records(self) -> Iterable[tuple[str, int, list[RequestRecord]]]:
        """Finished requests since the last call, as (gateway_id, first_seq, records)."""

    def beats(self) -> Mapping[str, Beat]:
        """The newest beat of each of its gateways."""

    def set_table(self, table: RoutingTable) -> None:
        """Route by this table from now on."""
