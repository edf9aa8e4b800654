"""What a client does in a crash run, once for each verb, and what must be true whatever happened to the planes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from control.types.commands import Action, Command, CommandRequest, CommandState, Verb
from control.types.workers import Role
from tests.control.crash_rig import CrashRig

CALM_TICKS = 8  # of traffic before and after the commands


def _asked(action: Action, key: str) -> CommandRequest:
    return CommandRequest(action=action, idempotency_key=key, confirmation="decode")


RESIZE = _asked(Action(verb=Verb.RESIZE, prefill=2, decode=2), "resize")
FLIP = _asked(Action(verb=Verb.FLIP, worker_id="w3", role=Role.MIXED), "flip")
DRAIN = _asked(Action(verb=Verb.DRAIN, worker_id="w3"), "drain")
UNDRAIN = _asked(Action(verb=Verb.UNDRAIN, worker_id="w3"), "undrain")
ROUTE = _asked(Action(verb=Verb.SET_ROUTING, policy={"remote_share": 0.5}, weights={"w2": 0.5}), "route")
#: The commands of one run, in order; None stands for the undo of the one before.
SCRIPTS: Mapping[Verb, tuple[CommandRequest | None, ...]] = {
    Verb.RESIZE: (RESIZE,),
    Verb.FLIP: (FLIP,),
    Verb.DRAIN: (DRAIN,),
    Verb.UNDRAIN: (DRAIN, UNDRAIN),
    Verb.SET_ROUTING: (ROUTE,),
    Verb.UNDO: (FLIP, None),
}


async def run(rig: CrashRig, verb: Verb) -> list[Command]:
    """First start, workers placed, traffic, the commands of this verb, each to its end."""
    given: list[Command] = []
    await rig.until(rig.is_settled, "the workers are placed")
    for _ in range(CALM_TICKS):
        await rig.tick()
    for request in SCRIPTS[verb]:
        if request is None:
            request = _asked(Action(verb=Verb.UNDO, command_id=given[-1].command_id), "undo")
        command = await rig.submit(request)
        given.append(command)
        await rig.until(lambda command=command: rig.ended(command), f"command {command.command_id} ends")  # type: ignore[misc]
    for _ in range(CALM_TICKS):
        await rig.tick()
    return given


async def settle(rig: CrashRig) -> int:
    """Let a paused plane go on until it has found out; ticks until the newest plane's fleet is as desired."""
    if rig.first.points.is_paused:
        rig.first.points.go_on.set()
    if rig.first.points.in_trouble:
        await rig.until(lambda: bool(rig.first.ended), "the first plane finds out that another one is active")
    took = await rig.until(rig.is_settled, "the fleet is as desired")
    lease = rig.newest.lease
    assert lease is not None
    await rig.until(lambda: rig.fleet.fences == {lease.fence}, "every worker obeys the newest plane")
    return took


def check(rig: CrashRig, given: list[Command], undisturbed: CrashRig, what: str) -> None:
    """Each command ended well and once, with the effects of an undisturbed run and no others; no request failed."""
    found = rig.commands()
    assert [each.command_id for each in found] == [each.command_id for each in given], what
    assert {each.state for each in found} == {CommandState.DONE}, (what, [(each.state, each.result) for each in found])
    for each in found:
        assert len(set(each.steps)) == len(each.steps), (what, each.steps)
    plane = rig.newest.plane
    assert plane is not None, what
    assert plane.desired == rig.read(lambda history: history.load_desired("local")), what
    by_role = {role: sorted(plane.desired.roles.values()).count(role) for role in Role}
    other = undisturbed.newest.plane
    assert other is not None
    assert by_role == {role: sorted(other.desired.roles.values()).count(role) for role in Role}, what
    assert replace(plane.desired, roles={}) == replace(other.desired, roles={}), what
    assert sorted(rig.fleet.effects.values()) == sorted(undisturbed.fleet.effects.values()), (what, rig.fleet.effects)
    assert rig.fleet.num_workers == undisturbed.fleet.num_workers, what
    assert rig.fleet.records, what
    assert all(record.status == 200 for record in rig.fleet.records), what


def points_to_try(reached: list[str]) -> list[int]:
    """Every point of start, lease and command; of the many equal ones of idle ticks those of a few."""
    idle = ("write_tick", "observe", "renew_lease")
    ticks = [n for n, point in enumerate(reached) if point.startswith(idle)]
    middle = len(ticks) // 2
    skipped = set(ticks[7:]) - set(ticks[middle : middle + 7]) - set(ticks[-7:])
    return [number for number in range(len(reached)) if number not in skipped]
