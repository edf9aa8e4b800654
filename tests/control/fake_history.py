"""The plane's history in memory, with a switch that makes it fail. For tests of what happens around the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from control.errors import HistoryError
from control.history.deferred import AlertWrite, TickWrite, decode
from control.spool import Frame
from control.types.alerts import Alert
from control.types.commands import Command, CommandState, CommandStep, Desired
from control.types.requests import RequestRecord


@dataclass(slots=True)
class FakeHistory:
    """What `control.plane` and `control.desk` call of `control.history`."""

    rows: dict[int, Command] = field(default_factory=dict)
    records: dict[tuple[str, int], RequestRecord] = field(default_factory=dict)
    alerts: dict[str, Alert] = field(default_factory=dict)
    num_ticks: int = 0
    broken: str = ""

    def _check(self) -> None:
        if self.broken:
            raise HistoryError(self.broken)

    def load_desired(self, fleet_id: str) -> Desired | None:
        return self.rows[max(self.rows)].desired_after if self.rows else None

    def open_alerts(self, fleet_id: str, ended_since_unix_s: float) -> list[Alert]:
        return list(self.alerts.values())

    def ended_alerts(self, fleet_id: str, since_unix_s: float, limit: int) -> list[Alert]:
        self._check()
        return [each for each in self.alerts.values() if (each.resolved_unix_s or 0.0) >= since_unix_s][:limit]

    def put_alerts(self, fleet_id: str, changed: Sequence[Alert], forgotten: Sequence[str]) -> None:
        self._check()
        self.alerts |= {each.alert_id: each for each in changed}
        self.alerts = {name: each for name, each in self.alerts.items() if name not in forgotten}

    def good_counts(self, *_arguments: Any) -> list[tuple[int, int, int]]:
        return []

    def load_cursors(self, fleet_id: str) -> dict[str, Any]:
        return {}

    def record_command(self, draft: Command) -> Command:
        self._check()
        number = len(self.rows) + 1
        self.rows[number] = replace(draft, command_id=number)
        if draft.undo_of:
            self.rows[draft.undo_of] = replace(self.rows[draft.undo_of], undone_by=number)
        return self.rows[number]

    def find_by_idempotency(self, key: str, who: str) -> Command | None:
        return next((c for c in self.rows.values() if (c.idempotency_key, c.who) == (key, who)), None)

    def update_command(self, command_id: int, state: CommandState, step: CommandStep | None, result: str = "") -> None:
        self._check()
        before = self.rows[command_id]
        steps = (*before.steps, step) if step else before.steps
        at = step.at_unix_s if step and step.state != "moved" else before.updated_unix_s
        self.rows[command_id] = replace(
            before, state=state, steps=steps, result=result or before.result, updated_unix_s=at
        )

    def command(self, command_id: int) -> Command | None:
        return self.rows.get(command_id)

    def commands(
        self,
        fleet_id: str,
        limit: int,
        before_id: int | None = None,
        states: tuple[CommandState, ...] = (),
        since_unix_s: float | None = None,
        until_unix_s: float | None = None,
    ) -> list[Command]:
        found = [c for n, c in sorted(self.rows.items(), reverse=True) if before_id is None or n < before_id]
        found = [c for c in found if since_unix_s is None or c.created_unix_s >= since_unix_s]
        return [c for c in found if until_unix_s is None or c.created_unix_s < until_unix_s][:limit]

    def unfinished_commands(self, fleet_id: str) -> list[Command]:
        return [c for c in self.rows.values() if c.state in (CommandState.ACCEPTED, CommandState.RUNNING)]

    def write_tick(self, ingested: object, cursors: object, records: list[Any], status: object) -> None:
        self._check()
        self.num_ticks += 1
        for spool, seq, record in records:
            self.records.setdefault((spool, seq), record)

    def replay(self, frame: Frame) -> None:
        self._check()
        write = decode(frame.payload)
        if isinstance(write, TickWrite):
            self.write_tick(write.ingested, write.cursors, list(write.records), write.traffic)
        elif isinstance(write, AlertWrite):
            self.put_alerts(write.fleet_id, write.alerts, write.forgotten)
        else:
            self.update_command(write.command_id, write.state, write.step, write.result)

    def last_seq(self, spool: str) -> int:
        return max((seq for name, seq in self.records if name == spool), default=0)

    def upkeep(self, now_unix_s: float) -> None:
        self._check()

    def requests(self, query: object) -> list[RequestRecord]:
        return list(self.records.values())

    def close(self) -> None:
        pass
