"""What the console costs: CPU of its process, and time from the plane's tick to the tab, with 1 and 10 open sessions.

`python -m bench.console [--sessions 1 10] [--seconds 30] [--json]`: a real plane with SimFleet (48 simulated
workers), a real console, and sessions on the Overview that refresh once a second over Streamlit's own protocol,
without browsers (ten browsers would measure themselves). CPU is user + system time of the console process. Tick to
tab: when a new health line arrives, less the plane's time in it; the wait for the console's next reading and for
the tab's next refresh, each up to one second, are in it. `--browser` adds one Chromium tab and its tick to screen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import sync_playwright

from _console_session import Session
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.browser.processes import Stack

SETTLE_S = 6.0
WATCH = """() => {
  window.delays = [];
  let last = document.querySelector('[data-at]').dataset.at;
  new MutationObserver(() => {
    const shown = document.querySelector('[data-at]');
    if (!shown || shown.dataset.at === last) return;
    last = shown.dataset.at;
    window.delays.push(Date.now() / 1000 - Number(last));
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


async def measure(stack: Stack, num_sessions: int, seconds: float) -> dict[str, Any]:
    """Open `num_sessions`, let them settle, then watch for `seconds`."""
    sessions = [Session(stack.console_url, stack.login_code()) for _ in range(num_sessions)]
    running = [asyncio.create_task(each.run()) for each in sessions]
    await asyncio.sleep(SETTLE_S)
    console = psutil.Process(stack.processes["console"].pid)
    before, started = console.cpu_times(), time.monotonic()
    for each in sessions:
        each.watch()
    await asyncio.sleep(seconds)
    after, wall_s = console.cpu_times(), time.monotonic() - started
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    used_s = after.user + after.system - before.user - before.system
    return {
        "sessions": num_sessions,
        "console_cpu_percent_of_a_core": round(100 * used_s / wall_s, 1),
        "kib_per_s_and_session": round(sum(each.num_bytes for each in sessions) / wall_s / num_sessions / 1024, 1),
        "console_rss_mib": round(console.memory_info().rss / 2**20),
        **summary("tick_to_tab", [delay for each in sessions for delay in each.delays_s]),
    }


def measure_screen(stack: Stack, seconds: float) -> dict[str, Any]:
    """One Chromium tab: from the plane's tick to the page's own DOM."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        tab.goto(stack.login_url())
        tab.wait_for_selector("[data-at]", timeout=60_000)
        tab.wait_for_timeout(SETTLE_S * 1000)
        tab.evaluate(WATCH)
        tab.wait_for_timeout(seconds * 1000)
        delays = tab.evaluate("window.delays")
        browser.close()
    return {"sessions": "1 Chromium tab", **summary("tick_to_screen", delays)}


def summary(name: str, delays_s: list[float]) -> dict[str, Any]:
    if len(delays_s) < 2:
        return {f"{name}_refreshes": len(delays_s)}
    return {
        f"{name}_refreshes": len(delays_s),
        f"{name}_p50_s": round(statistics.median(delays_s), 3),
        f"{name}_p95_s": round(statistics.quantiles(delays_s, n=20)[-1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What the console costs with open sessions.")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(run_dir=Path(folder), num_workers=48, num_prefill=8)
        try:
            stack.start_plane()
            stack.start_console()
            found = [asyncio.run(measure(stack, num_sessions, given.seconds)) for num_sessions in given.sessions]
            if given.browser:
                found.append(measure_screen(stack, given.seconds))
        finally:
            stack.end_all()
    machine = f"{platform.machine()}, {psutil.cpu_count()} CPUs, load {psutil.getloadavg()[0]:.1f}"
    if given.json:
        print(json.dumps({"machine": machine, "runs": found}))
        return
    print(f"console on SimFleet, 48 workers; {machine}")
    for run in found:
        print("  " + ", ".join(f"{name} {value}" for name, value in run.items()))


if __name__ == "__main__":
    main()
