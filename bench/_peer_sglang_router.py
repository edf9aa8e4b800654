"""sglang-router and smg for real, their workers fake: who obeys a flip, who only says so, what outlives the plane."""

from __future__ import annotations

import time

from _peer_site import Site, Unmet, asked, undo
from _peers import SglangRouter, Smg, running
from control.types.commands import Action, CommandState, Verb
from control.types.fleet import Capability
from control.types.workers import Role, WorkerState

COMPLETION = {"model": "fake", "max_tokens": 40, "stream": True}


def try_sglang_router(site: Site) -> None:
    """A role changed under load, undone, and the change in place that this version accepts and ignores."""
    with running(SglangRouter()) as peer:
        assert isinstance(peer, SglangRouter)
        moved = _attach(site, f"sglang-router={peer.url}")
        with asked(f"{peer.url}/v1/completions", COMPLETION, 8) as load:
            time.sleep(2)
            flip = _flip(moved, Role.PREFILL)
            done = site.expect("flip decode -> prefill under load", flip, CommandState.DONE)
            site.until_pools(prefill=3, decode=1)
            site.expect("undo under load", undo(done), CommandState.DONE)
            site.until_pools(prefill=2, decode=2)
            _drain_over_a_restart(site, moved)
        site.note("requests meanwhile", load.words())
        if load.failed:
            raise Unmet(f"requests failed: {load.words()}")
        _flip_of_a_dead_engine(site, peer, moved)
        other = Site(site.fleet, f"{site.name}-in-place")
        other.findings = site.findings
        moved = _attach(other, f"smg={peer.url}")
        other.expect(
            "role change in place, which 0.3.2 ignores", _flip(moved, Role.PREFILL), CommandState.FAILED, "not obeyed"
        )


def try_smg(site: Site) -> None:
    """The same, in place, which this one obeys."""
    with running(Smg()) as peer:
        moved = _attach(site, f"smg={peer.url}")
        with asked(f"{peer.url}/v1/completions", COMPLETION, 8) as load:
            time.sleep(2)
            done = site.expect("flip decode -> prefill in place", _flip(moved, Role.PREFILL), CommandState.DONE)
            site.until_pools(prefill=3, decode=1)
            site.expect("undo", undo(done), CommandState.DONE)
            site.until_pools(prefill=2, decode=2)
            _drain_over_a_restart(site, moved)
        site.note("requests meanwhile", load.words())
        if load.failed:
            raise Unmet(f"requests failed: {load.words()}")


def _attach(site: Site, controller: str) -> str:
    """Attached, and allowed what it can. A decode worker of it."""
    site.attach(kind="sglang", controller=controller, simulated=True)
    site.until_pools(prefill=2, decode=2)
    workers = site.client.snapshot(site.name).workers
    moved = next(each.worker_id for each in workers if each.role is Role.DECODE)
    site.expect_refused("flip without permission", _flip(moved, Role.PREFILL))
    site.allow(Capability.FLIP, Capability.DRAIN, Capability.RESIZE)
    site.until_pools(prefill=2, decode=2)
    return moved


def _flip(worker_id: str, role: Role) -> Action:
    return Action(verb=Verb.FLIP, worker_id=worker_id, role=role)


def _drain_over_a_restart(site: Site, worker_id: str) -> None:
    """The router has forgotten the worker; the next plane has not."""
    drained = site.expect("drain", Action(verb=Verb.DRAIN, worker_id=worker_id), CommandState.DONE)
    site.fleet.restart()
    site.until("drained, as the next plane sees it", lambda: _state(site, worker_id) is WorkerState.DRAINED)
    site.note("after a restart of the plane", f"{worker_id} is {_state(site, worker_id)}")
    site.expect("undo of the drain, by the next plane", undo(drained), CommandState.DONE)
    site.until_pools(prefill=2, decode=2)


def _flip_of_a_dead_engine(site: Site, peer: SglangRouter, worker_id: str) -> None:
    """Killed; the flip says where the worker is, and it serves again when the engine is back."""
    name = next(name for name, port in peer.ports.items() if worker_id.endswith(f":{port}"))
    peer.kill(name)
    site.expect("flip of an engine that is dead", _flip(worker_id, Role.PREFILL), CommandState.FAILED, "undrain")
    peer.start_again(name)
    if _state(site, worker_id) is WorkerState.DRAINED:
        undrain = Action(verb=Verb.UNDRAIN, worker_id=worker_id)
        site.expect("undrain, when it is back", undrain, CommandState.DONE)
    site.until_pools(prefill=2, decode=2)


def _state(site: Site, worker_id: str) -> WorkerState | None:
    found = site.client.snapshot(site.name).workers
    return next((each.state for each in found if each.worker_id == worker_id), None)
