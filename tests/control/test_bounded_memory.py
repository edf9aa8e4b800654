"""A plane keeps what its windows hold, however many requests, commands, workers and gateways it has seen end."""

from __future__ import annotations

from pathlib import Path

from control.gateway.link import Beat
from control.history.store import History
from control.intake import MAX_GATEWAYS, Intake
from control.points import MAX_KNOWN_LINES, Ingested, Line
from control.types.commands import Action, CommandRequest, Departure, Verb
from control.types.workers import Role, WorkerState
from tests.control.builders import FakeFleet, drain, flip, set_routing
from tests.control.containers import kept
from tests.control.records import record
from tests.control.rig import Rig

#: Longer than each window of the plane.
FILL_S = 150
#: By a bound of its own, which is tested below.
BOUNDED = "Intake._received"


async def a_second(rig: Rig, number: int) -> None:
    """Traffic, and at times a command, the end of a worker's life, or of a gateway's."""
    rig.now += 1.0
    gateway_id, spool = "g", f"g@{number // 10}"
    if number % 10 == 0:
        rig.plane.gateways.traffic.drop_gateway(gateway_id)
        rig.plane.gateways.intake.open(spool, 0)
    records = [record(request_id=f"r{number}-{each}", arrival_unix_s=rig.now - 2.0) for each in range(3)]
    rig.plane.gateways.on_records(spool, number % 10 * 3 + 1, records)
    rig.plane.gateways.traffic.beat(gateway_id, a_beat(rig.now, number))
    if number % 3 == 0:
        await command(rig, number // 3)
    if number % 4 == 0:
        new_life(rig, f"w{number // 4 % 4}")
    await rig.plane.tick()
    await rig.plane.settled()


async def command(rig: Rig, number: int) -> None:
    actions = (
        flip("w3", Role.MIXED),
        drain("w2"),
        set_routing(remote_share=0.5),
        flip("w3", Role.DECODE),
        Action(verb=Verb.UNDRAIN, worker_id="w2"),
    )
    if number % 6 < len(actions):
        await confirmed(rig, actions[number % 6], f"k{number}")
    else:
        newest = (await rig.plane.commands(1, None))[0]
        await confirmed(rig, Action(verb=Verb.UNDO, command_id=newest.command_id), f"k{number}")
        await confirmed(rig, actions[-1], f"again{number}")


async def confirmed(rig: Rig, action: Action, key: str) -> None:
    word = (await rig.plane.preview(CommandRequest(action=action))).needs_confirmation
    await rig.submit(action, idempotency_key=key, confirmation=word)


def new_life(rig: Rig, worker_id: str) -> None:
    worker = rig.fleet.workers[worker_id]
    worker.epoch += 1
    worker.role, worker.state, worker.target, worker.fence = Role.UNASSIGNED, WorkerState.UNASSIGNED, None, 0


def a_beat(now_s: float, number: int) -> Beat:
    leaves = Departure(
        worker_id=f"w{number % 4}", kind="leaves", since_unix_s=now_s, num_sequences=1, to_workers={"w1": 1}
    )
    counts = dict.fromkeys(("num_rejected", "num_failed", "num_completed", "num_cancelled", "num_records_dropped"), 0)
    return Beat(
        at_unix_s=now_s,
        num_in_flight=1,
        num_waiting_first_token=0,
        oldest_waiting_s=None,
        num_arrived=number * 3,
        by_rule={},
        cpu_s=0.0,
        table_version=1,
        departures=[leaves],
        **counts,
    )


async def test_half_as_many_lives_commands_and_requests_again_leave_no_more_behind(tmp_path: Path) -> None:
    rig = await Rig(tmp_path, fleet=FakeFleet.of(8)).start()
    sizes = []
    for begin_s in (0, FILL_S, 2 * FILL_S):
        for number in range(begin_s, begin_s + FILL_S):
            await a_second(rig, number)
        await rig.ticks(80)  # what the last commands ordered has happened, and their late word has come
        sizes.append(kept(rig.plane, but=(rig.history, rig.fleet, rig.plane.settings)))
    await rig.plane.close()
    first, last = sizes[1], sizes[2]
    grown = {name: (first[name], last[name]) for name in last if last[name] > first[name] and name != BOUNDED}
    assert not grown


def test_lives_of_gateways_are_remembered_up_to_a_bound() -> None:
    intake = Intake()
    for number in range(3 * MAX_GATEWAYS):
        intake.open(f"g@{number}", number)
        intake.add(f"g@{number}", number + 1, [record()])
        intake.committed(intake.take())
    assert len(intake._received) == MAX_GATEWAYS


def test_lines_of_lives_that_have_ended_are_forgotten_and_found_again(tmp_path: Path) -> None:
    history = History.open(f"sqlite:///{tmp_path / 'history.db'}")
    lines = [Line("worker", "w0", "m", True, epoch) for epoch in range(MAX_KNOWN_LINES + 2)]
    for tick, line in enumerate((lines[-2], lines[-1], lines[-2])):
        states = {(line, 1000 + tick): {"num_cover_s": 1.0}}
        history.write_tick(Ingested(fleet_id="f", at_unix_s=1000.0 + tick, states=states), {})
        if tick == 0:
            first = history._ticks._line_ids["f", line]
            history._ticks._line_ids |= {("f", each): 0 for each in lines[:-2]}  # as if written, one by one
    assert history._ticks._line_ids == {("f", lines[-1]): first + 1, ("f", lines[-2]): first}
    history.close()
