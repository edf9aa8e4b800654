"""A fleet's gateways as its plane has them: what they have served comes in, the table by which they route goes out.

A gateway sees a worker stop or hang before the plane's next look at it: a loss that is new asks for that look at once.
A self-driving fleet (SimFleet) has gateways of its own; what they served and which table they hold counts as any
other's. Not decided here: how a gateway is spoken to (`control.gateway_hub`), which records are new (`control.intake`),
what is counted of them (`control.traffic_stats`), and what is in a table (`control.tables`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from control.errors import HistoryError
from control.fleets.base import Fleet
from control.gateway.link import Beat
from control.gateway_hub import GatewayHub
from control.history.store import History
from control.intake import Intake, Row
from control.progress import TablesSeen
from control.recorder import Recorder
from control.sampling import Sampler
from control.self_driving import SelfDriving
from control.settings import Settings
from control.tables import Tables
from control.traffic_stats import TrafficStats
from control.types.commands import Desired
from control.types.requests import RequestRecord

_log = logging.getLogger("phaseline.plane")

Loss = tuple[str, float]  # of which worker, and since when (Unix time)


def losses_in(beat: Beat) -> frozenset[Loss]:
    """What a gateway tells of workers that were lost to it."""
    return frozenset((each.worker_id, each.since_unix_s) for each in beat.departures if each.kind == "lost")


class Gateways:
    """`hub` serves their connections; `traffic` and `intake` hold what they sent."""

    def __init__(
        self,
        fleet: Fleet,
        history: History,
        recorder: Recorder,
        settings: Settings,
        fence: int,
        started_unix_s: float,
        on_loss: Callable[[], None],
        on_record: Callable[[RequestRecord], None],
    ) -> None:
        self.traffic = TrafficStats(settings.effective_slo)
        self.intake = Intake()
        self._sampler = Sampler(settings.request_records_per_s)
        self.tables = Tables(fence)
        self.hub = GatewayHub(
            durable_seq=self._durable_seq,
            on_records=self.on_records,
            on_beat=self.on_beat,
            on_gone=self._on_gone,
        )
        self._on_loss = on_loss
        self._losses: dict[str, frozenset[Loss]] = {}
        self._fleet = fleet
        self._history = history
        self._recorder = recorder
        self._started_unix_s = started_unix_s
        self._on_record = on_record

    async def _durable_seq(self, spool: str) -> int:
        """Up to where a gateway's records are in the history. Unknown is 0: the history takes each only once."""
        try:
            seq = await self._recorder.look_up(self._history.last_seq, spool)
        except HistoryError as error:
            _log.warning("cannot read the last record of gateway %s: %s", spool, error.detail)
            seq = 0
        self.intake.open(spool, seq)
        return seq

    def on_records(self, spool: str, first_seq: int, records: list[RequestRecord]) -> None:
        for record in self.intake.add(spool, first_seq, records):
            self.traffic.add(record)
            self._on_record(record)

    def on_beat(self, gateway_id: str, beat: Beat) -> None:
        self.traffic.beat(gateway_id, beat)
        before = self._losses.get(gateway_id, frozenset())
        self._losses[gateway_id] = losses_in(beat)
        if self._losses[gateway_id] - before:
            self._on_loss()

    def _on_gone(self, gateway_id: str) -> None:
        self.traffic.drop_gateway(gateway_id)
        self._losses.pop(gateway_id, None)

    def take_rows(self, now_unix_s: float) -> list[Row]:
        """What came since the last call, with what is kept of it; all of it is counted."""
        return [(spool, seq, self._sampler.judge(record, now_unix_s)) for spool, seq, record in self.intake.take()]

    def durable(self, rows: list[Row]) -> None:
        """These rows are in the history or the spool: gateways may forget them."""
        for spool, seq in self.intake.committed(rows).items():
            self.hub.acknowledge(spool, seq)

    def take_self_driven(self) -> None:
        """A fleet with its own arrivals hands over what a gateway would have sent."""
        if not isinstance(self._fleet, SelfDriving):
            return
        for gateway_id, first_seq, records in self._fleet.take_records():
            self.on_records(f"{gateway_id}@{self._started_unix_s:.3f}", first_seq, records)
        for gateway_id, beat in self._fleet.beats().items():
            self.traffic.beat(gateway_id, beat)

    def route(self, desired: Desired, expected_output_tokens: int) -> None:
        """Push a new routing table when something in it has changed."""
        table = self.tables.update(self._fleet, self._fleet.routes(), desired, expected_output_tokens)
        if table is not None:
            self.hub.push(table)
            if isinstance(self._fleet, SelfDriving):
                self._fleet.set_table(table)

    def tables_seen(self) -> TablesSeen:
        """How many gateways hold the newest table; a self-driving fleet's own count like any."""
        seen = self.hub.tables_seen()
        if not isinstance(self._fleet, SelfDriving):
            return seen
        newest = self.tables.current.version if self.tables.current else 0
        own = [beat.table_version >= newest for beat in self._fleet.beats().values()]
        return TablesSeen(num_gateways=seen.num_gateways + len(own), num_current=seen.num_current + sum(own))
