"""sglang-router for real, its workers fake: who obeys a flip, and who only says so."""

from __future__ import annotations

import time

from _peer_site import Site, Unmet, asked, undo
from _peers import SglangRouter, running
from control.types import Action, Capability, CommandState, Role, Verb


def try_sglang_router(site: Site) -> None:
    """A role changed under load, undone, and the change in place that this version accepts and ignores."""
    with running(SglangRouter()) as peer:
        site.attach(kind="sglang", controller=f"sglang-router={peer.url}", simulated=True)
        site.until_pools(prefill=2, decode=2)
        ids = {each.worker_id: each.role for each in site.client.snapshot(site.name).workers}
        moved = next(worker_id for worker_id, role in ids.items() if role is Role.DECODE)
        flip = Action(verb=Verb.FLIP, worker_id=moved, role=Role.PREFILL)
        site.expect_refused("flip without permission", flip)
        site.allow(Capability.FLIP, Capability.DRAIN, Capability.RESIZE)
        site.until_pools(prefill=2, decode=2)
        with asked(f"{peer.url}/v1/completions", {"model": "fake", "max_tokens": 40, "stream": True}, 8) as load:
            time.sleep(2)
            done = site.expect("flip decode -> prefill under load", flip, CommandState.DONE)
            site.until_pools(prefill=3, decode=1)
            site.expect("undo under load", undo(done), CommandState.DONE)
            site.until_pools(prefill=2, decode=2)
            drained = site.expect("drain", Action(verb=Verb.DRAIN, worker_id=moved), CommandState.DONE)
            site.expect("undo of the drain", undo(drained), CommandState.DONE)
        site.note("requests meanwhile", load.words())
        if load.failed:
            raise Unmet(f"requests failed: {load.words()}")
        other = Site(site.fleet, f"{site.name}-in-place")
        other.findings = site.findings
        other.attach(kind="sglang", controller=f"smg={peer.url}", simulated=True)
        other.until_pools(prefill=2, decode=2)
        other.allow(Capability.FLIP)
        other.until_pools(prefill=2, decode=2)
        other.expect("role change in place, which 0.3.2 ignores", flip, CommandState.FAILED, "not obeyed")
