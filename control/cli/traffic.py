"""`phaseline traffic`: an open-loop load from a profile or a trace, and what it achieved. Wires `control.traffic`."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx
import typer

from control.errors import ControlError, PlaneUnreachable, SettingsError
from control.settings import load_settings
from control.traffic.plan import (
    PlannedRequest,
    at_constant_rate,
    capped,
    faster,
    load_profile,
    plan_profile,
    plan_trace,
    until,
)
from control.types.requests import SAMPLE_TRAFFIC_KEY, Slo

if TYPE_CHECKING:
    from control.traffic.report import Quantiles, Report
    from control.traffic.run import RunResult


def traffic(
    profile: Annotated[str, typer.Option(help="Profile of data/traffic/profiles.toml.")] = "gentle",
    trace: Annotated[Path | None, typer.Option(help="CSV or JSONL trace to replay instead of a profile.")] = None,
    duration_s: Annotated[
        float | None, typer.Option("--duration", help="Seconds; without it a profile never ends.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many requests.", min=1)] = None,
    rate: Annotated[
        float | None, typer.Option(help="Constant arrivals per second instead of the plan's own times.")
    ] = None,
    speed: Annotated[float, typer.Option(help="Send the plan this many times as fast.")] = 1.0,
    max_prompt: Annotated[int | None, typer.Option(help="Cap on prompt tokens.", min=1)] = None,
    max_output: Annotated[int | None, typer.Option(help="Cap on output tokens.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the plan and of the sampling.")] = 1,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0, max=2.0)] = 0.0,
    url: Annotated[str, typer.Option(help="Gateway; default from the settings.")] = "",
    api_key: Annotated[str, typer.Option(help="Marks the traffic in the request records.")] = SAMPLE_TRAFFIC_KEY,
    save: Annotated[Path | None, typer.Option(help="Write each output to this file.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Compare outputs with a file written by --save.")] = None,
    slo_ttft: Annotated[float | None, typer.Option(help="SLO: TTFT base, seconds.")] = None,
    slo_tpot: Annotated[float | None, typer.Option(help="SLO: seconds per output token.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress line.")] = False,
) -> None:
    """Send traffic, open loop, client retries off. Ctrl-C stops sending and waits for what is open.

    Exit codes: 0 all answered (429s allowed), 1 some failed or an output differed, 2 bad input, 3 gateway unreachable.
    """
    from control.traffic.client import SendOptions  # brings aiohttp, which no other verb needs
    from control.traffic.run import compare_outputs, run_traffic, save_outputs

    try:
        settings = load_settings()
        plan = _plan(profile, trace, duration_s, limit, rate, speed, max_prompt, max_output, seed)
        base_url = url or f"http://{settings.host}:{settings.gateway_port}"
        options = SendOptions(
            base_url=base_url,
            model=wait_for_model(base_url, timeout_s=60.0),
            api_key=api_key,
            temperature=temperature,
            seed=seed,
            keep_text=save is not None or compare is not None,
        )
        result = asyncio.run(
            run_traffic(plan, options, _slo(settings.effective_slo, slo_ttft, slo_tpot), on_progress=_progress(quiet))
        )
        different = compare_outputs(compare, result.outcomes) if compare else []
        if save:
            save_outputs(save, result.outcomes)
    except ControlError as error:
        typer.echo(f"phaseline: {error}", err=True)
        raise typer.Exit(3 if isinstance(error, PlaneUnreachable) else 2) from None
    _show(result, different if compare else None, as_json)
    raise typer.Exit(1 if result.report.failed or different else 0)


def _plan(
    profile: str,
    trace: Path | None,
    duration_s: float | None,
    limit: int | None,
    rate: float | None,
    speed: float,
    max_prompt: int | None,
    max_output: int | None,
    seed: int,
) -> Iterator[PlannedRequest]:
    for name, value in (("speed", speed), ("rate", rate), ("duration", duration_s)):
        if value is not None and not 0 < value < math.inf:
            raise SettingsError(f"--{name} must be above 0 and finite, got {value}", field=name, value=value)
    if trace is not None:
        if not trace.is_file():
            raise SettingsError(f"--trace {trace}: no such file", field="trace", value=str(trace))
        plan = plan_trace(trace, seed=seed, speed=speed, max_prompt=max_prompt, max_output=max_output, limit=limit)
    else:
        plan = capped(faster(plan_profile(load_profile(profile), seed=seed), speed), max_prompt, max_output)
    if rate is not None:
        plan = at_constant_rate(plan, rate)
    if duration_s is not None:
        plan = until(plan, duration_s)
    return itertools.islice(plan, limit)


def _slo(base: Slo, ttft_s: float | None, tpot_s: float | None) -> Slo:
    return Slo(
        ttft_base_s=base.ttft_base_s if ttft_s is None else ttft_s,
        ttft_per_token_s=base.ttft_per_token_s,
        tpot_s=base.tpot_s if tpot_s is None else tpot_s,
        max_gap_s=base.max_gap_s,
    )


def wait_for_model(base_url: str, timeout_s: float) -> str:
    """The served model's id, once the gateway is ready. Raises PlaneUnreachable when it is not within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    problem = "no answer"
    while time.monotonic() < deadline_s:
        try:
            if httpx.get(f"{base_url}/readyz", timeout=5).status_code == 200:
                return str(httpx.get(f"{base_url}/v1/models", timeout=5).json()["data"][0]["id"])
            problem = "not ready"
        except (httpx.HTTPError, LookupError, ValueError) as error:
            problem = str(error)
        time.sleep(0.5)
    raise PlaneUnreachable(f"gateway at {base_url}: {problem} for {timeout_s:.0f} s")


def _progress(quiet: bool) -> Callable[[int, int], None]:
    """A progress line for a person; nothing where nobody looks."""
    silent = quiet or not sys.stderr.isatty()

    def show(done: int, failed: int) -> None:
        if not silent:
            typer.echo(f"\r{done} done, {failed} failed ", nl=False, err=True)

    return show


def _show(result: RunResult, different: list[int] | None, as_json: bool) -> None:
    report = result.report
    if as_json:
        typer.echo(json.dumps(report.as_dict() | {"outputs_different": different}))
        return
    for line in _lines(report):
        typer.echo(line)
    if different is not None:
        verdict = f"{len(different)} differ: {different[:20]}" if different else "equal to the saved run"
        typer.echo(f"outputs         {verdict}")


def _lines(report: Report) -> Iterator[str]:
    share = "n/a" if report.attainment is None else f"{report.attainment:.1%}"
    yield f"offered         {report.offered} in {report.duration_s:.1f} s ({report.offered_rps:.2f} rps)"
    rate = f"{report.output_tokens_per_s:.0f} output tokens/s"
    yield f"goodput         {report.goodput_rps:.2f} rps, attainment {share}, {rate}"
    yield f"failed          {report.failed}    rejected (429) {report.rejected}"
    named = (("TTFT", report.ttft_s), ("ITL", report.itl_s), ("TPOT", report.tpot_s), ("e2e", report.e2e_s))
    for name, values in named:
        yield f"{name:<15} {_quantiles(values)}"
    for name, row in report.by_class.items():
        yield f"{name:<15} {row.good} good of {row.offered}, {row.failed} failed, {row.rejected} rejected"
    yield f"routes          {', '.join(f'{rule} {count}' for rule, count in sorted(report.by_rule.items())) or 'none'}"
    for error, count in report.errors.items():
        yield f"error x{count:<7} {error}"


def _quantiles(values: Quantiles) -> str:
    def ms(value: float | None) -> str:
        return "n/a" if value is None else f"{value * 1000:.0f} ms"

    return f"p50 {ms(values.p50)}, p90 {ms(values.p90)}, p99 {ms(values.p99)}, max {ms(values.max)}"


if __name__ == "__main__":
    typer.run(traffic)
