"""A random life of a simulated fleet under a plane: what always holds (DESIGN section 8) is checked after each step."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from control.types.commands import Action, Verb
from control.types.workers import Role
from tests.faults.sim_rig import NUM_WORKERS, SimRig

WORKERS = st.sampled_from([f"w{index}" for index in range(NUM_WORKERS)])
POOL_ROLES = st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED])
SIZES = st.integers(0, NUM_WORKERS)


class SimFleetLife(RuleBasedStateMachine):
    """Each rule is one thing that clients, operators or the world may do at any time."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="phaseline-sim-")
        self.rig = SimRig(Path(self._folder.name))
        self.requests: list[str] = []
        self.commands: list[int] = []

    # --- clients

    @rule(prompt=st.sampled_from([1, 15, 200, 3000]), output=st.integers(1, 60), count=st.integers(1, 12))
    def submit(self, prompt: int, output: int, count: int) -> None:
        self.requests += [self.rig.submit(prompt, output) for _ in range(count)]

    @rule(which=st.integers(0, 10**6))
    def hang_up(self, which: int) -> None:
        if self.requests:
            self.rig.fleet.cancel(self.requests[which % len(self.requests)])

    # --- operators

    def _command(self, action: Action) -> None:
        command = self.rig.command(action, self.rig.word_for(action))
        if command is not None:
            self.commands.append(command.command_id)

    @rule(prefill=SIZES, decode=SIZES, mixed=st.integers(0, 2))
    def resize(self, prefill: int, decode: int, mixed: int) -> None:
        self._command(Action(verb=Verb.RESIZE, prefill=prefill, decode=decode, mixed=mixed))

    @rule(worker_id=WORKERS, role=POOL_ROLES)
    def flip(self, worker_id: str, role: Role) -> None:
        self._command(Action(verb=Verb.FLIP, worker_id=worker_id, role=role))

    @rule(worker_id=WORKERS)
    def drain(self, worker_id: str) -> None:
        self._command(Action(verb=Verb.DRAIN, worker_id=worker_id))

    @rule(worker_id=WORKERS)
    def undrain(self, worker_id: str) -> None:
        self._command(Action(verb=Verb.UNDRAIN, worker_id=worker_id))

    @rule(worker_id=WORKERS, weight=st.sampled_from([0.0, 0.5, 1.0, 4.0]))
    def change_weight(self, worker_id: str, weight: float) -> None:
        self._command(Action(verb=Verb.SET_ROUTING, weights={worker_id: weight}))

    @rule(share=st.sampled_from([0.0, 0.5, 1.0]))
    def change_policy(self, share: float) -> None:
        self._command(Action(verb=Verb.SET_ROUTING, policy={"remote_share": share}))

    @rule(which=st.integers(0, 10**6))
    def undo(self, which: int) -> None:
        if self.commands:
            self._command(Action(verb=Verb.UNDO, command_id=self.commands[which % len(self.commands)]))

    # --- the world

    @rule(worker_id=WORKERS)
    def kill(self, worker_id: str) -> None:
        self.rig.fleet.kill(worker_id)

    @rule(worker_id=WORKERS)
    def stop(self, worker_id: str) -> None:
        self.rig.fleet.stop_worker(worker_id)

    @rule(worker_id=WORKERS)
    def go_on(self, worker_id: str) -> None:
        self.rig.fleet.go_on(worker_id)

    @rule()
    def restart_plane(self) -> None:
        self.rig.bury_plane()
        self.rig.start_plane()

    @rule(count=st.integers(1, 6))
    def pass_time(self, count: int) -> None:
        self.rig.ticks(count)

    @invariant()
    def what_always_holds(self) -> None:
        self.rig.check()

    def teardown(self) -> None:
        try:
            self.rig.end()
        finally:
            self.rig.close()
            self._folder.cleanup()


SimFleetLife.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestSimFleetLife = SimFleetLife.TestCase
