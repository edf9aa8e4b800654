"""Not every request's record is kept: what one stands for, how the others are counted, and where records are found.

Revision ID: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
_COUNTS = (
    "kept_slow",
    "kept_failed",
    "kept_moved",
    "kept_share",
    "dropped_served",
    "dropped_refused",
    "dropped_cancelled",
)
_INDEXED = (
    "fleet_id",
    "arrival_unix_s",
    "e2e_s",
    "ttft_s",
    "max_gap_s",
    "e2e_bucket",
    "ttft_bucket",
    "gap_bucket",
    "weight",
    "place",
    "good",
    "status",
    "rule",
    "num_moves",
)


def upgrade() -> None:
    for name in _COUNTS:
        op.add_column("traffic_points", sa.Column(name, sa.Double(), nullable=False, server_default="0"))
    op.add_column("gateway_seqs", sa.Column("missing", sa.Text(), nullable=False, server_default="[]"))
    for column in (
        sa.Column("api_key_id", sa.Text(), nullable=False, server_default=""),
        sa.Column("priority", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("max_gap_s", sa.Double(), nullable=True),
        sa.Column("ttft_bucket", sa.SmallInteger(), nullable=True),
        sa.Column("e2e_bucket", sa.SmallInteger(), nullable=True),
        sa.Column("gap_bucket", sa.SmallInteger(), nullable=True),
        sa.Column("weight", sa.Double(), nullable=False, server_default="1"),
        sa.Column("place", sa.Double(), nullable=False, server_default="0"),
    ):
        op.add_column("request_records", column)
    # Records of before have a place too, or those without one would always be looked at first.
    op.execute("UPDATE request_records SET place = (record_id * 7919 % 10007) / 10007.0")
    op.drop_index("request_records_by_arrival", table_name="request_records")
    op.create_index("request_records_by_arrival", "request_records", list(_INDEXED), unique=False)
