"""The tables of the history. Columns only; what they mean is in `control.points`, who writes them in `control.history`.

    shelves ──< lines     shelves ──< chunks, parts     ticks      points, see below
    commands ──< command_steps            desired_states     request_records     role_intervals     worker_epochs
    alerts        what somebody should know, pending, firing and resolved
    fleet_events  what happened to workers, and to the requests that left them
    cursors, gateway_seqs, spools, fences, marks  what makes each thing count exactly once
    plane_leases    which plane acts

`line_id` stands for (fleet_id, model_id, scope, name, epoch, role, simulated). `step_s` 1 is what was measured; 10, 60,
600 and 3600 are rolled up from the step below. Times are Unix seconds; `t` is the start of a bucket.

Points are columns, not rows: 200 workers make a billion numbers a day. SHELF_LINES lines share a shelf, and one row of
`chunks` is one column of one shelf, for CHUNK_S[step] seconds (`control.history.codec`). On their way there they lie in
`ticks` (all that one tick found out, of all lines) for about a minute, then in `parts` (that minute of one shelf) until
their block of BLOCK_S is over. Rows of the three for one line and second add up (`control.history.frames`).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)

STEPS: Final = (1, 10, 60, 600, 3600)
#: Seconds in one chunk of each step. All are whole blocks; each block lies in one chunk.
CHUNK_S: Final = {1: 600, 10: 3_600, 60: 14_400, 600: 86_400, 3600: 7 * 86_400}
#: Seconds are rolled up, for all coarser steps, block by block.
BLOCK_S: Final = 600
SHELF_LINES: Final = 16
metadata = MetaData()
#: SQLite numbers rows by itself only in a column of type INTEGER.
_Id = BigInteger().with_variant(Integer(), "sqlite")


shelves = Table(
    "shelves",
    metadata,
    Column("shelf_id", _Id, primary_key=True, autoincrement=True),
    Column("fleet_id", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("num_lines", Integer, nullable=False),
    Column("folded", BigInteger, nullable=False),  # the newest of `ticks` whose rows of these lines are in `parts`
    Index("shelves_by_scope", "fleet_id", "scope"),
)
lines = Table(
    "lines",
    metadata,
    Column("line_id", _Id, primary_key=True, autoincrement=True),
    Column("fleet_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("role", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("shelf_id", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("fleet_id", "scope", "name", "epoch", "role", "model_id", "simulated"),
    Index("lines_by_shelf", "shelf_id"),
)


ticks = Table(
    "ticks",
    metadata,
    Column("tick_id", _Id, primary_key=True, autoincrement=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_autoincrement=True,  # an id that is folded must never come again
)
parts = Table(
    "parts",
    metadata,
    Column("shelf_id", _Id, primary_key=True, autoincrement=False),
    Column("t", BigInteger, primary_key=True, autoincrement=False),  # start of the block
    Column("kind", Text, primary_key=True),
    Column("tick_id", BigInteger, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
    Index("parts_by_time", "t", "shelf_id"),
)
chunks = Table(
    "chunks",
    metadata,
    Column("shelf_id", _Id, primary_key=True, autoincrement=False),
    Column("kind", Text, primary_key=True),  # control.history.chunks
    Column("step_s", SmallInteger, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("t", BigInteger, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
    Index("chunks_by_time", "step_s", "t"),
)

worker_epochs = Table(
    "worker_epochs",
    metadata,
    Column("fleet_id", Text, primary_key=True),
    Column("worker_id", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("model_id", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("started_unix_s", Double, nullable=False),
    Column("basis", Text, nullable=False),
    Column("device", LargeBinary, nullable=False),
)

commands = Table(
    "commands",
    metadata,
    Column("command_id", _Id, primary_key=True, autoincrement=True),
    Column("fleet_id", Text, nullable=False),
    Column("action", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("idempotency_key", Text),  # null when none was given: each of those is a command of its own
    Column("base_version", BigInteger, nullable=False),
    Column("version_after", BigInteger, nullable=False),
    Column("created_unix_s", Double, nullable=False),
    Column("updated_unix_s", Double, nullable=False),
    Column("result", Text, nullable=False),
    Column("desired_before", LargeBinary),
    Column("desired_after", LargeBinary),
    Column("undo_of", BigInteger),
    Column("undone_by", BigInteger),
    UniqueConstraint("who", "idempotency_key"),
    Index("commands_by_fleet", "fleet_id", "command_id"),
    sqlite_autoincrement=True,  # a command id is never given twice
)
command_steps = Table(
    "command_steps",
    metadata,
    Column("command_id", _Id, ForeignKey("commands.command_id"), primary_key=True, autoincrement=False),
    Column("num", Integer, primary_key=True, autoincrement=False),
    Column("at_unix_s", Double, nullable=False),
    Column("text", Text, nullable=False),
    Column("worker_id", Text),
    Column("state", Text, nullable=False),
)
desired_states = Table(
    "desired_states",
    metadata,
    Column("fleet_id", Text, primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("at_unix_s", Double, nullable=False),
    Column("command_id", BigInteger, nullable=False),
    Column("desired", LargeBinary, nullable=False),
)

request_records = Table(
    "request_records",
    metadata,
    Column("record_id", _Id, primary_key=True, autoincrement=True),
    Column("gateway_id", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("request_id", Text, nullable=False, index=True),
    Column("fleet_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("arrival_unix_s", Double, nullable=False),
    Column("rule", Text, nullable=False),
    Column("prefill_worker", Text, nullable=False),
    Column("decode_worker", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("good", Boolean),
    Column("e2e_s", Double),
    Column("ttft_s", Double),
    Column("record", LargeBinary, nullable=False),
    Column("num_moves", Integer, nullable=False, server_default="0"),
    Column("api_key_id", Text, nullable=False, server_default=""),
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("max_gap_s", Double),
    Column("ttft_bucket", SmallInteger),  # of a histogram (engine.histogram); none where the histograms count none
    Column("e2e_bucket", SmallInteger),
    Column("gap_bucket", SmallInteger),
    Column("weight", Double, nullable=False, server_default="1"),
    Column("place", Double, nullable=False, server_default="0"),  # by chance, in 0..1: to look at some of many
    UniqueConstraint("gateway_id", "seq"),
)
Index(  # all that a search reads of the records that it does not return
    "request_records_by_arrival",
    *(request_records.c[name] for name in ("fleet_id", "arrival_unix_s", "e2e_s", "ttft_s", "max_gap_s")),
    *(request_records.c[name] for name in ("e2e_bucket", "ttft_bucket", "gap_bucket", "weight", "place")),
    *(request_records.c[name] for name in ("good", "status", "rule", "num_moves")),
)
_moved = request_records.c.num_moves > 0  # few of many: only they are in the index
Index(
    "request_records_moved",
    request_records.c.fleet_id,
    request_records.c.arrival_unix_s,
    sqlite_where=_moved,
    postgresql_where=_moved,
)

role_intervals = Table(
    "role_intervals",
    metadata,
    Column("fleet_id", Text, primary_key=True),
    Column("worker_id", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("start_unix_s", Double, primary_key=True),
    Column("end_unix_s", Double),
    Column("role", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Index("role_intervals_by_end", "fleet_id", "end_unix_s"),
)

fleet_events = Table(
    "fleet_events",
    metadata,
    Column("fleet_id", Text, primary_key=True),
    Column("t", BigInteger, primary_key=True, autoincrement=False),  # the second it happened in
    Column("kind", Text, primary_key=True),
    Column("worker_id", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("event", LargeBinary, nullable=False),
    Index("fleet_events_by_worker", "fleet_id", "worker_id", "t"),
    Index("fleet_events_by_kind", "fleet_id", "kind", "t"),  # rare ones among many
    sqlite_with_rowid=False,
)

alerts = Table(
    "alerts",
    metadata,
    Column("fleet_id", Text, primary_key=True),
    Column("alert_id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("since_unix_s", Double, nullable=False),
    Column("resolved_unix_s", Double),
    Column("is_untold", Boolean, nullable=False),  # it has ended, and the webhook's receiver may not know
    Column("alert", LargeBinary, nullable=False),
    Index("alerts_by_end", "fleet_id", "resolved_unix_s"),
    Index("alerts_by_state", "fleet_id", "state"),
)

cursors = Table(
    "cursors",
    metadata,
    Column("fleet_id", Text, primary_key=True),
    Column("worker_id", Text, primary_key=True),
    Column("cursor", LargeBinary, nullable=False),
)
gateway_seqs = Table(
    "gateway_seqs",
    metadata,
    Column("gateway_id", Text, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("missing", Text, nullable=False, server_default="[]"),  # ranges below it that have not come
)
fences = Table(
    "fences",
    metadata,
    Column("fleet_id", Text, primary_key=True),
    Column("fence", BigInteger, nullable=False),
)
spools = Table(  # number of the last frame of each spool that is written
    "spools",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
)
plane_leases = Table(  # the one plane that acts; times are of the database's clock
    "plane_leases",
    metadata,
    Column("fleet_id", Text, primary_key=True),
    Column("holder_id", Text, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("machine", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("started_unix_s", Double, nullable=False),
    Column("address", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("taken_unix_s", Double, nullable=False),
    Column("expires_unix_s", Double, nullable=False),
)
attached_fleets = Table(  # what an operator said to attach them, as JSON
    "attached_fleets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("told", Text, nullable=False),
    Column("who", Text, nullable=False),
    Column("at_unix_s", Double, nullable=False),
    Column("allowed", Text, nullable=False, server_default="[]"),  # permissions, as JSON
    Column("memory", Text, nullable=False, server_default=""),  # of its adapter: what must outlive a plane
)
marks = Table(  # pruned-<step>: points before it are gone
    "marks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("t", BigInteger, nullable=False),
)
