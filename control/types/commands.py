"""What is wanted of a fleet, and the commands that change it: asked for, previewed, recorded, carried out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from control.types.routing import RoutingPolicy
from control.types.values import Count, Number, Provenance, Weight, Words
from control.types.workers import LossCause, Role

DepartureKind = Literal["leaves", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What we want. Changed only through a recorded command; `version` counts those changes.

    Roles are explicit per worker, so that a preview names exactly the workers that will flip; pool sizes are derived.
    """

    version: int
    roles: dict[str, Role]
    drained: frozenset[str] = frozenset()
    weights: dict[str, float] = field(default_factory=dict)  # missing means 1.0
    policy: RoutingPolicy = field(default_factory=RoutingPolicy)
    pools: dict[str, int] = field(default_factory=dict)  # role -> size, where pools have sizes and no fixed workers

    def pool_size(self, role: Role) -> int:
        if self.pools:
            return self.pools.get(role.value, 0)
        return sum(1 for each in self.roles.values() if each == role)


class Verb(StrEnum):
    RESIZE = "resize"
    FLIP = "flip"
    DRAIN = "drain"
    UNDRAIN = "undrain"
    SET_ROUTING = "set_routing"
    UNDO = "undo"


class CommandState(StrEnum):
    """accepted -> running -> done | failed | superseded; the table is in `control.commands`."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What an operator asks for. Which fields a verb takes: resize(prefill, decode, mixed), flip(worker_id, role),
    drain/undrain(worker_id), set_routing(policy and/or weights: only the keys to change), undo(command_id)."""

    verb: Verb
    prefill: Count | None = None
    decode: Count | None = None
    mixed: Count | None = None
    worker_id: str | None = None
    role: Role | None = None
    policy: dict[str, float | int] | None = None
    weights: dict[str, Weight] | None = None
    command_id: Number | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """One action with its who-needs-to-know. `base_version` None skips the stale check (CLI one-shots only)."""

    action: Action
    why: Words = ""
    idempotency_key: Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")] = ""
    base_version: Number | None = None
    confirmation: Annotated[str, Field(max_length=200)] = ""  # the pool's name, where the preview asks for it
    fleet_id: str | None = None  # None: the only fleet


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One order the tick will give: the same value in a preview and in the journal."""

    verb: str  # place | flip | drain | undrain | route
    worker_id: str | None
    role: Role | None
    from_role: Role | None
    text: str  # "flip w3 decode -> prefill (2 running sequences finish first)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a command would do, before it does it."""

    base_version: int
    steps: tuple[PlannedStep, ...]
    pools_before: dict[str, int]
    pools_after: dict[str, int]
    warnings: tuple[str, ...] = ()
    needs_confirmation: str = ""  # the word to type; "" when none is needed
    refused: str = ""  # why the command would be refused; "" when it would be accepted
    expected_s: float | None = None  # longest drain, assumed from the running work; None when unknown
    effect: str = ""
    effect_provenance: Provenance = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandStep:
    """One line of a command's journal."""

    at_unix_s: float
    text: str
    worker_id: str | None = None
    state: Literal["planned", "running", "moved", "done", "failed"] = "done"  # moved: what became of its sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """What became of the sequences that decoded on one worker since it began to leave decode, or since it was lost: as
    the gateways count them now, before the requests' records say it for good."""

    worker_id: str
    kind: DepartureKind
    since_unix_s: float
    num_sequences: int  # that decoded there
    num_moved: int = 0  # elsewhere, with their KV
    num_recomputed: int = 0  # elsewhere, computed anew
    num_continued: int = 0  # elsewhere, after it was lost
    num_left: int = 0  # decode there still; what is neither elsewhere nor left has ended there
    num_given_up: int = 0  # moves that came to nothing
    num_bytes: int = 0  # KV that was copied
    stall_s: float | None = None  # the longest so far
    to_workers: dict[str, int] = field(default_factory=dict)
    is_over: bool = False
    cause: LossCause | None = None  # of a loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One operator action, recorded before it takes effect."""

    command_id: int
    fleet_id: str
    action: Action
    state: CommandState
    who: str
    why: str
    idempotency_key: str
    base_version: int
    version_after: int
    created_unix_s: float
    updated_unix_s: float
    steps: tuple[CommandStep, ...] = ()
    result: str = ""  # how it ended, in words
    desired_before: Desired | None = None
    desired_after: Desired | None = None
    undo_of: int | None = None
    undone_by: int | None = None
    can_undo: bool = False
    departures: tuple[Departure, ...] = ()  # while it is carried out: what leaves its workers. Not recorded
