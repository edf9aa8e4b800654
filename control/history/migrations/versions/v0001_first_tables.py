"""The first tables. Frozen: later changes of the schema are migrations of their own.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "commands",
        sa.Column(
            "command_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("action", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("base_version", sa.BigInteger(), nullable=False),
        sa.Column("version_after", sa.BigInteger(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.Column("updated_unix_s", sa.Double(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("desired_before", sa.LargeBinary(), nullable=True),
        sa.Column("desired_after", sa.LargeBinary(), nullable=True),
        sa.Column("undo_of", sa.BigInteger(), nullable=True),
        sa.Column("undone_by", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("command_id"),
        sa.UniqueConstraint("who", "idempotency_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("commands_by_fleet", "commands", ["fleet_id", "command_id"], unique=False)
    op.create_table(
        "cursors",
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("cursor", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("fleet_id", "worker_id"),
    )
    op.create_table(
        "desired_states",
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at_unix_s", sa.Double(), nullable=False),
        sa.Column("command_id", sa.BigInteger(), nullable=False),
        sa.Column("desired", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("fleet_id", "version"),
    )
    op.create_table(
        "fences",
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("fleet_id"),
    )
    op.create_table(
        "gateway_seqs",
        sa.Column("gateway_id", sa.Text(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("gateway_id"),
    )
    op.create_table(
        "lines",
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("line_id"),
        sa.UniqueConstraint("fleet_id", "scope", "name", "epoch", "role", "model_id", "simulated"),
    )
    op.create_table(
        "marks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("t", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "request_records",
        sa.Column(
            "record_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("gateway_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("arrival_unix_s", sa.Double(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("prefill_worker", sa.Text(), nullable=False),
        sa.Column("decode_worker", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("good", sa.Boolean(), nullable=True),
        sa.Column("e2e_s", sa.Double(), nullable=True),
        sa.Column("ttft_s", sa.Double(), nullable=True),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("record_id"),
        sa.UniqueConstraint("gateway_id", "seq"),
    )
    op.create_index(op.f("ix_request_records_request_id"), "request_records", ["request_id"], unique=False)
    op.create_index("request_records_by_arrival", "request_records", ["fleet_id", "arrival_unix_s"], unique=False)
    op.create_table(
        "role_intervals",
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("start_unix_s", sa.Double(), nullable=False),
        sa.Column("end_unix_s", sa.Double(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("fleet_id", "worker_id", "epoch", "start_unix_s"),
    )
    op.create_index("role_intervals_by_end", "role_intervals", ["fleet_id", "end_unix_s"], unique=False)
    op.create_table(
        "worker_epochs",
        sa.Column("fleet_id", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("simulated", sa.Boolean(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("started_unix_s", sa.Double(), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("device", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("fleet_id", "worker_id", "epoch"),
    )
    op.create_table(
        "command_steps",
        sa.Column(
            "command_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("num", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_unix_s", sa.Double(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["command_id"],
            ["commands.command_id"],
        ),
        sa.PrimaryKeyConstraint("command_id", "num"),
    )
    op.create_table(
        "latency_points",
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("step_s", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("t", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("buckets", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["line_id"],
            ["lines.line_id"],
        ),
        sa.PrimaryKeyConstraint("line_id", "step_s", "kind", "t"),
        sqlite_with_rowid=False,
    )
    op.create_index("latency_points_by_time", "latency_points", ["step_s", "t"], unique=False)
    op.create_table(
        "phase_points",
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("step_s", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("t", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("num_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("busy_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("cpu_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("flops", sa.Double(), server_default="0", nullable=False),
        sa.Column("bytes", sa.Double(), server_default="0", nullable=False),
        sa.Column("tokens", sa.Double(), server_default="0", nullable=False),
        sa.Column("steps", sa.Double(), server_default="0", nullable=False),
        sa.Column("flops_room", sa.Double(), server_default="0", nullable=False),
        sa.Column("bytes_room", sa.Double(), server_default="0", nullable=False),
        sa.Column("flops_unknown_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("bytes_unknown_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("fallback_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("min_busy_s", sa.Double(), nullable=True),
        sa.Column("max_busy_s", sa.Double(), nullable=True),
        sa.Column("min_flops", sa.Double(), nullable=True),
        sa.Column("max_flops", sa.Double(), nullable=True),
        sa.Column("min_bytes", sa.Double(), nullable=True),
        sa.Column("max_bytes", sa.Double(), nullable=True),
        sa.Column("min_tokens", sa.Double(), nullable=True),
        sa.Column("max_tokens", sa.Double(), nullable=True),
        sa.Column("min_compute_in_phase", sa.Double(), nullable=True),
        sa.Column("max_compute_in_phase", sa.Double(), nullable=True),
        sa.Column("min_bandwidth_in_phase", sa.Double(), nullable=True),
        sa.Column("max_bandwidth_in_phase", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["line_id"],
            ["lines.line_id"],
        ),
        sa.PrimaryKeyConstraint("line_id", "step_s", "phase", "t"),
        sqlite_with_rowid=False,
    )
    op.create_index("phase_points_by_time", "phase_points", ["step_s", "t"], unique=False)
    op.create_table(
        "state_points",
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("step_s", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("t", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("num_cover_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("worker_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("device_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("flops_peak", sa.Double(), server_default="0", nullable=False),
        sa.Column("bytes_peak", sa.Double(), server_default="0", nullable=False),
        sa.Column("no_flops_peak_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("no_bytes_peak_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("num_load", sa.Double(), server_default="0", nullable=False),
        sa.Column("num_kv", sa.Double(), server_default="0", nullable=False),
        sa.Column("num_gpm", sa.Double(), server_default="0", nullable=False),
        sa.Column("num_power", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_num_workers", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_queued_prefill_tokens", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_num_running", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_num_waiting", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_oldest_wait_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_kv_usage", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_tensor_active", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_dram_active", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_power_w", sa.Double(), server_default="0", nullable=False),
        sa.Column("min_num_workers", sa.Double(), nullable=True),
        sa.Column("max_num_workers", sa.Double(), nullable=True),
        sa.Column("min_queued_prefill_tokens", sa.Double(), nullable=True),
        sa.Column("max_queued_prefill_tokens", sa.Double(), nullable=True),
        sa.Column("min_num_running", sa.Double(), nullable=True),
        sa.Column("max_num_running", sa.Double(), nullable=True),
        sa.Column("min_num_waiting", sa.Double(), nullable=True),
        sa.Column("max_num_waiting", sa.Double(), nullable=True),
        sa.Column("min_oldest_wait_s", sa.Double(), nullable=True),
        sa.Column("max_oldest_wait_s", sa.Double(), nullable=True),
        sa.Column("min_kv_usage", sa.Double(), nullable=True),
        sa.Column("max_kv_usage", sa.Double(), nullable=True),
        sa.Column("min_tensor_active", sa.Double(), nullable=True),
        sa.Column("max_tensor_active", sa.Double(), nullable=True),
        sa.Column("min_dram_active", sa.Double(), nullable=True),
        sa.Column("max_dram_active", sa.Double(), nullable=True),
        sa.Column("min_power_w", sa.Double(), nullable=True),
        sa.Column("max_power_w", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["line_id"],
            ["lines.line_id"],
        ),
        sa.PrimaryKeyConstraint("line_id", "step_s", "t"),
        sqlite_with_rowid=False,
    )
    op.create_index("state_points_by_time", "state_points", ["step_s", "t"], unique=False)
    op.create_table(
        "traffic_points",
        sa.Column("line_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("step_s", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("t", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("offered", sa.Double(), server_default="0", nullable=False),
        sa.Column("decided", sa.Double(), server_default="0", nullable=False),
        sa.Column("good", sa.Double(), server_default="0", nullable=False),
        sa.Column("errors", sa.Double(), server_default="0", nullable=False),
        sa.Column("rejected", sa.Double(), server_default="0", nullable=False),
        sa.Column("cancelled", sa.Double(), server_default="0", nullable=False),
        sa.Column("prompt_tokens", sa.Double(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.Double(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.Double(), server_default="0", nullable=False),
        sa.Column("num_samples", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_in_flight", sa.Double(), server_default="0", nullable=False),
        sa.Column("num_waiting_samples", sa.Double(), server_default="0", nullable=False),
        sa.Column("sum_oldest_waiting_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("min_in_flight", sa.Double(), nullable=True),
        sa.Column("max_in_flight", sa.Double(), nullable=True),
        sa.Column("min_oldest_waiting_s", sa.Double(), nullable=True),
        sa.Column("max_oldest_waiting_s", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["line_id"],
            ["lines.line_id"],
        ),
        sa.PrimaryKeyConstraint("line_id", "step_s", "t"),
        sqlite_with_rowid=False,
    )
    op.create_index("traffic_points_by_time", "traffic_points", ["step_s", "t"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("restore a backup of the history instead: data would be lost")
