"""Every setting: default, unit and help beside the field. The one module that reads the environment and config file.

Order: command line (passed in), then environment `PHASELINE_*`, then `phaseline.toml` in the working folder (or the
file named by PHASELINE_CONFIG), then the defaults here. An unknown key is an error that names it.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from control.errors import SettingsError
from control.types.requests import Slo
from control.types.routing import RoutingPolicy
from control.types.values import Fraction

#: Variables of ours that are no settings: the file to read, a test's crash point, the inherited listening socket.
OUTSIDE_SETTINGS = frozenset({"PHASELINE_CONFIG", "PHASELINE_CRASH_AT", "PHASELINE_LISTEN_FD"})
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


MAX_KEY_WEIGHT = 1000
MAX_KEY_NAME = 64


class Settings(BaseSettings):
    """Effective configuration of every process that `phaseline up` starts."""

    model_config = SettingsConfigDict(env_prefix="PHASELINE_", extra="forbid", frozen=True, env_ignore_empty=True)

    profile: Literal["local", "production"] = Field(
        "local", description="`local` lowers the split thresholds for a few CPU workers."
    )
    run_dir: Path = Field(
        Path("data/run"), description="Run-time state: secrets, history, logs, models, sockets. Git-ignored."
    )
    shm_dir: Path | None = Field(
        None, description="Shared memory for meters and KV pools; default /dev/shm/phaseline-<hash of run_dir>."
    )

    fleet_id: str = Field(
        "local", pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", description="Name of the fleet in every row and record."
    )
    fleet_kind: Literal["ray", "sim", "none"] = Field(
        "ray",
        description="`ray`: Ray-managed workers; `sim`: SimFleet, marked simulated; `none`: only attached fleets.",
    )
    num_workers: int = Field(4, ge=1, le=4096, description="Workers in the fleet.")
    num_prefill: int = Field(
        1, ge=0, le=4096, description="First prefill pool size, used when there is no desired state yet."
    )
    num_mixed: int = Field(0, ge=0, le=4096, description="First mixed pool size; the rest are decode workers.")
    worker_kind: Literal["auto", "cpu", "cuda", "paced"] = Field(
        "auto", description="`auto`: CUDA where there is a GPU, else CPU."
    )
    model: str = Field(
        "smollm2-135m-instruct",
        description="A Hugging Face folder, or `smollm2-135m-instruct` (converted once, cached).",
    )
    exact: bool | None = Field(
        None, description="Exact mode: bitwise equal output under any split. Default: on for CPU, off for CUDA."
    )
    kv_bytes_per_worker: int = Field(512 * 2**20, ge=2**20, description="Bytes of KV pool per worker.")
    block_tokens: int = Field(16, ge=1, le=512, description="Tokens per KV block.")
    max_batch: int = Field(16, ge=1, le=4096, description="Largest decode batch of one worker.")
    prefill_chunk_tokens: int = Field(128, ge=1, le=65536, description="Largest prefill chunk of one step.")
    max_queue_per_worker: int = Field(64, ge=1, le=100_000, description="Requests one worker queues before it refuses.")
    lease_s: Seconds = Field(30.0, description="How long a prefill worker keeps unacknowledged KV.")
    worker_nice: int = Field(10, ge=0, le=19, description="Scheduling niceness of a CPU worker.")

    paced_device: str = Field("h100-sxm-80gb", description="Device of paced workers, from data/devices.toml.")
    paced_model: str = Field("llama-3.1-70b-fp8", description="Model of paced workers, from data/models.toml.")
    paced_workers_per_process: int = Field(16, ge=1, le=1024, description="Paced workers that share one process.")

    ray_address: str = Field(
        "", description="Join this Ray cluster; empty: start a head on loopback. RAY_ADDRESS is honoured too."
    )
    ray_port: Port = Field(6399, description="Port of the head's GCS, on loopback.")
    ray_redis: str = Field(
        "auto",
        description="What Ray's head remembers its workers by: `auto`: a Redis of our own where redis-server is "
        "installed, `off`, or redis://[:password@]host:port. Without one, a head that dies takes all workers along.",
    )
    ray_object_store_bytes: int = Field(
        80 * 2**20, ge=78643200, description="Ray object store; KV never goes through it."
    )

    host: str = Field(
        "127.0.0.1", pattern=r"^(127\.\d+\.\d+\.\d+|localhost|::1)$", description="Listening address; loopback only."
    )
    num_gateways: int = Field(1, ge=1, le=64, description="Gateways on this host; they share gateway_port.")
    gateway_port: Port = Field(8000, description="OpenAI-compatible API.")
    api_port: Port = Field(8080, description="Control API.")
    console_port: Port = Field(8501, description="Console.")

    num_planes: int = Field(
        1, ge=1, le=8, description="Planes that `up` starts: one is active, the others stand by for its death."
    )
    plane_lease_s: Seconds = Field(
        3.0, description="The active plane renews its lease so often that a standby takes over after this long silence."
    )
    plane_urls: str = Field(
        "",
        pattern=r"^(https?://[^\s,/]+/?(,\s*https?://[^\s,/]+/?)*)?$",
        description="Addresses of planes on other hosts, tried too: `http://a:8080,http://b:8080`.",
    )

    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite at <run_dir>/history.db.")
    spool_max_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="Disk at <run_dir>/spool for what waits without a history; a tick of 100 busy workers is 65 kB.",
    )
    tick_s: Seconds = Field(1.0, description="Period of the plane's tick.")
    observe_timeout_s: Seconds = Field(
        0.8, description="A node that has not answered by then is missing from that tick."
    )
    retention_raw_s: Seconds = Field(86_400.0, description="How long 1 s points are kept.")
    retention_rollup_s: Seconds = Field(30 * 86_400.0, description="How long 10 s and coarser points are kept.")
    retention_max_bytes: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Above it the oldest 1 s points go before their time, then 10 s ones; 0: no bound. "
        "A stored value takes 3 to 4 bytes: a worker 6 MB for a day of seconds, 2.5 MB for each day of rollups.",
    )
    retention_requests_s: Seconds = Field(7 * 86_400.0, description="How long request records are kept.")
    max_request_records: int = Field(
        2_000_000, ge=1_000, description="Request records that are kept at most, 1.5 kB each; the oldest go first."
    )
    request_records_per_s: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="Records of ordinary requests that are kept a second, about: above it a random share of them, by "
        "hash of the id. The slow, the failed and the moved ones are always kept; the others are counted.",
    )
    drain_limit_s: Seconds = Field(
        120.0, description="A gateway that is told to stop (`down`, `upgrade`) waits this long for running requests."
    )
    drain_idle_s: Seconds = Field(
        5.0, description="A gateway that is told to stop closes a connection once it was without a request for so long."
    )

    max_moves: int = Field(
        8, ge=1, le=4096, description="Workers that leave what they serve (flip, drain) at the same time, at most."
    )

    live_migration: bool = Field(
        True, description="Running requests leave a worker that drains or flips away from decode, with their KV."
    )
    migrations_per_worker: int = Field(
        8, ge=1, le=1024, description="Requests that one gateway moves away from one worker at the same time."
    )

    recovery_share: Fraction = Field(
        0.5, description="Share of a worker's prefill queue that requests of lost workers may fill beside new ones."
    )

    default_max_tokens: int = Field(128, ge=1, description="max_tokens of a request that names none.")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Largest request body at the gateway.")
    max_connections: int = Field(
        4096, ge=1, description="Open connections of one gateway; one more is answered 503 and closed."
    )
    client_stall_s: Seconds = Field(30.0, description="A client that reads nothing for so long is cut off.")
    max_in_flight: int = Field(256, ge=1, description="Requests one gateway holds before it answers 429.")
    admission: Literal["predict", "bound"] = Field(
        "predict",
        description="`predict`: 429 as soon as a request would be late, the line and fair shares at the gateway. "
        "`bound`: only `max_in_flight`, first come first served.",
    )
    admission_at_share: float = Field(
        0.8,
        gt=0,
        le=100,
        allow_inf_nan=False,
        description="A predicted time to first token above this share of the SLO's bound is refused.",
    )
    worker_backlog_s: Seconds = Field(
        0.3, description="Prompts for so long are queued on one worker; more wait in the gateway's line."
    )
    batch_share: float = Field(
        0.5, gt=0, le=1, description="Share of the decode workers' KV and batch that batch requests may hold."
    )
    batch_ttft_s: Seconds = Field(60.0, description="Bound on the time to first token of a batch request.")
    key_weights: Path | None = Field(
        None, description="TOML file of API-key id = weight (and `default`): shares of the fleet under overload."
    )
    key_names: Path | None = Field(
        None,
        description="TOML file of API-key id = name, for request records. A key's id is what they show without it: "
        "`printf KEY | sha256sum | cut -c1-12`.",
    )
    first_token_timeout_s: Seconds = Field(
        300.0, description="A request without a first token by then ends with an error."
    )
    token_gap_timeout_s: Seconds = Field(
        120.0, description="A request whose worker gives no token for so long is continued on another one."
    )
    step_overdue_s: Seconds = Field(
        120.0,
        description="A CPU or CUDA worker whose step runs for longer hangs, whatever its like took: its process "
        "is started anew.",
    )
    stopped_limit_s: Seconds = Field(
        15.0, description="A worker or a plane whose process stands stopped (SIGSTOP) for so long is started anew."
    )

    routing: RoutingPolicy | None = Field(
        None, description="First routing policy, used when there is no desired state yet."
    )
    slo: Slo | None = Field(None, description="Bounds per request that make it good; default by profile.")

    slo_objective: float = Field(
        0.99,
        gt=0.0,
        lt=1.0,
        description="Share of requests that are to be good; alerts tell how fast the rest is used up.",
    )
    slo_least_requests: int = Field(
        20, ge=1, description="With fewer requests in the long window (1 h, 6 h) no burn rate is told."
    )
    alert_webhook_url: str = Field(
        "", pattern=r"^(https?://\S+)?$", description="Alerts are sent here, signed; empty: nowhere."
    )
    alert_webhook_secret: str = Field(
        "",
        pattern=r"^(file:.+|env:[A-Za-z_][A-Za-z0-9_]*)?$",
        description="Where the key of the signature is: `file:PATH` or `env:NAME`; `whsec_` + base64, or any text.",
    )
    otlp_endpoint: str = Field(
        "", pattern=r"^(https?://\S+)?$", description="OTLP/HTTP collector of the traces of requests; empty: none."
    )
    otlp_sample_share: Fraction = Field(
        1.0, description="Share of the requests that are traced, of those whose client sends no `traceparent`."
    )
    metrics_max_workers: int = Field(
        256, ge=0, le=4096, description="Workers with Prometheus series of their own; the others are in the sums."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = Path(os.environ.get("PHASELINE_CONFIG", "phaseline.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    @property
    def effective_shm_dir(self) -> Path:
        """Where meters and KV pools of this run folder lie. The fleet makes it, 0700, before a worker starts."""
        if self.shm_dir is not None:
            return self.shm_dir
        digest = hashlib.sha256(str(self.run_dir.resolve()).encode()).hexdigest()[:12]
        return Path("/dev/shm") / f"phaseline-{digest}"

    @property
    def model_dir(self) -> Path:
        """The Hugging Face folder of `model`: named by the setting, or made in the run folder before workers start."""
        named = Path(self.model)
        return named if named.is_dir() else self.run_dir / "models" / self.model

    @property
    def model_id(self) -> str:
        """The served model's name, one spelling everywhere."""
        return self.paced_model if self.worker_kind == "paced" else Path(self.model).name

    @property
    def worker_ids(self) -> tuple[str, ...]:
        """Names of this fleet's workers."""
        return worker_ids(self.num_workers)

    @property
    def plane_addresses(self) -> tuple[str, ...]:
        """Where a client finds the active plane, in the order in which they are tried: this host's, then the others."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        others = [each.strip().rstrip("/") for each in self.plane_urls.split(",")]
        return (f"http://{host}:{self.api_port}", *(each for each in others if each))

    @property
    def initial_policy(self) -> RoutingPolicy:
        """The local profile splits with a handful of CPU workers and short prompts; not production values."""
        if self.routing is not None:
            return self.routing
        if self.profile == "local":
            return RoutingPolicy(min_fleet_devices=2, min_remote_prefill_tokens=16, max_local_output_tokens=8)
        return RoutingPolicy()

    @property
    def effective_slo(self) -> Slo:
        if self.slo is not None:
            return self.slo
        if self.profile == "local" and self.worker_kind != "paced":
            return Slo(ttft_base_s=3.0, ttft_per_token_s=0.02, tpot_s=0.5, max_gap_s=2.0)
        return Slo()


def worker_ids(num_workers: int) -> tuple[str, ...]:
    """`w0 w1 ..`, not padded: a name must not change when the fleet grows."""
    return tuple(f"w{index}" for index in range(num_workers))


def webhook_secret(settings: Settings) -> str:
    """The key of the webhook's signature. Raises SettingsError, which names where it was looked for, never what."""
    kind, _, place = settings.alert_webhook_secret.partition(":")
    if kind == "file":
        try:
            secret = Path(place).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"setting alert_webhook_secret: {place} cannot be read: {error}") from error
    else:
        secret = os.environ.get(place, "").strip() if kind == "env" else ""
    if not secret:
        where = f"{settings.alert_webhook_secret} is empty" if kind else "alert_webhook_url needs it"
        raise SettingsError(f"setting alert_webhook_secret: {where}")
    return secret


def load_key_weights(settings: Settings) -> dict[str, float]:
    """Weights by API-key id, as request records show it. Raises SettingsError naming file, key and bound."""
    values = _key_file("key_weights", settings.key_weights)
    for key, weight in values.items():
        if type(weight) not in (int, float) or not 0 < weight <= MAX_KEY_WEIGHT:
            bound = f"a weight above 0 and up to {MAX_KEY_WEIGHT}"
            raise SettingsError(f"setting key_weights: {settings.key_weights}: {key} must be {bound}, got {weight!r}")
    return {key: float(weight) for key, weight in values.items()}


def load_key_names(settings: Settings) -> dict[str, str]:
    """Names by API-key id. Raises SettingsError naming file, key and bound."""
    values = _key_file("key_names", settings.key_names)
    for key, name in values.items():
        if not isinstance(name, str) or not 0 < len(name) <= MAX_KEY_NAME or not name.isprintable():
            bound = f"a name of 1 to {MAX_KEY_NAME} printable characters"
            raise SettingsError(f"setting key_names: {settings.key_names}: {key} must be {bound}, got {name!r}")
    return values


def _key_file(setting: str, path: Path | None) -> dict[str, Any]:
    """A TOML file of API-key id = value; nothing when none is named."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"setting {setting}: {path} cannot be read: {error}") from error


def load_settings(**overrides: Any) -> Settings:
    """Read the settings. Raises SettingsError, one line, naming the key, the value and the bound."""
    known = {f"PHASELINE_{name.upper()}" for name in Settings.model_fields} | OUTSIDE_SETTINGS
    unknown = sorted(name for name in os.environ if name.startswith("PHASELINE_") and name not in known)
    if unknown:
        raise SettingsError(f"unknown setting {unknown[0]} in the environment")
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"unknown setting {name}") from error
        raise SettingsError(f"setting {name}: {first['msg']} (got {first.get('input')!r})") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the configuration file is not valid TOML: {error}") from error
