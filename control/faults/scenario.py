"""A fault scenario as it is written in a TOML file: the fleet it needs, open-loop traffic, events, checks. Pure.

Decided here: which words there are, their bounds, and which events may be done to a fleet that serves others. Not
here: what an event does (`control.faults.events`) and what a check demands (`control.faults.checks`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked

from control.errors import SettingsError
from control.faults.stages import Stage
from control.types.workers import Role
from control.write_points import POINT

DATA: Final = Path(__file__).resolve().parents[2] / "data" / "faults"
_STRICT: Final = ConfigDict(extra="forbid")

#: Which fields each event takes, beside `at_s`. A field in the second tuple must be there.
FIELDS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "kill": (("stage", "at_least", "worker_id"), ()),
    "stop": (("stage", "at_least", "worker_id", "for_s"), ("for_s",)),
    "hang": (("stage", "at_least", "worker_id"), ()),
    "drop_connection": (("stage", "at_least", "worker_id"), ()),
    "drain": (("stage", "at_least", "worker_id"), ()),
    "undrain": (("worker_id",), ()),
    "flip": (("stage", "at_least", "worker_id", "role"), ("role",)),
    "resize": (("prefill", "decode", "mixed"), ()),
    "set_routing": (("policy", "weights"), ()),
    "cancel": (("count",), ("count",)),
    "kill_plane": (("point",), ()),
    "kill_gateway": ((), ()),
    "fill_disk": (("for_s",), ("for_s",)),
    "restart_postgresql": ((), ()),
}
#: Events that may cost requests or commands of others, so that a running fleet needs `--unsafe` for them.
UNSAFE: Final = frozenset({"hang", "kill_plane", "kill_gateway", "fill_disk", "restart_postgresql"})
#: What is demanded unless a scenario names its own.
ALL_CHECKS: Final = (
    "no_errors",
    "same_output",
    "no_leaked_block",
    "no_orphan",
    "one_effect",
    "one_record",
    "converged",
)

Verb = Literal[
    "kill",
    "stop",
    "hang",
    "drop_connection",
    "drain",
    "undrain",
    "flip",
    "resize",
    "set_routing",
    "cancel",
    "kill_plane",
    "kill_gateway",
    "fill_disk",
    "restart_postgresql",
]
Check = Literal["no_errors", "same_output", "no_leaked_block", "no_orphan", "one_effect", "one_record", "converged"]


@checked(frozen=True, slots=True, kw_only=True, config=_STRICT)
class FleetNeed:
    """What the scenario runs on. The pools are made by a resize before it and given back after it."""

    workers: Literal["any", "real", "paced"] = "any"
    prefill: Annotated[int, Field(ge=0, le=4096)] = 1
    decode: Annotated[int, Field(ge=0, le=4096)] = 3
    mixed: Annotated[int, Field(ge=0, le=4096)] = 0

    @property
    def num_workers(self) -> int:
        return self.prefill + self.decode + self.mixed


@checked(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Traffic:
    """Open-loop streams: arrivals `rate_rps` apart, lengths drawn from the two ranges, all from the seed."""

    streams: Annotated[int, Field(ge=1, le=10_000)] = 40
    rate_rps: Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)] = 20.0
    prompt_tokens: tuple[int, int] = (20, 60)
    output_tokens: tuple[int, int] = (100, 200)
    prefix_tokens: Annotated[int, Field(ge=0, le=100_000)] = 0
    prefix_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    seed: Annotated[int, Field(ge=0)] = 7

    @model_validator(mode="after")
    def _ranges_rise(self) -> Traffic:
        for name in ("prompt_tokens", "output_tokens"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                raise ValueError(f"{name} is [{low}, {high}], must be [low, high] with 1 <= low <= high")
        return self


@checked(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Event:
    """One thing that happens, at `at_s` after the first stream or later: when `stage` is seen, where it names one."""

    do: Verb
    at_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    stage: Stage | None = None
    at_least: Annotated[int | None, Field(ge=1)] = None  # so many requests in that stage
    worker_id: str | None = None
    role: Role | None = None
    for_s: Annotated[float | None, Field(gt=0, le=3600)] = None
    prefill: Annotated[int | None, Field(ge=0)] = None
    decode: Annotated[int | None, Field(ge=0)] = None
    mixed: Annotated[int | None, Field(ge=0)] = None
    policy: dict[str, float | int] | None = None
    weights: dict[str, float] | None = None
    count: Annotated[int | None, Field(ge=1)] = None
    point: Annotated[str | None, Field(pattern=f"^{POINT.pattern}$")] = None  # of a write: <write>:<moment>[#n]

    @model_validator(mode="after")
    def _only_its_fields(self) -> Event:
        takes, needs = FIELDS[self.do]
        for name in (each for each in self.__dataclass_fields__ if each not in ("do", "at_s")):
            value = getattr(self, name)
            if value is not None and name not in takes:
                raise ValueError(f"{self.do} takes no {name} (got {value}); it takes {', '.join(takes) or 'nothing'}")
            if value is None and name in needs:
                raise ValueError(f"{self.do} needs {name}")
        return self


@checked(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Scenario:
    """One file. `name` is the file's."""

    name: str
    help: str
    fleet: FleetNeed = FleetNeed()
    traffic: Traffic = Traffic()
    events: tuple[Event, ...] = ()
    checks: tuple[Check, ...] = ALL_CHECKS
    limit_s: Annotated[float, Field(gt=0, le=3600)] = 120.0

    @property
    def is_safe(self) -> bool:
        """Nothing in it may cost others a request or a command."""
        return not any(event.do in UNSAFE for event in self.events)


_adapter: Final = TypeAdapter(Scenario)


def parse_scenario(name: str, text: str) -> Scenario:
    """Raises SettingsError that names file, field, value and bound."""
    try:
        return _adapter.validate_python({"name": name, **tomllib.loads(text)})
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"scenario {name}: {error}", field="scenario", value=name) from error
    except ValidationError as error:
        raise _named(name, error) from error


def _named(name: str, error: ValidationError) -> SettingsError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "scenario"
    if first["type"] == "unexpected_keyword_argument":
        return SettingsError(f"scenario {name}: unknown key {key}", field=key)
    said = str(first["msg"]).removeprefix("Value error, ")
    shown: Any = first.get("input")
    value = None if isinstance(shown, dict | list) or first["type"] == "missing" else shown
    return SettingsError(f"scenario {name}: {key}: {said}", field=key, value=value)


def load_scenario(path: Path) -> Scenario:
    """Read one file. Raises SettingsError."""
    try:
        return parse_scenario(path.stem, path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"scenario {path}: {error.strerror}", field="scenario", value=str(path)) from error


def shipped() -> dict[str, Scenario]:
    """The scenarios of data/faults, by name."""
    return {path.stem: load_scenario(path) for path in sorted(DATA.glob("*.toml"))}


def named(name: str) -> Scenario:
    """A shipped scenario, or a file. Raises SettingsError that names the ones there are."""
    if name.endswith(".toml"):
        return load_scenario(Path(name))
    known = shipped()
    if name not in known:
        raise SettingsError(f"no fault scenario {name!r}: there are {', '.join(known)}", field="scenario", value=name)
    return known[name]
