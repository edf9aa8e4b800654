"""Fifty people who watch the console: its CPU, the time from the plane's tick to each, first paint, change of page.

`phaseline bench console -- [--sessions 50] [--seconds 45] [--modes overview wall naive churn] [--plane fake|sim]`

Each mode is a console process of its own on the same plane: the Overview, the wall display, and the Overview as one
would write it first (`_naive_console.py`: a plain rerun that asks the plane and builds its charts from DataFrames), for
one Chromium tab and clients that speak Streamlit's protocol and read all that they get (fifty browsers would measure
themselves). Tick to browser: from the tick's own time to the health line's arrival, at the tab in its DOM; tick to
chart: to the arrival of each live chart's data. CPU is user + system time of the console process alone. Churn: all log
in, look at Overview or wall, and go, CHURN_ROUNDS times: the memory after each round, the CPU when nobody is left.
The plane is a fake that answers at once and ticks at each whole second (48 simulated workers), or with `--plane sim`
the real one with SimFleet.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from _console_screen import changed_s, chromium, delays_s, opened, watch
from _console_session import Session, cookie_of
from _console_stack import NUM_PREFILL, NUM_WORKERS, FakeStack, start_console
from tests.browser.processes import Stack

MODES: dict[str, tuple[str, str]] = {"overview": ("ours", ""), "wall": ("ours", "view=wall"), "naive": ("naive", "")}
SETTLE_S = 8.0
APART_S = 0.1  # sessions do not open at one instant, and so do not refresh at one
CHURN_ROUNDS, CHURN_LOOK_S = 8, 6.0
AIM_P99_MS, AIM_CORE = 500, 0.5


async def measure(stack: Stack, mode: str, num_sessions: int, seconds: float) -> dict[str, Any]:
    """One mode: `num_sessions` - 1 clients and one tab, watched for `seconds`."""
    kind, query = MODES[mode]
    console = start_console(stack, kind)
    code = stack.login_code() if kind == "ours" else ""
    cookie = cookie_of(stack.console_url, code) if code else ""
    sessions = [Session(stack.console_url, cookie, query) for _ in range(num_sessions - 1)]
    running: list[asyncio.Task[None]] = []
    async with chromium() as browser:
        for each in sessions:
            running.append(asyncio.create_task(each.run()))
            await asyncio.sleep(APART_S)
        url = f"{stack.console_url}/?" + "&".join(filter(None, (code and f"code={stack.login_code()}", query)))
        page, _, _ = await opened(browser, url)
        await asyncio.sleep(SETTLE_S)
        found = await watched(console, sessions, page, seconds)
        found |= await paints(browser, page, url if kind == "naive" else stack.login_url("", query), mode)
    died = [task for task in running if task.done()]
    for task in running:
        task.cancel()
    ended = await asyncio.gather(*running, return_exceptions=True)
    if died:
        raise RuntimeError(f"{len(died)} sessions ended early: {ended[0]!r}")
    return {"mode": mode, "sessions": num_sessions, **found}


async def churn(stack: Stack, num_sessions: int) -> dict[str, Any]:
    """`num_sessions` at a time log in, look at the Overview and the wall, and go; CHURN_ROUNDS times."""
    console = start_console(stack, "ours")
    rss_mib = []
    for _ in range(CHURN_ROUNDS):
        sessions = [
            Session(
                stack.console_url, cookie_of(stack.console_url, stack.login_code()), "view=wall" if each % 2 else ""
            )
            for each in range(num_sessions)
        ]
        running = [asyncio.create_task(each.run()) for each in sessions]
        await asyncio.sleep(CHURN_LOOK_S)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        seen = sum(bool(each.delays_s) for each in sessions)
        if seen < num_sessions:
            raise RuntimeError(f"only {seen} of {num_sessions} sessions saw the page")
        await asyncio.sleep(1.0)
        rss_mib.append(round(console.memory_info().rss / 2**20))
    before, started = console.cpu_times(), time.monotonic()
    await asyncio.sleep(CHURN_LOOK_S)
    after, wall_s = console.cpu_times(), time.monotonic() - started
    idle = round((after.user + after.system - before.user - before.system) / wall_s, 3)
    return {
        "mode": "churn",
        "sessions": num_sessions * CHURN_ROUNDS,
        "rss_mib_by_round": rss_mib,
        "cpu_cores_afterwards": idle,
    }


async def watched(console: psutil.Process, sessions: list[Session], page: Any, seconds: float) -> dict[str, Any]:
    await watch(page)
    before, started = console.cpu_times(), time.monotonic()
    for each in sessions:
        each.watch()
    await asyncio.sleep(seconds)
    after, wall_s = console.cpu_times(), time.monotonic() - started
    at_clients = [delay for each in sessions for delay in each.delays_s]
    charts = [delay for each in sessions for delay in each.chart_delays_s]
    at_tab = await delays_s(page)
    used_s = after.user + after.system - before.user - before.system
    return {
        "cpu_cores": round(used_s / wall_s, 3),
        "rss_mib": round(console.memory_info().rss / 2**20),
        "tick_to_browser": spread(at_clients + at_tab),
        "tick_to_chart": spread(charts),
        "tick_to_screen_of_the_tab": spread(at_tab),
        "ticks_shown": round((len(at_clients) + len(at_tab)) / (wall_s * (len(sessions) + 1)), 3),
        "charts_shown": round(
            len(charts) / (wall_s * max(1, sum(each.num_live_charts(wall_s) for each in sessions))), 3
        ),
        "reruns_per_s": round(sum(each.num_reruns for each in sessions) / wall_s, 1),
        "kib_per_s_and_session": round(sum(each.num_bytes for each in sessions) / wall_s / len(sessions) / 1024, 1),
    }


async def paints(browser: Any, page: Any, url: str, mode: str) -> dict[str, Any]:
    """In Chromium with one tab, while the others go on watching."""
    found: dict[str, Any] = {}
    await page.context.close()
    page, found["first_figures_s"], found["first_chart_s"] = await opened(browser, url)
    if mode == "overview":
        found["to_workers_s"] = await changed_s(page, "Workers", '[data-testid="stDataFrame"]')
        found["back_to_overview_s"] = await changed_s(page, "Overview", '[role="graphics-document"]')
    return {name: round(value, 2) for name, value in found.items()}


def spread(delays_s: list[float]) -> dict[str, float] | None:
    """p50, p99 and the worst, in ms; None where nothing came."""
    if not delays_s:
        return None
    ranked = sorted(delays_s)
    at = {name: ranked[min(len(ranked) - 1, int(share * len(ranked)))] for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {f"{name}_ms": round(1000 * value) for name, value in {**at, "max": ranked[-1]}.items()}


def report(machine: str, runs: list[dict[str, Any]]) -> None:
    print(f"{runs[0]['sessions']} sessions at 1 Hz, {NUM_WORKERS} simulated workers; {machine}")
    print(f"aims: p99 {AIM_P99_MS} ms to the browser, {AIM_CORE} core")
    names = [name for name in dict.fromkeys(name for run in runs for name in run) if name not in ("mode", "sessions")]
    print("".ljust(26) + "".join(run["mode"].rjust(34) for run in runs))
    for name in names:
        print(name.ljust(26) + "".join(words(run.get(name)).rjust(34) for run in runs))


def words(value: Any) -> str:
    if isinstance(value, dict):
        return f"p50 {value['p50_ms']} p99 {value['p99_ms']} ms"
    if isinstance(value, list):
        return " ".join(str(each) for each in value)
    return "–" if value is None else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fifty people who watch the console.")
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=45.0, help="watched per mode")
    parser.add_argument("--modes", nargs="+", choices=[*MODES, "churn"], default=[*MODES, "churn"])
    parser.add_argument("--plane", choices=("fake", "sim"), default="fake")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = FakeStack if given.plane == "fake" else Stack
        stack = made(run_dir=Path(folder), num_workers=NUM_WORKERS, num_prefill=NUM_PREFILL)
        try:
            stack.start_plane()
            runs = [
                asyncio.run(
                    churn(stack, given.sessions)
                    if mode == "churn"
                    else measure(stack, mode, given.sessions, given.seconds)
                )
                for mode in given.modes
            ]
        finally:
            stack.end_all()
    machine = f"{platform.machine()}, {psutil.cpu_count()} CPUs, load {psutil.getloadavg()[0]:.1f}"
    if given.json:
        print(json.dumps({"machine": machine, "plane": given.plane, "runs": runs}))
    else:
        report(machine, runs)


if __name__ == "__main__":
    main()
