"""Commands, their journal, desired states and fences: what must be durable before anything acts.

Decided here: a command and the desired state it makes are one write; a desired version exists once, so of two commands
based on the same version one gets StaleVersion; an idempotency key of one principal stands for one command.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, func, select, update

from control.errors import NotFound, StaleVersion
from control.history import schema
from control.history.points import upsert
from control.types.commands import Action, Command, CommandState, CommandStep, Desired

_ENDED = (CommandState.DONE, CommandState.FAILED, CommandState.SUPERSEDED)
_desired = TypeAdapter(Desired)
_action = TypeAdapter(Action)
_table = schema.commands
_steps = schema.command_steps


def desired_version(connection: Connection, fleet_id: str) -> int:
    """Newest version; 0 when there is none."""
    states = schema.desired_states.c
    return connection.execute(select(func.max(states.version)).where(states.fleet_id == fleet_id)).scalar() or 0


def load_desired(connection: Connection, fleet_id: str) -> Desired | None:
    states = schema.desired_states.c
    blob = connection.execute(
        select(states.desired).where(states.fleet_id == fleet_id).order_by(states.version.desc()).limit(1)
    ).scalar()
    return None if blob is None else _desired.validate_json(blob)


def desired_at(connection: Connection, fleet_id: str, version: int) -> Desired | None:
    """Every version is kept."""
    states = schema.desired_states.c
    blob = connection.execute(
        select(states.desired).where(states.fleet_id == fleet_id, states.version == version)
    ).scalar()
    return None if blob is None else _desired.validate_json(blob)


def record_command(connection: Connection, draft: Command) -> Command:
    """Write a command and its desired state; returns it with its number. A key seen before returns that command."""
    earlier = find_by_idempotency(connection, draft.idempotency_key, draft.who)
    if earlier is not None:
        return earlier
    current = desired_version(connection, draft.fleet_id)
    changes = draft.desired_after is not None and draft.version_after != draft.base_version
    if draft.base_version != current or (changes and draft.version_after <= current):
        raise StaleVersion(
            f"desired state is at version {current}, this command was based on {draft.base_version}",
            field="base_version",
            value=draft.base_version,
            bound=str(current),
        )
    command_id = _insert_command(connection, draft)
    for num, step in enumerate(draft.steps):
        _add_step(connection, command_id, num, step)
    if changes:
        connection.execute(
            schema.desired_states.insert(),
            {
                "fleet_id": draft.fleet_id,
                "version": draft.version_after,
                "at_unix_s": draft.created_unix_s,
                "command_id": command_id,
                "desired": _desired.dump_json(draft.desired_after),  # type: ignore[arg-type]
            },
        )
    if draft.undo_of is not None:
        undone = _table.c.command_id == draft.undo_of
        connection.execute(update(_table).where(undone).values(undone_by=command_id))
    found = command(connection, command_id)
    assert found is not None
    return found


def _insert_command(connection: Connection, draft: Command) -> int:
    values = {
        "fleet_id": draft.fleet_id,
        "action": _action.dump_json(draft.action),
        "state": draft.state.value,
        "who": draft.who,
        "why": draft.why,
        "idempotency_key": draft.idempotency_key or None,
        "base_version": draft.base_version,
        "version_after": draft.version_after,
        "created_unix_s": draft.created_unix_s,
        "updated_unix_s": draft.updated_unix_s,
        "result": draft.result,
        "desired_before": _desired.dump_json(draft.desired_before) if draft.desired_before else None,
        "desired_after": _desired.dump_json(draft.desired_after) if draft.desired_after else None,
        "undo_of": draft.undo_of,
    }
    return int(connection.execute(_table.insert().returning(_table.c.command_id), values).scalar_one())


def _add_step(connection: Connection, command_id: int, num: int, step: CommandStep) -> None:
    values = {
        "command_id": command_id,
        "num": num,
        "at_unix_s": step.at_unix_s,
        "text": step.text,
        "worker_id": step.worker_id,
        "state": step.state,
    }
    connection.execute(_steps.insert(), values)


def update_command(
    connection: Connection,
    command_id: int,
    state: CommandState,
    step: CommandStep | None,
    result: str,
    *,
    is_late: bool = False,
) -> None:
    """A new state, one more line in its journal, its result ("" leaves the result). Raises NotFound.

    `is_late`: it waited in a spool. Then it adds its line, but moves nothing back that has gone on since.
    """
    row = connection.execute(
        select(_table.c.state, _table.c.updated_unix_s).where(_table.c.command_id == command_id)
    ).first()
    if row is None:
        raise NotFound(f"no command {command_id}", field="command_id", value=command_id)
    if step is not None:
        _add_step_once(connection, command_id, step)
    is_past = CommandState(row.state) in _ENDED or (step is not None and step.at_unix_s < row.updated_unix_s)
    if is_late and is_past:
        return
    values: dict[str, Any] = {"state": state.value}
    if step is not None and step.state != "moved":  # told after the end, it does not move the end
        values["updated_unix_s"] = step.at_unix_s
    if result:
        values["result"] = result
    connection.execute(update(_table).where(_table.c.command_id == command_id).values(**values))


def _add_step_once(connection: Connection, command_id: int, step: CommandStep) -> None:
    """The next line, unless it is there: the answer to its commit was lost, or it was spooled meanwhile."""
    of_command = select(_steps).where(_steps.c.command_id == command_id).order_by(_steps.c.num.desc())
    rows = connection.execute(of_command).all()
    if all(_step(row) != step for row in rows):
        _add_step(connection, command_id, rows[0].num + 1 if rows else 0, step)


def find_by_idempotency(connection: Connection, key: str, who: str) -> Command | None:
    if not key:
        return None
    where = (_table.c.idempotency_key == key, _table.c.who == who)
    found = connection.execute(select(_table.c.command_id).where(*where)).scalar()
    return None if found is None else command(connection, found)


def command(connection: Connection, command_id: int) -> Command | None:
    found = _commands(connection, select(_table).where(_table.c.command_id == command_id))
    return found[0] if found else None


def commands(
    connection: Connection,
    fleet_id: str,
    limit: int,
    before_id: int | None,
    states: tuple[CommandState, ...] = (),
    since_unix_s: float | None = None,
    until_unix_s: float | None = None,
) -> list[Command]:
    """Newest first, of numbers below `before_id`, recorded in [since, until)."""
    wanted = select(_table).where(_table.c.fleet_id == fleet_id).order_by(_table.c.command_id.desc()).limit(limit)
    if before_id is not None:
        wanted = wanted.where(_table.c.command_id < before_id)
    if states:
        wanted = wanted.where(_table.c.state.in_([state.value for state in states]))
    if since_unix_s is not None:
        wanted = wanted.where(_table.c.created_unix_s >= since_unix_s)
    if until_unix_s is not None:
        wanted = wanted.where(_table.c.created_unix_s < until_unix_s)
    return _commands(connection, wanted)


def unfinished_commands(connection: Connection, fleet_id: str) -> list[Command]:
    """Oldest first."""
    ended = [state.value for state in _ENDED]
    wanted = select(_table).where(_table.c.fleet_id == fleet_id, _table.c.state.not_in(ended))
    return _commands(connection, wanted.order_by(_table.c.command_id))


def _commands(connection: Connection, wanted: Any) -> list[Command]:
    rows = connection.execute(wanted).all()
    journals: dict[int, list[CommandStep]] = {row.command_id: [] for row in rows}
    steps = select(_steps).where(_steps.c.command_id.in_(journals)).order_by(_steps.c.command_id, _steps.c.num)
    for row in connection.execute(steps) if rows else ():
        journals[row.command_id].append(_step(row))
    return [_command(row, tuple(journals[row.command_id])) for row in rows]


def _step(row: Row[Any]) -> CommandStep:
    return CommandStep(at_unix_s=row.at_unix_s, text=row.text, worker_id=row.worker_id, state=row.state)


def _command(row: Row[Any], steps: tuple[CommandStep, ...]) -> Command:
    return Command(
        command_id=row.command_id,
        fleet_id=row.fleet_id,
        action=_action.validate_json(row.action),
        state=CommandState(row.state),
        who=row.who,
        why=row.why,
        idempotency_key=row.idempotency_key or "",
        base_version=row.base_version,
        version_after=row.version_after,
        created_unix_s=row.created_unix_s,
        updated_unix_s=row.updated_unix_s,
        steps=steps,
        result=row.result,
        desired_before=None if row.desired_before is None else _desired.validate_json(row.desired_before),
        desired_after=None if row.desired_after is None else _desired.validate_json(row.desired_after),
        undo_of=row.undo_of,
        undone_by=row.undone_by,
    )


def next_fence(connection: Connection, fleet_id: str) -> int:
    """A number larger than any before, for this fleet."""
    statement = upsert(connection, schema.fences)
    statement = statement.on_conflict_do_update(
        index_elements=["fleet_id"], set_={"fence": schema.fences.c.fence + 1}
    ).returning(schema.fences.c.fence)
    return int(connection.execute(statement, {"fleet_id": fleet_id, "fence": 1}).scalar_one())
