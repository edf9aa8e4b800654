"""What a worker is thought to hold between two of its messages."""

from __future__ import annotations

from control.gateway.pressure import Pressure
from control.types.routing import WorkerRoute
from control.types.workers import Role, WorkerState
from engine.types import Load

FULL, IDLE = Load(max_batch=2, num_decoding=2), Load(max_batch=2)
ROW = WorkerRoute(worker_id="w", epoch=1, address="w:1", role=Role.MIXED, state=WorkerState.READY)


def free_slots(pressure: Pressure) -> int | None:
    return pressure.view(ROW, 0, 16).num_free_slots


def asked(*req_ids: str) -> Pressure:
    """At second 10, of an idle worker."""
    pressure = Pressure(max_backlog_s=1.0)
    pressure.told(IDLE, 9.0)
    for each in req_ids:
        pressure.asked(each, 10.0, prefill_tokens=100, kv_tokens=200, num_slots=1)
    return pressure


def test_what_was_sent_is_counted_until_the_worker_has_surely_counted_it() -> None:
    pressure = asked("a", "b")
    assert free_slots(pressure) == 0
    pressure.told(IDLE, 10.01)  # on its way before they arrived
    assert free_slots(pressure) == 0
    pressure.told(FULL, 10.03)
    assert free_slots(pressure) == 0
    pressure.told(IDLE, 10.5)
    assert free_slots(pressure) == 2


def test_what_has_ended_is_counted_no_more_however_soon_that_was() -> None:
    """The worker's last message before it is idle may come within a moment of the submission, and no other follows."""
    pressure = asked("a", "b")
    pressure.ended("a")
    pressure.told(IDLE, 10.01)
    assert free_slots(pressure) == 1
    pressure.ended("b")
    view = pressure.view(ROW, 0, 16)
    assert (view.num_free_slots, view.queued_prefill_tokens, view.kv_used_tokens) == (2, 0, 0)


def test_a_request_that_is_sent_anew_is_counted_once() -> None:
    pressure = asked("a", "a")
    assert free_slots(pressure) == 1
    pressure.ended("a")
    pressure.ended("a")
    assert free_slots(pressure) == 2
