"""Dynamo's own planner on the same pools: the other controller, to which we yield.

It is of version 1.5.1, as what 1.6.1 imports (aisimulate) cannot be fetched; its targets are the workers of 1.6.1.
Without load it wants fewer decode workers. It needs no profile for that, and no Prometheus: it sees each forward pass.
"""

from __future__ import annotations

import json
import subprocess
import time

from _peer_dynamo import SizedDynamo
from _peer_site import LIMIT_S, Site, resize
from _peers import DYNAMO_NEEDS, PEERS, running
from _vllm_environment import installed
from control.types.commands import CommandState
from control.types.fleet import Capability

NAME = "dynamo-planner"
PLANNER = "1.5.1"
PLANNER_NEEDS = ("aiconfigurator-core==0.12.0", "scikit-learn", "pandas", "filterpy", "pmdarima", "prophet", "plotly",
                 "prometheus-api-client", "grpcio", "protobuf", "pydantic", "pyyaml")  # fmt: skip
#: It waits for profiles that nobody has before it plans, and plans each `EVERY_S`.
PLANS_WITHIN_S = 180.0
EVERY_S = 5


class PlannedDynamo(SizedDynamo):
    """Mock workers, our small controller, and the planner when it is asked for."""

    @classmethod
    def set_up(cls) -> None:
        super().set_up()
        installed(NAME, [f"ai-dynamo-runtime=={PLANNER}", *DYNAMO_NEEDS, *PLANNER_NEEDS], marks=False)
        installed(NAME, [f"ai-dynamo=={PLANNER}", "--no-deps"])

    def start_planner(self) -> None:
        told = {"environment": "virtual", "namespace": "dynamo", "mode": "disagg", "backend": "mocker",
                "model_name": self.model_id, "optimization_target": "throughput",
                "load_adjustment_interval_seconds": EVERY_S, "prefill_engine_num_gpu": 1, "decode_engine_num_gpu": 1,
                "metric_pulling_prometheus_endpoint": "http://127.0.0.1:9", "report_interval_hours": None,
                "control_api_port": 0, "live_dashboard_port": 0}  # fmt: skip
        hosts = dict.fromkeys(("DYN_TCP_RPC_HOST", "DYN_SYSTEM_HOST", "DYN_EVENT_PLANE_HOST"), "127.0.0.1")
        environment = self.discovery() | hosts | {"DYN_TCP_RESPONSE_STREAM_HOST": "lo", "DYN_REQUEST_PLANE": "tcp",
                                                  "DYN_EVENT_PLANE": "zmq", "HF_HUB_OFFLINE": "1"}  # fmt: skip
        python = PEERS / NAME / "bin" / "python"
        self.run("planner", [str(python), "-m", "dynamo.planner", "--config", json.dumps(told)], environment)

    def end_planner(self) -> None:
        self._processes["planner"].terminate()
        try:
            self._processes["planner"].wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill("planner")


def try_dynamo_planner(site: Site) -> None:
    """It comes and writes its wish over ours: our command ends, the next one is refused; obeyed when it has gone."""
    with running(PlannedDynamo()) as peer:
        assert isinstance(peer, PlannedDynamo)
        site.attach(
            kind="dynamo",
            controller=f"dynamo={peer.url}?etcd={peer.etcd_url}&namespace=dynamo",
            simulated=True,
            limit_s=PLANS_WITHIN_S,
        )
        site.until_pools(prefill=2, decode=2)
        site.allow(Capability.RESIZE)
        peer.obeys = False  # so that our command still stands when the planner plans
        peer.start_planner()
        begun_s = time.monotonic()
        command = site.order(resize(prefill=3), wait=False)
        site.until("our wish", lambda: peer.wish()[0] == 3)
        site.note("ours", f"prefill 3 is written, and not carried out; dynamo.planner {PLANNER} begins")
        fought = site.client.wait(command.command_id, timeout_s=PLANS_WITHIN_S)
        site.ended("dynamo.planner is there", fought, CommandState.FAILED, "planner", begun_s)
        wish_s = site.until("its wish over ours", lambda: any("its wish" in each for each in _rivals(site)))
        site.note("its wish over ours", f"{', '.join(_rivals(site))}; {wish_s:.1f} s later")
        site.expect_refused("the next order", resize(decode=3))
        peer.end_planner()
        gone_s = site.until("its wish has gone with it", lambda: not _rivals(site))
        site.note("dynamo.planner ended", f"its wish is gone from etcd, and seen to be, after {gone_s:.1f} s")
        peer.obeys = True
        site.expect("resize decode 2 -> 3, obeyed", resize(decode=3), CommandState.DONE)


def _rivals(site: Site) -> set[str]:
    return {each.rival for each in site.client.snapshot(site.name).pools} - {""}
