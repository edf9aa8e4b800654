"""Ray Serve for real: an application of a prefill-like and a decode-like deployment."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from pathlib import Path

import psutil

from _deployment import ROOT, free_ports
from _peer_site import Site, Unmet, asked, resize, undo
from _peers import Peer, running
from control.types.commands import CommandState
from control.types.fleet import Capability

RAY = "2.60.0"
#: Ray's workers push their numbers every 10 s.
PUSHED_S = 15.0
#: Of each request, as `_ray_serve_app.py` makes them up.
MADE_UP = {"prefill_tokens": 700, "decode_tokens": 40}


class RayServe(Peer):
    """Two deployments that only wait, one prefill and two decode replicas. They export series as vLLM's do."""

    name = "ray-serve"
    model_id = "fake"
    what = f"Ray Serve {RAY}, two deployments that only wait"
    dashboard_url = ""
    token_file = Path()

    def __init__(self) -> None:
        super().__init__()
        self._own: set[psutil.Process] = set()

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
        self._remember_own()

    def is_whole(self) -> bool:
        return "\nready" in f"\n{self.log('frontend')}"

    def clear(self) -> None:
        """Ray's own processes end when their driver is asked to, not when it is killed. Those that do not, we end."""
        self._remember_own()
        if "frontend" in self._processes:
            self._processes["frontend"].terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes["frontend"].wait(60)
        super().clear()
        _, left = psutil.wait_procs(self._own, timeout=30)
        for each in left:
            print(f"  ray-serve: {each.pid} {each.name()} was still there, and was ended", flush=True)
            each.kill()
        psutil.wait_procs(left, timeout=30)

    def _remember_own(self) -> None:
        """All that runs below the driver, by id and start time."""
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            driver = psutil.Process(self._processes["frontend"].pid)
            self._own |= set(driver.children(recursive=True))


def try_ray_serve(site: Site) -> None:
    """Both deployments resized both ways under load, and undone; their lines, from Ray's metrics agents."""
    with running(RayServe()) as peer:
        assert isinstance(peer, RayServe)
        with asked(peer.url, {}, 4):
            time.sleep(PUSHED_S)  # so that all series are there when counting begins
        attached_unix_s = time.time()
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
        time.sleep(PUSHED_S)
        before = {metric: site.total(metric, attached_unix_s) for metric in MADE_UP}
        with asked(peer.url, {}, 4) as load:
            time.sleep(2)
            done = site.expect("prefill 1 -> 2 and decode 2 -> 1", resize(prefill=2, decode=1), CommandState.DONE)
            site.expect("undo", undo(done), CommandState.DONE)
            time.sleep(PUSHED_S)
        site.note("requests meanwhile", load.words())
        if load.failed:
            raise Unmet(f"requests failed: {load.words()}")
        time.sleep(2 * PUSHED_S)
        _count(site, load.done, before, attached_unix_s)


def _count(site: Site, num_requests: int, before: dict[str, float], since_unix_s: float) -> None:
    """What the lines add up to, of what was really asked: a replica that left takes its last seconds with it."""
    for metric, each in MADE_UP.items():
        counted, true = site.total(metric, since_unix_s) - before[metric], each * num_requests
        site.note(metric, f"{counted:.0f} counted of {true} that the made-up engines say ({counted / true:.1%})")
        if not 0 < counted <= true * 1.001:
            raise Unmet(f"{metric}: {counted:.0f} counted, of {true}")
