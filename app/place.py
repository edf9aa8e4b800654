"""Where the plane is, and the hubs of this process that every tab and route shares.

The addresses come from PHASELINE_API_PORT and PHASELINE_HOST, and PHASELINE_PLANE_URLS for planes on other hosts, as
`phaseline up` sets them for what it starts.
"""

from __future__ import annotations

import os
from functools import cache

from app.fleets import Fleets
from app.source import Hub
from control.client import PhaselineClient


def plane_urls() -> tuple[str, ...]:
    """Of this host, then of others; each is tried in turn."""
    host = os.environ.get("PHASELINE_HOST", "") or "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    own = f"http://{shown}:{os.environ.get('PHASELINE_API_PORT', '') or '8080'}"
    others = os.environ.get("PHASELINE_PLANE_URLS", "").split(",")
    return (own, *(each.strip() for each in others if each.strip()))


@cache
def shared_fleets() -> Fleets:
    """Made once, when the process starts (`app.main`), before there are threads."""
    urls = plane_urls()
    own = Hub(base_url=urls[0], connect=lambda token: PhaselineClient(urls, token))
    return Fleets(own=own, connect=lambda token, fleet: PhaselineClient(urls, token, fleet_id=fleet))
