"""A console and the plane that it reads, for a benchmark: ours or the naive one; a fake plane or SimFleet."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.browser.processes import ROOT, Stack

NUM_WORKERS, NUM_PREFILL = 48, 8
NAIVE = Path(__file__).parent / "_naive_console.py"


@dataclass
class FakeStack(Stack):
    """The plane is `bench._fake_plane`: it answers at once and costs next to nothing."""

    num_workers: int = NUM_WORKERS
    num_prefill: int = NUM_PREFILL

    def start_plane(self) -> None:
        shape = [str(self.api_port), str(self.num_workers), str(self.num_prefill)]
        self._start("plane", [sys.executable, "-m", "bench._fake_plane", *shape])
        self._wait("plane", f"{self.api_url}/readyz")

    def login_code(self) -> str:
        return "good-code"


def start_console(stack: Stack, kind: str) -> psutil.Process:
    """`kind`: ours or naive. Any console that ran before is ended; Streamlit's defaults hold for the naive one."""
    stack.end("console")
    if kind == "ours":
        stack.start_console()
    else:
        command = [sys.executable, "-m", "streamlit", "run", str(NAIVE), "--server.port", str(stack.console_port)]
        command += ["--server.address", "127.0.0.1", "--server.headless", "true", "--browser.gatherUsageStats", "false"]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        token = "operator-token" if isinstance(stack, FakeStack) else operator_token(stack)
        env = ["env", f"PYTHONPATH={path}", f"NAIVE_PLANE={stack.api_url}", f"NAIVE_TOKEN={token}"]
        # from a folder without our configuration
        stack._start("console", [*env, f"--chdir={stack.run_dir}", *command])
        stack._wait("console", f"{stack.console_url}/_stcore/health")
    return psutil.Process(stack.processes["console"].pid)


def operator_token(stack: Stack) -> str:
    return (stack.run_dir / "secrets" / "operator_token").read_text().strip()
