"""What is said of attached fleets over the API: how one is attached, what it may, what was found of it, how it fares.

Nothing is decided here, and nothing but the standard library is loaded: the client and the console import it.
"""

from __future__ import annotations

from dataclasses import dataclass

from control.types.fleet import Capability, Missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One attached fleet as it was asked for. Its workers come from `targets`, `targets_file`, or its `controller`."""

    name: str
    kind: str
    targets: tuple[str, ...] = ()  # ROLE=URL or ROLE:NAME=URL
    targets_file: str = ""
    model: str = ""  # of data/models.toml, or a folder with config.json; "": its work is not derived
    dtype: str = ""  # of weights and KV; "": as data/models.toml says, or bfloat16
    device: str = ""  # of data/devices.toml; "": no peak is known but those that follow
    peak_flops: float | None = None  # of one device, as the operator says it
    peak_bytes_per_s: float | None = None
    devices_per_worker: int = 1
    every_s: float = 2.0
    simulated: bool = False
    token_file: str = ""
    controller: str = ""  # KIND=URL: what lists its workers, and what orders go through
    controller_token: str = ""  # where a token for it is: a file, or env:NAME of the plane
    max_workers: int = 16  # of one pool, for what we ask for
    limit_s: float = 60.0  # in which a change must be seen, or it has failed
    gpu_metrics: tuple[str, ...] = ()  # pages of dcgm-exporter
    gpus: tuple[str, ...] = ()  # WORKER=GPU[,GPU...]: whose GPUs those are


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One thing that we may do to an attached fleet, by whose word. Without any it is observed only."""

    capability: Capability
    who: str
    at_unix_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """How many workers are known, how many of them answer, and when one did last; None: never yet."""

    num_workers: int = 0
    num_answering: int = 0
    newest_unix_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachedInfo:
    """One attached fleet, and how its plane fares. `problem`: why nothing is seen of it; "" when it is looked at."""

    attachment: Attachment
    who: str
    at_unix_s: float
    problem: str = ""
    can: tuple[Capability, ...] = ()  # what can be allowed of it
    allowed: tuple[Permission, ...] = ()
    looks: Looks = Looks()
    missing: tuple[Missing, ...] = ()
    served_at: str = ""  # where clients reach our gateway in front of it; "" while none runs
    served_by: int | None = None  # the process


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One quantity, and how the page has it. `remedy` is what an operator does about it; "" where nothing helps."""

    quantity: str
    state: str  # found | off | absent | refused
    series: str  # the name that was found, or those that were looked for
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSurvey:
    """One target. `problem`: why nothing is known of it. `missing`: what its page lacks, or has switched off."""

    worker_id: str
    url: str
    role: str
    problem: str = ""
    version: str = ""
    model: str = ""
    num_found: int = 0
    missing: tuple[Finding, ...] = ()
    gpus: tuple[str, ...] = ()  # HOST/INDEX, those of its that an exporter has


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterSurvey:
    """One dcgm-exporter. `problem`: why nothing is known of its GPUs. `missing`: what its page lacks."""

    url: str
    problem: str = ""
    num_gpus: int = 0
    num_found: int = 0
    missing: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All targets, and what will not be known of the fleet, with its remedy."""

    name: str
    kind: str
    engines: tuple[EngineSurvey, ...]
    notes: tuple[str, ...] = ()
    exporters: tuple[ExporterSurvey, ...] = ()

    @property
    def num_reachable(self) -> int:
        return sum(1 for each in self.engines if not each.problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class KindChoice:
    """One kind of fleet. `can`: what could be allowed of it where no controller steers it."""

    name: str
    can: tuple[Capability, ...]
    controllers: tuple[str, ...]  # that can steer it
    needs_controller: bool  # its workers have no pages that we read: its controller lists them


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerChoice:
    """One kind of controller, with what can be done through it and the options that its address takes, or needs."""

    name: str
    can: tuple[Capability, ...]
    options: tuple[str, ...]
    needs: tuple[str, ...] = ()
    sends: str = ""  # who sends the requests; "": it only lists engines, so what the fleet's kind can counts too


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachChoices:
    """All that can be said to attach a fleet. Models and devices that are not named here have other ways."""

    kinds: tuple[KindChoice, ...]
    controllers: tuple[ControllerChoice, ...]
    models: tuple[str, ...]
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
