"""The article's fleet, simulated: 70B on 48 H100s, first all mixed, then 8:40, under the same traffic.

Paced workers: step times come from a cost model (self-consistent only); scheduler, handoff, gateway and plane are real.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _deployment import Deployment, deployment, report_of

PICTURE_S = 20.0  # Chromium's start, the login and the first drawing, before the traffic's last seconds
CLAIMED = {
    "before": "prefill 92% compute for about 200 ms, decode 30% for 3 to 9 s, sharing GPUs",
    "after": "prefill 90-95% compute, decode above 70% bandwidth, P99 ITL flat",
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "num_workers": 48,
        "num_prefill": 0,
        "num_mixed": 48,
        "worker_kind": "paced",
        "profile": "production",
        "fleet_id": "article",
        "prefill_chunk_tokens": 2048,
        "max_batch": 64,
    }
    arguments = ["--profile", "article", "--rate", str(options.rate), "--duration", str(options.seconds)]
    with deployment(**settings) as fleet:
        began_s = time.monotonic()
        result: dict[str, Any] = {"mixed": stage(fleet, [*arguments, "--seed", "5"], options.seconds)}
        done = fleet.resize("split the pools", prefill=8, decode=40, mixed=0)
        result["split"] = {"state": str(done.state), "result": done.result}

        def picture() -> None:
            if options.screenshot:
                screenshot(fleet, options.screenshot, time.monotonic() - began_s)

        result["8:40"] = stage(fleet, [*arguments, "--seed", "6"], options.seconds, picture)
    return result | {"claimed": CLAIMED, "simulated": True}


def stage(
    fleet: Deployment, arguments: list[str], seconds: float, near_end: Callable[[], None] | None = None
) -> dict[str, Any]:
    """One run of the traffic (`near_end` is called while it still runs) and what the history says of its second half.

    Each stage has requests of its own: the same ones would find their prompts in the cache.
    """
    begin = time.time()
    traffic = fleet.start_traffic(*arguments)
    if near_end is not None:
        time.sleep(max(0.0, seconds - PICTURE_S))
        near_end()
    report = report_of(traffic)
    since, until = begin + seconds * 0.4, begin + seconds
    names = (
        "prefill_compute_wall",
        "prefill_compute_in_phase",
        "decode_bandwidth_wall",
        "decode_bandwidth_in_phase",
        "prefill_busy",
        "decode_busy",
        "kv_usage",
    )
    lines = {name: _mean(fleet, name, since, until, "fleet") for name in names}
    lines |= {f"{name} by role": _mean(fleet, name, since, until, "role") for name in names[:4]}
    keep = (
        "offered",
        "failed",
        "rejected",
        "attainment",
        "goodput_rps",
        "ttft_s",
        "itl_s",
        "tpot_s",
        "e2e_s",
        "by_rule",
    )
    return {"utilization": lines} | {name: report[name] for name in keep}


def _mean(fleet: Deployment, metric: str, since: float, until: float, by: str) -> dict[str, float]:
    result = fleet.client.series(metric, since, until, by=by)
    found = {line.label: [p.value for p in line.points if p.value is not None] for line in result.series}
    return {label: round(sum(values) / len(values), 3) for label, values in found.items() if values}


def screenshot(fleet: Deployment, path: Path, since_s: float) -> None:
    """The console's Overview of both stages, by role, over a window that holds them."""
    import _console  # Playwright is installed for development only

    window = next(name for name, window_s in (("5m", 300), ("15m", 900), ("60m", 3600)) if window_s > since_s)
    with _console.console(fleet) as page:
        _console.overview(page, fleet, path, f"lines=role&window={window}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=24.0)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--screenshot", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
