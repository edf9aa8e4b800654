"""One deployment of tiny real workers for all scenarios: Ray, plane and gateway are the product's own processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from control.faults.place import Place
from engine.convert import make_tiny_model
from tests.integration.deployment import Deployment

#: Shorter than in service, so that what waits for them is seen within a test; and nobody is refused for being late on
#: a busy machine.
LIMITS = {"lease_s": "5", "stopped_limit_s": "6", "drain_limit_s": "60", "slo": '{"ttft_base_s": 60.0, "tpot_s": 5.0}'}


def tiny_settings(folder: Path) -> dict[str, str]:
    """Four real workers of a random model of two layers, one of them for prefill."""
    model = make_tiny_model(folder / "tiny", seed=1)
    own = {"worker_kind": "cpu", "num_workers": "4", "num_prefill": "1", "model": str(model)}
    own |= {"kv_bytes_per_worker": str(4 * 2**20), "prefill_chunk_tokens": "32", **LIMITS}
    return {f"PHASELINE_{name.upper()}": value for name, value in own.items()}


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("faults")
    deployment = Deployment(folder / "run", **tiny_settings(folder))
    try:
        deployment.must("up", "--detach")
        yield deployment
    finally:
        deployment.end()


@pytest.fixture(scope="package")
def place(tiny: Deployment) -> Iterator[Place]:
    with Place(tiny.run_dir) as found:
        yield found
