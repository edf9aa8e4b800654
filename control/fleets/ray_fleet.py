"""The Ray fleet: Ray places, starts, restarts and finds our workers. Only this module, and
`control.fleets.ray_node`, which starts a node, import ray.

Decided here: actors, their names and resources, and how an answer of Ray becomes an observation. Not here: roles (the
plane), orders and status (`control.fleets.worker_link`; no operator or request waits for Ray), what
a worker does (`engine.worker`). Actors are detached: the plane may die, and the next one finds them by name.

Ray reads its environment once, when it is imported; so `connect` sets that first, and functions import ray themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from control.build import build_id
from control.errors import ControlError, FleetError
from control.fleets.base import FleetStep, Observation, StepOutcome
from control.fleets.fleet_token import fleet_token
from control.fleets.host_process import HostDescription, HostProcess
from control.fleets.host_watch import HostWatch
from control.fleets.hosts import HostSpec, actor_prefix, agent_prefix, host_specs, resolve_kind
from control.fleets.node_agent import NodeAgent, NodeReading, decode
from control.fleets.ray_head import (
    LOOPBACK,
    NAMESPACE,
    SLOT,
    accepts_connections,
    check_address,
    is_loopback,
    join_address,
    joined_environment,
    ray_environment,
)
from control.fleets.worker_link import WorkerLink
from control.settings import Settings, load_settings
from control.types.fleet import Capability
from control.types.routing import WorkerRoute

log = logging.getLogger(__name__)
NAME_FREE_LIMIT_S = 15.0
#: How long a person is told that a cluster was lost.
REBUILT_SHOWN_S = 600.0


class RayFleet:
    """Implements `control.fleets.base.Fleet`. All state here can be found again from Ray and the meter pages."""

    kind = "ray"
    capabilities = frozenset(
        {Capability.OBSERVE, Capability.ROUTE, Capability.RESIZE, Capability.FLIP, Capability.DRAIN}
    )

    def __init__(self, settings: Settings) -> None:
        self.fleet_id = settings.fleet_id
        self.model_id = settings.model_id
        self.simulated = settings.worker_kind == "paced"
        self._settings = settings
        self._agents: dict[str, Any] = {}  # node id -> actor handle
        self._reads: dict[str, asyncio.Future[bytes]] = {}  # node id -> the call that is out
        self._cursors: dict[str, int] = {}
        self._links: dict[str, WorkerLink] = {}
        self._watches: list[HostWatch] = []
        self._rebuilt = ""  # what was lost before this start
        self._started_s = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_prepared = False

    # --- Fleet ----------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Join the cluster, as a driver that does nothing yet."""
        await asyncio.to_thread(connect, self._settings)
        self._is_prepared = True

    async def start(self, on_change: Callable[[], None]) -> None:
        """Connect, then adopt or create every actor. Raises ControlError, one line, when that is not possible."""
        token = fleet_token(self._settings.run_dir)
        resources = await self._connected()
        if SLOT not in resources and not join_address(self._settings):
            raise FleetError("Ray's node with the workers' slots has not joined its head yet")
        kind = resolve_kind(self._settings.worker_kind, resources.get("GPU", 0.0))
        specs = host_specs(self._settings, kind, token)
        await asyncio.to_thread(end_surplus, self.fleet_id, specs)
        self._rebuilt = await asyncio.to_thread(what_was_lost, self._settings, len(specs))
        code = {} if join_address(self._settings) else own_code()
        hosts = [RayHost(spec, SLOT in resources, code) for spec in specs]
        await asyncio.gather(*(host.recreate() for host in hosts), asyncio.to_thread(self._find_agents))
        for spec, host in zip(specs, hosts, strict=True):
            overdue_s = math.inf if kind == "paced" else self._settings.step_overdue_s
            stopped_s = self._settings.stopped_limit_s
            watch = HostWatch(spec, host, self._links, on_change, step_overdue_s=overdue_s, stopped_limit_s=stopped_s)
            self._watches.append(watch)
            for worker_id in spec.worker_ids:
                self._links[worker_id] = WorkerLink(
                    worker_id, token, on_change=on_change, on_lost=watch.ask_again, simulated=kind == "paced"
                )
            self._tasks.append(asyncio.create_task(watch.run(), name=f"watch-{spec.name}"))

    async def _connected(self) -> dict[str, float]:
        """The cluster's resources; joined anew where what was prepared has ended meanwhile."""
        is_prepared, self._is_prepared = self._is_prepared, False
        if is_prepared:
            with contextlib.suppress(ray_error(), ConnectionError, RuntimeError):
                return await asyncio.to_thread(cluster_resources)
        await asyncio.to_thread(connect, self._settings)
        return await asyncio.to_thread(cluster_resources)

    async def observe(self, now_unix_s: float) -> Observation:
        """One call per node; a node that is late is named, and its answer is taken at a later tick."""
        parts = await asyncio.gather(*(self._read_node(node_id) for node_id in list(self._agents)))
        problems = [part for part in parts if isinstance(part, str)]
        found = [part for part in parts if isinstance(part, NodeReading)]
        readings = {each.worker_id: each for part in found for each in part.readings if each.worker_id in self._links}
        for worker_id, reading in readings.items():
            self._cursors[worker_id] = reading.next_cursor
            if reading.alive:
                self._links[worker_id].aim(reading.address, reading.epoch)
        for watch in self._watches:
            watch.saw((readings[each] for each in watch.spec.worker_ids if each in readings), time.monotonic())
        outdated = [watch.spec.worker_ids[0] for watch in self._watches if watch.is_outdated]
        if outdated:
            problems.append(f"{', '.join(outdated)}: other settings or other code than now; `phaseline upgrade` renews")
        if not parts:
            problems.append("no node of the Ray cluster answers")
        if self._rebuilt and time.monotonic() - self._started_s < REBUILT_SHOWN_S:
            problems.append(self._rebuilt)
        return Observation(
            at_unix_s=now_unix_s,
            readings=tuple(readings[worker_id] for worker_id in self._links if worker_id in readings),
            devices=tuple(each for part in found for each in part.devices),
            lives=tuple(watch.life(each) for watch in self._watches for each in watch.spec.worker_ids),
            problems=tuple(problems + [each for part in found for each in part.problems]),
        )

    async def apply(self, step: FleetStep) -> StepOutcome:
        """One order over the worker's own connection, answered within two seconds."""
        link = self._links.get(step.worker_id)
        if link is None:
            return StepOutcome(
                accepted=False, detail=f"no worker {step.worker_id} in fleet {self.fleet_id}", retry_helps=False
            )
        return await link.order(step)

    def routes(self) -> tuple[WorkerRoute, ...]:
        return tuple(route for link in self._links.values() if (route := link.route) is not None)

    async def close(self) -> None:
        """Let go: the actors live on, detached."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links.values()))
        await asyncio.to_thread(disconnect)

    async def stop(self) -> None:
        """End the actors of this fleet, by name, then let go."""
        await asyncio.to_thread(end_actors, self.fleet_id)
        await self.close()

    # --- node agents ------------------------------------------------------------------------------------------------

    def _find_agents(self) -> None:
        """One agent per living node, of our code; called again when one is lost. Those of other code are ended."""
        prefix, shm_dir = agent_prefix(self.fleet_id), str(self._settings.effective_shm_dir)
        code = {} if join_address(self._settings) else own_code()
        names = {node_id: f"{prefix}{node_id[:16]}-{build_id()}" for node_id in living_nodes()}
        self._agents = {node_id: agent_actor(name, node_id, shm_dir, code) for node_id, name in names.items()}
        for name in own_actors(prefix):
            if name not in names.values():
                kill_actor(name)

    async def _read_node(self, node_id: str) -> NodeReading | str:
        """This node's reading, or why there is none. A call that is out already is waited for, not repeated."""
        call, agent = self._reads.get(node_id), self._agents.get(node_id)
        if agent is None:  # another node's failure has had the agents looked up anew, and this node is not there now
            return f"node {node_id[:8]} has left the cluster"
        try:
            if call is None:
                reference = agent.read.remote(tuple(self._links), self._cursors)
                call = self._reads[node_id] = asyncio.wrap_future(reference.future())
            payload = await asyncio.wait_for(asyncio.shield(call), self._settings.observe_timeout_s)
        except TimeoutError:
            return f"node {node_id[:8]} has not answered within {self._settings.observe_timeout_s:g} s"
        except ray_error() as error:
            self._reads.pop(node_id, None)
            with contextlib.suppress(ray_error(), TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(self._find_agents), self._settings.observe_timeout_s)
            return f"node {node_id[:8]}: {first_line(error)}"
        self._reads.pop(node_id, None)
        return decode(payload)


class RayHost:
    """One worker host as an actor of Ray; see `control.fleets.host_watch.Host`."""

    def __init__(self, spec: HostSpec, uses_slots: bool, code: Mapping[str, Any]) -> None:
        self._spec = spec
        self._uses_slots = uses_slots
        self._code = code
        self._handle: Any = None

    async def describe(self) -> HostDescription:
        try:
            described: HostDescription = await self._handle.describe.remote()
        except ray_error() as error:
            raise FleetError(first_line(error)) from error
        return described

    async def restart(self) -> None:
        await asyncio.to_thread(restart_actor, self._handle)

    async def renew(self) -> None:
        await asyncio.to_thread(end_actor, self._spec.name)
        await self.recreate()

    async def recreate(self) -> None:
        try:
            self._handle = await asyncio.to_thread(host_actor, self._spec, self._uses_slots, self._code)
        except (ray_error(), ValueError) as error:
            raise FleetError(f"{self._spec.name}: {first_line(error)}") from error


# --- Ray calls ----------------------------------------------------------------------------------------------------


def connect(settings: Settings) -> None:
    """Join the cluster as a driver; a half-made earlier attempt is let go. Raises FleetError naming the address."""
    joined = join_address(settings)
    address = check_address(joined) if joined else f"{LOOPBACK}:{settings.ray_port}"
    os.environ.update(joined_environment(address) if joined else ray_environment(settings.run_dir))
    host, _, port = address.rpartition(":")
    if not accepts_connections(host.strip("[]"), int(port), timeout_s=3.0):
        raise FleetError(f"Ray at {address} does not answer", field="ray_address", value=address)
    import ray

    if ray.is_initialized():
        ray.shutdown()
    try:
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            **({"_node_ip_address": LOOPBACK} if is_loopback(address) else {}),
        )
    except (ray_error(), ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise FleetError(
            f"Ray at {address} cannot be joined: {first_line(error)} (if it wants a token: RAY_AUTH_TOKEN_PATH)",
            field="ray_address",
            value=address,
        ) from error


def disconnect() -> None:
    import ray

    ray.shutdown()


def ray_error() -> type[Exception]:
    """Base of what Ray raises; a function, since ray is imported late."""
    from ray.exceptions import RayError

    base: type[Exception] = RayError
    return base


def cluster_resources() -> dict[str, float]:
    import ray

    found: dict[str, float] = ray.cluster_resources()
    return found


def living_nodes() -> list[str]:
    """Nodes that can hold workers: those with slots, or all of a cluster that has none."""
    import ray

    living = [node for node in ray.nodes() if node["Alive"]]
    return [node["NodeID"] for node in living if SLOT in node["Resources"]] or [node["NodeID"] for node in living]


def own_code() -> dict[str, Any]:
    """What makes an actor run this process's code and Python, whatever its node was started with."""
    return {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}, "py_executable": sys.executable}


def host_actor(spec: HostSpec, uses_slots: bool, code: Mapping[str, Any]) -> Any:
    """Adopt the actor of this name, or create it. Restarted for ever; its calls wait for the restart."""
    import ray

    options: dict[str, Any] = {
        "name": spec.name,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": -1,
        "num_cpus": 0,
        "num_gpus": 1 if spec.kind == "cuda" else 0,
    }
    if uses_slots:
        options["resources"] = {SLOT: 1}
    if code:
        options["runtime_env"] = dict(code)
    return ray.remote(HostProcess).options(**options).remote(spec)


def agent_actor(name: str, node_id: str, shm_dir: str, code: Mapping[str, Any]) -> Any:
    """Adopt or create the agent of one node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return (
        ray.remote(NodeAgent)
        .options(
            name=name,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            num_cpus=0,
            **({"runtime_env": dict(code)} if code else {}),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=True),
        )
        .remote(shm_dir)
    )


def what_was_lost(settings: Settings, num_hosts: int) -> str:
    """Workers have run here since `up`, and Ray knows none of them: one line for a person; "" when nothing was lost."""
    has_run = any(settings.effective_shm_dir.glob("*.life.json"))
    if join_address(settings) or not has_run or own_actors(actor_prefix(settings.fleet_id)):
        return ""
    at = time.strftime("%H:%M:%S")
    return (
        f"Ray's head was lost with all workers, as it has no Redis: {num_hosts} worker processes started anew at {at}"
    )


def own_actors(prefix: str) -> list[str]:
    import ray

    named: list[Mapping[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    return sorted(each["name"] for each in named if each["namespace"] == NAMESPACE and each["name"].startswith(prefix))


def restart_actor(handle: Any) -> None:
    """End the process; Ray starts it again."""
    import ray

    with contextlib.suppress(ray_error()):
        ray.kill(handle, no_restart=False)


def kill_actor(name: str) -> None:
    import ray

    with contextlib.suppress(ValueError, ray_error()):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)


def end_actor(name: str) -> None:
    """Kill it and wait until its name is free for another one."""
    kill_actor(name)
    deadline_s = time.monotonic() + NAME_FREE_LIMIT_S
    while name in own_actors(name) and time.monotonic() < deadline_s:
        time.sleep(0.1)


def end_surplus(fleet_id: str, specs: Sequence[HostSpec]) -> None:
    """End hosts of a larger fleet that ran here before."""
    wanted = {spec.name for spec in specs}
    for name in own_actors(actor_prefix(fleet_id)):
        if name not in wanted:
            log.warning("ending %s: the fleet is smaller now", name)
            kill_actor(name)


def end_actors(fleet_id: str) -> int:
    """Kill the actors of one fleet by name; others in the cluster are not touched. Returns how many there were."""
    names = [*own_actors(actor_prefix(fleet_id)), *own_actors(agent_prefix(fleet_id))]
    for name in names:
        kill_actor(name)
    return len(names)


def first_line(error: BaseException) -> str:
    """One line of what Ray says, which is often a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def create(settings: Settings) -> RayFleet:
    """The fleet that the plane's process runs when `fleet_kind` is ray."""
    return RayFleet(settings)


def main() -> int:
    """`python -m control.fleets.ray_fleet stop`: end this fleet's actors in a joined cluster."""
    if sys.argv[1:] != ["stop"]:
        print("usage: python -m control.fleets.ray_fleet stop", file=sys.stderr)
        return 2
    try:
        settings = load_settings()
        connect(settings)
        print(f"ended {end_actors(settings.fleet_id)} actors of fleet {settings.fleet_id}")
    except ControlError as error:
        print(f"phaseline: {error}", file=sys.stderr)
        return 1
    disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
