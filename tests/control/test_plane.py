from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from control.adoption import adopt
from control.errors import CommandRefused, ControlError, FleetError, HistoryError, NotFound, StaleVersion
from control.fleets.base import StepOutcome
from control.gateway import link
from control.reconcile import REPEAT_S
from control.settings import Settings
from control.types.commands import Action, CommandRequest, CommandState, Departure, Verb
from control.types.workers import Role, WorkerState
from tests.control.builders import NOW, FakeFleet, drain, flip, lease, record, resize, set_routing
from tests.control.rig import BOB, Rig
from tests.control.test_gateway_hub import HELLO, FakeSocket, beat


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig(tmp_path).start()
    yield rig
    rig.history.broken = ""
    await rig.plane.close()


P, D = Role.PREFILL, Role.DECODE


async def test_a_first_start_records_desired_state_as_version_1_and_places_the_workers(rig: Rig) -> None:
    assert rig.plane.desired.version == 1
    assert rig.history.rows[1].who == "phaseline"
    assert rig.roles() == [P, D, D, D]
    assert [step.verb for step in rig.fleet.orders] == ["place"] * 4
    assert {step.fence for step in rig.fleet.orders} == {1}


async def test_a_resize_runs_through_its_life_and_the_orders_are_those_of_the_preview(rig: Rig) -> None:
    preview = await rig.plane.preview(CommandRequest(action=resize(prefill=2, decode=2)))
    rig.fleet.orders.clear()
    command = await rig.submit(resize(prefill=2, decode=2), why="morning peak")
    assert (command.state, command.who, command.why) == (CommandState.ACCEPTED, "alice", "morning peak")
    assert rig.fleet.orders == []
    await rig.ticks(2)
    assert [(o.verb, o.worker_id, o.role) for o in rig.fleet.orders] == [
        (s.verb, s.worker_id, s.role) for s in preview.steps
    ]
    assert rig.roles() == [P, P, D, D]
    done = await rig.plane.command(command.command_id)
    assert done.state == CommandState.DONE
    assert done.can_undo
    assert [step.state for step in done.steps] == ["planned", "running", "done"]
    assert rig.history.rows[command.command_id].state == CommandState.DONE


async def test_a_busy_worker_drains_first_and_is_ordered_once(rig: Rig) -> None:
    for each in rig.fleet.workers.values():
        each.num_running = 2
    rig.fleet.workers["w0"].num_running = 0
    command = await rig.submit(flip("w1", P))
    rig.fleet.orders.clear()
    await rig.ticks(3)
    assert await rig.state(command) == CommandState.RUNNING
    assert [(o.verb, o.worker_id) for o in rig.fleet.orders] == [("flip", "w1")]
    rig.fleet.finish("w1")
    await rig.ticks()
    assert await rig.state(command) == CommandState.DONE


async def test_a_worker_that_hangs_delays_neither_the_tick_nor_the_others_and_is_ordered_once(rig: Rig) -> None:
    answer = rig.fleet.workers["w1"].hangs = asyncio.Event()
    rig.fleet.orders.clear()
    await rig.submit(resize(prefill=3, decode=1), confirmation="decode")
    async with asyncio.timeout(10):
        for _ in range(3):
            rig.now += 10 * REPEAT_S
            await rig.plane.tick()
            await asyncio.sleep(0)
    assert sorted(rig.roles()) == [D, D, P, P]
    assert sorted(order.worker_id for order in rig.fleet.orders) == ["w1", "w2"]
    answer.set()
    await rig.plane.settled()
    assert sorted(rig.roles()) == [D, P, P, P]


async def test_an_undo_waits_for_the_order_under_way_whose_outcome_then_says_nothing(rig: Rig) -> None:
    worker = rig.fleet.workers["w1"]
    answer = worker.hangs = asyncio.Event()
    command = await rig.submit(flip("w1", P))
    await rig.plane.tick()
    await asyncio.sleep(0)
    undo = await rig.submit(Action(verb=Verb.UNDO, command_id=command.command_id))
    await rig.plane.tick()
    rig.fleet.orders.clear()
    answer.set()
    await rig.plane.settled()
    assert rig.fleet.orders == []
    assert worker.role == P
    await rig.ticks(2)
    assert [(o.verb, o.role) for o in rig.fleet.orders] == [("flip", D)]
    assert await rig.state(undo) == CommandState.DONE


async def test_a_refusal_of_an_order_given_before_a_command_does_not_fail_it(rig: Rig) -> None:
    worker = rig.fleet.workers["w1"]
    answer = worker.hangs = asyncio.Event()
    await rig.submit(flip("w1", P))
    await rig.plane.tick()
    await asyncio.sleep(0)
    command = await rig.submit(drain("w1"), confirmation="prefill")
    answer.set()
    worker.refuses = StepOutcome(accepted=False, detail="busy", retry_helps=False)
    await rig.plane.settled()
    worker.refuses = None
    await rig.ticks(3)
    assert await rig.state(command) == CommandState.DONE


async def test_undo_restores_and_a_second_undo_is_refused(rig: Rig) -> None:
    command = await rig.submit(resize(prefill=2, decode=2))
    await rig.ticks(2)
    undo = await rig.submit(Action(verb=Verb.UNDO, command_id=command.command_id))
    await rig.ticks(2)
    assert await rig.state(undo) == CommandState.DONE
    assert rig.roles() == [P, D, D, D]
    assert not (await rig.plane.command(command.command_id)).can_undo
    with pytest.raises(CommandRefused, match="undone by command"):
        await rig.submit(Action(verb=Verb.UNDO, command_id=command.command_id))


async def test_undo_during_a_drain_takes_the_flip_back(rig: Rig) -> None:
    rig.fleet.workers["w1"].num_running = 1
    command = await rig.submit(flip("w1", P))
    await rig.ticks(2)
    assert rig.fleet.workers["w1"].state == WorkerState.DRAINING
    await rig.submit(Action(verb=Verb.UNDO, command_id=command.command_id))
    await rig.ticks(2)
    assert await rig.state(command) == CommandState.SUPERSEDED
    assert (rig.fleet.workers["w1"].role, rig.fleet.workers["w1"].state) == (D, WorkerState.READY)


async def test_a_stale_form_is_refused_and_told_who_changed_what(rig: Rig) -> None:
    await rig.submit(set_routing(remote_share=0.5), BOB)
    with pytest.raises(StaleVersion) as stale:
        await rig.submit(resize(prefill=2, decode=2), base_version=1)
    assert "version 2, this was based on 1" in stale.value.detail
    assert "command 2 by bob" in stale.value.detail
    assert "set routing remote_share=0.5" in stale.value.detail
    preview = await rig.plane.preview(CommandRequest(action=resize(prefill=2, decode=2), base_version=1))
    assert "based on 1" in preview.refused


async def test_the_same_idempotency_key_gives_the_same_command_and_another_body_a_conflict(rig: Rig) -> None:
    first = await rig.submit(drain("w1"), idempotency_key="k", base_version=1)
    again = await rig.submit(drain("w1"), idempotency_key="k", base_version=1)
    assert again.command_id == first.command_id
    with pytest.raises(CommandRefused) as conflict:
        await rig.submit(drain("w2"), idempotency_key="k")
    assert conflict.value.status == 409
    other = await rig.submit(drain("w1"), BOB, idempotency_key="k")
    assert other.command_id != first.command_id


async def test_below_the_safety_floor_the_pool_must_be_typed(rig: Rig) -> None:
    with pytest.raises(CommandRefused) as unconfirmed:
        await rig.submit(resize(prefill=3, decode=1))
    assert (unconfirmed.value.field, unconfirmed.value.bound) == ("confirmation", "decode")
    assert (await rig.submit(resize(prefill=3, decode=1), confirmation="decode")).state == CommandState.ACCEPTED


async def test_a_refused_command_leaves_nothing_behind(rig: Rig) -> None:
    for bad, kind in ((flip("w9", P), NotFound), (resize(prefill=9), CommandRefused)):
        with pytest.raises(kind):
            await rig.submit(bad)
    assert rig.plane.desired.version == 1
    assert list(rig.history.rows) == [1]


async def test_a_worker_that_refuses_for_good_fails_the_command(rig: Rig) -> None:
    rig.fleet.workers["w1"].refuses = StepOutcome(accepted=False, detail="layout differs", retry_helps=False)
    command = await rig.submit(flip("w1", P))
    await rig.ticks(2)
    failed = await rig.plane.command(command.command_id)
    assert failed.state == CommandState.FAILED
    assert "layout differs" in failed.result


async def test_a_drain_past_its_limit_fails_and_says_what_was_left(rig: Rig) -> None:
    rig.fleet.workers["w1"].num_running = 1
    command = await rig.submit(drain("w1"))
    await rig.ticks(2)
    rig.now += 61
    await rig.ticks()
    failed = await rig.plane.command(command.command_id)
    assert failed.state == CommandState.FAILED
    assert "w1 is draining before it is decode, drained" in failed.result


async def test_a_restarted_worker_gets_its_role_back(rig: Rig) -> None:
    worker = rig.fleet.workers["w2"]
    worker.role, worker.state, worker.epoch = Role.UNASSIGNED, WorkerState.UNASSIGNED, 2
    await rig.ticks()
    assert rig.roles() == [P, D, D, D]


async def test_a_restarted_plane_adopts_the_workers_and_finishes_the_command(rig: Rig, tmp_path: Path) -> None:
    rig.fleet.workers["w1"].num_running = 1
    command = await rig.submit(flip("w1", P))
    await rig.ticks(2)
    await rig.plane.close()
    orders = len(rig.fleet.orders)
    second = await Rig(tmp_path, rig.fleet, rig.history, rig.now).start()
    assert second.plane.desired.version == 2
    given = [(o.worker_id, o.verb, o.fence) for o in rig.fleet.orders[orders:]]
    assert [each for each in given if each[0] == "w1"] == [("w1", "flip", 2), ("w1", "undrain", 2)]
    assert [each for each in given if each[0] != "w1"] == [(w, "undrain", 2) for w in ("w0", "w2", "w3")]
    rig.fleet.finish("w1")
    await second.ticks(2)
    assert await second.state(command) == CommandState.DONE
    await second.plane.close()


async def test_serving_goes_on_without_a_history_and_commands_are_refused(rig: Rig) -> None:
    rig.history.broken = "disk full"
    await rig.ticks(2)
    worker = rig.fleet.workers["w2"]
    worker.role, worker.state, worker.epoch = Role.UNASSIGNED, WorkerState.UNASSIGNED, 2
    with pytest.raises(HistoryError, match="disk full"):
        await rig.submit(drain("w1"))
    await rig.ticks()
    assert rig.roles() == [P, D, D, D]
    assert rig.plane.desired.version == 1
    notices = json.loads(rig.plane.snapshot_json())["notices"]
    assert any("disk full" in each for each in notices)
    before = rig.history.num_ticks
    rig.history.broken = ""
    await rig.ticks()
    assert rig.history.num_ticks == before + 4
    assert rig.plane.recorder.num_waiting == 0


async def test_records_are_written_once_and_acknowledged_when_durable(rig: Rig) -> None:
    socket = FakeSocket()
    socket.say(HELLO)
    serving = asyncio.create_task(rig.plane.gateways.hub.serve(socket))
    assert isinstance(await socket.sent.get(), link.TablePush)
    assert await socket.sent.get() == link.RecordsAck(up_to_seq=0)
    batch = link.Records(first_seq=1, records=[record("a"), record("b")])
    socket.say(batch)
    socket.say(batch)
    socket.say(beat(0))
    await socket.read()
    rig.history.broken = "locked"
    await rig.ticks()
    assert isinstance(await socket.sent.get(), link.TablePush)  # the expected output has moved
    assert socket.sent.empty()
    rig.history.broken = ""
    await rig.ticks()
    assert await socket.sent.get() == link.RecordsAck(up_to_seq=2)
    assert [each.request_id for each in rig.history.records.values()] == ["a", "b"]
    await rig.plane.gateways.hub.close()
    await serving


async def test_routing_waits_for_the_gateways_and_says_so(rig: Rig) -> None:
    socket = FakeSocket()
    socket.say(HELLO)
    serving = asyncio.create_task(rig.plane.gateways.hub.serve(socket))
    await socket.sent.get()
    command = await rig.submit(set_routing(remote_share=0.0))
    await rig.ticks()
    assert await rig.state(command) == CommandState.RUNNING
    pushed = await socket.sent.get()
    while not isinstance(pushed, link.TablePush):
        pushed = await socket.sent.get()
    assert pushed.table.policy.remote_share == 0.0
    socket.say(beat(pushed.table.version))
    await socket.read()
    await rig.ticks()
    done = await rig.plane.command(command.command_id)
    assert done.state == CommandState.DONE
    assert "every connected gateway (1) has the new routing table" in done.result
    await rig.plane.gateways.hub.close()
    await serving


async def test_what_left_a_worker_is_journalled_also_when_it_is_told_after_the_end(rig: Rig) -> None:
    """A beat comes once a second, and a flip may be over by then."""
    command = await rig.submit(resize(prefill=2, decode=2))
    await rig.ticks(2)
    done = await rig.plane.command(command.command_id)
    assert (done.state, done.departures) == (CommandState.DONE, ())
    moved = next(each.worker_id for each in done.steps if each.worker_id)
    left = Departure(worker_id=moved, kind="leaves", since_unix_s=command.created_unix_s, num_sequences=5, num_moved=3)
    told = replace(left, num_left=2), replace(left, num_moved=5, stall_s=0.06, is_over=True)
    for departure in told:
        said = msgspec.structs.replace(beat(1), at_unix_s=rig.now, departures=[departure])
        rig.plane.gateways.traffic.beat("g", said)
        await rig.ticks()
        now = await rig.plane.command(command.command_id)
        if not departure.is_over:
            assert [each.num_left for each in now.departures] == [2]
    assert [each.text for each in now.steps if each.state == "moved"] == [
        f"{moved}: 5 of 5 sequences moved, worst stall 60 ms"
    ]
    assert now.result.endswith("; 5 of 5 sequences moved, worst stall 60 ms")
    assert now.updated_unix_s == done.updated_unix_s
    assert rig.history.command(command.command_id).result == now.result


async def test_without_a_gateway_routing_is_done_at_once_and_says_so(rig: Rig) -> None:
    command = await rig.submit(set_routing(remote_share=0.0))
    await rig.ticks()
    done = await rig.plane.command(command.command_id)
    assert done.state == CommandState.DONE
    assert "no gateway is connected" in done.result


async def test_what_if_counts_rules_before_and_after(rig: Rig) -> None:
    rig.history.records = {("g", i): record(f"r{i}", prompt_tokens=10 * i, max_tokens=4) for i in range(1, 6)}
    found = await rig.plane.what_if({"min_remote_prefill_tokens": 31, "max_local_output_tokens": 8}, 3600.0)
    assert found.before == {"remote": 5}
    assert found.after == {"short_local": 3, "remote": 2}
    assert (found.num_changed, found.provenance) == (3, "derived")
    with pytest.raises(CommandRefused):
        await rig.plane.what_if({"nonsense": 1}, 3600.0)


async def test_the_plane_ticks_by_itself_after_a_command_and_survives_a_failed_tick(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    settings = Settings(run_dir=tmp_path, num_workers=4, tick_s=30.0)
    rig.plane = await adopt(rig.fleet, rig.history, settings, lease(), "test", lambda: rig.now)  # type: ignore[arg-type]
    events = rig.plane.events.listen()
    first = asyncio.ensure_future(anext(events))
    running = asyncio.create_task(rig.plane.run())
    await asyncio.wait_for(first, 10)
    rig.fleet.observe_error = RuntimeError("node lost")
    rig.plane.wake()
    async with asyncio.timeout(10):
        async for _ in events:
            if any("node lost" in each for each in json.loads(rig.plane.snapshot_json())["notices"]):
                break
    rig.fleet.observe_error = None
    command = await rig.submit(resize(prefill=2, decode=2))
    async with asyncio.timeout(10):
        async for event in events:
            if event.get("command_id") == command.command_id and event["state"] == "done":
                break
    await rig.plane.close()
    await running
    assert rig.fleet.closed


async def test_a_fleet_that_cannot_be_reached_is_told_and_tried_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, FakeFleet(FakeFleet.of().workers, start_error=FleetError("Ray does not answer")))
    settings = Settings(run_dir=tmp_path)
    plane = await adopt(rig.fleet, rig.history, settings, lease(), "", lambda: NOW)  # type: ignore[arg-type]
    assert not await plane._started()
    assert not plane.observed
    assert any("Ray does not answer" in each for each in json.loads(plane.snapshot_json())["notices"])
    await plane.close()


async def test_more_workers_in_the_settings_join_as_decode_workers(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).start()
    await rig.plane.close()
    grown = await Rig(tmp_path, FakeFleet.of(6), rig.history).start()
    assert grown.roles() == [P, D, D, D, D, D]
    assert grown.plane.desired.version == 2
    await grown.plane.close()


async def test_an_unknown_command_is_not_found(rig: Rig) -> None:
    with pytest.raises(ControlError):
        await rig.plane.command(77)


async def test_the_death_of_the_last_decode_worker_turns_the_prefill_workers_mixed_until_it_is_back(
    tmp_path: Path,
) -> None:
    rig = await Rig(tmp_path).start(num_prefill=3)
    *prefill, last = rig.fleet.workers.values()
    assert [each.role for each in prefill] == [Role.PREFILL] * 3
    last.alive = False
    await rig.ticks()
    assert [each.role for each in prefill] == [Role.MIXED] * 3
    assert "serve both phases for now" in " ".join(rig.plane._notices())
    assert rig.plane.desired.pool_size(Role.PREFILL) == 3
    last.alive, last.epoch, last.role, last.state = True, 2, Role.UNASSIGNED, WorkerState.UNASSIGNED
    await rig.ticks(3)
    assert [each.role for each in rig.fleet.workers.values()] == [Role.PREFILL] * 3 + [Role.DECODE]
    assert "serve both phases" not in " ".join(rig.plane._notices())
