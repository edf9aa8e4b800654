"""Ray Serve for real: an application of a prefill-like and a decode-like deployment."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from pathlib import Path

from _deployment import ROOT, free_ports
from _peer_site import Site, Unmet, asked, resize, undo
from _peers import Peer, running
from control.types import Capability, CommandState

RAY = "2.60.0"


class RayServe(Peer):
    """Two deployments that only wait, one prefill and two decode replicas."""

    name = "ray-serve"
    model_id = "fake"
    what = f"Ray Serve {RAY}, two deployments that only wait"
    dashboard_url = ""
    token_file = Path()

    @classmethod
    def packages(cls) -> list[list[str]]:
        return [[f"ray[serve]=={RAY}"]]

    def start(self) -> None:
        dashboard, http = free_ports(2)
        self.url, self.dashboard_url = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{dashboard}"
        app = str(ROOT / "bench" / "_ray_serve_app.py")
        self.token_file = self.folder / "token"
        self.token_file.write_text(secrets.token_hex(32))
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
        self.run("frontend", [str(self.python), app, str(dashboard), str(http)], environment)
        self.until_whole()

    def is_whole(self) -> bool:
        return "\nready" in f"\n{self.log('frontend')}"

    def clear(self) -> None:
        """Ray's own processes end when their driver is asked to, not when it is killed."""
        if "frontend" in self._processes:
            self._processes["frontend"].terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes["frontend"].wait(60)
        super().clear()


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
