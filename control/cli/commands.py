"""`status` and the verbs that change something: each submits one command through the control API.

Decided here: how an action is written on the command line. Not here: whether it is allowed and what it does (the
plane). `--dry-run` prints the preview, which holds the very steps that the plane will take; `--wait` waits for the end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from control.cli.estimates import estimate_lines
from control.cli.history import parse_duration
from control.cli.shell import Exit, JsonFlag, connect, percent, plain, print_json, print_table, say
from control.client import ENDED, PhaselineClient
from control.components import PLANE, kind_of
from control.deployment import read_state
from control.errors import CommandRefused, ControlError, SettingsError
from control.fleets.attached.types import AttachedInfo
from control.served import read_served
from control.settings import load_settings
from control.stories import departure_words
from control.types.commands import Action, Command, CommandRequest, CommandState, Preview, Verb
from control.types.fleet import FleetSnapshot, PlaneStatus
from control.types.workers import Role, WorkerStatus

WhyOption = Annotated[str, typer.Option("--why", help="Why, for the record.")]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Return when the command has ended.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds that --wait waits.", min=0.0)]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Print what would happen; change nothing.")]
ConfirmOption = Annotated[str, typer.Option("--confirm", help="The word that the preview asks for.")]
KeyOption = Annotated[str, typer.Option("--idempotency-key", help="The same key is carried out once.")]

#: Between two looks of --wait at its command.
FOLLOW_S = 0.2

route_app = typer.Typer(no_args_is_help=True)


def status(as_json: JsonFlag = False) -> None:
    """The fleet now: health, pools, each worker."""
    with connect() as client:
        snapshot = client.snapshot()
        infos = attached_fleets(client)
    served = served_of(infos, snapshot.fleet_id)
    if as_json:
        print_json(plain(snapshot) | {"served": [served_row(each) for each in served]})
        return
    _show_head(snapshot)
    if snapshot.kind == "none":
        say(attached_line(infos))
    for each in served:
        say(served_line(each))
    if snapshot.plane is not None:
        say(plane_line(snapshot.plane, standbys(snapshot.plane)))
    columns = ("worker", "role", "state", "pid", "host", "device", "KV", "running", "waiting", "restarts", "reason")
    rows = [_worker_row(each) for each in snapshot.workers]
    print_table(columns, rows, right=("pid", "KV", "running", "waiting", "restarts"))
    for line in estimate_lines(snapshot.workers):
        say(line)


def _show_head(snapshot: FleetSnapshot) -> None:
    mark = " (simulated)" if snapshot.simulated else ""
    who = ", ".join(filter(None, (snapshot.fleet_id, snapshot.model_id)))
    say(f"fleet {who}{mark}: {snapshot.health}: {snapshot.health_text}")
    known = [each for each in snapshot.pools if each.num_desired is not None]
    pools = ", ".join(f"{each.role} {each.num_ready} of {each.num_desired}" for each in known)
    none = "not known" if snapshot.pools else "none"
    say(f"pools: {pools or none}; version {snapshot.desired.version}, seen {snapshot.stale_s:.1f} s ago")
    for notice in snapshot.notices:
        say(f"note: {notice}")


def attached_fleets(client: PhaselineClient) -> list[AttachedInfo]:
    """None while the plane begins, or where it is of a version that has none."""
    try:
        return list(client.attached())
    except ControlError:
        return []


def attached_line(infos: Sequence[AttachedInfo]) -> str:
    """For whoever looks at a plane without workers of its own."""
    names = ", ".join(sorted(each.attachment.name for each in infos))
    return f"attached: {names}; `phaseline --fleet NAME status`" if names else "nothing is attached: `phaseline attach`"


def served_of(infos: Sequence[AttachedInfo], fleet_id: str) -> list[AttachedInfo]:
    """Attached fleets that our gateway serves: this one, or all of them where it is the plane's own."""
    own = [each for each in infos if each.attachment.name == fleet_id]
    return [each for each in own or infos if each.served_by is not None]


def served_row(info: AttachedInfo) -> dict[str, object]:
    return {"fleet": info.attachment.name, "url": info.served_at, "pid": info.served_by}


def served_line(info: AttachedInfo) -> str:
    """ "fleet prod is served at http://127.0.0.1:8010/v1 (pid 17, kept by the supervisor)"."""
    name = info.attachment.name
    kept = "kept by the supervisor" if read_served(load_settings().run_dir, name) else "until its Ctrl-C"
    return f"fleet {name} is served at {info.served_at}/v1 (pid {info.served_by}, {kept})"


def standbys(active: PlaneStatus) -> list[int]:
    """Pids of the planes that this machine's supervisor runs beside the active one."""
    state = read_state(load_settings().run_dir)
    planes = [each for each in (state.components if state else {}).values() if kind_of(each.name) == PLANE]
    return [each.root.pid for each in planes if each.root and each.root.is_alive and each.root.pid != active.pid]


def plane_line(active: PlaneStatus, standing_by: list[int]) -> str:
    """Which plane acts, and which would take over."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(active.since_unix_s))
    others = ", ".join(f"pid {pid}" for pid in standing_by) or "none on this machine"
    return f"plane: pid {active.pid} on {active.hostname}, fence {active.fence}, since {since}; standing by: {others}"


def _worker_row(worker: WorkerStatus) -> tuple[object, ...]:
    wanted = "" if worker.desired_role == worker.role else f" (wanted {worker.desired_role})"
    return (
        worker.worker_id,
        f"{worker.role}{wanted}",
        worker.state,
        worker.pid or None,
        worker.hostname,
        worker.device + (" (simulated)" if worker.simulated else ""),
        percent(worker.kv_usage),
        worker.num_running,
        worker.num_waiting,
        worker.num_restarts,
        worker.reason or worker.last_restart_reason,
    )


def resize(
    prefill: Annotated[int | None, typer.Option(help="Prefill workers.", min=0)] = None,
    decode: Annotated[int | None, typer.Option(help="Decode workers.", min=0)] = None,
    mixed: Annotated[int | None, typer.Option(help="Mixed workers.", min=0)] = None,
    why: WhyOption = "",
    wait: WaitFlag = False,
    timeout: TimeoutOption = 120.0,
    dry_run: DryRunFlag = False,
    confirm: ConfirmOption = "",
    idempotency_key: KeyOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Set the sizes of the pools; workers that change role keep their model."""
    if prefill is None and decode is None and mixed is None:
        raise SettingsError("resize needs at least one of --prefill, --decode, --mixed")
    action = Action(verb=Verb.RESIZE, prefill=prefill, decode=decode, mixed=mixed)
    _give(action, why, wait, timeout, dry_run, confirm, idempotency_key, as_json)


def flip(
    worker: Annotated[str, typer.Argument(help="Worker id, such as w3.")],
    role: Annotated[str, typer.Argument(help="prefill, decode or mixed.")],
    why: WhyOption = "",
    wait: WaitFlag = False,
    timeout: TimeoutOption = 120.0,
    dry_run: DryRunFlag = False,
    confirm: ConfirmOption = "",
    idempotency_key: KeyOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Change one worker's role, without reloading its model."""
    roles = [each.value for each in (Role.PREFILL, Role.DECODE, Role.MIXED)]
    if role not in roles:
        raise SettingsError(f"role {role!r} is not one of {', '.join(roles)}", field="role", value=role)
    action = Action(verb=Verb.FLIP, worker_id=worker, role=Role(role))
    _give(action, why, wait, timeout, dry_run, confirm, idempotency_key, as_json)


def drain(
    worker: Annotated[str, typer.Argument(help="Worker id, such as w3.")],
    why: WhyOption = "",
    wait: WaitFlag = False,
    timeout: TimeoutOption = 120.0,
    dry_run: DryRunFlag = False,
    confirm: ConfirmOption = "",
    idempotency_key: KeyOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Admit nothing new on one worker; what runs there finishes."""
    action = Action(verb=Verb.DRAIN, worker_id=worker)
    _give(action, why, wait, timeout, dry_run, confirm, idempotency_key, as_json)


def undrain(
    worker: Annotated[str, typer.Argument(help="Worker id, such as w3.")],
    why: WhyOption = "",
    wait: WaitFlag = False,
    timeout: TimeoutOption = 120.0,
    dry_run: DryRunFlag = False,
    idempotency_key: KeyOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Admit work on a drained worker again."""
    action = Action(verb=Verb.UNDRAIN, worker_id=worker)
    _give(action, why, wait, timeout, dry_run, "", idempotency_key, as_json)


def undo(
    command_id: Annotated[int, typer.Argument(help="Id of the command, from `phaseline commands`.")],
    why: WhyOption = "",
    wait: WaitFlag = False,
    timeout: TimeoutOption = 120.0,
    dry_run: DryRunFlag = False,
    confirm: ConfirmOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Go back to what was desired before a command."""
    action = Action(verb=Verb.UNDO, command_id=command_id)
    _give(action, why, wait, timeout, dry_run, confirm, "", as_json)


@route_app.command("show")
def route_show(as_json: JsonFlag = False) -> None:
    """The live routing settings and weights."""
    with connect() as client:
        desired = client.desired()
    if as_json:
        print_json({"version": desired.version, "policy": desired.policy, "weights": desired.weights})
        return
    print_table(("setting", "value"), list(plain(desired.policy).items()), right=("value",))
    named = ", ".join(f"{worker} {weight:g}" for worker, weight in sorted(desired.weights.items()))
    say(f"weights: {named or 'all 1'}; version {desired.version}")


@route_app.command("set")
def route_set(
    changes: Annotated[list[str], typer.Argument(help="KEY=VALUE, such as remote_share=0.5 or weight.w1=0.")],
    why: WhyOption = "",
    wait: WaitFlag = False,
    timeout: TimeoutOption = 120.0,
    dry_run: DryRunFlag = False,
    confirm: ConfirmOption = "",
    idempotency_key: KeyOption = "",
    as_json: JsonFlag = False,
) -> None:
    """Change routing settings and per-worker weights, from the next request on."""
    _give(parse_routing(changes), why, wait, timeout, dry_run, confirm, idempotency_key, as_json)


def parse_routing(changes: list[str]) -> Action:
    """KEY=VALUE pairs as one action. Raises SettingsError naming the first that is not one; bounds are the plane's."""
    policy: dict[str, float | int] = {}
    weights: dict[str, float] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise SettingsError(f"{change!r} is not KEY=VALUE", field=key or change, value=change)
        try:
            value = int(text) if text.lstrip("+-").isdecimal() else float(text)
        except ValueError:
            raise SettingsError(f"{key}: {text!r} is not a number", field=key, value=text) from None
        if key.startswith("weight."):
            weights[key.removeprefix("weight.")] = float(value)
        else:
            policy[key] = value
    return Action(verb=Verb.SET_ROUTING, policy=policy or None, weights=weights or None)


def commands(
    limit: Annotated[int, typer.Option(help="At most this many, newest first.", min=1, max=500)] = 20,
    since: Annotated[str, typer.Option(help="Only those of so long back: 30s, 15m, 1h, 7d.")] = "",
    until: Annotated[str, typer.Option(help="How far back the end is; empty is now.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """What was done, by whom and why."""
    now_unix_s = time.time()
    with connect() as client:
        listed = client.commands(
            limit,
            since_unix_s=now_unix_s - parse_duration(since, "since") if since else None,
            until_unix_s=now_unix_s - parse_duration(until, "until") if until else None,
        )
    if as_json:
        print_json(listed)
        return
    columns = ("id", "when", "who", "what", "state", "result", "why")
    print_table(columns, [_command_row(each) for each in listed], right=("id",))


def _command_row(command: Command) -> tuple[object, ...]:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(command.created_unix_s))
    undone = f" (undone by {command.undone_by})" if command.undone_by else ""
    state = f"{command.state}{undone}"
    return (command.command_id, when, command.who, describe(command.action), state, command.result, command.why)


def describe(action: Action) -> str:
    """The action as it would be typed."""
    fields = {key: value for key, value in plain(action).items() if value is not None and key != "verb"}
    named = ((key, value.items() if isinstance(value, dict) else None, value) for key, value in fields.items())
    parts = [
        " ".join(f"{name}={each}" for name, each in items) if items is not None else f"{key}={value}"
        for key, items, value in named
    ]
    return " ".join([str(action.verb), *parts])


def _give(
    action: Action,
    why: str,
    wait: bool,
    timeout_s: float,
    dry_run: bool,
    confirm: str,
    idempotency_key: str,
    as_json: bool,
) -> None:
    request = CommandRequest(action=action, why=why, idempotency_key=idempotency_key, confirmation=confirm)
    with connect() as client:
        if dry_run:
            _show_preview(client.preview(request), as_json)
            return
        command = _submit(client, request)
        if wait:
            command = _follow(client, command, timeout_s, as_json)
    if as_json:
        print_json(command)
    else:
        say(f"command {command.command_id} {command.state}" + (f": {command.result}" if command.result else ""))
    if wait:
        raise typer.Exit(_code(command))


def _submit(client: PhaselineClient, request: CommandRequest) -> Command:
    """Where the plane asks for a word, say how it is given here."""
    try:
        return client.submit(request)
    except CommandRefused as error:
        if error.field == "confirmation" and error.bound:
            raise CommandRefused(f"{error.detail} (--confirm {error.bound})", field=error.field) from None
        raise


def _show_preview(preview: Preview, as_json: bool) -> None:
    if as_json:
        print_json(preview)
    else:
        for step in preview.steps:
            say(step.text)
        if not preview.steps and not preview.refused:
            say("nothing to do")
        for warning in preview.warnings:
            say(f"warning: {warning}")
        if preview.effect:
            say(f"effect ({preview.effect_provenance}): {preview.effect}")
        if preview.needs_confirmation:
            say(f"needs --confirm {preview.needs_confirmation}")
        if preview.refused:
            say(f"would be refused: {preview.refused}")
    if preview.refused:
        raise typer.Exit(Exit.REFUSED)


def _follow(client: PhaselineClient, command: Command, timeout_s: float, as_json: bool) -> Command:
    """Wait for the end, printing the journal as it grows."""
    told, until_s, underway = 0, time.monotonic() + timeout_s, ""
    while True:
        if not as_json:
            for step in command.steps[told:]:
                say(f"  {step.text}")
            now = _underway(command)
            if now and now != underway:
                say(f"  {now}")
            told, underway = len(command.steps), now
        left_s = until_s - time.monotonic()
        if left_s <= 0 or (command.state in ENDED and not _underway(command)):
            return command
        time.sleep(min(FOLLOW_S, left_s))
        command = client.command(command.command_id)


def _underway(command: Command) -> str:
    """What leaves its workers now; just after the end, what has left them and is not counted to its end yet."""
    told = {step.worker_id for step in command.steps if step.state == "moved"}
    found = [each for each in command.departures if each.worker_id not in told]
    return "; ".join(f"{each.worker_id}: {departure_words(each)}" for each in found)


def _code(command: Command) -> Exit:
    if command.state not in ENDED:
        return Exit.TIMEOUT
    return Exit.OK if command.state == CommandState.DONE else Exit.FAILED
