"""A writer of the history whose every batch holds a hash of the one before it and of its own content.

A batch is points, cursor, record, and each fifth time a command with its desired state. As a script it writes batches
and says each on stdout once it is committed: `python bench/_history_writer.py DATABASE NUM_BATCHES`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from typing import Final

from control.history.store import History
from control.points import Ingested, Line, WorkerCursor
from control.types.commands import Action, Command, CommandState, Desired, Verb
from control.types.requests import RequestRecord
from control.types.routing import RoutingPolicy
from control.types.workers import Phase, Role, WorkerState
from engine.readings import PhaseCounters

T0: Final = 1_800_000_000
FIRST: Final = "0" * 64
COMMAND_EACH: Final = 5
LINE: Final = Line("worker", "w0", "bench", True, 1, "decode")


def write_batches(url: str, told: Callable[[bytes], None], most: int) -> None:
    """Go on where the database ends, until `most` batches are there or somebody ends this process."""
    history = History.open(url)
    cursor = history.load_cursors("bench").get("w0")
    number, tokens = (cursor.num_records, cursor.counters["decode/decode"].tokens) if cursor else (0, 0.0)
    newest = history.request(f"b{number}")
    before = newest.reason if newest else FIRST
    if number and number % COMMAND_EACH == 0 and history.find_by_idempotency(f"b{number}", "bench") is None:
        history.record_command(command_of(history, number, before))  # the last writer died between the two
    while number < most:
        number += 1
        before, tokens = link_of(before, number), tokens + tokens_of(number)
        history.write_tick(
            points_of(number), {"w0": cursor_of(number, tokens)}, [("g", number, record_of(number, before))]
        )
        if number % COMMAND_EACH == 0:
            history.record_command(command_of(history, number, before))
        told(f"{number} {before}\n".encode())
    history.close()


def link_of(before: str, number: int) -> str:
    """The hash that batch `number` carries."""
    return hashlib.sha256(f"{before} {number} {tokens_of(number)}".encode()).hexdigest()


def tokens_of(number: int) -> int:
    return 1 + number * 7919 % 101


def points_of(number: int) -> Ingested:
    """What batch `number` adds: two rows of one second."""
    row = {"num_s": 1.0, "tokens": float(tokens_of(number)), "steps": 1.0}
    cover = {"num_cover_s": 1.0, "worker_s": 1.0, "device_s": 1.0}
    phases, states = {(LINE, Phase.DECODE, T0 + number): row}, {(LINE, T0 + number): cover}
    return Ingested(fleet_id="bench", at_unix_s=float(T0 + number + 1), phases=phases, states=states)


def cursor_of(number: int, tokens: float) -> WorkerCursor:
    return WorkerCursor(
        epoch=1,
        num_records=number,
        counters={"decode/decode": PhaseCounters(tokens=tokens, steps=float(number))},
        histograms={},
        known_until_unix_s=float(T0 + number + 1),
        role=Role.DECODE,
        state=WorkerState.READY,
        role_since_unix_s=float(T0),
        device_key="",
        open=True,
    )


def record_of(number: int, link: str) -> RequestRecord:
    return RequestRecord(
        request_id=f"b{number}",
        fleet_id="bench",
        model_id="bench",
        gateway_id="g",
        api_key_id="",
        simulated=True,
        arrival_unix_s=float(T0 + number),
        attempt=0,
        priority=0,
        stream=True,
        endpoint="chat",
        rule="remote",
        reason=link,
        prefill_worker="",
        decode_worker="w0",
        prompt_tokens=10,
        cached_tokens=0,
        output_tokens=tokens_of(number),
        max_tokens=128,
        status=200,
        finish_reason="stop",
        error="",
        queue_s=0.0,
        prefill_s=0.1,
        handoff_s=0.0,
        ttft_s=0.2,
        tpot_s=0.04,
        max_gap_s=0.1,
        e2e_s=1.0,
        good=True,
    )


def command_of(history: History, number: int, link: str) -> Command:
    """A command that makes the next desired state."""
    desired = history.load_desired("bench")
    base = desired.version if desired else 0
    after = Desired(version=base + 1, roles={"w0": Role.DECODE}, policy=RoutingPolicy())
    return Command(
        command_id=0,
        fleet_id="bench",
        action=Action(verb=Verb.RESIZE, prefill=0, decode=1),
        state=CommandState.ACCEPTED,
        who="bench",
        why=link,
        idempotency_key=f"b{number}",
        base_version=base,
        version_after=base + 1,
        created_unix_s=float(T0 + number),
        updated_unix_s=float(T0 + number),
        desired_before=desired,
        desired_after=after,
    )


def tell(descriptor: int, line: bytes) -> None:
    assert os.write(descriptor, line) == len(line)


if __name__ == "__main__":
    write_batches(f"sqlite:///{sys.argv[1]}", lambda line: tell(1, line), int(sys.argv[2]))
