"""A benchmark that is told to end (`timeout`, a closed terminal) takes down what it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from control.deployment import read_state
from tests.integration.deployment import ROOT

pytestmark = pytest.mark.integration

SCRIPT = """
from _deployment import deployment
with deployment("--fleet", "none") as here:
    print(here.run_dir, flush=True)
    input()
"""


def test_a_benchmark_ended_by_a_signal_leaves_no_process(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}", "TMPDIR": str(tmp_path)}
    bench = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert bench.stdout is not None
    run_dir = Path(bench.stdout.readline().strip())
    state = read_state(run_dir)
    assert state is not None
    everything = [state.supervisor, *(one for each in state.components.values() for one in each.processes)]
    assert all(each.is_alive for each in everything)
    bench.send_signal(signal.SIGTERM)
    bench.communicate(timeout=200)
    assert bench.returncode == 128 + signal.SIGTERM
    assert not [each for each in everything if each.is_alive]
    assert not run_dir.exists()
