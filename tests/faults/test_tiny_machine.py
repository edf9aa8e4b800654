"""A random life of tiny real workers under gateway and plane: what always holds is checked after each step."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from control.faults.place import Place
from control.types.commands import Action, Verb
from control.types.workers import Role
from tests.faults.tiny_rig import Answers, TinyRig

pytestmark = pytest.mark.integration

WORKERS = st.sampled_from(["w0", "w1", "w2", "w3"])


class TinyFleetLife(RuleBasedStateMachine):
    """One death in an example: a request that loses two workers is taken for their killer, and ends with an error."""

    place: Place
    answers: Answers

    def __init__(self) -> None:
        super().__init__()
        self.rig = TinyRig(self.place, self.answers)
        self.may_kill = self.may_kill_plane = True

    @rule(count=st.integers(1, 8))
    def submit(self, count: int) -> None:
        self.rig.submit(count)

    @rule(count=st.integers(1, 2))
    def hang_up(self, count: int) -> None:
        self.rig.hang_up(count)

    @rule(sizes=st.sampled_from([(1, 3, 0), (2, 2, 0), (1, 2, 1), (0, 2, 2)]))
    def resize(self, sizes: tuple[int, int, int]) -> None:
        prefill, decode, mixed = sizes
        self.rig.command(Action(verb=Verb.RESIZE, prefill=prefill, decode=decode, mixed=mixed))

    @rule(worker_id=WORKERS, role=st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED]))
    def flip(self, worker_id: str, role: Role) -> None:
        self.rig.command(Action(verb=Verb.FLIP, worker_id=worker_id, role=role))

    @rule(worker_id=WORKERS)
    def drain(self, worker_id: str) -> None:
        self.rig.command(Action(verb=Verb.DRAIN, worker_id=worker_id))

    @rule(worker_id=WORKERS)
    def undrain(self, worker_id: str) -> None:
        self.rig.command(Action(verb=Verb.UNDRAIN, worker_id=worker_id))

    @rule(worker_id=WORKERS, weight=st.sampled_from([0.5, 1.0, 4.0]))
    def change_weight(self, worker_id: str, weight: float) -> None:
        self.rig.command(Action(verb=Verb.SET_ROUTING, weights={worker_id: weight}))

    @precondition(lambda self: self.may_kill)
    @rule(worker_id=WORKERS)
    def kill(self, worker_id: str) -> None:
        self.may_kill = False
        self.rig.kill(worker_id)

    @rule(worker_id=WORKERS)
    def stop(self, worker_id: str) -> None:
        self.rig.stop(worker_id)

    @rule(worker_id=WORKERS)
    def go_on(self, worker_id: str) -> None:
        self.rig.go_on(worker_id)

    @precondition(lambda self: self.may_kill_plane)
    @rule()
    def kill_plane(self) -> None:
        self.may_kill_plane = False
        self.rig.kill_plane()

    @invariant()
    def what_always_holds(self) -> None:
        self.rig.check()

    def teardown(self) -> None:
        self.rig.end()


def test_a_random_life_loses_nothing(place: Place) -> None:
    TinyFleetLife.place, TinyFleetLife.answers = place, Answers(place)
    run_state_machine_as_test(
        TinyFleetLife,
        settings=settings(
            max_examples=4,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # a real fleet does not come back the same: shrinking would tell nothing
            suppress_health_check=list(HealthCheck),
        ),
    )
