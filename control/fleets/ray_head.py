"""Ray on this machine: a head, and a node with the workers. Command lines, environment, folder. Nothing imports ray.

Decided here: every port on loopback, a token for every call, no usage reports, no public dashboard, as few processes
and as little memory as Ray allows. The head (GCS and a raylet of its own) has no worker slot and the node has them all:
a raylet takes its actors along when it dies, so the head may die alone. Not here: who starts and ends them
(`control.supervisor`, as process trees, by pid and start time; never with Ray's own stop command, which ends processes
by name on the whole machine), and what lets a head come back to its node (`control.fleets.redis_store`).

Ray binds to loopback alone only when the node's own address is 127.0.0.1, and it replaces that address by the machine's
outer one unless it is told that it is no multi-machine cluster: RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 tells it so.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from control.errors import FleetError
from control.fleets.fleet_token import ensure_secret
from control.settings import Settings

LOOPBACK = "127.0.0.1"
NAMESPACE = "phaseline"
SLOT = "phaseline_slot"
#: Ray appends `/session_<date>_<time>_<pid>/sockets/plasma_store` to its folder; a socket's path holds 107 bytes.
MAX_TEMP_DIR_CHARS = 40


#: A node waits so long for its head to come back before it ends itself with all its workers.
HEAD_LIMIT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySpec:
    """All that the command lines of head and node depend on."""

    port: int
    temp_dir: Path
    num_slots: int
    num_gpus: int | None  # None: let Ray count them
    object_store_bytes: int
    redis_password: str = ""


def ray_spec(settings: Settings, num_slots: int, redis_password: str = "") -> RaySpec:
    """Head and node for these settings. GPUs are counted by Ray, except where the workers would not use them."""
    return RaySpec(
        port=settings.ray_port,
        temp_dir=temp_dir_of(settings.run_dir),
        num_slots=num_slots,
        num_gpus=0 if settings.worker_kind in ("cpu", "paced") else None,
        object_store_bytes=settings.ray_object_store_bytes,
        redis_password=redis_password,
    )


def temp_dir_of(run_dir: Path) -> Path:
    """`<run_dir>/ray` where Ray's socket paths fit into it, else a short private folder named after it."""
    inside = run_dir.resolve() / "ray"
    if len(str(inside)) <= MAX_TEMP_DIR_CHARS:
        return inside
    return Path("/tmp") / f"phaseline-{hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]}"


def make_temp_dir(path: Path) -> None:
    """Make Ray's folder private, and drop its note of a head that runs: Ray would refuse to start a second one.

    Raises FleetError when somebody else owns the folder: it holds sockets that anybody who may write there controls.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    stat = os.lstat(path)
    if stat.st_uid != os.getuid() or path.is_symlink():
        raise FleetError(f"{path} belongs to another user (uid {stat.st_uid}); set run_dir to a folder of your own")
    path.chmod(0o700)
    (path / "ray_current_cluster").unlink(missing_ok=True)


def token_path(run_dir: Path) -> Path:
    """Where the token of our own Ray head lies; made at first use, 0600."""
    path = run_dir.resolve() / "secrets" / "ray_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    ensure_secret(path)
    return path


def ray_environment(run_dir: Path) -> dict[str, str]:
    """Environment of our head, and of every driver that connects to it; the head hands it on to its workers.

    Ray makes its workers nice; here only an engine thread is (`worker_nice`), so that orders are answered at once.
    """
    package_root = str(Path(__file__).resolve().parents[2])
    search_path = [package_root, *(part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part)]
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path(run_dir)),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # our gateway has drained already when the head is told to end
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(search_path)),
    }


def head_command(spec: RaySpec) -> list[str]:
    """`ray start --head --block`: one process whose children are the GCS and a raylet without slots."""
    password = [f"--redis-password={spec.redis_password}"] if spec.redis_password else []
    own = [f"--port={spec.port}", "--num-cpus=0", "--num-gpus=0", "--include-dashboard=false", *password]
    return [str(Path(sys.executable).with_name("ray")), "start", "--head", *own, *_common(spec)]


def node_command(spec: RaySpec) -> list[str]:
    """`ray start --block`: one process whose children are the raylet with all slots and, below it, the workers."""
    gpus = [] if spec.num_gpus is None else [f"--num-gpus={spec.num_gpus}"]
    slots = f"--resources={json.dumps({SLOT: spec.num_slots})}"
    start = [sys.executable, "-m", "control.fleets.ray_node", "start"]
    return [*start, f"--address={LOOPBACK}:{spec.port}", "--num-cpus=1", *gpus, slots, *_common(spec)]


def _common(spec: RaySpec) -> list[str]:
    return [
        "--block",
        f"--node-ip-address={LOOPBACK}",
        "--node-manager-port=0",
        "--object-manager-port=0",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--object-store-memory={spec.object_store_bytes}",
        f"--temp-dir={spec.temp_dir}",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        "--log-style=record",
        "--log-color=false",
    ]


def joined_environment(address: str) -> dict[str, str]:
    """What a driver of somebody else's cluster lacks: loopback alone for a loopback cluster, and token mode where this
    account has a Ray token. Ray turns that on by itself too late for its first call. Whatever is set already stays.
    """
    found = {"RAY_USAGE_STATS_ENABLED": "0"}
    if is_loopback(address):
        found["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    has_token = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if has_token or (Path.home() / ".ray" / "auth_token").is_file():
        found["RAY_AUTH_MODE"] = "token"
    return {name: value for name, value in found.items() if name not in os.environ}


def join_address(settings: Settings) -> str:
    """The cluster to join: the setting, else RAY_ADDRESS, else "" (a head of our own)."""
    return settings.ray_address or os.environ.get("RAY_ADDRESS", "")


def is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def check_address(address: str) -> str:
    """`host:port` of a cluster. Raises FleetError naming the setting otherwise."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in host:
        raise FleetError(
            f"setting ray_address: {address!r} is not host:port", field="ray_address", value=address, bound="host:port"
        )
    return address


def accepts_connections(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """Whether somebody listens there now."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
