"""The engines that a Prometheus server already knows (2.42 tried): a PromQL query lists them, a label gives the role.

It only lists: their pages are read where Prometheus reads them, since a page is what our counters are exact from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from control.errors import FleetError
from control.fleets.attached.steering.calls import Caller, rows, table
from control.fleets.attached.steering.roster import Member, Roster
from control.fleets.attached.targets import ROLES, make_target
from control.fleets.base import FleetStep, StepOutcome


class PrometheusSteering:
    """`role_label` holds the role; `words`: what its values mean, where they are not prefill, decode or mixed;
    `unlabelled`: the role of an engine without one. `serve_port`: where requests go; "": where its page is read."""

    def __init__(
        self,
        server: Caller,
        query: str,
        role_label: str,
        words: Mapping[str, str],
        *,
        unlabelled: str = "",
        serve_port: str = "",
    ) -> None:
        self._server = server
        self._query = query
        self._role_label = role_label
        self._words = {"": unlabelled, **words}
        self._serve_port = serve_port

    async def look(self) -> Roster:
        """Raises FleetError, also where an engine has no role: half a fleet would be half a truth."""
        said = await self._server.json("GET", f"/api/v1/query?query={quote(self._query, safe='')}")
        if said.get("status") != "success" or table(said, "data").get("resultType") != "vector":
            raise FleetError(f"{self._query} gives no list of series: {str(said.get('error', 'not a vector'))[:200]}")
        found = {member.worker_id: member for row in rows(said, "data", "result") for member in [self._member(row)]}
        return Roster(members=tuple(found.values()))

    async def apply(self, step: FleetStep) -> StepOutcome:
        return StepOutcome(accepted=False, detail="Prometheus lists engines and steers none", retry_helps=False)

    async def close(self) -> None:
        await self._server.close()

    def _member(self, row: dict[str, Any]) -> Member:
        labels = table(row, "metric")
        told = str(labels.get(self._role_label, ""))
        role, instance = self._words.get(told, told), str(labels.get("instance", ""))
        if role not in ROLES or not instance:
            raise FleetError(
                f"{instance or 'a series'} of {self._query} has {self._role_label}={told!r}: no role of "
                f"{', '.join(filter(None, [*ROLES, *self._words]))}"
            )
        target = make_target(instance, role)
        parts = urlsplit(target.url)
        serves = parts._replace(netloc=f"{_host(parts.netloc)}:{self._serve_port}", path="").geturl()
        return Member(
            worker_id=target.worker_id,
            role=target.role,
            metrics_url=target.url,
            serve_url=serves if self._serve_port else "",
        )


def _host(netloc: str) -> str:
    """Without its port; an IPv6 address keeps its brackets."""
    return netloc if netloc.endswith("]") else netloc.rpartition(":")[0] or netloc
