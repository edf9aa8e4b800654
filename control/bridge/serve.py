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

from control.bridge.bridge import Bridge, served_already, speech_of
from control.errors import ControlError, NotAllowed, NotFound
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.bridge_file import bridge_folder, bridge_path, listed_path
from control.fleets.attached.targets import FileTargets, TargetSource
from control.fleets.attached.types import AttachedInfo, Attachment
from control.fleets.fleet_token import fleet_token
from control.gateway.app import running
from control.gateway.main import READY_LIMIT_S, make_gateway, make_plane_link, make_server, until_ready
from control.listener import Channel, bind_listener, inherited_listener
from control.settings import Settings
from control.types.fleet import Capability
from engine.host import format_address
from engine.text import ModelText

log = logging.getLogger("phaseline.bridge")
LOOK_EVERY_S: Final = 2.0
HOLD_POLL_S: Final = 0.05


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
    bridge = bridge_of(settings, info, text)
    try:
        await _serve(settings, info.attachment.name, text, look, bridge)
    finally:
        await bridge.close()


async def _serve(
    settings: Settings, name: str, text: ModelText, look: Callable[[], AttachedInfo], bridge: Bridge
) -> None:
    """Under the supervisor it gets its socket from there, and waits for the one that it replaces."""
    inherited = inherited_listener()
    if inherited is None and not bridge.hold():
        raise served_already(bridge_path(settings.run_dir, name), name)
    listener = inherited or bind_listener(settings.host, settings.gateway_port)
    gateway_id = f"gw-{name}-{secrets.token_hex(4)}"
    gateway = make_gateway(settings, gateway_id)
    gateway.text = text
    channel = Channel(listener, gateway.status)
    server = make_server(settings, gateway, channel)
    link = make_plane_link(
        *(settings, gateway, gateway_id),
        accepts=lambda table: table.fleet_id == name,
        folder=bridge_folder(settings.run_dir, name) / "gateway",
    )

    def stop(number: int = signal.SIGTERM) -> None:
        bridge.leave()
        server.handle_exit(number, None)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    channel.open()
    while not server.should_exit and not bridge.hold():  # noqa: ASYNC110  another process holds it
        await asyncio.sleep(HOLD_POLL_S)
    async with running(gateway):
        tasks = [
            asyncio.create_task(bridge.run(), name="bridge"),
            asyncio.create_task(link.run(), name="plane link"),
            asyncio.create_task(while_allowed(look, stop)),
        ]
        tasks[0].add_done_callback(lambda _task: stop())
        try:
            if inherited is not None:
                await until_ready(gateway, server, READY_LIMIT_S)
            if not server.should_exit:
                log.info("fleet %s is served on %s", name, listener.getsockname())
                await server.serve(sockets=[listener])
            await link.flush()
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            link.keep_unsent()
            channel.close()
    for each in ended:
        if isinstance(each, Exception):
            raise each


def bridge_of(settings: Settings, info: AttachedInfo, text: ModelText) -> Bridge:
    """Raises CommandRefused for a kind of fleet that is only looked at."""
    told = info.attachment
    speech_of(told.kind)
    return Bridge(
        told,
        source_of(settings, told),
        token=fleet_token(settings.run_dir),
        path=bridge_path(settings.run_dir, told.name),
        encode=text.encode,
        url=f"http://{format_address(settings.host, settings.gateway_port)}",
    )


def source_of(settings: Settings, told: Attachment) -> TargetSource:
    """The registry. A controller is the plane's to ask: it keeps the list in a file, which is followed here."""
    if told.controller:
        return FileTargets(listed_path(settings.run_dir, told), may_come=True)
    return plan_of(told).source


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
