"""Rare kinds of events are found without reading the many of other kinds.

Revision ID: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("fleet_events_by_kind", "fleet_events", ["fleet_id", "kind", "t"], unique=False)
