"""Why a worker process ended, as the pages that outlive it tell."""

from __future__ import annotations

import msgspec

from control.fleets.host_life import end_reason
from engine.types import WorkerState
from tests.control import builders


def test_a_process_ran_a_step_when_any_of_its_workers_did() -> None:
    idle = msgspec.structs.replace(builders.reading("w0"), pid=7, step_running_s=None)
    busy = msgspec.structs.replace(builders.reading("w1"), pid=7, step_running_s=0.1)
    assert end_reason([idle, None]) == "process 7 ended without a word (killed or crashed) while idle"
    assert end_reason([idle, busy]) == "process 7 ended without a word (killed or crashed) while a step ran"


def test_a_worker_that_had_failed_is_the_reason_whichever_it_is() -> None:
    well = msgspec.structs.replace(builders.reading("w0"), pid=7)
    failed = msgspec.structs.replace(builders.reading("w1"), pid=7, state=WorkerState.FAILED, reason="out of memory")
    assert end_reason([well, failed]) == "process 7 ended after it had failed: out of memory"
    assert end_reason([None, None]) == "the process ended before it had a meter"
