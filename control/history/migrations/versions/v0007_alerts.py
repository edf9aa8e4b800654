"""Alerts: one row each, the newest of its states.

Revision ID: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "alerts",
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("alert_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("since_unix_s", sa.Double(), nullable=False),
        sa.Column("resolved_unix_s", sa.Double()),
        sa.Column("is_untold", sa.Boolean(), nullable=False),
        sa.Column("alert", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("fleet_id", "alert_id"),
    )
    op.create_index("alerts_by_end", "alerts", ["fleet_id", "resolved_unix_s"])
    op.create_index("alerts_by_state", "alerts", ["fleet_id", "state"])
