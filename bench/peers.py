"""The real systems that people run, attached to a real plane, watched, and changed through it: what was obeyed.

python bench/peers.py --setup                     makes their environments under data/run/peers, and ends
python bench/peers.py                             all of them
python bench/peers.py --only dynamo ray-serve

Dynamo's frontend with its mock workers and its virtual connector in etcd, sglang-router with fake workers, a Ray Serve
application of two deployments, Debian's Prometheus. No model runs: what is tried is who obeys, who does not, and
whether we say so. A system that does not start is a failure, with its log.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from _peer_systems import LonePlane, PromPeer, RayServe, SizedDynamo, asked, lone_plane
from _peers import PeerFailed, SglangRouter, running
from control.client import Attachment, PhaselineClient
from control.errors import ControlError
from control.types import Action, Capability, Command, CommandRequest, CommandState, Role, Verb

LIMIT_S = 40.0


class Unmet(Exception):
    """What a system should have shown, and did not."""


class Site:
    """One attached fleet, and what was found of it."""

    def __init__(self, fleet: LonePlane, name: str) -> None:
        self.fleet, self.name = fleet, name
        self.client = PhaselineClient(fleet.url, fleet.token, fleet_id=name)
        self.findings: list[tuple[str, str]] = []

    def attach(self, **told: Any) -> None:
        attachment = Attachment(name=self.name, every_s=0.5, limit_s=LIMIT_S, **told)
        engines = self.client.survey(attachment).engines
        self.note("dry run", "; ".join(f"{each.worker_id} {each.role} {each.version}" for each in engines))
        self.client.attach(attachment)

    def note(self, what: str, found: str) -> None:
        self.findings.append((what, found))
        print(f"  {self.name}: {what}: {found}", flush=True)

    def pools(self) -> dict[str, int]:
        """Workers that are ready, by role."""
        found = self.client.snapshot(self.name).workers
        return {
            role.value: sum(1 for each in found if each.role is role and each.state == "ready" and each.alive)
            for role in (Role.PREFILL, Role.DECODE)
        }

    def until(self, what: str, holds: Callable[[], bool], limit_s: float = 60.0) -> float:
        begun_s = time.monotonic()
        while True:
            try:
                if holds():
                    return time.monotonic() - begun_s
            except ControlError:
                pass  # its plane lives anew
            if time.monotonic() - begun_s > limit_s:
                raise Unmet(f"{what}: not within {limit_s:g} s")
            time.sleep(0.2)

    def until_pools(self, **sizes: int) -> float:
        return self.until(f"{sizes} seen", lambda: self.pools() == sizes)

    def order(self, action: Action, wait: bool = True) -> Command:
        """Confirmed as the preview asks; the ended command."""
        word = self.client.preview(CommandRequest(action=action)).needs_confirmation
        request = CommandRequest(action=action, why="bench", confirmation=word)
        command = self.client.submit(request)
        return self.client.wait(command.command_id, timeout_s=2 * LIMIT_S) if wait else command

    def expect(self, what: str, action: Action, state: CommandState, words: str = "") -> Command:
        begun_s = time.monotonic()
        command = self.order(action)
        self.ended(what, command, state, words, begun_s)
        return command

    def ended(self, what: str, command: Command, state: CommandState, words: str, begun_s: float) -> None:
        self.note(what, f"{command.state} after {time.monotonic() - begun_s:.1f} s: {command.result}")
        if command.state is not state or words not in command.result:
            raise Unmet(f"{what}: {command.state} ({command.result}), expected {state} ... {words}")

    def expect_refused(self, what: str, action: Action) -> None:
        try:
            self.order(action)
        except ControlError as error:
            self.note(what, f"refused: {error.detail}")
            return
        raise Unmet(f"{what}: it was taken")

    def allow(self, *capabilities: Capability) -> None:
        for each in capabilities:
            self.client.allow(self.name, each)
        self.until("its plane", lambda: set(capabilities) <= set(self.client.snapshot(self.name).capabilities))


def resize(**sizes: int) -> Action:
    return Action(verb=Verb.RESIZE, **sizes)


def undo(command: Command) -> Action:
    return Action(verb=Verb.UNDO, command_id=command.command_id)


def try_dynamo(site: Site) -> None:
    """Observed while one is killed and one added; a resize obeyed, undone, ignored, and fought over."""
    with running(SizedDynamo()) as peer:
        assert isinstance(peer, SizedDynamo)
        controller = f"dynamo={peer.url}?etcd={peer.etcd_url}&namespace=dynamo"
        site.attach(kind="dynamo", controller=controller, simulated=True)
        site.until_pools(prefill=2, decode=2)
        peer.kill("decode1")
        site.note("decode1 killed with -9", f"not seen as ready after {site.until_pools(prefill=2, decode=1):.1f} s")
        peer.start_again("decode1")
        site.note("started again", f"seen after {site.until_pools(prefill=2, decode=2):.1f} s, under a new id")
        site.expect_refused("resize without permission", resize(decode=3))
        site.allow(Capability.RESIZE)
        site.until_pools(prefill=2, decode=2)
        done = site.expect("resize decode 2 -> 3, obeyed", resize(decode=3), CommandState.DONE)
        site.expect("undo", undo(done), CommandState.DONE)
        peer.obeys = False
        site.expect("resize not obeyed, but acknowledged", resize(decode=4), CommandState.FAILED, "not reached within")
        begun_s = time.monotonic()
        command = site.order(resize(prefill=3), wait=False)
        site.until("our wish", lambda: peer.wish()[0] == 3)
        peer.write_wish(1, 1)
        fought = site.client.wait(command.command_id, timeout_s=LIMIT_S)
        site.ended("another planner's wish", fought, CommandState.FAILED, "another planner", begun_s)


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


def try_ray_serve(site: Site) -> None:
    """Both deployments resized both ways under load, and undone."""
    with running(RayServe()) as peer:
        assert isinstance(peer, RayServe)
        site.attach(
            kind="ray-serve",
            controller=f"ray-serve={peer.dashboard_url}/pd",
            controller_token=str(peer.token_file),
            simulated=True,
        )
        site.until_pools(prefill=1, decode=2)
        site.expect_refused("resize without permission", resize(prefill=2))
        site.allow(Capability.RESIZE)
        site.until_pools(prefill=1, decode=2)
        site.expect_refused("resize to 0", resize(decode=0))
        with asked(peer.url, {}, 4) as load:
            time.sleep(2)
            done = site.expect("prefill 1 -> 2 and decode 2 -> 1", resize(prefill=2, decode=1), CommandState.DONE)
            site.expect("undo", undo(done), CommandState.DONE)
        site.note("requests meanwhile", load.words())
        if load.failed:
            raise Unmet(f"requests failed: {load.words()}")


def try_prometheus(site: Site) -> None:
    """The engines that a Prometheus server scrapes, found by a query, with the role by a label of its own words."""
    with running(PromPeer()) as peer:
        assert isinstance(peer, PromPeer)
        query = "query=up%7Bjob%3D%22engines%22%7D&role=stage&prefill=first&decode=second"
        site.attach(kind="sglang", controller=f"prometheus={peer.url}?{query}", simulated=True)
        site.note("engines by PromQL", f"seen after {site.until_pools(prefill=1, decode=2):.1f} s")


SYSTEMS: dict[str, tuple[type[Any], Callable[[Site], None]]] = {
    "dynamo": (SizedDynamo, try_dynamo),
    "sglang-router": (SglangRouter, try_sglang_router),
    "ray-serve": (RayServe, try_ray_serve),
    "prometheus": (PromPeer, try_prometheus),
}


@contextmanager
def attempted(name: str, results: dict[str, Any], site: Site) -> Iterator[None]:
    """Whatever goes wrong with one system is its result."""
    results[name] = {"ok": True, "findings": site.findings}
    try:
        yield
    except (Unmet, PeerFailed, ControlError, OSError) as error:
        results[name] |= {"ok": False, "problem": str(error)}
        print(f"  {name}: FAILED: {error}", flush=True)
        if not isinstance(error, Unmet | PeerFailed):
            traceback.print_exc()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--setup", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.setup:
        for name in options.only:
            SYSTEMS[name][0].set_up()
        return 0
    results: dict[str, Any] = {}
    with lone_plane() as fleet:
        for name in options.only:
            print(f"{name}:", flush=True)
            site = Site(fleet, name)
            with attempted(name, results, site):
                SYSTEMS[name][1](site)
    if options.json:
        print(json.dumps(results))
    for name, each in results.items():
        print(f"{name:16} {'ran, all as expected' if each['ok'] else 'FAILED: ' + each['problem']}")
    return 0 if all(each["ok"] for each in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
