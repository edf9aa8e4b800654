"""Resize under traffic: failed requests and changed outputs against an undisturbed run, real workers or paced ones.

phaseline bench resize                       four real workers: 1:3 -> 2:2 -> 1:3
phaseline bench resize -- --paced            48 paced workers: 8:40 -> 12:36 -> 8:40
phaseline bench resize -- --trace FILE       a CSV or JSONL trace instead of the shipped profile
phaseline bench resize -- --browser          the resizes are done by hand in the console, in Chromium
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _deployment import Deployment, deployment, report_of

REAL = {"num_workers": 4, "num_prefill": 1}
PACED = {"num_workers": 48, "num_prefill": 8, "worker_kind": "paced", "profile": "production"}


def traffic_arguments(options: argparse.Namespace) -> list[str]:
    source = ["--trace", str(options.trace)] if options.trace else ["--profile", "day" if options.paced else "gentle"]
    caps = [] if options.paced else ["--max-prompt", "200", "--max-output", "40"]
    rate = options.rate or (12.0 if options.paced else 1.2)
    return [*source, *caps, "--rate", str(rate), "--limit", str(options.limit), "--seed", "7"]


def resize(fleet: Deployment, page: Any, prefill: int, decode: int) -> dict[str, object]:
    """One resize, carried out to its end, by API or on the console's `page`; what it took."""
    why = "bench: resize under traffic"
    before_s = time.monotonic()
    if page is not None:
        import _console

        said = _console.resize(page, why, prefill, decode)
        return {"to": f"{prefill}:{decode}", "by": "browser", "took_s": _since(before_s), "console_says": said}
    ended = fleet.resize(why, prefill=prefill, decode=decode)
    return {"to": f"{prefill}:{decode}", "took_s": _since(before_s), "steps": len(ended.steps)}


def _since(before_s: float) -> float:
    return round(time.monotonic() - before_s, 2)


@contextlib.contextmanager
def console_page(fleet: Deployment, options: argparse.Namespace) -> Iterator[Any]:
    """A tab of the console where one is asked for, else None."""
    if not (options.browser or options.screenshot):
        yield None
        return
    import _console  # Playwright is installed for development only

    with _console.console(fleet) as page:
        yield page


def measure(options: argparse.Namespace) -> dict[str, object]:
    settings = PACED if options.paced else REAL
    splits = [(12, 36), (8, 40)] if options.paced else [(2, 2), (1, 3)]
    arguments = traffic_arguments(options)
    with tempfile.TemporaryDirectory() as folder:  # a fresh deployment each: no prefix is cached from the other run
        saved = Path(folder) / "undisturbed.jsonl"
        with deployment(**settings) as fleet:
            undisturbed = report_of(fleet.start_traffic(*arguments, "--save", str(saved)))
        with deployment(**settings) as fleet:
            disturbed = fleet.start_traffic(*arguments, "--compare", str(saved))
            resizes = []
            try:
                with console_page(fleet, options) as page:
                    for prefill, decode in splits * options.rounds:
                        time.sleep(options.pause)
                        resizes.append(resize(fleet, page if options.browser else None, prefill, decode))
                    report = report_of(disturbed)
                    if options.screenshot:
                        import _console

                        _console.overview(page, fleet, options.screenshot)
            finally:
                disturbed.terminate()  # where it has ended, this does nothing
    return {
        "workers": "paced (simulated)" if options.paced else "real model, CPU",
        "undisturbed": summary(undisturbed),
        "resized": summary(report),
        "outputs_different": report["outputs_different"],
        "resizes": resizes,
    }


def summary(report: dict[str, object]) -> dict[str, object]:
    names = (
        "offered",
        "failed",
        "rejected",
        "attainment",
        "offered_rps",
        "goodput_rps",
        "ttft_s",
        "itl_s",
        "by_rule",
        "errors",
    )
    return {name: report[name] for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paced", action="store_true")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--limit", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--pause", type=float, default=10.0, help="seconds between resizes")
    parser.add_argument("--browser", action="store_true", help="resize in the console instead of by API")
    parser.add_argument("--screenshot", type=Path, help="save a picture of the Overview at the end")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:<18} {value}")


if __name__ == "__main__":
    main()
