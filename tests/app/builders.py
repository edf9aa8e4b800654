"""Small values with defaults, for the console's tests."""

from __future__ import annotations

import io

import pyarrow as pa

from app.source import Hub
from control.types.alerts import Alert, AlertName
from control.types.series import Series, SeriesPoint, SeriesResult
from tests.app.fake_plane import FakePlane

NOW = 1_780_000_000.0


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, at: float = NOW) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def plane_and_hub(scene: str = "ok", num_workers: int = 4, prefill: int = 1) -> tuple[FakePlane, Hub, Clock]:
    clock = Clock()
    plane = FakePlane(clock, scene=scene, num_workers=num_workers, prefill=prefill)
    return plane, Hub(base_url="http://127.0.0.1:1", connect=plane.connect, now=clock), clock


def result(
    points: dict[str, list[SeriesPoint]], *, step_s: int = 1, since: float = 0.0, until: float = 100.0
) -> SeriesResult:
    return SeriesResult(
        fleet_id="local",
        metric="goodput_rps",
        unit="rps",
        provenance="measured",
        step_s=step_s,
        since_unix_s=since,
        until_unix_s=until,
        by="fleet",
        series=tuple(Series(label=label, points=tuple(each)) for label, each in points.items()),
    )


def points(start: int, values: list[float | None]) -> list[SeriesPoint]:
    return [SeriesPoint(t_unix_s=float(start + i), value=value) for i, value in enumerate(values)]


def rows(data: bytes) -> list[dict[str, object]]:
    """Arrow bytes back to rows."""
    return pa.ipc.open_stream(io.BytesIO(data)).read_all().to_pylist()


def slo_alert(fired_unix_s: float | None, resolved_unix_s: float | None, name: AlertName = "slo_burn_fast") -> Alert:
    """The error budget burns; `fired_unix_s` None: it only pends."""
    since = NOW if fired_unix_s is None else fired_unix_s - 60.0
    return Alert(
        alert_id=f"{name}-{fired_unix_s}",
        fleet_id="local",
        name=name,
        subject="",
        severity="page",
        state="pending" if fired_unix_s is None else "firing" if resolved_unix_s is None else "resolved",
        text="84% of requests were good, the aim is 99%",
        since_unix_s=since,
        seen_unix_s=resolved_unix_s or since,
        fired_unix_s=fired_unix_s,
        resolved_unix_s=resolved_unix_s,
    )
