"""All engines of one attached fleet, as workers on our wire.

Decided here: which engines there are (as the attachment's targets say), when one counts as there and when as gone, who
proves a role with whom, and where the plane finds them. Not decided here: what an operator has allowed (the plane asks
for nothing else), and what a worker does (`control.bridge.worker`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import IO, Final

import psutil

from control.bridge.asks import Asks
from control.bridge.canary import canary
from control.bridge.engine_http import EngineAway, EngineHttp, new_session
from control.bridge.handoffs import Handoffs
from control.bridge.speech import SPEECHES, Encode, Speech
from control.bridge.tally import Work
from control.bridge.worker import BridgedWorker
from control.errors import CommandRefused
from control.fleets.attached.bridge_file import Bridged, BridgeFile, hold_bridge, read_bridge, write_bridge
from control.fleets.attached.targets import Target, TargetSource, base_url
from control.fleets.attached.types import Attachment
from engine.connection import bind_loopback, bound_address
from engine.types import Role, WorkerState

log = logging.getLogger("phaseline.bridge")
PROBE_EVERY_S: Final = 1.0
#: An engine that answers no probe for so long counts as gone, as a worker of ours that is silent without a proof does.
SILENT_S: Final = 20.0


class Bridge:
    """`hold`, then `run` until cancelled. `encode`: text to tokens, for engines that give no token ids."""

    def __init__(
        self, attachment: Attachment, source: TargetSource, *, token: str, path: Path, encode: Encode, url: str = ""
    ) -> None:
        self.handoffs = Handoffs()
        self.workers: dict[str, BridgedWorker] = {}
        self._attachment = attachment
        self._source = source
        self._token = token
        self._path = path
        self._encode = encode
        self._url = url
        self._lock: IO[str] | None = None
        self._session = new_session()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._has_begun = False  # with those that were listed first
        self._is_closing = False

    def hold(self) -> bool:
        """Be this fleet's bridge: one alone gives roles and knows what runs. False while another process is."""
        if self._lock is None:
            self._lock = hold_bridge(self._path)
        return self._lock is not None

    def leave(self) -> None:
        """Let the next process be it; what runs here goes on to its end."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def run(self) -> None:
        """Raises CommandRefused when another bridge serves this fleet."""
        if not self.hold():
            raise served_already(self._path, self._attachment.name)
        try:
            while True:
                await self._follow()
                await asyncio.sleep(PROBE_EVERY_S)
        finally:
            await self.close()

    async def close(self) -> None:
        self._is_closing = True
        for task in self._watches.values():
            task.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)
        for worker in self.workers.values():
            await worker.close()
        await self._session.close()
        if self._lock is not None:
            self._path.unlink(missing_ok=True)
        self.leave()

    # --- what its workers ask ----------------------------------------------------------------------------------------

    def reserved(self, req_id: str, attempt: int) -> tuple[BridgedWorker, Work] | None:
        for worker in self.workers.values():
            work = worker.work(req_id, attempt)
            if work is not None and work.asked_s is None:
                return worker, work
        return None

    async def prove(self, worker: Asks, role: Role) -> str:
        partner = self._partner(worker, role)
        source = worker if role is Role.PREFILL or partner is None else partner
        http = None if partner is None else partner.http
        sizes = {each.shape.block_tokens for each in (worker, partner) if each is not None}
        block_tokens = sizes.pop() if len(sizes) == 1 else 0
        problem = await canary(worker.http, http, role, source.shape.bootstrap_port, block_tokens)
        with_whom = f" with {partner.worker_id}" if partner is not None else ""
        log.info("canary of %s as %s%s: %s", worker.worker_id, role, with_whom, problem or "passed")
        return problem

    def _partner(self, worker: Asks, role: Role) -> BridgedWorker | None:
        """Who takes the other half: the one in that role, else any that is there."""
        if role is Role.MIXED:
            return None
        other = Role.DECODE if role is Role.PREFILL else Role.PREFILL
        there = [each for each in self.workers.values() if each is not worker and each.is_up]
        there.sort(key=lambda each: (each.duty.role is not other, each.duty.state is not WorkerState.READY))
        return there[0] if there else None

    def changed(self) -> None:
        """Tell the plane. A folder that cannot be written is told in the log, and tried with the next change."""
        if self._is_closing or self._lock is None:
            return
        me = psutil.Process()
        workers = [Bridged(w.worker_id, w.address, w.epoch, w.problem) for w in self.workers.values()]
        try:
            write_bridge(self._path, BridgeFile(os.getpid(), me.create_time(), workers, self._url))
        except OSError as error:
            log.error("%s cannot be written: %s", self._path, error)

    # --- which there are ---------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        wanted = {each.worker_id: each for each in self._source.targets()}
        for worker_id in [name for name, each in self.workers.items() if _has_left(each, wanted.get(name))]:
            self._watches.pop(worker_id).cancel()
            await self.workers.pop(worker_id).close()
            self.changed()
        for worker_id, target in wanted.items():
            if worker_id not in self.workers:
                await self._add(target)
        self._has_begun = self._has_begun or bool(wanted)

    async def _add(self, target: Target) -> None:
        told = self._attachment
        http = EngineHttp(
            self._session, speech_of(told.kind), api_url(target), self._encode, told.token_file, page_url=target.url
        )
        worker = BridgedWorker(target.worker_id, http, self, self._token, told.simulated, is_newcomer=self._has_begun)
        sock = bind_loopback("127.0.0.1")
        await worker.start(sock, bound_address(sock))
        self.workers[target.worker_id] = worker
        self._watches[target.worker_id] = asyncio.create_task(_watch(worker), name=f"watch {target.worker_id}")
        self.changed()


async def _watch(worker: BridgedWorker) -> None:
    """Ask it again and again whether it is there."""
    heard_s = time.monotonic()
    while True:
        try:
            if worker.is_up:
                answer = await worker.http.is_there()
                heard_s = time.monotonic() if answer else heard_s
                if answer is False:
                    worker.down("nobody listens there")
                elif time.monotonic() - heard_s > SILENT_S:
                    worker.down(f"it has answered no probe for {SILENT_S:g} s")
            else:
                worker.up(await worker.http.probe(), time.time())
                heard_s = time.monotonic()
        except EngineAway as error:
            worker.down(str(error))
        await asyncio.sleep(PROBE_EVERY_S)


def _has_left(worker: BridgedWorker, target: Target | None) -> bool:
    """The targets list it no more and its work has ended, or they list another engine under its name."""
    return worker.leave() if target is None else api_url(target) != worker.http.url


def speech_of(kind: str) -> Speech:
    """Raises CommandRefused for a kind of fleet that is only looked at."""
    if kind not in SPEECHES:
        raise CommandRefused(
            f"requests cannot be sent to a fleet of kind {kind}", field="kind", value=kind, bound=", ".join(SPEECHES)
        )
    return SPEECHES[kind]


def api_url(target: Target) -> str:
    """Where an engine's API is: where its metrics page is, unless it was said otherwise."""
    return target.serve_url or base_url(target.url)


def served_already(path: Path, fleet_id: str) -> CommandRefused:
    """Two of them would each count room without the other's requests, and give roles against each other."""
    known = read_bridge(path)
    who = f"process {known.pid}" + (f" at {known.url}/v1" if known.url else "") if known else "another process"
    return CommandRefused(
        f"{who} serves fleet {fleet_id} already", field="name", value=fleet_id, bound="one process a fleet"
    )
