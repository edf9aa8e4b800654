"""One traffic run: plan, send, summarise, compare. The command line is `control.cli.traffic`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from control.errors import SettingsError
from control.traffic.client import Outcome, SendOptions, send_plan
from control.traffic.plan import PlannedRequest
from control.traffic.report import Report, fingerprint, summarise
from control.types.requests import Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """`outcomes` are kept only for a bounded run; an endless one keeps the last `window`."""

    report: Report
    outcomes: tuple[Outcome, ...]


async def run_traffic(
    plan: Iterator[PlannedRequest],
    options: SendOptions,
    slo: Slo,
    *,
    on_progress: Callable[[int, int], None] = lambda done, bad: None,
    window: int = 200_000,
) -> RunResult:
    """Send the plan; SIGINT or SIGTERM ends it early and waits for the open requests. Must run in the main thread."""
    outcomes: list[Outcome] = []
    stop = asyncio.Event()
    failed = 0

    def on_done(outcome: Outcome) -> None:
        nonlocal failed
        failed += bool(outcome.error)
        outcomes.append(outcome)
        if len(outcomes) > window:
            del outcomes[: window // 10]
        on_progress(len(outcomes), failed)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop.set)
    start_s = time.monotonic()
    await send_plan(plan, options, on_done, stop)
    return RunResult(report=summarise(outcomes, slo, time.monotonic() - start_s), outcomes=tuple(outcomes))


def save_outputs(path: Path, outcomes: tuple[Outcome, ...]) -> None:
    """One JSON line a request: index, fingerprint, text. Compare two runs with `compare_outputs`."""
    with path.open("w", encoding="utf-8") as file:
        for each in sorted(outcomes, key=lambda outcome: outcome.index):
            row = {"index": each.index, "fingerprint": fingerprint(each), "status": each.status, "error": each.error}
            file.write(json.dumps(row | {"tokens": each.output_tokens, "text": each.text}) + "\n")


def compare_outputs(path: Path, outcomes: tuple[Outcome, ...]) -> list[int]:
    """Indices whose output differs from the saved run, or is missing from it. Empty: equal."""
    try:
        saved = {row["index"]: row["fingerprint"] for row in map(json.loads, path.read_text("utf-8").splitlines())}
    except (OSError, ValueError, KeyError) as error:
        raise SettingsError(f"cannot read the outputs of {path.name}: {error}", field="compare") from error
    return sorted(each.index for each in outcomes if saved.get(each.index) != fingerprint(each))
