"""The watch over a worker host: it lives through whatever breaks, and a host that hangs is started anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from control.errors import FleetError
from control.fleets import host_watch
from control.fleets.host_process import HostDescription
from control.fleets.host_watch import HostWatch
from control.fleets.hosts import host_specs
from control.fleets.worker_link import WorkerLink
from control.settings import load_settings
from engine.readings import MeterReading
from engine.types import Load
from tests.control.metered import FakeWorker

LIMIT_S = 10.0


class FakeHost:
    """A process of the fourth start; `breaks` are raised by the next calls of `describe`, one each."""

    def __init__(self, *breaks: Exception) -> None:
        self.described = HostDescription(
            epoch=4, pid=1, digest="d", addresses={}, num_starts=4, last_reason="killed", problem=""
        )
        self.breaks = list(breaks)
        self.hangs = False
        self.lives_on = False
        self.num_restarts = 0

    async def describe(self) -> HostDescription:
        if self.breaks:
            raise self.breaks.pop(0)
        while self.hangs:  # noqa: ASYNC110  as a call to a stopped process waits
            await asyncio.sleep(0.002)
        return self.described

    async def restart(self) -> None:
        self.num_restarts += 1
        if self.lives_on:
            return
        self.hangs = False
        self.described = replace(self.described, epoch=self.described.epoch + 1, num_starts=5, last_reason="unseen")

    async def recreate(self) -> None:
        """It is there."""


@contextlib.asynccontextmanager
async def watching(tmp_path: Path, host: FakeHost) -> AsyncIterator[HostWatch]:
    (spec,) = host_specs(load_settings(run_dir=tmp_path, num_workers=1, worker_kind="cpu"), "cpu", "token")
    links = {"w0": WorkerLink("w0", "token", on_change=lambda: None, on_lost=lambda *_: None)}
    watch = HostWatch(spec, host, links, lambda: None, step_overdue_s=120.0, stopped_limit_s=15.0)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def reading(*, epoch: int, in_step_s: float) -> MeterReading:
    worker = FakeWorker("w0", epoch=epoch)
    worker.meter.step_begin(0.0)
    worker.now_s = in_step_s
    return worker.reader.read()


async def test_what_no_one_foresaw_is_told_and_the_watch_goes_on(tmp_path: Path) -> None:
    host = FakeHost(FleetError("no process"), ValueError("odd"))
    async with watching(tmp_path, host) as watch:
        await until(lambda: watch.life("w0").problem == "the watch over its host broke: ValueError: odd")
        await until(lambda: watch.life("w0").num_restarts == 3)
        assert watch.life("w0").problem == ""


async def test_a_host_whose_step_does_not_end_is_started_anew_and_says_why(tmp_path: Path) -> None:
    host = FakeHost()
    async with watching(tmp_path, host) as watch:
        await until(lambda: watch.life("w0").last_restart_reason == "killed")
        watch.saw([reading(epoch=4, in_step_s=119.0)], 0.0)
        host.hangs = True
        watch.ask_again()  # the question that nobody answers must not be in the way
        watch.saw([reading(epoch=4, in_step_s=130.0)], 1.0)
        watch.saw([reading(epoch=4, in_step_s=131.0)], 2.0)
        await until(lambda: watch.life("w0").num_restarts == 4)
        assert watch.life("w0").last_restart_reason == "step overdue: 130 s"
        assert host.num_restarts == 1


async def test_a_host_whose_step_is_overdue_twice_by_its_own_word_is_started_anew(tmp_path: Path) -> None:
    host = FakeHost()
    overdue = reading(epoch=4, in_step_s=3.0)
    async with watching(tmp_path, host) as watch:
        await until(lambda: watch.life("w0").last_restart_reason == "killed")
        overdue.load = Load(step_running_s=1.9, step_limit_s=1.0)
        watch.saw([overdue], 0.0)
        assert not watch._must_restart.is_set()
        overdue.load = Load(step_running_s=2.0, step_limit_s=1.0)
        watch.saw([overdue], 1.0)
        await until(lambda: watch.life("w0").last_restart_reason == "step overdue: 3 s")


async def test_a_hung_host_that_did_not_end_is_told_again(tmp_path: Path) -> None:
    host = FakeHost()
    host.lives_on = True
    async with watching(tmp_path, host) as watch:
        for at_s, num_restarts in ((0.0, 1), (1.0, 1), (host_watch.END_LIMIT_S, 2)):
            watch.saw([reading(epoch=4, in_step_s=130.0 + at_s)], at_s)
            await until(lambda: not watch._must_restart.is_set())
            assert host.num_restarts == num_restarts


async def test_a_late_reading_of_the_process_before_ends_nobody(tmp_path: Path) -> None:
    host = FakeHost()
    async with watching(tmp_path, host) as watch:
        await until(lambda: watch.life("w0").num_restarts == 3)
        watch.saw([reading(epoch=3, in_step_s=130.0)], 0.0)
        assert not watch._must_restart.is_set()


async def test_a_stopped_process_is_started_anew_though_no_step_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = FakeHost()
    stopped = True
    monkeypatch.setattr(host_watch, "stands_still", lambda _pid: stopped)
    idle = FakeWorker("w0", epoch=4).reader.read()
    async with watching(tmp_path, host) as watch:
        await until(lambda: watch.life("w0").last_restart_reason == "killed")
        watch.saw([idle], 0.0)
        watch.saw([idle], 14.0)
        stopped = False  # it went on: the time counts anew
        watch.saw([idle], 15.0)
        stopped = True
        watch.saw([idle], 16.0)
        watch.saw([idle], 30.0)
        assert host.num_restarts == 0
        watch.saw([idle], 31.0)
        watch.saw([idle], 32.0)
        await until(lambda: watch.life("w0").num_restarts == 4)
        assert watch.life("w0").last_restart_reason == "its process was stopped for 15 s"
        assert host.num_restarts == 1
