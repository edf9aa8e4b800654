"""A fleet whose GPUs are measured by dcgm-exporter, over HTTP: whose value is whose, and what a dead one leaves."""

from __future__ import annotations

import asyncio
import time

import pytest

from control.cli.attached import exporter_lines
from control.errors import CommandRefused
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.fleet import AttachedFleet
from control.fleets.attached.survey import survey
from engine.readings import DeviceReading
from tests.control.attached.fake_engines import FakeEngine, engines
from tests.control.attached.gpu_pages import default_page, gpu_lines
from tests.control.attached.pages_of import text_of
from tests.control.attached.test_attached_fleet import attachment, fleet_of


async def measured(fleet: AttachedFleet, worker_id: str, has_value: bool) -> DeviceReading:
    """The reading of a worker once it has a value, or has none any more."""
    while True:
        devices = {each.uuid: each for each in (await fleet.observe(time.time())).devices}
        if (devices[worker_id].tensor_active is not None) == has_value:
            return devices[worker_id]
        await asyncio.sleep(0.02)


async def test_each_worker_has_its_own_gpus_and_a_dead_exporter_has_no_value() -> None:
    exporter = FakeEngine(gpu_lines(0) + gpu_lines(1, TENSOR_ACTIVE=0.2, DRAM_ACTIVE=0.8))
    workers = FakeEngine(text_of("prefill-1")), FakeEngine(text_of("decode-1"))
    async with engines(exporter, *workers):
        targets = f"prefill:p0={workers[0].url}", f"decode:d0={workers[1].url}"
        told = attachment(*targets, gpu_metrics=(exporter.url,), gpus=("p0=node-1/0", "d0=127.0.0.1/1"))
        async with fleet_of(told) as fleet, asyncio.timeout(30):
            assert (await measured(fleet, "p0", has_value=True)).tensor_active == 0.61
            decode = await measured(fleet, "d0", has_value=True)
            assert (decode.tensor_active, decode.dram_active, decode.note) == (0.2, 0.8, "")
            exporter.fault = "error"
            gone = await measured(fleet, "d0", has_value=False)
            assert gone.dram_active is gone.power_w is None
            assert "answers 503" in gone.note
            assert any("answers 503" in each for each in (await fleet.observe(time.time())).problems)
            exporter.fault = ""
            assert (await measured(fleet, "d0", has_value=True)).dram_active == 0.8


async def test_a_worker_whose_gpu_nobody_named_says_so() -> None:
    exporter, worker = FakeEngine(gpu_lines(0)), FakeEngine(text_of("decode-1"))
    async with engines(exporter, worker):
        told = attachment(f"decode:d0={worker.url}", gpu_metrics=(exporter.url,))
        async with fleet_of(told) as fleet, asyncio.timeout(20):
            assert "no GPU is said to be its" in (await measured(fleet, "d0", has_value=False)).note


async def test_a_dry_run_says_what_the_exporter_lacks_and_whose_gpus_are_whose() -> None:
    exporter, dead, worker = FakeEngine(default_page()), FakeEngine(fault="error"), FakeEngine(text_of("decode-1"))
    async with engines(exporter, dead, worker):
        told = attachment(
            f"decode:d0={worker.url}", f"decode:d1={worker.url}/d1",
            gpu_metrics=(exporter.url, dead.url), gpus=("d0=node-1/0",),
        )  # fmt: skip
        found = await survey(plan_of(told))
    assert {each.worker_id: each.gpus for each in found.engines} == {"d0": ("node-1/0",), "d1": ()}
    good, bad = found.exporters
    assert (good.num_gpus, good.num_found, good.problem) == (1, 5, "")
    assert "answers 503" in bad.problem
    assert any("-f FILE" in line and "DCGM_FI_PROF_SM_ACTIVE" in line for line in exporter_lines(found.exporters))
    assert any("nothing is measured of d1" in each for each in found.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpus": ("d0=node-1/0",)}, "no exporter that measures them"),
        ({"gpu_metrics": ("http://h:9400",), "gpus": ("d7=node-1/0",)}, "no worker is named d7"),
        ({"gpu_metrics": ("http://h:9400",), "gpus": ("d0=zero",)}, "names no GPU"),
        ({"gpu_metrics": ("ftp://h:9400",)}, "is not the http address"),
        ({"gpu_metrics": ("http://me:word@h:9400",)}, "holds a password"),
    ],
)
def test_an_attachment_that_cannot_be_measured_so_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(CommandRefused, match=words):
        plan_of(attachment("decode:d0=http://10.0.0.1:8000", **changes))
