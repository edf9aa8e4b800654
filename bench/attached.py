"""A plane that looks at 200 foreign engines, 20 of them dead, slow or lying: tick time, memory, and what was refused.

phaseline bench attached                          200 engines, 20 bad, 60 s
phaseline bench attached -- --engines 50 --seconds 30

One process with a whole plane (accounting, history in SQLite, snapshot), ticking once a second; the engines answer from
another process on this host, each looked at every 2 s. Beside it, in the same run, the same plane with the good engines
alone: what the bad ones cost is the difference.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from _fake_engines import TOKENS_PER_S, fake_engines
from control.adoption import adopt
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.fleet import AttachedFleet
from control.fleets.attached.types import Attachment
from control.heap import settle
from control.history.store import History
from control.lease import Lease, this_process
from control.plane import Plane
from control.settings import Settings

BAD = ("hang", "dead", "flood", "endless", "nan", "resets")
WARM_UP_S = 10.0


async def watched(name: str, urls: list[str], kinds: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Tick for `seconds` after the warm-up; what it took and what is known at the end."""
    roles = ["prefill" if n % 4 == 0 else "decode" for n in range(len(urls))]
    targets = tuple(
        f"{role}:{kind}{n}={url}" for n, (url, kind, role) in enumerate(zip(urls, kinds, roles, strict=True))
    )
    fleet = AttachedFleet(plan_of(Attachment(name=name, kind="vllm", targets=targets, model="llama-3.1-8b")))
    history = History.open(f"sqlite:///{folder / name}.db")
    now = time.time()
    lease = Lease(holder=this_process(""), fence=1, taken_unix_s=now, expires_unix_s=now + 3600)
    plane = await adopt(fleet, history, Settings(run_dir=folder, fleet_id=name), lease)
    await fleet.start(lambda: None)
    settle()  # as a plane's process does
    process, ticks = psutil.Process(), []
    try:
        await _tick_for(plane, WARM_UP_S, [])
        rss, cpu_s, begun_s = process.memory_info().rss, sum(process.cpu_times()[:2]), time.monotonic()
        await _tick_for(plane, seconds, ticks)
        lasted_s = time.monotonic() - begun_s
        cpu_share = (sum(process.cpu_times()[:2]) - cpu_s) / lasted_s
        return {
            "engines": len(urls),
            "ticks": len(ticks),
            "tick_p50_ms": statistics.median(ticks) * 1e3,
            "tick_p99_ms": sorted(ticks)[int(0.99 * (len(ticks) - 1))] * 1e3,
            "tick_max_ms": max(ticks) * 1e3,
            "cpu_share": cpu_share,
            "rss_mib": process.memory_info().rss / 2**20,
            "rss_growth": process.memory_info().rss / rss - 1,
            "rate_error": _rate_error(fleet, kinds, lasted_s + WARM_UP_S),
            "refused": _refusals(fleet),
        }
    finally:
        await plane.close()
        history.close()


async def _tick_for(plane: Plane, seconds: float, ticks: list[float]) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        begun_s = time.perf_counter()
        await plane.tick()
        ticks.append(time.perf_counter() - begun_s)
        await asyncio.sleep(max(0.0, 1.0 - ticks[-1]))


def _rate_error(fleet: AttachedFleet, kinds: list[str], seconds: float) -> float:
    """Of what the good decode engines generated since they were first seen, how far the counters are off, at worst."""
    worst = 0.0
    for scraper in fleet.scrapers.values():
        reading = scraper.reading(time.time())
        counters = reading.counters.get("decode/decode") if reading else None
        if counters is None or not scraper.target.worker_id.startswith("good") or reading is None:
            continue
        true = TOKENS_PER_S * (reading.at_unix_s - reading.started_unix_s)
        worst = max(worst, abs(counters.tokens / true - 1))
    return worst


def _refusals(fleet: AttachedFleet) -> dict[str, str]:
    """Per kind of bad engine, what is said of one of them."""
    said: dict[str, str] = {}
    for name, scraper in fleet.scrapers.items():
        kind = name.rstrip("0123456789")
        page = scraper.page
        refused = [each.series for each in page.findings if each.state == "refused"] if page else []
        if kind == "resets":
            reading = scraper.reading(time.time())
            lowest = min((each.tokens for each in reading.counters.values()), default=0.0) if reading else 0.0
            said[kind] = f"another epoch at each reset, no counter below {lowest:.0f}"
        elif kind != "good":
            said[kind] = scraper.problem or "; ".join(refused)
    return said


async def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    num_bad = options.engines // 10
    kinds = ["good"] * (options.engines - num_bad) + [BAD[n % len(BAD)] for n in range(num_bad)]
    found = []
    with tempfile.TemporaryDirectory() as folder, fake_engines(kinds) as urls:
        for name, num in (("good-alone", options.engines - num_bad), ("with-bad-ones", options.engines)):
            row = await watched(name, urls[:num], kinds[:num], options.seconds, Path(folder))
            found.append({"run": name, **row})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run, after the warm-up")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = asyncio.run(run(options))
    for row in rows:
        if options.json:
            print(json.dumps(row))
            continue
        print(
            f"{row['run']:14} {row['engines']} engines, {row['ticks']} ticks: p50 {row['tick_p50_ms']:.1f} ms, "
            f"p99 {row['tick_p99_ms']:.1f} ms, max {row['tick_max_ms']:.1f} ms; CPU {row['cpu_share']:.0%} of a core; "
            f"RSS {row['rss_mib']:.0f} MiB ({row['rss_growth']:+.1%}); tokens off by {row['rate_error']:.2%} at most"
        )
        for kind, words in row["refused"].items():
            print(f"  {kind}: {words}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
