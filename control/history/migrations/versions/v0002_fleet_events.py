"""What happened to workers, and to the requests that left them; which requests those were.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "fleet_events",
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("t", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("fleet_id", "t", "kind", "worker_id", "epoch"),
        sqlite_with_rowid=False,
    )
    op.create_index("fleet_events_by_worker", "fleet_events", ["fleet_id", "worker_id", "t"], unique=False)
    op.add_column("request_records", sa.Column("num_moves", sa.Integer(), nullable=False, server_default="0"))
    op.create_index(
        "request_records_moved",
        "request_records",
        ["fleet_id", "arrival_unix_s"],
        sqlite_where=sa.text("num_moves > 0"),
        postgresql_where=sa.text("num_moves > 0"),
    )
