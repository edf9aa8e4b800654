"""A run folder for tests that start a deployment without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.deployment import Deployment


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Deployment]:
    """A run folder for SimFleet: no Ray, so it starts quickly. The test starts it; whatever is left is ended."""
    deployment = Deployment(tmp_path / "run", PHASELINE_FLEET_KIND="sim")
    try:
        yield deployment
    finally:
        deployment.end()
