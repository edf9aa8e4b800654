"""Who may take the lease, as a rule on values."""

from __future__ import annotations

import os

import pytest

from control.lease import Holder, Lease, Standing, is_same_machine, judge, this_process
from tests.control.builders import NOW, holder, lease

ME = holder("me")
LEASE_S = 1.5
LONG = Standing(reachable_s=60.0)


def verdict(row: Lease | None, standing: Standing = LONG, at_s: float = 0.0, me: Holder = ME) -> tuple[bool, float]:
    found = judge(row, me, standing, LEASE_S, NOW + at_s)
    return found.may_take, pytest.approx(found.wait_s)


def test_a_fleet_that_nobody_has_had_is_taken() -> None:
    assert verdict(None, Standing(reachable_s=0.0)) == (True, 0.0)


def test_a_lease_that_runs_is_waited_for_until_its_end() -> None:
    assert verdict(lease(), at_s=0.5) == (False, 1.0)
    assert verdict(lease(), at_s=1.5) == (True, 0.0)


def test_a_holder_that_the_kernel_calls_dead_is_followed_at_once_but_only_under_the_fence_it_had() -> None:
    assert verdict(lease(fence=7), Standing(reachable_s=0.0, dead_fence=7)) == (True, 0.0)
    assert verdict(lease(fence=8), Standing(reachable_s=0.0, dead_fence=7)) == (False, 1.5)


def test_an_expired_lease_is_left_alone_until_the_database_has_answered_for_a_whole_lease() -> None:
    """The active plane could not renew it either: it gets the time to do so."""
    assert verdict(lease(), Standing(reachable_s=0.0), at_s=60.0) == (False, 1.5)
    assert verdict(lease(), Standing(reachable_s=1.4), at_s=60.0) == (False, 0.1)
    assert verdict(lease(), Standing(reachable_s=1.5), at_s=60.0) == (True, 0.0)


def test_a_released_lease_is_taken_at_once() -> None:
    assert verdict(lease(expires_unix_s=NOW), Standing(reachable_s=0.0)) == (True, 0.0)


def test_our_own_lease_is_taken_again_when_the_answer_to_its_commit_was_lost() -> None:
    assert verdict(lease(of=ME)) == (True, 0.0)


def test_pids_are_compared_only_on_one_machine() -> None:
    here = this_process("http://127.0.0.1:8080")
    assert here.pid == os.getpid()
    assert here.process.is_alive
    assert is_same_machine(here, this_process(""))
    assert not is_same_machine(here, holder(machine="another boot"))
    assert not is_same_machine(holder(machine=""), holder(machine=""))
