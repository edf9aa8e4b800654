"""Real tiny workers under a random life: streams in a thread of their own, and what is demanded after every step."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import aiohttp

from control.errors import CommandRefused, ControlError, PlaneUnreachable, StaleVersion
from control.faults.commander import Commander
from control.faults.load import verdict
from control.faults.place import Place, wait_until, worker_process
from control.faults.scenario import Traffic
from control.faults.streams import Stream, Streams, Target, plan_streams
from control.processes import ProcessId, send_signal
from control.traffic.client import Outcome
from control.types.commands import Action, Desired, Verb
from control.types.workers import Role

LIMIT_S = 90.0
TRAFFIC = Traffic(streams=24, output_tokens=(60, 200), rate_rps=50.0, seed=11)


class Answers:
    """The streams that there are, and what each answers when nobody disturbs it. Learnt once."""

    def __init__(self, place: Place) -> None:
        self.plan: tuple[Stream, ...] = plan_streams(TRAFFIC)
        known = Streams(target_of(place, f"known-{secrets.token_hex(4)}"))
        asyncio.run(known.send(self.plan))
        self.expected: dict[int, Outcome] = known.outcomes
        assert not [each.error for each in known.outcomes.values() if each.error]


def target_of(place: Place, run_id: str) -> Target:
    return Target(
        gateway_url=place.gateway_url,
        model_id=place.client.snapshot().model_id,
        run_id=run_id,
        temperature=TRAFFIC.temperature,
        timeout_s=LIMIT_S,
    )


class TinyRig:
    """One example's life: everything that it did is taken back by `end`, which demands that all has ended well."""

    def __init__(self, place: Place, answers: Answers) -> None:
        self.place = place
        self.answers = answers
        self.run_id = f"life-{secrets.token_hex(4)}"
        self.began_unix_s = time.time()
        self.before: Desired = place.client.desired()
        self.commander = Commander(place.client, self.run_id, LIMIT_S)
        self.rng = random.Random(self.run_id)
        self.standing: dict[str, ProcessId] = {}
        self.num_sent = 0
        self.fences: dict[tuple[str, int], int] = {}
        self.tokens: dict[tuple[str, int, str], float] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.streams = Streams(target_of(place, self.run_id))
        self._session = self._call(_open_session())

    def _call(self, what: Coroutine[Any, Any, Any]) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(what, self._loop)
        return done.result(LIMIT_S)

    # --- actions -------------------------------------------------------------------------------------------------

    def submit(self, count: int) -> None:
        async def begin() -> None:
            for _ in range(count):
                stream = self.answers.plan[self.num_sent % len(self.answers.plan)]
                self.streams.begin(self._session, replace(stream, index=self.num_sent))
                self.num_sent += 1

        self._call(begin())

    def hang_up(self, count: int) -> None:
        async def cancel() -> None:
            self.streams.cancel(count, self.rng)

        self._call(cancel())

    def command(self, action: Action) -> None:
        with contextlib.suppress(CommandRefused, StaleVersion):
            self.commander.send(action, f"state machine {self.run_id}")

    def process(self, worker_id: str) -> ProcessId | None:
        """None while there is none: it was killed a moment ago."""
        try:
            return worker_process(self.place.reading(worker_id))
        except CommandRefused:
            return None

    def kill(self, worker_id: str) -> None:
        process = self.process(worker_id)
        if process is not None:
            send_signal(process, signal.SIGKILL)

    def stop(self, worker_id: str) -> None:
        process = self.process(worker_id)
        if process is not None and send_signal(process, signal.SIGSTOP):
            self.standing[worker_id] = process

    def go_on(self, worker_id: str) -> None:
        process = self.standing.pop(worker_id, None)
        if process is not None:
            send_signal(process, signal.SIGCONT)

    def kill_plane(self) -> None:
        with contextlib.suppress(CommandRefused):  # it has not come back yet
            send_signal(self.place.process("plane"), signal.SIGKILL)

    # --- what always holds ---------------------------------------------------------------------------------------

    def check(self) -> None:
        self.check_streams()
        self.check_workers()
        with contextlib.suppress(PlaneUnreachable, ConnectionError):
            self.check_desired()

    def check_streams(self) -> None:
        """Those that have ended so far: each as if nobody had disturbed it."""
        open_now = set(self.streams._open)
        for index, ours in list(self.streams.outcomes.items()):
            if index not in open_now:
                theirs = self.answers.expected[index % len(self.answers.plan)]
                what, problem = verdict(ours, theirs, is_cut=index in self.streams.cancelled)
                assert not problem, f"stream {index} {what}: {problem}"

    def check_workers(self) -> None:
        """No more blocks than there are; fences and counters never fall within a worker's life."""
        for each in self.place.readings():
            load, life = each.load, (each.worker_id, each.epoch)
            assert 0 <= load.kv_blocks_held + load.kv_blocks_reserved <= load.kv_blocks_total, each.worker_id
            assert each.fence >= self.fences.get(life, 0), each.worker_id
            self.fences[life] = each.fence
            for key, counters in each.counters.items():
                assert counters.tokens >= self.tokens.get((*life, key), 0.0), (each.worker_id, key)
                self.tokens[(*life, key)] = counters.tokens

    def check_desired(self) -> None:
        """It is what the newest command left, and somebody can decode."""
        desired = self.place.client.desired()
        newest = self.place.client.commands(limit=1)[0]
        assert desired.version == newest.version_after
        able = [
            each
            for each, role in desired.roles.items()
            if role in (Role.DECODE, Role.MIXED) and each not in desired.drained and desired.weights.get(each, 1.0) > 0
        ]
        assert able, desired

    # --- the end -------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Let all go on, wait for every stream, take back the commands, and look at what is left."""
        for worker_id in list(self.standing):
            self.go_on(worker_id)
        try:
            self._call(self.streams.ended())
            self.check_streams()
            assert wait_until(self._is_whole, LIMIT_S), "the fleet did not become as desired"
            self.restore()
            assert wait_until(self._is_whole, LIMIT_S), "the fleet was not restored"
            assert wait_until(self._holds_nothing, LIMIT_S), [each.load for each in self.place.readings()]
            assert wait_until(self._has_one_record_each, 15.0), self.run_id
            assert not self.place.orphans()
        finally:
            self._call(self._session.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(LIMIT_S)

    def restore(self) -> None:
        """The desired state as it was before, whatever undid what in between."""
        before, now = self.before, self.place.client.desired()
        for worker_id in sorted(now.drained - before.drained):
            self.commander.send(Action(verb=Verb.UNDRAIN, worker_id=worker_id), "restore")
        for worker_id, role in before.roles.items():
            if now.roles[worker_id] != role:
                self.commander.send(Action(verb=Verb.FLIP, worker_id=worker_id, role=role), "restore")
        weights = {each: before.weights.get(each, 1.0) for each in before.roles}
        self.commander.send(Action(verb=Verb.SET_ROUTING, weights=weights), "restore")

    def _is_whole(self) -> bool:
        try:
            snapshot = self.place.client.snapshot()
            is_there = all(each.alive and each.role == each.desired_role for each in snapshot.workers)
            return is_there and not self.place.unreached() and self.commander.have_ended()
        except ControlError:
            return False

    def _holds_nothing(self) -> bool:
        loads = [each.load for each in self.place.readings() if each.alive]
        return not any(each.kv_blocks_held + each.kv_blocks_reserved + each.num_leased for each in loads)

    def _has_one_record_each(self) -> bool:
        records = self.place.client.requests(10_000, self.began_unix_s - 1.0)
        ours = [each.request_id for each in records if each.request_id.rpartition("-")[0] == self.run_id]
        assert len(ours) == len(set(ours)), "a request has two records"
        return len(ours) == self.num_sent


async def _open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=LIMIT_S))
