"""`phaseline attach`, `allow`, `forbid`, `detach`, `fleets`: serving systems that somebody else runs, beside ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer

from control.cli.shell import JsonFlag, connect, print_json, print_table, say
from control.errors import PlaneUnreachable
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.survey import survey
from control.fleets.attached.types import AttachedInfo, Attachment, EngineSurvey, ExporterSurvey, Finding, Survey
from control.types.fleet import Capability


def _above_zero(value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise typer.BadParameter(f"{value:g} is not above 0")
    return value


def attach(
    name: Annotated[str, typer.Argument(help="What to call it: small letters, digits, hyphens.")],
    kind: Annotated[
        str, typer.Option(help="vllm, sglang, llm-d, ray-serve, dynamo, or openai (any server of its API).")
    ],
    targets: Annotated[
        list[str] | None,
        typer.Option(help="ROLE=URL or ROLE:NAME=URL; once per engine.", metavar="TARGET"),
    ] = None,
    targets_file: Annotated[
        str, typer.Option(help="A file of targets (Prometheus file_sd, JSON), watched.", metavar="FILE")
    ] = "",
    model: Annotated[str, typer.Option(help="Model in data/models.toml, or a folder with config.json.")] = "",
    dtype: Annotated[str, typer.Option(help="Of weights and KV: bfloat16, float8, float16, float32.")] = "",
    device: Annotated[str, typer.Option(help="Device in data/devices.toml.")] = "",
    peak_tflops: Annotated[
        float | None, typer.Option(callback=_above_zero, help="Peak of one device that has no entry there, TFLOP/s.")
    ] = None,
    peak_gb_s: Annotated[float | None, typer.Option(callback=_above_zero, help="Its memory bandwidth, GB/s.")] = None,
    devices_per_worker: Annotated[int, typer.Option(help="Devices of one engine (tensor parallel).")] = 1,
    every_s: Annotated[float, typer.Option("--every", help="Seconds between two looks.")] = 2.0,
    simulated: Annotated[bool, typer.Option(help="Its engines only pretend (mock workers).")] = False,
    token_file: Annotated[str, typer.Option("--engine-token-file", help="File with the engines' bearer token.")] = "",
    controller: Annotated[
        str, typer.Option(help="What lists its workers and takes orders, KIND=URL: docs/fleets.md.", metavar="KIND=URL")
    ] = "",
    controller_token: Annotated[str, typer.Option(help="Where its token is: a file, or env:NAME.")] = "",
    max_workers: Annotated[int, typer.Option(help="Most workers of a pool that may be asked for.")] = 16,
    limit_s: Annotated[float, typer.Option("--limit", help="Seconds in which a change must be seen.")] = 60.0,
    gpu_metrics: Annotated[
        list[str] | None, typer.Option(help="A page of dcgm-exporter; once per host.", metavar="URL")
    ] = None,
    gpus: Annotated[
        list[str] | None,
        typer.Option(help="WORKER=GPU,GPU: UUID, HOST/INDEX, HOST/*, or pod:NAMESPACE/POD.", metavar="WORKER=GPU"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be seen.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look at engines that somebody else runs. It only observes, until `allow` says what else may be done.

    Attached again in the same words it stays as it is. Exit code 1 with --dry-run: there are none, or not all answer.
    """
    attachment = Attachment(
        name=name,
        kind=kind,
        targets=tuple(targets or ()),
        targets_file=targets_file,
        model=model,
        dtype=dtype,
        device=device,
        peak_flops=None if peak_tflops is None else peak_tflops * 1e12,
        peak_bytes_per_s=None if peak_gb_s is None else peak_gb_s * 1e9,
        devices_per_worker=devices_per_worker,
        every_s=every_s,
        simulated=simulated,
        token_file=token_file,
        controller=controller,
        controller_token=controller_token,
        max_workers=max_workers,
        limit_s=limit_s,
        gpu_metrics=tuple(gpu_metrics or ()),
        gpus=tuple(gpus or ()),
    )
    if dry_run:
        _tell(_surveyed(attachment), as_json)
        return
    with connect() as client:
        info = client.attach(attachment)
    if as_json:
        print_json(info)
    else:
        say(f"{name} is attached: `phaseline --fleet {name} status` shows it, `phaseline detach {name}` ends it")


Act = Annotated[list[Capability], typer.Argument(help="route, resize, flip, drain, migrate; one or several.")]


def allow(
    name: Annotated[str, typer.Argument(help="Which attached fleet.")], capabilities: Act, as_json: JsonFlag = False
) -> None:
    """Let something be done to an attached fleet, each thing on its own. Until then it is only observed.

    route: send requests through `phaseline serve`; flip, resize, drain: change roles, pools, single workers.
    """
    with connect() as client:
        infos = [client.allow(name, each) for each in capabilities]
    print_json(infos[-1]) if as_json else say(f"{name}: {may_words(infos[-1])}")


def forbid(
    name: Annotated[str, typer.Argument(help="Which attached fleet.")], capabilities: Act, as_json: JsonFlag = False
) -> None:
    """Take back what `allow` gave. Without `route`, `serve` ends once its open requests have."""
    with connect() as client:
        infos = [client.forbid(name, each) for each in capabilities]
    print_json(infos[-1]) if as_json else say(f"{name}: {may_words(infos[-1])}")


def may_words(info: AttachedInfo) -> str:
    """ "resize (ann), flip (ann)", or that nothing is."""
    return ", ".join(f"{each.capability} ({each.who})" for each in info.allowed) or "observed only"


def detach(name: Annotated[str, typer.Argument(help="Which attached fleet.")], as_json: JsonFlag = False) -> None:
    """Stop looking at a fleet. Its history stays, and its engines do not notice.

    A `serve` in front of it ends once its open requests have.
    """
    with connect() as client:
        client.detach(name)
    print_json({"name": name, "detached": True}) if as_json else say(f"{name} is detached")


def fleets(as_json: JsonFlag = False) -> None:
    """Our own fleet and all attached ones."""
    with connect() as client:
        ids, infos = client.fleets(), client.attached()
    if as_json:
        print_json({"fleets": ids, "attached": infos})
        return
    known = {each.attachment.name: each for each in infos}
    rows = [(each, "own", "", "", "", "") for each in ids if each not in known]
    rows += [
        (name, each.attachment.kind, each.problem or "looked at", may_words(each), each.served_at, each.who)
        for name, each in sorted(known.items())
    ]
    print_table(("fleet", "kind", "state", "may", "served at", "attached by"), rows)


def _surveyed(attachment: Attachment) -> Survey:
    """From where the plane is; where none was started here, from this host."""
    try:
        with connect() as client:
            return client.survey(attachment)
    except PlaneUnreachable:
        return asyncio.run(survey(plan_of(attachment)))


def _tell(found: Survey, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        _tell_engines(found.engines)
        if found.exporters:
            _tell_gpus(found)
        for line in missing_lines(found.engines):
            say(line)
        for note in found.notes:
            say(f"- {note}")
        if found.engines:
            say(f"{found.num_reachable} of {len(found.engines)} engines answer")
    if not found.engines or found.num_reachable < len(found.engines):
        raise typer.Exit(1)


def _tell_engines(engines: tuple[EngineSurvey, ...]) -> None:
    rows = [(e.worker_id, e.role, e.version or None, e.model or None, e.num_found, e.problem) for e in engines]
    if rows:
        print_table(("worker", "role", "engine", "model", "series", "problem"), rows, right=("series",))


def _tell_gpus(found: Survey) -> None:
    """What dcgm-exporter measures, and whose GPUs those are."""
    print_table(
        ("exporter", "GPUs", "series", "problem"),
        [(each.url, each.num_gpus, each.num_found, each.problem) for each in found.exporters],
        right=("GPUs", "series"),
    )
    for engine in found.engines:
        say(f"- measured of {engine.worker_id}: {', '.join(engine.gpus) or 'nothing'}")
    for line in exporter_lines(found.exporters):
        say(line)


def exporter_lines(exporters: tuple[ExporterSurvey, ...]) -> list[str]:
    """What their pages lack, once for all that lack it."""
    return _missing_lines([(each.url, each.missing) for each in exporters])


def missing_lines(engines: tuple[EngineSurvey, ...]) -> list[str]:
    """What is not there, once for all engines that lack it."""
    return _missing_lines([(each.worker_id, each.missing) for each in engines])


def _missing_lines(named: Sequence[tuple[str, tuple[Finding, ...]]]) -> list[str]:
    lacking: dict[tuple[str, str, str], list[str]] = {}
    for name, missing in named:
        for each in missing:
            key = (f"{each.quantity}: {each.series}" if each.quantity else each.series, each.state, each.remedy)
            lacking.setdefault(key, []).append(name)
    return [
        f"- {what} is {state} on {', '.join(ids)}" + (f"; {remedy}" if remedy else "")
        for (what, state, remedy), ids in lacking.items()
    ]
