"""The heap of a process that lives long: what its start has loaded is not looked through again and again.

A full collection of the garbage collector walks every object, and most are of modules: it stands still for a tenth of a
second, now and then within a tick. Decided here: that what is there once a plane has begun stays for its life.
"""

from __future__ import annotations

import gc


def settle() -> None:
    """Collect once, then leave out of later collections what is left."""
    gc.collect()
    gc.freeze()
