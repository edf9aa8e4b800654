"""A Ray Serve application (Ray 2.60 tried) whose deployments are pools: seen and resized over the dashboard's API.

An application that was not started with `external_scaler_enabled` refuses the scale call (412): that is a refusal, with
its remedy. Ray accepts at once and obeys later; whether it did is seen by the replicas, not by the answer. What the
replicas do is on the pages of Ray's metrics agents (`ray_metrics`), where they are engines of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from control.errors import FleetError
from control.facts import PoolFacts
from control.fleets.attached.steering.calls import Caller, Refused, rows, table
from control.fleets.attached.steering.ray_metrics import RayMetrics
from control.fleets.attached.steering.ray_pages import Seen
from control.fleets.attached.steering.roster import Member, Roster
from control.fleets.base import FleetStep, StepOutcome
from control.types.workers import Role, WorkerState

STATES: Final = {
    "RUNNING": WorkerState.READY,
    "STOPPING": WorkerState.DRAINING,
    "PENDING_MIGRATION": WorkerState.DRAINING,
}


class RayServeSteering:
    """`deployments`: names by role; else the one whose name begins with the role, as Serve LLM's do."""

    def __init__(self, dashboard: Caller, application: str, deployments: Mapping[Role, str]) -> None:
        self._dashboard = dashboard
        self._application = application
        self._deployments = deployments
        self._metrics = RayMetrics(dashboard)

    async def look(self) -> Roster:
        said = await self._dashboard.json("GET", "/api/serve/applications/")
        found = table(said, "applications", self._application, "deployments")
        if not found:
            known = ", ".join(table(said, "applications")) or "none"
            raise FleetError(f"Ray Serve has no application {self._application} with deployments; it has {known}")
        members: dict[str, Member] = {}
        workers: dict[str, str] = {}
        pools: dict[Role, PoolFacts] = {}
        for role in (Role.PREFILL, Role.DECODE, Role.MIXED):
            name = self._name_of(role, found)
            if name is None:
                continue
            replicas = rows(found, name, "replicas")
            own = [_member(each, role) for each in replicas]
            members |= {str(each.get("replica_id")): member for each, member in zip(replicas, own, strict=True)}
            workers |= {str(each.get("replica_id")): str(each.get("worker_id")) for each in replicas}
            target = table(found, name).get("target_num_replicas")
            pools[role] = PoolFacts(
                target=target if type(target) is int else None,
                num_ready=sum(1 for each in own if each.state is WorkerState.READY),
                num_other=sum(1 for each in own if each.state is not WorkerState.READY),
                rival="its deployment is autoscaled" if _is_autoscaled(table(found, name)) else "",
            )
        told = await self._metrics.read(workers)
        return Roster(
            members=tuple(_told(each, told.get(replica)) for replica, each in members.items()),
            pools=pools,
            version=str(said.get("ray_version", "")),
            problem=self._metrics.problem,
        )

    async def apply(self, step: FleetStep) -> StepOutcome:
        said = await self._dashboard.json("GET", "/api/serve/applications/")
        name = self._name_of(step.role, table(said, "applications", self._application, "deployments"))
        if step.verb != "scale" or name is None:
            detail = f"{self._application} has no {step.role} deployment"
            return StepOutcome(accepted=False, detail=detail, retry_helps=False)
        path = f"/api/v1/applications/{quote(self._application)}/deployments/{quote(name, safe=':')}/scale"
        try:
            await self._dashboard.json("POST", path, {"target_num_replicas": step.size})
        except Refused as error:
            remedy = "; start it with external_scaler_enabled: true" if error.code == 412 else ""
            return StepOutcome(accepted=False, detail=error.detail + remedy, retry_helps=False)
        return StepOutcome(accepted=True)

    async def close(self) -> None:
        await self._metrics.close()
        await self._dashboard.close()

    def _name_of(self, role: Role, found: Mapping[str, Any]) -> str | None:
        if role in self._deployments:
            return self._deployments[role] if self._deployments[role] in found else None
        return next((each for each in found if each.lower().startswith(role.value)), None)


def _told(member: Member, seen: Seen | None) -> Member:
    return member if seen is None else replace(member, told=seen.page, told_unix_s=seen.at_unix_s)


def _is_autoscaled(deployment: dict[str, Any]) -> bool:
    return bool(table(deployment, "deployment_config").get("autoscaling_config"))


def _member(replica: dict[str, Any], role: Role) -> Member:
    said = str(replica.get("state", ""))
    return Member(
        worker_id=f"{role}-{replica.get('replica_id', '')}",
        role=role,
        state=STATES.get(said, WorkerState.STARTING),
        reason="" if said == "RUNNING" else said.lower(),
    )
