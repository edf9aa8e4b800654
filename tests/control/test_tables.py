from __future__ import annotations

from dataclasses import replace

from control.tables import Tables, settled_output
from control.types.workers import Role, WorkerState
from tests.control.builders import FakeFleet, desired, policy


def test_a_version_is_spent_only_on_a_change_and_drained_means_weight_zero() -> None:
    fleet, state, tables = FakeFleet.of(2), desired(1, 1, weights={"w0": 0.5}), Tables(fence=3)
    first = tables.update(fleet, fleet.routes(), state, 100)
    assert first is not None
    assert (first.version, first.fence, first.num_devices) == (3 * 2**32 + 1, 3, 2)
    assert [each.weight for each in first.workers] == [0.5, 1.0]
    assert tables.update(fleet, fleet.routes(), state, 100) is None
    second = tables.update(fleet, fleet.routes(), replace(state, drained=frozenset({"w1"})), 100)
    assert second is not None
    assert second.version == first.version + 1
    assert [each.weight for each in second.workers] == [0.5, 0.0]


def test_a_restarted_plane_has_newer_tables() -> None:
    fleet, state = FakeFleet.of(2), desired(1, 1)
    old, new = Tables(fence=3), Tables(fence=4)
    for share in (0.1, 0.2, 0.3):
        old.update(fleet, fleet.routes(), replace(state, policy=policy(remote_share=share)), 100)
    first = new.update(fleet, fleet.routes(), state, 100)
    assert old.current is not None
    assert first is not None
    assert first.version > old.current.version


def test_a_worker_that_changes_its_state_makes_a_new_table() -> None:
    fleet, state, tables = FakeFleet.of(2), desired(1, 1), Tables(fence=1)
    tables.update(fleet, fleet.routes(), state, 100)
    fleet.workers["w0"].role, fleet.workers["w0"].state = Role.PREFILL, WorkerState.READY
    assert tables.update(fleet, fleet.routes(), state, 100) is not None


def test_expected_output_moves_in_steps() -> None:
    assert settled_output(None, 50) == 50
    assert settled_output(100, 115) == 100
    assert settled_output(100, 130) == 130
