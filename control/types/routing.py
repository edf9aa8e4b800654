"""How requests are routed: the policy, its rules, and the table that every gateway holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from control.types.values import Fraction, Provenance
from control.types.workers import Role, WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPolicy:
    """Live settings of `control.routing.route`. Each field's metadata carries unit and help for forms and docs."""

    min_fleet_devices: Annotated[int, Field(ge=0, le=100_000)] = field(
        default=12, metadata={"unit": "devices", "help": "Smaller fleets serve every request on one worker."}
    )
    local_cache_ratio: Fraction = field(
        default=0.8,
        metadata={"unit": "fraction", "help": "With this share of the prompt's KV on a decode worker, stay there."},
    )
    min_remote_prefill_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = field(
        default=512, metadata={"unit": "tokens", "help": "Uncached prompts shorter than this may stay local."}
    )
    max_local_output_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = field(
        default=256, metadata={"unit": "tokens", "help": "Short prompts stay local only below this expected output."}
    )
    remote_share: Fraction = field(
        default=1.0, metadata={"unit": "fraction", "help": "Canary share of eligible requests that is split."}
    )


class RouteRule(StrEnum):
    """Which rule of DESIGN section 6 decided. The order here is the order in which they are walked."""

    CANNOT_FIT = "cannot_fit"
    NO_CAPACITY = "no_capacity"
    EMPTY_POOL = "empty_pool"
    SMALL_FLEET = "small_fleet"
    CACHED_LOCAL = "cached_local"
    SHORT_LOCAL = "short_local"
    CONTROL_ARM = "control_arm"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRoute:
    """One row of the routing table."""

    worker_id: str
    epoch: int
    address: str
    role: Role
    state: WorkerState
    weight: float = 1.0
    simulated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """What every gateway holds: full, versioned, kept on disk. A gateway takes a table only if it is newer."""

    version: int
    fleet_id: str
    model_id: str
    fence: int
    num_devices: int
    policy: RoutingPolicy
    workers: tuple[WorkerRoute, ...]
    expected_output_tokens: int = 128  # recent median


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIfRouting:
    """Requests per rule: `before` as they were decided, `after` under another policy (derived from their records)."""

    before: dict[str, int]
    after: dict[str, int]
    num_requests: int
    num_changed: int
    since_unix_s: float
    until_unix_s: float
    provenance: Provenance = "derived"
    note: str = ""
