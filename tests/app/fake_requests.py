"""Request records of `tests.app.fake_plane`: some late, some failed, some moved, the same at each run."""

from __future__ import annotations

from control.types.requests import RequestFilters, RequestMove, RequestRecord
from control.types.workers import LossCause


def record_of(index: int, now_s: float, *, simulated: bool) -> RequestRecord:
    late, failed = index % 17 == 3, index % 41 == 7
    ttft = 0.3 + 0.02 * (index % 9) + (3.4 if late else 0.0)
    return RequestRecord(
        request_id=f"req-{9000 - index:05d}",
        fleet_id="local",
        model_id="smollm2-135m-instruct",
        gateway_id="gw-1",
        api_key_id="demo",
        simulated=simulated,
        arrival_unix_s=now_s - 4.0 * index,
        attempt=1,
        priority=0,
        stream=True,
        endpoint="chat",
        rule="remote" if index % 6 else "short_local",
        reason="412 uncached tokens, least queued prefill worker",
        prefill_worker="w0",
        decode_worker=f"w{1 + index % 3}",
        prompt_tokens=412 + 13 * (index % 20),
        cached_tokens=64,
        output_tokens=90,
        max_tokens=128,
        status=503 if failed else 200,
        finish_reason="error" if failed else "stop",
        error="decode worker w2 went away" if failed else "",
        queue_s=0.04 + (3.3 if late else 0.0),
        prefill_s=0.22,
        handoff_s=0.012,
        ttft_s=None if failed else ttft,
        tpot_s=0.031,
        max_gap_s=0.12,
        e2e_s=None if failed else ttft + 2.8,
        good=not late and not failed,
        broken=("ttft",) if late else (),
        kept="slow" if late else "failed" if failed else "share",
        moves=(_move(index),) if index % 10 == 4 else (),
    )


def _move(index: int) -> RequestMove:
    """w1 died under some requests, others left w3."""
    if index % 20 == 4:
        reason = "connection lost"
        return RequestMove(kind="failover", from_worker="w1", to_worker="w2", at_s=0.9, notice_s=0.04, stall_s=0.24,
                           reason=reason, cause=LossCause.DIED)  # fmt: skip
    return RequestMove(kind="migration", from_worker="w3", to_worker="w2", at_s=1.4, stall_s=0.058,
                       num_bytes=12_900_000, reason="w3 drains")  # fmt: skip


def passes(record: RequestRecord, filters: RequestFilters) -> bool:
    """As the history understands the filters."""
    wanted = {name: value for name, value in filters.items() if value is not None and name != "metric"}
    told: dict[str, object] = {
        "rule": record.rule,
        "api_key_id": record.api_key_id,
        "good": record.good,
        "failed": record.status not in (200, 499),
        "moved": bool(record.moves),
        "batch": record.priority > 0,
    }
    workers = (record.prefill_worker, record.decode_worker)
    return all(value in workers if name == "worker_id" else told[name] == value for name, value in wanted.items())
