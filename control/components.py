"""Which processes make one deployment, in the order in which they start. Plain values; nothing is started here.

Decided here: command lines, what tells that each is ready, and which fall with which. Not here: when each is started,
restarted or ended (`control.supervisor`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from control.errors import SettingsError
from control.fleets.ray_head import (
    HEAD_LIMIT_S,
    LOOPBACK,
    head_command,
    join_address,
    node_command,
    ray_environment,
    ray_spec,
)
from control.fleets.redis_store import RedisStore, config_path, redis_store
from control.served import Served
from control.settings import Settings

REDIS, RAY, RAY_NODE = "redis", "ray", "ray-node"
PLANE, GATEWAY, CONSOLE, TRAFFIC = "plane", "gateway", "console", "traffic"
SERVE = "serve"  # `serve-NAME`: our gateway in front of an attached fleet
#: `down` ends them in this order, those of one kind together: no new work first, and the workers last.
STOP_ORDER = (TRAFFIC, GATEWAY, SERVE, CONSOLE, PLANE, RAY, REDIS)
#: They end once their streams have.
DRAINED = (GATEWAY, SERVE)


REDIS_COMES_BACK = "Ray's head ends with it, and both come back to the workers, which live on"
HEAD_COMES_BACK = "its workers live on, streams do not notice; the control API is away until it is back"
HEAD_TAKES_ALL = (
    "without Redis it takes all workers along: they are started anew, requests that have begun wait for them"
)
NODE_TAKES_ALL = "it takes all workers along: they are started anew, requests that have begun wait for them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One supervised process, with everything below it."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: Path
    log: Path
    stop_limit_s: float
    ready_url: str = ""  # answers 200 when ready; "" and no port: ready once it runs
    ready_port: int = 0
    ready_host: str = LOOPBACK  # where that port is
    shares_listener: bool = (
        False  # gets the gateways' listening socket, and says on its own channel whether it is ready
    )
    own_port: int = 0  # the socket that it gets is one of its own, on this port
    stopped_limit_s: float = 0.0  # killed when its process stands still (SIGSTOP) for so long; 0: left alone
    needs: tuple[str, ...] = ()  # ready before this one starts
    falls_with: str = ""  # when that one ends, this one is restarted after it
    private_dir: Path | None = field(default=None)  # Ray's folder, made ready before each start
    config_file: tuple[Path, str] | None = None  # written before each start, for its owner only
    lives_by: str = ""  # name of the child without which it is of no use
    end_note: str = ""  # what its end costs, for whoever reads the progress

    @property
    def digest(self) -> str:
        """Equal digests: a process that runs already may be taken over as it is."""
        parts = [list(self.command), sorted(self.environment.items()), str(self.cwd)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def kind_of(name: str) -> str:
    """`gateway` of `gateway-2` and of one that is on its way out, `plane` of `plane-1`."""
    return name.partition("-")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address of ours that a person or a program may open."""

    name: str
    setting: str
    port: int
    url: str


def endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """What listens for people and programs, in the order in which it is printed."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    listed = (
        ("gateway", "gateway_port", settings.gateway_port, "/v1"),
        ("control API", "api_port", settings.api_port, "/api/v1"),
        ("console", "console_port", settings.console_port, ""),
    )
    return tuple(
        Endpoint(name=name, setting=setting, port=port, url=f"http://{host}:{port}{path}")
        for name, setting, port, path in listed
        if name != GATEWAY or settings.fleet_kind == "ray"
    )


def num_hosts(settings: Settings) -> int:
    """Worker host processes: one for each real worker, one for each group of paced workers."""
    if settings.worker_kind != "paced":
        return settings.num_workers
    return -(-settings.num_workers // settings.paced_workers_per_process)


def owns_head(settings: Settings) -> bool:
    """Whether we start a Ray head of our own; other fleets need none, and a joined cluster has one."""
    return settings.fleet_kind == "ray" and not join_address(settings)


def shared_environment(settings: Settings) -> dict[str, str]:
    """What every process of ours must agree on, whatever folder it runs in."""
    config = Path(os.environ.get("PHASELINE_CONFIG", "phaseline.toml")).resolve()
    found = {
        "PHASELINE_RUN_DIR": str(settings.run_dir.resolve()),
        "PHASELINE_HOST": settings.host,
        "PHASELINE_GATEWAY_PORT": str(settings.gateway_port),
        "PHASELINE_API_PORT": str(settings.api_port),
        "PHASELINE_CONSOLE_PORT": str(settings.console_port),
        "PHASELINE_PLANE_URLS": settings.plane_urls,
        "PYTHONUNBUFFERED": "1",
    }
    if "PHASELINE_CONFIG" in os.environ or config.is_file():
        found["PHASELINE_CONFIG"] = str(config)
    return found


def components(settings: Settings, traffic: str = "") -> tuple[Component, ...]:
    """The deployment for these settings, in start order. `traffic` names a profile of sample traffic; "" is none.

    Only a Ray fleet has workers that a gateway could reach; SimFleet has arrivals of its own. Raises SettingsError for
    traffic to others.
    """
    has_gateway = settings.fleet_kind == "ray"
    if traffic and not has_gateway:
        raise SettingsError(
            "sample traffic needs a gateway, which only a ray fleet has (a sim fleet has its own arrivals)",
            field="traffic",
        )
    found = _ray(settings) if owns_head(settings) else []
    found += [_plane(settings, index) for index in range(settings.num_planes)]
    if has_gateway:
        found += [_gateway(settings, index) for index in range(settings.num_gateways)]
    found.append(_console(settings))
    if traffic:
        found.append(_traffic(settings, traffic))
    return tuple(found)


def serve_component(settings: Settings, served: Served) -> Component:
    """Our gateway in front of one attached fleet, as `phaseline serve` runs it."""
    name = f"{SERVE}-{served.fleet}"
    return Component(
        name=name,
        command=(
            *(sys.executable, "-m", "control.cli.main", "serve", served.fleet),
            *("--tokenizer", served.tokenizer, "--port", str(served.port)),
        ),
        environment=shared_environment(settings),
        cwd=Path.cwd(),
        log=log_path(settings, name),
        stop_limit_s=settings.drain_limit_s + 5.0,
        shares_listener=True,
        own_port=served.port,
        needs=(PLANE,),
    )


def log_path(settings: Settings, name: str) -> Path:
    return settings.run_dir.resolve() / "logs" / f"{name}.log"


def _url(settings: Settings, port: int, path: str) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}{path}"


def _ray(settings: Settings) -> list[Component]:
    """Redis where there is one, the head, and the node with the workers."""
    store = redis_store(settings)
    spec = ray_spec(settings, num_hosts(settings), store.password if store else "")
    environment = shared_environment(settings) | ray_environment(settings.run_dir)
    own_redis = [_redis(settings, store)] if store is not None and store.command else []
    head = Component(
        name=RAY,
        command=tuple(head_command(spec)),
        environment=environment | (_store_environment(store) if store else {}),
        cwd=settings.run_dir.resolve(),
        log=log_path(settings, RAY),
        stop_limit_s=15.0,
        ready_port=settings.ray_port,
        needs=(REDIS,) if own_redis else (),
        private_dir=spec.temp_dir,
        lives_by="raylet",
        end_note=HEAD_COMES_BACK if store else HEAD_TAKES_ALL,
    )
    node = Component(
        name=RAY_NODE,
        command=tuple(node_command(spec)),
        environment=environment | {"RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_LIMIT_S)},
        cwd=settings.run_dir.resolve(),
        log=log_path(settings, RAY_NODE),
        stop_limit_s=15.0,
        needs=(RAY,),
        lives_by="raylet",
        falls_with="" if store else RAY,  # a head without its memory does not know the node
        end_note=NODE_TAKES_ALL,
    )
    return [*own_redis, head, node]


def _store_environment(store: RedisStore) -> dict[str, str]:
    return {"RAY_REDIS_ADDRESS": store.address, "RAY_external_storage_namespace": store.namespace}


def _redis(settings: Settings, store: RedisStore) -> Component:
    return Component(
        name=REDIS,
        command=store.command,
        environment={},
        cwd=settings.run_dir.resolve(),
        log=log_path(settings, REDIS),
        stop_limit_s=10.0,
        ready_port=store.port,
        ready_host=store.host,
        config_file=(config_path(settings.run_dir), store.config),
        end_note=REDIS_COMES_BACK,
    )


def _plane(settings: Settings, index: int) -> Component:
    """One is active and answers on the API's port; the others stand by, and are ready as soon as it answers."""
    has_head, name = owns_head(settings), f"{PLANE}-{index}" if index else PLANE
    return Component(
        name=name,
        command=(sys.executable, "-m", "control.plane_main"),
        environment=shared_environment(settings),
        cwd=Path.cwd(),
        log=log_path(settings, name),
        stop_limit_s=20.0,
        stopped_limit_s=settings.stopped_limit_s,
        ready_url=_url(settings, settings.api_port, "/healthz"),
        needs=(RAY, RAY_NODE) if has_head else (),
        falls_with=RAY if has_head else "",
    )


def _gateway(settings: Settings, index: int) -> Component:
    name = f"{GATEWAY}-{index}" if index else GATEWAY
    return Component(
        name=name,
        command=(sys.executable, "-m", "control.gateway.main"),
        environment=shared_environment(settings),
        cwd=Path.cwd(),
        log=log_path(settings, name),
        stop_limit_s=settings.drain_limit_s + 5.0,
        shares_listener=True,
        needs=(PLANE,),
    )


def _console(settings: Settings) -> Component:
    """Started at once: it loads while Ray starts, and whoever opens it before the plane is there is told so."""
    main = app_main()
    return Component(
        name=CONSOLE,
        command=(
            *(sys.executable, "-m", "streamlit", "run", str(main)),
            *("--server.address", settings.host, "--server.port", str(settings.console_port)),
            *("--server.headless", "true", "--browser.gatherUsageStats", "false"),
        ),
        environment=shared_environment(settings),
        cwd=main.parents[1],
        log=log_path(settings, CONSOLE),
        stop_limit_s=5.0,
        ready_url=_url(settings, settings.console_port, "/_stcore/health"),
    )


def _traffic(settings: Settings, profile: str) -> Component:
    return Component(
        name=TRAFFIC,
        command=(sys.executable, "-m", "control.traffic", "--profile", profile, "--quiet"),
        environment=shared_environment(settings),
        cwd=Path.cwd(),
        log=log_path(settings, TRAFFIC),
        stop_limit_s=30.0,
        needs=(GATEWAY,),
    )


def app_main() -> Path:
    """The console's script. Raises SettingsError when the package `app` is not installed."""
    found = importlib.util.find_spec("app")
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        raise SettingsError("the console (package app) is not installed beside control")
    return Path(places[0]) / "main.py"
