"""One running deployment for the tests that only look at it: paced workers, so that it is quick and needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.deployment import Deployment


@pytest.fixture(scope="session")
def paced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """`phaseline up --detach --kind paced`, two workers in two processes; ended by `phaseline down`."""
    deployment = Deployment(tmp_path_factory.mktemp("paced") / "run", PHASELINE_PACED_WORKERS_PER_PROCESS="1")
    try:
        deployment.must("up", "--detach", "--kind", "paced", "--workers", "2")
        yield deployment
    finally:
        deployment.end()


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Deployment]:
    """A run folder for SimFleet: no Ray, so it starts quickly. The test starts it; whatever is left is ended."""
    deployment = Deployment(tmp_path / "run", PHASELINE_FLEET_KIND="sim")
    try:
        yield deployment
    finally:
        deployment.end()
