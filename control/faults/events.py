"""What each event does to a running deployment: signals, sockets, limits, commands. Effects only; plans are elsewhere.

A fault that needs a stage stops the worker's process first, looks again, and lets it go on when the stage has passed:
so what is killed is what was meant. Whatever was stopped or limited is undone by `close`, also when the run is cut off.
"""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from control.errors import CommandRefused, ControlError
from control.faults.commander import Commander
from control.faults.place import Place, worker_process
from control.faults.postgresql import restart_postgresql
from control.faults.scenario import Event
from control.faults.sockets import drop_connection
from control.faults.stages import Stage, is_at, worker_at
from control.faults.streams import Streams
from control.processes import ProcessId, send_signal
from control.types.commands import Action, Verb
from control.write_points import FILE_NAME
from engine.readings import MeterReading

POLL_S: Final = 0.002
WHY: Final = "fault scenario"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDone:
    """What became of one event. `problem` is "" when it happened as it was meant to."""

    do: str
    at_s: float
    target: str = ""
    detail: str = ""
    problem: str = ""


class Events:
    """Carries events out while `streams` run; each waits for its own time and stage, so several may wait at once."""

    def __init__(self, place: Place, commander: Commander, streams: Streams, seed: int) -> None:
        self.place = place
        self.commander = commander
        self.streams = streams
        self.rng = random.Random(seed)
        self.has_streams = True  # until the last one has ended
        self._standing: dict[ProcessId, asyncio.Task[None] | None] = {}
        self._limited: list[ProcessId] = []

    async def carry_out(self, event: Event, start_s: float) -> EventDone:
        """Wait for its time and stage, then do it."""
        await asyncio.sleep(max(0.0, start_s + event.at_s - time.monotonic()))
        try:
            target, detail = await _DO[event.do](self, event)
        except (ControlError, OSError) as error:
            return EventDone(do=event.do, at_s=time.monotonic() - start_s, problem=str(error))
        return EventDone(do=event.do, at_s=time.monotonic() - start_s, target=target, detail=detail)

    async def stood(self) -> None:
        """Until every stop has had its time."""
        await asyncio.gather(*(each for each in self._standing.values() if each is not None))

    async def close(self) -> None:
        """Let go on whatever stands, and lift every limit."""
        for process, waits in self._standing.items():
            if waits is not None:
                waits.cancel()
            send_signal(process, signal.SIGCONT)
        for process in self._limited:
            _limit_files(process, resource.RLIM_INFINITY)

    # --- workers -------------------------------------------------------------------------------------------------

    async def _seize(self, event: Event) -> tuple[ProcessId, MeterReading]:
        """The worker that the event means, its process stopped in the stage that the event names."""
        return await asyncio.to_thread(self._seize_now, event)

    def _seize_now(self, event: Event) -> tuple[ProcessId, MeterReading]:
        stage = event.stage
        while self.has_streams or stage is None:
            found = self._find(event)
            if found is None:
                time.sleep(POLL_S)
                continue
            process = worker_process(found)
            send_signal(process, signal.SIGSTOP)
            again = self.place.reading(found.worker_id)
            if again.pid == process.pid and (stage is None or is_at(again, stage, event.at_least or 1)):
                return process, again
            send_signal(process, signal.SIGCONT)
        raise _not_seen(event)

    def _find(self, event: Event) -> MeterReading | None:
        """The named worker (in that stage, if there is one named), or who is furthest in it; by default in decode."""
        stage, at_least = event.stage, event.at_least or 1
        if event.worker_id is None:
            return worker_at(stage or Stage.DECODE, self.place.readings(), at_least)
        found = self.place.reading(event.worker_id)
        return found if stage is None or is_at(found, stage, at_least) else None

    async def _choose(self, event: Event) -> str:
        """As `_seize`, for what is done by a command: nothing is stopped."""
        return await asyncio.to_thread(self._choose_now, event)

    def _choose_now(self, event: Event) -> str:
        if event.worker_id is not None and event.stage is None:
            return event.worker_id
        while self.has_streams:
            found = self._find(event)
            if found is not None:
                return found.worker_id
            time.sleep(POLL_S)
        raise _not_seen(event)

    async def kill(self, event: Event) -> tuple[str, str]:
        process, reading = await self._seize(event)
        send_signal(process, signal.SIGKILL)
        return reading.worker_id, _words(reading)

    async def stop(self, event: Event) -> tuple[str, str]:
        process, reading = await self._seize(event)
        assert event.for_s is not None
        self._standing[process] = asyncio.create_task(self._continue(process, event.for_s))
        return reading.worker_id, f"{_words(reading)}; stands for {event.for_s:g} s"

    async def _continue(self, process: ProcessId, after_s: float) -> None:
        await asyncio.sleep(after_s)
        send_signal(process, signal.SIGCONT)

    async def hang(self, event: Event) -> tuple[str, str]:
        process, reading = await self._seize(event)
        self._standing[process] = None
        return reading.worker_id, f"{_words(reading)}; stands until somebody ends it"

    async def drop_connection(self, event: Event) -> tuple[str, str]:
        process, reading = await self._seize(event)
        send_signal(process, signal.SIGCONT)  # first: a gateway leaves a worker that stands still, by cutting it off
        num = drop_connection(self.place.process("gateway"), reading.address)
        return reading.worker_id, f"{_words(reading)}; {num} connection(s) to {reading.address} shut down"

    # --- commands ------------------------------------------------------------------------------------------------

    async def command(self, event: Event) -> tuple[str, str]:
        worker_id = None
        if event.do in (Verb.FLIP, Verb.DRAIN, Verb.UNDRAIN):
            worker_id = await self._choose(event)
        action = Action(
            verb=Verb(event.do),
            worker_id=worker_id,
            role=event.role,
            prefill=event.prefill,
            decode=event.decode,
            mixed=event.mixed,
            policy=event.policy,
            weights=event.weights,
        )
        command = await asyncio.to_thread(self.commander.send, action, WHY)
        return worker_id or "", f"command {command.command_id}"

    async def cancel(self, event: Event) -> tuple[str, str]:
        assert event.count is not None
        chosen = self.streams.cancel(event.count, self.rng)
        if not chosen:
            raise CommandRefused("no stream was open", field="count", value=event.count)
        return "", f"hung up on {len(chosen)} streams"

    # --- other processes -----------------------------------------------------------------------------------------

    async def kill_plane(self, event: Event) -> tuple[str, str]:
        if event.point is None:
            return self._kill_component("plane")
        return await asyncio.to_thread(self._kill_at_point, event.point)

    def _kill_at_point(self, point: str) -> tuple[str, str]:
        """The plane ends itself when it comes by that moment of a write, and takes the file away first."""
        process, asks = self.place.process("plane"), self.place.run_dir / FILE_NAME
        asks.write_text(point, "utf-8")
        try:
            while asks.exists():
                if not self.has_streams:
                    raise CommandRefused(f"no plane came by {point} while streams ran", field="point", value=point)
                time.sleep(POLL_S)
        finally:
            asks.unlink(missing_ok=True)
        return "plane", f"process {process.pid} ended at {point}"

    async def kill_gateway(self, event: Event) -> tuple[str, str]:
        return self._kill_component("gateway")

    def _kill_component(self, name: str) -> tuple[str, str]:
        process = self.place.process(name)
        send_signal(process, signal.SIGKILL)
        return name, f"process {process.pid}"

    async def fill_disk(self, event: Event) -> tuple[str, str]:
        """The plane's files cannot grow, as on a full disk: every write past their ends fails."""
        assert event.for_s is not None
        process = self.place.process("plane")
        _limit_files(process, 0)
        self._limited.append(process)
        await asyncio.sleep(event.for_s)
        _limit_files(process, resource.RLIM_INFINITY)
        return "plane", f"no file of process {process.pid} could grow for {event.for_s:g} s"

    async def restart_postgresql(self, event: Event) -> tuple[str, str]:
        return "postgresql", await asyncio.to_thread(restart_postgresql, self.place.run_dir)


def _not_seen(event: Event) -> CommandRefused:
    stage = event.stage or Stage.DECODE
    told = f"no worker was seen at stage {stage} with {event.at_least or 1} or more while streams ran"
    return CommandRefused(told, field="stage", value=stage)


def _limit_files(process: ProcessId, most_bytes: int) -> None:
    """The soft limit only, so that it can be lifted again. One that has ended has no files."""
    found = process.find()
    if found is not None:
        hard = found.rlimit(resource.RLIMIT_FSIZE)[1]
        found.rlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))


def _words(reading: MeterReading) -> str:
    load = reading.load
    return (
        f"{reading.role} {reading.state}, {load.num_waiting} waiting, {load.num_running} running, "
        f"{load.num_leased} leased, {load.kv_blocks_held} blocks held"
    )


_DO: Final[Mapping[str, Callable[[Events, Event], Awaitable[tuple[str, str]]]]] = {
    "kill": Events.kill,
    "stop": Events.stop,
    "hang": Events.hang,
    "drop_connection": Events.drop_connection,
    "drain": Events.command,
    "undrain": Events.command,
    "flip": Events.command,
    "resize": Events.command,
    "set_routing": Events.command,
    "cancel": Events.cancel,
    "kill_plane": Events.kill_plane,
    "kill_gateway": Events.kill_gateway,
    "fill_disk": Events.fill_disk,
    "restart_postgresql": Events.restart_postgresql,
}
