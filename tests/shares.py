"""How `make test` shares the files between two pytest processes (`-n 2`, pytest-xdist).

Decided here: the order, and what stays together. A file is never split, as its tests share deployments; the folder that
has one deployment for all its files stays whole. What starts real processes comes first: it takes longest, much of it
waiting, and the many small tests fill up the end.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadScopeScheduling

#: Folders of tests/ whose tests start real processes, the longest first.
REAL = ("faults", "integration", "browser")
#: Folders whose files share one deployment.
WHOLE = ("faults",)


def rank(nodeid: str) -> int:
    """Lower ranks are begun earlier."""
    folder = folder_of(nodeid)
    return REAL.index(folder) if folder in REAL else len(REAL)


def share_of(nodeid: str) -> str:
    """Tests of equal shares run in one process, one after the other."""
    folder = folder_of(nodeid)
    return folder if folder in WHOLE else nodeid.partition("::")[0]


def folder_of(nodeid: str) -> str:
    """`faults` of `tests/faults/test_scenarios.py::test_it`; "" of what lies in tests/ itself."""
    parts = PurePosixPath(nodeid.partition("::")[0]).parts
    return parts[1] if len(parts) > 2 else ""


class Shares(LoadScopeScheduling):
    """Whole shares, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return share_of(nodeid)
