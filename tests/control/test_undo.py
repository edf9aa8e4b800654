"""Undo restores the former desired state exactly: over random sequences of commands, whoever undoes what, and when."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from control.changes import Changes, changes_between
from control.commands import plan_action
from control.facts import FleetFacts
from control.types.commands import Action, Command, Desired, Verb
from control.types.workers import Role
from tests.control.builders import command, desired, drain, facts, flip, resize

WORKERS = [f"w{index}" for index in range(5)]
START = desired(prefill=1, decode=3, mixed=1)

worker_ids = st.sampled_from(WORKERS)
sizes = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)).filter(
    lambda each: sum(each) <= len(WORKERS)
)
policies = st.dictionaries(
    st.sampled_from(["remote_share", "local_cache_ratio"]), st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1
)
weights = st.dictionaries(worker_ids, st.sampled_from([0.5, 1.0, 2.0]), min_size=1)
actions = st.one_of(
    sizes.map(lambda each: resize(prefill=each[0], decode=each[1], mixed=each[2])),
    st.builds(flip, worker_ids, st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED])),
    st.builds(drain, worker_ids),
    st.builds(lambda worker_id: Action(verb=Verb.UNDRAIN, worker_id=worker_id), worker_ids),
    st.builds(lambda policy: Action(verb=Verb.SET_ROUTING, policy=policy), policies),
    st.builds(lambda each: Action(verb=Verb.SET_ROUTING, weights=each), weights),
)
#: Sequences in running, so that who moves in a resize differs.
loads = st.dictionaries(worker_ids, st.integers(0, 3))


class Book:
    """Commands as the history keeps them, and the desired state that they led to."""

    def __init__(self) -> None:
        self.desired = START
        self.rows: list[Command] = []

    def give(self, action: Action, fleet: FleetFacts) -> Command | None:
        """None: refused, or nothing to change; then nothing is recorded."""
        target = self.rows[action.command_id - 1] if action.command_id else None
        later = self.rows[action.command_id :] if action.command_id else ()
        planned = plan_action(action, self.desired, fleet, target, later)
        if planned.refused is not None or not changes_between(self.desired, planned.desired_after):
            return None
        number = len(self.rows) + 1
        row = command(self.desired, planned.desired_after, action, command_id=number)
        if target is not None:
            self.rows[target.command_id - 1] = replace(target, undone_by=number)
        self.rows.append(row)
        self.desired = planned.desired_after
        return row

    def undo(self, number: int) -> Command | None:
        return self.give(Action(verb=Verb.UNDO, command_id=number), facts(self.desired))


def played(script: list[tuple[Action, dict[str, int]]]) -> Book:
    book = Book()
    for action, load in script:
        book.give(action, facts(book.desired, load))
    return book


def values(state: Desired) -> Desired:
    """Without the version, which only grows."""
    return replace(state, version=0)


def changes_of(row: Command) -> Changes:
    assert row.desired_before is not None
    assert row.desired_after is not None
    return changes_between(row.desired_before, row.desired_after)


scripts = st.lists(st.tuples(actions, loads), min_size=1, max_size=12)


@given(scripts)
def test_undoing_everything_backwards_passes_each_former_state_and_ends_at_the_first(
    script: list[tuple[Action, dict[str, int]]],
) -> None:
    book = played(script)
    version = book.desired.version
    for row in reversed(book.rows[:]):
        assert book.undo(row.command_id) is not None
        assert row.desired_before is not None
        assert values(book.desired) == values(row.desired_before)
        assert book.desired.version == (version := version + 1)
    assert values(book.desired) == values(START)


@given(scripts, st.data())
def test_an_undo_restores_exactly_what_its_command_changed_or_is_refused_because_it_has_changed_since(
    script: list[tuple[Action, dict[str, int]]], data: st.DataObject
) -> None:
    book = played(script)
    if not book.rows:
        return
    row = data.draw(st.sampled_from(book.rows))
    assert row.desired_before is not None
    assert row.desired_after is not None
    before, mine = book.desired, changes_of(row)
    has_moved = bool(mine.differing(before, row.desired_after))
    undone = book.undo(row.command_id)
    if has_moved:
        assert undone is None
        assert book.desired is before
    elif undone is not None:  # None here: what it restores could not serve any more after the later ones
        assert not mine.differing(book.desired, row.desired_before)
        assert changes_between(before, book.desired) == mine


@given(scripts)
def test_an_undo_can_be_undone_and_is_then_as_if_neither_had_been(script: list[tuple[Action, dict[str, int]]]) -> None:
    book = played(script)
    if not book.rows:
        return
    state = book.desired
    undone = book.undo(len(book.rows))
    assert undone is not None
    assert book.undo(undone.command_id) is not None
    assert values(book.desired) == values(state)


@given(scripts)
def test_nothing_is_undone_twice(script: list[tuple[Action, dict[str, int]]]) -> None:
    book = played(script)
    if book.rows:
        number = len(book.rows)
        assert book.undo(number) is not None
        assert book.undo(number) is None
