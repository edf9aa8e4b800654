"""A real worker that hangs in a step, on a real Ray head: its process is ended, and another one takes its place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from control.components import components
from control.deployment import ComponentRecord, clear_shared_memory, end_together
from control.runner import Runner
from control.settings import load_settings
from engine.convert import make_tiny_model
from tests.integration.deployment import LIMIT_S, ROOT, Deployment

pytestmark = pytest.mark.integration


def test_a_process_that_stands_still_in_a_step_is_ended_and_its_successor_says_why(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny", seed=1)
    own = {"worker_kind": "cpu", "num_workers": "1", "model": str(model), "kv_bytes_per_worker": str(2**22)}
    own |= {"step_overdue_s": "1", "max_batch": "4", "ray_redis": "off"}
    place = Deployment(tmp_path / "run", **{f"PHASELINE_{name.upper()}": value for name, value in own.items()})
    settings = load_settings(run_dir=place.run_dir, ray_port=place.ports["RAY"], **own)
    (place.run_dir / "logs").mkdir(parents=True)
    runners = [Runner(each, ComponentRecord(name=each.name, stop_limit_s=15.0)) for each in components(settings)[:2]]
    try:
        for runner in runners:
            runner.start(0.0)
            place.until(runner.probe, runner.record.name)
        done = subprocess.run(
            [sys.executable, "-m", "tests.integration.hung_worker_scenario"],
            cwd=ROOT,
            env=place.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    finally:
        end_together([runner.record for runner in runners], lambda _line: None)
        clear_shared_memory(settings.effective_shm_dir)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["life"]["last_restart_reason"].startswith("step overdue: ")
    assert told["life"]["num_restarts"] == 1
    assert (told["is_another"], told["has_ended"]) == (True, True)
