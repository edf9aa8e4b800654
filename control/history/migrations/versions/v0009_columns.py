"""Points as columns: shelves of lines, ticks, parts and chunks in place of a row per line and second.

Revision ID: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from control.history.old_rows import move_points

revision = "0009"
down_revision = "0008"
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_OLD = ("phase_points", "state_points", "traffic_points", "latency_points")


def upgrade() -> None:
    _make_tables()
    op.add_column("lines", sa.Column("shelf_id", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("lines_by_shelf", "lines", ["shelf_id"])
    move_points(op.get_bind())
    for name in _OLD:
        op.drop_table(name)
    op.execute("DELETE FROM marks WHERE name LIKE 'rolled-%'")
    if op.get_bind().dialect.name == "postgresql":  # compressed already
        for name in ("ticks", "parts", "chunks"):
            op.execute(f"ALTER TABLE {name} ALTER COLUMN data SET STORAGE EXTERNAL")


def _make_tables() -> None:
    op.create_table(
        "shelves",
        sa.Column("shelf_id", _ID, primary_key=True, autoincrement=True),
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("num_lines", sa.Integer(), nullable=False),
        sa.Column("folded", sa.BigInteger(), nullable=False),
    )
    op.create_index("shelves_by_scope", "shelves", ["fleet_id", "scope"])
    op.create_table(
        "ticks",
        sa.Column("tick_id", _ID, primary_key=True, autoincrement=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "parts",
        sa.Column("shelf_id", _ID, primary_key=True, autoincrement=False),
        sa.Column("t", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text(), primary_key=True),
        sa.Column("tick_id", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    op.create_index("parts_by_time", "parts", ["t", "shelf_id"])
    op.create_table(
        "chunks",
        sa.Column("shelf_id", _ID, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text(), primary_key=True),
        sa.Column("step_s", sa.SmallInteger(), primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("t", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    op.create_index("chunks_by_time", "chunks", ["step_s", "t"])
