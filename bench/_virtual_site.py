"""A mix on virtual time, in this process: the product's gateway and paced workers, as fast as the machine computes.

    python bench/_virtual_site.py NUMBER SEED SECONDS      one line of JSON: good requests by variant, and the verdict

Code and sockets are the product's (gateway, admission, routing, wire, scheduler, blocks, handoffs, meters, and the
watch that gives the verdict). Left out are HTTP (the gateway is called as the ASGI application that it is), the plane's
own process, and the CPU that a gateway uses, which is no time here. The same arrivals give the same result, whatever
else the machine does.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

import _virtual_clock
from _mixes import MODEL, Mix, Site, mix_of, variants
from _paced_pool import POLICY, PagesFleet, body_of, place
from control.accounting import Accountant
from control.bottleneck_watch import BottleneckWatch
from control.gateway.admission import Admission
from control.gateway.app import Gateway, GatewayLimits, running
from control.gateway.fleet import Fleet
from control.gateway.gatekeeper import AdmissionRules
from control.gateway.link import GatewayHello
from control.gateway.plane_link import PlaneAddress, PlaneLink
from control.gateway.records import Origin, RecordLog
from control.traffic_stats import TrafficStats
from control.types.bottleneck import Bottleneck
from control.types.requests import Slo
from control.types.routing import RoutingTable, WorkerRoute
from engine.device_catalogue import model_spec
from engine.text import SeededText
from engine.wire import Hello
from overload import Answer, note_chunk

TOKEN: Final = "bench"
TAIL_LIMIT_S: Final = 40.0


async def ask(gateway: Gateway, body: bytes, answer: Answer, scheduled_s: float) -> None:
    """One request to its end, into `answer`; its client does not go away."""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError("nobody sets that event")

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.is_dropped = answer.status == 200
            return
        for line in message["body"].split(b"\n"):
            if answer.status == 200 and line.startswith(b"data: "):
                note_chunk(answer, time.monotonic() - scheduled_s)
                answer.is_dropped = not line.startswith(b"data: [DONE]")

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
    await gateway(scope, receive, send)


def make_gateway(site: Site, number: int) -> Gateway:
    fleet = Fleet(Hello(f"g{number}", "gateway", TOKEN))
    gateway = Gateway(
        fleet=fleet,
        admission=Admission(fleet, AdmissionRules(max_in_flight=site.max_in_flight)),
        records=RecordLog(),
        origin=Origin(gateway_id=f"g{number}", fleet_id="bench", slo=Slo()),
        limits=GatewayLimits(default_max_tokens=16, max_body_bytes=10**6, first_token_timeout_s=60.0,
                             token_gap_timeout_s=60.0),
    )  # fmt: skip
    gateway.text = SeededText(model_spec(MODEL).model.vocab_size)
    return gateway


@dataclass(slots=True)
class Seen:
    """What a plane makes of a fleet: looks once a second, as its tick does."""

    gateways: list[Gateway]
    links: list[PlaneLink]
    fleet: PagesFleet
    told: Bottleneck | None = None

    async def watch(self) -> None:
        stats, watch, accountant = TrafficStats(Slo()), BottleneckWatch("bench"), Accountant("bench")
        num_seen = [0] * len(self.gateways)
        while True:
            await asyncio.sleep(1.0)
            now = time.time()
            observation = await self.fleet.observe(now)
            accountant.ingest(observation)
            for number, (gateway, link) in enumerate(zip(self.gateways, self.links, strict=True)):
                beat = link.beat(now, time.monotonic())
                stats.beat(f"g{number}", msgspec.structs.replace(beat, cpu_s=0.0, loop_late_s=None, cpu_wait_s=None))
                records = gateway.records.waiting[1]
                for record in records[num_seen[number] :]:
                    stats.add(record)
                num_seen[number] = len(records)
            self.told = watch.look(observation.readings, accountant.utilization(now), stats, now)


async def serve(mix: Mix, site: Site, seconds: float, shm_dir: Path) -> tuple[list[Answer], Bottleneck | None]:
    """The mix's arrivals on this site; the verdict when the last one has come."""
    rows = await place(site, shm_dir, TOKEN, _virtual_clock.Inline())
    gateways = [make_gateway(site, number) for number in range(site.num_gateways)]
    links = [plane_link(gateway, shm_dir) for gateway in gateways]
    seen = Seen(gateways, links, PagesFleet(rows, shm_dir))
    answers: list[Answer] = []
    async with asyncio.TaskGroup() as group:
        background = [group.create_task(_run(gateway, rows)) for gateway in gateways]
        await asyncio.sleep(2.0)  # connected, and the first loads are told
        background.append(group.create_task(seen.watch()))
        began_s, tasks = time.monotonic(), []
        for number, (at_s, prompt_tokens) in enumerate(mix.arrivals(seconds)):
            await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
            answer = Answer("k", "", prompt_tokens, at_s)
            answers.append(answer)
            body = body_of(mix, number, prompt_tokens)
            tasks.append(group.create_task(ask(gateways[number % len(gateways)], body, answer, began_s + at_s)))
        await asyncio.sleep(max(0.0, began_s + seconds - time.monotonic()))
        told = seen.told
        _, left = await asyncio.wait(tasks, timeout=TAIL_LIMIT_S)
        for task in (*background, *left):
            task.cancel()
    return answers, told


async def _run(gateway: Gateway, rows: tuple[WorkerRoute, ...]) -> None:
    async with running(gateway):
        gateway.fleet.take_table(
            RoutingTable(version=1, fleet_id="bench", model_id=MODEL, fence=1, num_devices=len(rows), policy=POLICY,
                         workers=rows, expected_output_tokens=30)
        )  # fmt: skip
        await asyncio.Event().wait()


def plane_link(gateway: Gateway, run_dir: Path) -> PlaneLink:
    """Only for its beats."""
    return PlaneLink(
        plane=PlaneAddress(urls=("ws://127.0.0.1:1",), run_dir=run_dir),
        hello=GatewayHello(gateway_id="g", address="", version="", started_unix_s=0.0),
        fleet=gateway.fleet,
        records=gateway.records,
        admission=gateway.admission,
        accepts=lambda table: True,
    )


def try_mix(mix: Mix, seconds: float) -> dict[str, Any]:
    good: dict[str, float] = {}
    verdict: Bottleneck | None = None
    num_offered = 0
    for name, site in variants(mix.site).items():
        shm_dir = Path(tempfile.mkdtemp(prefix="phaseline-virtual-", dir="/dev/shm"))
        try:
            answers, told = _virtual_clock.run(serve(mix, site, seconds, shm_dir))
        finally:
            shutil.rmtree(shm_dir, ignore_errors=True)
        good[name] = round(sum(each.is_good for each in answers) / len(answers), 4)
        num_offered, verdict = len(answers), verdict or told
    assert verdict is not None
    return {"good": good, "verdict": asdict(verdict), "num_offered": num_offered}


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:3]]
    print(json.dumps(try_mix(mix_of(*given), float(sys.argv[3]))))
