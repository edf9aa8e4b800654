"""`phaseline serve`: our gateway in front of an attached fleet, with the bridge to its engines, as one process.

Decided here: what is built from the attachment, that nothing is served which an operator has not allowed, and that it
ends when that is taken back. Not decided here: anything about a request, a role or an engine.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
from collections.abc import Callable
from typing import Final, Protocol

from control.bridge.bridge import Bridge, speech_of
from control.errors import ControlError, NotAllowed, NotFound
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.bridge_file import bridge_folder, bridge_path
from control.fleets.attached.types import AttachedInfo
from control.fleets.fleet_token import fleet_token
from control.gateway.app import running
from control.gateway.main import make_gateway, make_plane_link, make_server
from control.listener import Channel, bind_listener
from control.settings import Settings
from control.types import Capability
from engine.text import ModelText

log = logging.getLogger("phaseline.bridge")
LOOK_EVERY_S: Final = 2.0


class Attached(Protocol):
    """What is asked of the plane (`control.client.PhaselineClient` has it)."""

    def attached(self) -> list[AttachedInfo]: ...


def allowed_of(client: Attached, name: str) -> AttachedInfo:
    """The fleet, if requests may be sent to it. Raises NotFound, NotAllowed, PlaneUnreachable."""
    infos = {each.attachment.name: each for each in client.attached()}
    if name not in infos:
        known = ", ".join(infos) or "none"
        raise NotFound(f"no attached fleet is named {name}", field="name", value=name, bound=known)
    if Capability.ROUTE not in {each.capability for each in infos[name].allowed}:
        raise NotAllowed(f"fleet {name} is not ours to route: `phaseline allow {name} route` lets us", field="name")
    return infos[name]


async def serve(settings: Settings, info: AttachedInfo, text: ModelText, look: Callable[[], AttachedInfo]) -> None:
    """Until SIGTERM, SIGINT, or the permission ends. `settings`: of this gateway, with the fleet's name as its id."""
    told = info.attachment
    speech_of(told.kind)
    folder = bridge_folder(settings.run_dir, told.name)
    bridge = Bridge(
        told,
        plan_of(told).source,
        token=fleet_token(settings.run_dir),
        path=bridge_path(settings.run_dir, told.name),
        encode=text.encode,
    )
    gateway_id = f"gw-{told.name}-{secrets.token_hex(4)}"
    gateway = make_gateway(settings, gateway_id)
    gateway.text = text
    listener = bind_listener(settings.host, settings.gateway_port)
    channel = Channel(listener, gateway.status)
    server = make_server(settings, gateway, channel)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    link = make_plane_link(
        settings, gateway, gateway_id, accepts=lambda table: table.fleet_id == told.name, folder=folder / "gateway"
    )
    async with running(gateway):
        tasks = [
            asyncio.create_task(bridge.run(), name="bridge"),
            asyncio.create_task(link.run(), name="plane link"),
            asyncio.create_task(while_allowed(look, lambda: server.handle_exit(signal.SIGTERM, None))),
        ]
        tasks[0].add_done_callback(lambda _task: server.handle_exit(signal.SIGTERM, None))
        try:
            log.info("fleet %s is served on %s", told.name, listener.getsockname())
            await server.serve(sockets=[listener])
            await link.flush()
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            link.keep_unsent()
    for each in ended:
        if isinstance(each, Exception):
            raise each


async def while_allowed(
    look: Callable[[], AttachedInfo], stop: Callable[[], None], every_s: float = LOOK_EVERY_S
) -> None:
    """A plane that is away takes nothing back: the gateway goes on with what it has."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(look)
        except (NotAllowed, NotFound) as error:
            log.warning("%s: it is served no more", error.detail)
            stop()
            return
        except ControlError as error:
            log.debug("the plane does not answer: %s", error.detail)
