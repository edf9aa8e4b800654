"""What may be done to an attached fleet: nothing but observing, unless an operator allowed more.

Revision ID: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("attached_fleets", sa.Column("allowed", sa.Text(), nullable=False, server_default="[]"))
