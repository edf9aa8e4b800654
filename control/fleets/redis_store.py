"""Where Ray's GCS keeps what it knows, so that a head may die and come back to the workers that it had.

Decided here: whether there is a Redis (`ray_redis`), its command line, its secret and its files, and when all that an
earlier cluster left there is forgotten. Not here: who starts it (`control.supervisor`).

Ray takes the password as an argument, so other users of this machine can read it in the process list: with untrusted
users on the machine set `ray_redis` to `off`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from control.errors import SettingsError
from control.fleets.fleet_token import ensure_secret
from control.fleets.ray_head import LOOPBACK, temp_dir_of
from control.settings import Settings

AUTO, OFF = "auto", "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisStore:
    """A Redis for the GCS: our own, started by `command` with the file `config`, or somebody's (no command)."""

    host: str
    port: int
    password: str
    namespace: str  # keys of clusters that share one Redis
    command: tuple[str, ...] = ()
    config: str = ""

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def redis_program(settings: Settings) -> str | None:
    """The Redis to start; None where none is wanted or installed."""
    return shutil.which("redis-server") if settings.ray_redis == AUTO else None


def redis_store(settings: Settings) -> RedisStore | None:
    """The store for these settings; None where there is none: then a head that dies takes the cluster with it.

    Raises SettingsError naming `ray_redis` when it is neither auto, off nor a URL.
    """
    if settings.ray_redis not in (AUTO, OFF):
        return named_store(settings.ray_redis, settings.fleet_id)
    program = redis_program(settings)
    if program is None:
        return None
    path = config_path(settings.run_dir)
    port, password = _port(path), _password(settings.run_dir)
    return RedisStore(
        host=LOOPBACK,
        port=port,
        password=password,
        namespace=settings.fleet_id,
        command=(program, str(path)),
        config=_config(path.parent, port, password),
    )


def redis_dir(run_dir: Path) -> Path:
    return run_dir.resolve() / "redis"


def config_path(run_dir: Path) -> Path:
    return redis_dir(run_dir) / "redis.conf"


def forget_cluster(run_dir: Path) -> None:
    """Before the first start: drop what an earlier cluster left. Call it only while nothing of Ray runs here."""
    shutil.rmtree(redis_dir(run_dir), ignore_errors=True)
    for session in temp_dir_of(run_dir).glob("session_*"):
        if session.is_symlink():
            session.unlink()
        else:
            shutil.rmtree(session, ignore_errors=True)


def named_store(url: str, fleet_id: str) -> RedisStore:
    """`redis://[:password@]host:port`. Raises SettingsError, without the password."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "redis" or not parts.hostname or port is None:
        raise SettingsError(
            f"setting ray_redis: {url.rpartition('@')[2]!r} is not auto, off or redis://[:password@]host:port",
            field="ray_redis",
            bound="auto, off or redis://[:password@]host:port",
        )
    return RedisStore(host=parts.hostname, port=port, password=parts.password or "", namespace=f"phaseline-{fleet_id}")


def _password(run_dir: Path) -> str:
    path = run_dir.resolve() / "secrets" / "redis_password"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return ensure_secret(path)


def _port(config: Path) -> int:
    """That of the cluster that runs, which a supervisor that starts anew must find again; else any free one."""
    with contextlib.suppress(OSError):
        found = re.search(r"^port (\d+)$", config.read_text(), re.MULTILINE)
        if found:
            return int(found[1])
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _config(folder: Path, port: int, password: str) -> str:
    """Every write goes to the append-only file, which a Redis that starts again reads."""
    lines = (
        f"bind {LOOPBACK}",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{folder}"',
        "appendonly yes",
        'save ""',
        "daemonize no",
    )
    return "\n".join(lines) + "\n"
