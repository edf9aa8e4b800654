"""The gateway process: `python -m control.gateway.main`. Puts the parts together and runs until SIGTERM or SIGINT.

Decided here: what is built from which setting, and that at its end the records that the plane does not have yet are
kept on disk for the next gateway. Not here: how open connections end (`control.gateway.drain`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import uvicorn
import uvloop

from control.errors import ControlError
from control.fleets.fleet_token import fleet_token
from control.gateway.admission import Admission
from control.gateway.app import Gateway, GatewayLimits, running
from control.gateway.connections import bounded_protocol
from control.gateway.drain import Server
from control.gateway.fleet import Fleet, LineRules
from control.gateway.gatekeeper import AdmissionRules
from control.gateway.link import GatewayHello
from control.gateway.mover import MoveLimits
from control.gateway.plane_link import PlaneAddress, PlaneLink
from control.gateway.records import Origin, RecordLog
from control.gateway.tracing import Tracing
from control.listener import BACKLOG, Channel, bind_listener, inherited_listener
from control.settings import Settings, load_key_names, load_key_weights, load_settings
from control.types.routing import RoutingTable
from engine.device_catalogue import model_spec
from engine.errors import EngineError
from engine.host import format_address
from engine.text import ModelText, SeededText, Text
from engine.wire import Hello

log = logging.getLogger(__name__)

#: A gateway that shares its address leaves new connections to the others until it is ready, but not for longer.
READY_LIMIT_S = 10.0
READY_POLL_S = 0.02
#: The model folder may still be converted when the gateway starts.
TEXT_RETRY_S = 1.0
#: Longer than clients keep idle connections, so that we never close one just as its next request comes.
KEEP_ALIVE_S = 90
#: Objects between two collections of the young; a request makes some hundred, nearly all freed by reference counts.
GC_THRESHOLD = 50_000


def main() -> int:
    """Exit code 0 after a signal, 2 for a setting that cannot be used, with one line that says why."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings = load_settings()
        inherited = inherited_listener()
        listener = inherited or bind_listener(settings.host, settings.gateway_port)
        uvloop.run(run(settings, listener, is_shared=inherited is not None))
    except (ControlError, EngineError) as error:
        print(f"gateway: {error}", file=sys.stderr)
        return 2
    return 0


async def run(settings: Settings, listener: socket.socket, *, is_shared: bool) -> None:
    gateway_id = f"gw-{secrets.token_hex(4)}"
    tracing = make_tracing(settings, gateway_id)
    gateway = make_gateway(settings, gateway_id, tracing)
    plane_link = make_plane_link(settings, gateway, gateway_id)
    plane_link.load_kept_table()
    channel = Channel(listener, gateway.status)
    server = make_server(settings, gateway, channel)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.handle_exit, number, None)
    async with running(gateway):
        tasks = [asyncio.create_task(plane_link.run()), asyncio.create_task(load_text(settings, gateway))]
        try:
            channel.open()
            if is_shared:
                await until_ready(gateway, server, READY_LIMIT_S)
            log.info("gateway %s serves %s on %s", gateway_id, settings.model_id, listener.getsockname())
            if not server.should_exit:
                await server.serve(sockets=[listener])
            await plane_link.flush()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            plane_link.keep_unsent()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)
            channel.close()
    log.info("gateway %s ended with %d requests served", gateway_id, gateway.admission.num_completed)


async def until_ready(gateway: Gateway, server: Server, limit_s: float) -> None:
    """Until requests can be served, the limit has passed, or it is told to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while gateway.why_not_ready() and not server.should_exit:  # noqa: ASYNC110  readiness has many parts
                await asyncio.sleep(READY_POLL_S)


def make_server(settings: Settings, gateway: Gateway, channel: Channel) -> Server:
    def on_stop() -> None:
        log.info("told to stop: %d requests are under way", len(gateway.admission.in_flight))
        channel.stop_listening()
        gateway.stop()

    return Server(
        uvicorn_config(gateway, settings.max_connections),
        limit_s=settings.drain_limit_s,
        idle_s=settings.drain_idle_s,
        on_stop=on_stop,
        on_limit=lambda: gateway.give_up(settings.drain_limit_s),
    )


def make_tracing(settings: Settings, gateway_id: str) -> Tracing | None:
    """None where there is no collector."""
    if not settings.otlp_endpoint:
        return None
    about = {
        "service.name": "phaseline-gateway",
        "service.instance.id": gateway_id,
        "service.version": package_version(),
        "phaseline.fleet_id": settings.fleet_id,
    }
    return Tracing(settings.otlp_endpoint, settings.otlp_sample_share, about)


def make_gateway(settings: Settings, gateway_id: str, tracing: Tracing | None = None) -> Gateway:
    hello = Hello(gateway_id, "gateway", fleet_token(settings.run_dir))
    moving = MoveLimits(is_on=settings.live_migration, per_worker=settings.migrations_per_worker)
    fleet = Fleet(hello, moving, settings.recovery_share, line_rules(settings))
    return Gateway(
        fleet=fleet,
        admission=Admission(fleet, admission_rules(settings)),
        records=RecordLog(),
        origin=Origin(
            gateway_id=gateway_id,
            fleet_id=settings.fleet_id,
            slo=settings.effective_slo,
            key_names=load_key_names(settings),
        ),
        tracing=tracing,
        limits=GatewayLimits(
            default_max_tokens=settings.default_max_tokens,
            max_body_bytes=settings.max_body_bytes,
            first_token_timeout_s=settings.first_token_timeout_s,
            token_gap_timeout_s=settings.token_gap_timeout_s,
            client_stall_s=settings.client_stall_s,
        ),
    )


def line_rules(settings: Settings) -> LineRules:
    return LineRules(
        max_backlog_s=settings.worker_backlog_s if settings.admission == "predict" else None,
        batch_share=settings.batch_share,
        key_weights=load_key_weights(settings),
    )


def admission_rules(settings: Settings) -> AdmissionRules:
    return AdmissionRules(
        max_in_flight=settings.max_in_flight,
        predicts=settings.admission == "predict",
        at_share=settings.admission_at_share,
        slo=settings.effective_slo,
        batch_ttft_s=settings.batch_ttft_s,
    )


def make_plane_link(
    settings: Settings,
    gateway: Gateway,
    gateway_id: str,
    *,
    accepts: Callable[[RoutingTable], bool] | None = None,
    folder: Path | None = None,
) -> PlaneLink:
    """`accepts`: which tables are ours, else those of the settings' fleet and model; `folder`: what it keeps there."""
    path = f"/api/v1/gateways/connect?fleet_id={settings.fleet_id}"
    urls = tuple(f"ws{each.removeprefix('http')}{path}" for each in settings.plane_addresses)
    return PlaneLink(
        plane=PlaneAddress(urls=urls, run_dir=settings.run_dir),
        hello=GatewayHello(
            gateway_id=gateway_id,
            address=format_address(settings.host, settings.gateway_port),
            version=package_version(),
            started_unix_s=time.time(),
        ),
        fleet=gateway.fleet,
        records=gateway.records,
        admission=gateway.admission,
        accepts=accepts or (lambda table: (table.fleet_id, table.model_id) == (settings.fleet_id, settings.model_id)),
        folder=folder,
    )


def uvicorn_config(gateway: Gateway, max_connections: int) -> uvicorn.Config:
    return uvicorn.Config(
        gateway,
        http=bounded_protocol(max_connections),
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
    )


async def load_text(settings: Settings, gateway: Gateway) -> None:
    """Load the tokenizer, again and again while the model folder is being made; `/readyz` says why it is not there."""
    while gateway.text is None:
        try:
            gateway.text = await asyncio.to_thread(open_text, settings)
        except EngineError as error:
            if str(error) != gateway.text_problem:
                log.warning("%s", error)
            gateway.text_problem = str(error)
            await asyncio.sleep(TEXT_RETRY_S)
    gc.collect()
    gc.freeze()  # modules and vocabulary stay for good: the collector need not walk them again and again
    gc.set_threshold(GC_THRESHOLD)


def open_text(settings: Settings) -> Text:
    """Raises ModelFolderError or CatalogueError."""
    if settings.worker_kind == "paced":
        return SeededText(model_spec(settings.paced_model).model.vocab_size)
    return ModelText(settings.model_dir)


def package_version() -> str:
    try:
        return version("phaseline")
    except PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
