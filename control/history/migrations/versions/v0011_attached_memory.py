"""What we did to an attached fleet and nobody else remembers: workers that were taken out of its router.

Revision ID: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("attached_fleets", sa.Column("memory", sa.Text(), nullable=False, server_default=""))
