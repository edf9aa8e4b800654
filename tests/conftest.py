"""Shared by all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer

from tests.shares import Shares, rank

# xdist tells its processes how wide the terminal is: what is tested is what a file gets, however wide that is.
os.environ.pop("COLUMNS", None)

# No timed assertion anywhere: on a busy machine one example may take any time.
settings.register_profile("phaseline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("phaseline")


@pytest.fixture(autouse=True)
def main_module_stays() -> Iterator[None]:
    """Streamlit's AppTest replaces `__main__`, which processes started by multiprocessing would then try to run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda each: rank(each.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Shares:
    config.option.loadscopereorder = False  # not by number of tests: those of one file may take as long as all others
    return Shares(config, log)
