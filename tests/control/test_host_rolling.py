"""Which commands empty a worker host and fill it again, and who stands in meanwhile."""

from __future__ import annotations

import pytest
from builders import worker_status

from control.host_rolling import outdated_hosts, plan_host
from control.types.commands import Action, Verb
from control.types.workers import Role, WorkerStatus


def fleet(**roles: str) -> list[WorkerStatus]:
    """Ready workers by id, each in a process of its own."""
    return [
        worker_status(worker_id, role=Role(role), pid=at, is_outdated=True)
        for at, (worker_id, role) in enumerate(roles.items(), start=100)
    ]


def words(actions: tuple[Action, ...]) -> list[str]:
    return [" ".join(str(part) for part in (each.verb, each.worker_id, each.role) if part) for each in actions]


def test_a_worker_with_company_is_drained_and_undrained() -> None:
    plan = plan_host(("w1",), fleet(w0="prefill", w1="decode", w2="decode"))
    assert words(plan.before) == ["drain w1"]
    assert words(plan.after) == ["undrain w1"]


def test_for_the_last_worker_of_a_role_another_one_turns_mixed_first_and_back_at_the_end() -> None:
    plan = plan_host(("w0",), fleet(w0="prefill", w1="decode", w2="decode"))
    assert words(plan.before) == ["flip w2 mixed", "flip w0 mixed", "drain w0"]
    assert words(plan.after) == ["undrain w0", "flip w0 prefill", "flip w2 decode"]


def test_a_mixed_worker_elsewhere_stands_in_as_it_is() -> None:
    plan = plan_host(("w0",), fleet(w0="prefill", w1="mixed"))
    assert words(plan.before) == ["flip w0 mixed", "drain w0"]


def test_the_last_mixed_worker_may_go_where_both_of_its_phases_are_served() -> None:
    plan = plan_host(("w2",), fleet(w0="prefill", w1="decode", w2="mixed"))
    assert words(plan.before) == ["drain w2"]


def test_a_host_with_every_worker_cannot_be_emptied() -> None:
    plan = plan_host(("w0", "w1"), fleet(w0="prefill", w1="decode"))
    assert plan.refused == "no other process has a worker that could serve while w0, w1 are away"
    assert (plan.before, plan.after) == ((), ())


def test_workers_that_are_drained_already_stay_so() -> None:
    workers = [*fleet(w0="prefill", w1="decode"), worker_status("w2", role=Role.DECODE, drained=True, pid=9)]
    plan = plan_host(("w2",), workers)
    assert (plan.before, plan.after, plan.refused) == ((), (), "")


@pytest.mark.parametrize("roles", [("prefill", "decode"), ("decode", "prefill"), ("mixed", "mixed")])
def test_every_role_is_back_at_the_end(roles: tuple[str, str]) -> None:
    workers = fleet(w0=roles[0], w1=roles[1])
    plan = plan_host(("w0",), workers)
    now = {each.worker_id: each.desired_role for each in workers}
    for action in (*plan.before, *plan.after):
        if action.verb == Verb.FLIP:
            assert action.worker_id is not None
            assert action.role is not None
            now[action.worker_id] = action.role
    assert now == {each.worker_id: each.desired_role for each in workers}


def test_hosts_are_processes_of_other_code_in_id_order() -> None:
    workers = [worker_status(f"w{n}", pid=100 + n // 2, is_outdated=n < 4) for n in (3, 1, 0, 2, 5, 4)]
    assert outdated_hosts(workers) == [("w0", "w1"), ("w2", "w3")]
