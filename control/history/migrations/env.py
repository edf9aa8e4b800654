"""Alembic's entry: migrations run on the connection, and in the transaction, that `control.history.database` opened."""

from __future__ import annotations

from alembic import context

from control.history.schema import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("migrations run when the history is opened (phaseline up), not through the alembic command")

context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
