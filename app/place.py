"""Where the plane is, and the one hub of this process that every tab and route shares.

The addresses come from PHASELINE_API_PORT and PHASELINE_HOST, and PHASELINE_PLANE_URLS for planes on other hosts, as
`phaseline up` sets them for what it starts.
"""

from __future__ import annotations

import os
from functools import cache

from app.source import Hub, plane_hub


def plane_urls() -> tuple[str, ...]:
    """Of this host, then of others; each is tried in turn."""
    host = os.environ.get("PHASELINE_HOST", "") or "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    own = f"http://{shown}:{os.environ.get('PHASELINE_API_PORT', '') or '8080'}"
    others = os.environ.get("PHASELINE_PLANE_URLS", "").split(",")
    return (own, *(each.strip() for each in others if each.strip()))


@cache
def shared_hub() -> Hub:
    """Made once, when the process starts (`app.main`), before there are threads."""
    return plane_hub(plane_urls())
