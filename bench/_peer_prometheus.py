"""Debian's Prometheus for real, as the list of engines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from _deployment import ROOT, free_ports
from _peer_site import Site
from _peers import FAKE_STEP_S, Peer, running


class PromPeer(Peer):
    """Debian's Prometheus, which scrapes three fake engines whose stage a label says."""

    name = "prometheus"
    model_id = "fake"
    what = "Debian's Prometheus"

    @classmethod
    def set_up(cls) -> None:
        """It is a package of the system."""

    @classmethod
    def packages(cls) -> list[list[str]]:
        return []

    @property
    def python(self) -> Path:
        return Path(sys.executable)

    def start(self) -> None:
        port, *ports = free_ports(4)
        stages = ("first", "second", "second")
        for number, (stage, each) in enumerate(zip(stages, ports, strict=True)):
            role = "prefill" if stage == "first" else "decode"
            fake = str(ROOT / "bench" / "_fake_worker.py")
            self.run(f"engine{number}", [sys.executable, fake, role, str(each), str(FAKE_STEP_S)])
        groups = [
            {"targets": [f"127.0.0.1:{each}"], "labels": {"stage": stage}}
            for stage, each in zip(stages, ports, strict=True)
        ]
        job = {"job_name": "engines", "scrape_interval": "1s", "static_configs": groups}
        config = self.folder / "prometheus.yml"
        config.write_text(json.dumps({"scrape_configs": [job]}))  # JSON is YAML
        self.url = f"http://127.0.0.1:{port}"
        storage = ["--storage.tsdb.path", str(self.folder / "tsdb")]
        listen = f"--web.listen-address=127.0.0.1:{port}"
        self.run("frontend", ["prometheus", f"--config.file={config}", *storage, listen])
        self.until_whole()

    def is_whole(self) -> bool:
        found = self.get("/api/v1/query?query=up")
        return found is not None and len(found.get("data", {}).get("result", [])) == 3


def try_prometheus(site: Site) -> None:
    """The engines that a Prometheus server scrapes, found by a query, with the role by a label of its own words."""
    with running(PromPeer()) as peer:
        assert isinstance(peer, PromPeer)
        query = "query=up%7Bjob%3D%22engines%22%7D&role=stage&prefill=first&decode=second"
        site.attach(kind="sglang", controller=f"prometheus={peer.url}?{query}", simulated=True)
        site.note("engines by PromQL", f"seen after {site.until_pools(prefill=1, decode=2):.1f} s")
