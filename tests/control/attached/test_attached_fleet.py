"""A fleet of foreign engines over real HTTP: what is seen of it, and that a bad engine costs only itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control.errors import CommandRefused
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.fleet import AttachedFleet
from control.fleets.attached.survey import survey
from control.fleets.attached.types import Attachment
from control.fleets.base import FleetStep, Observation
from control.types.fleet import Capability
from control.types.workers import Role, WorkerState
from tests.control.attached.fake_engines import FakeEngine, engines, until
from tests.control.attached.pages_of import text_of


def attachment(*targets: str, **changes: object) -> Attachment:
    fields = {"name": "theirs", "kind": "vllm", "targets": targets, "every_s": 0.5, **changes}
    return Attachment(**fields)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def fleet_of(told: Attachment) -> AsyncIterator[AttachedFleet]:
    fleet = AttachedFleet(plan_of(told))
    await fleet.start(lambda: None)
    try:
        yield fleet
    finally:
        await fleet.close()


async def seen(fleet: AttachedFleet, num: int) -> Observation:
    """An observation in which so many engines have a reading."""
    while len((found := await fleet.observe(time.time())).readings) < num:  # noqa: ASYNC110  time passes elsewhere
        await asyncio.sleep(0.02)
    return found


async def test_the_engines_of_a_fleet_are_seen_in_their_roles() -> None:
    prefill, decode = FakeEngine(text_of("prefill-1")), FakeEngine(text_of("decode-1"))
    async with engines(prefill, decode):
        told = attachment(f"prefill:p0={prefill.url}", f"decode:d0={decode.url}")
        async with fleet_of(told) as fleet, asyncio.timeout(20):
            found = {each.worker_id: each for each in (await seen(fleet, 2)).readings}
            assert {name: each.role for name, each in found.items()} == {"p0": Role.PREFILL, "d0": Role.DECODE}
            assert fleet.model_id == "tiny"
            prefill.page = text_of("prefill-2")
            while "prefill/prefill" not in found["p0"].counters:
                found = {each.worker_id: each for each in (await fleet.observe(time.time())).readings}
                await asyncio.sleep(0.02)
            assert found["p0"].counters["prefill/prefill"].tokens == 7000


async def test_it_is_observed_only() -> None:
    engine = FakeEngine(text_of("decode-1"))
    async with engines(engine), fleet_of(attachment(f"decode={engine.url}")) as fleet:
        assert fleet.capabilities == {Capability.OBSERVE}
        assert "cannot migrate" in fleet.refusals["migrate"]
        outcome = await fleet.apply(FleetStep(verb="flip", worker_id="d0", role=Role.PREFILL, fence=1))
        assert (outcome.accepted, outcome.retry_helps) == (False, False)
        assert fleet.routes() == ()


async def test_bad_engines_cost_only_themselves() -> None:
    good = FakeEngine(text_of("decode-1"))
    bad = [FakeEngine(fault=fault) for fault in ("hang", "flood", "bomb", "error", "garbage", "other")]
    async with engines(good, *bad):
        told = attachment(f"decode:good={good.url}", *(f"prefill:{each.fault}={each.url}" for each in bad))
        async with fleet_of(told) as fleet:
            await until(lambda: all(each.problem != "not looked at yet" for each in fleet.scrapers.values()))
            found = await fleet.observe(time.time())
            assert [each.worker_id for each in found.readings] == ["good"]
            problems = {each.worker_id: each.problem for each in found.lives}
            assert {each.listed_role for each in found.lives} == {Role.DECODE, Role.PREFILL}
            assert problems["good"] == ""
            assert "has not answered within" in problems["hang"]
            assert "has more than" in problems["flood"]
            assert "answers compressed, unasked" in problems["bomb"]
            assert "answers 503" in problems["error"]
            assert "not a Prometheus text page" in problems["garbage"]
            assert "has no series of vllm" in problems["other"]


async def test_an_engine_that_falls_silent_is_dead_and_comes_back() -> None:
    engine = FakeEngine(text_of("decode-1"))
    async with engines(engine), fleet_of(attachment(f"decode:d0={engine.url}")) as fleet:
        await until(lambda: fleet.scrapers["d0"].is_alive)
        engine.fault = "error"
        await until(lambda: not fleet.scrapers["d0"].is_alive)
        (dead,) = (await fleet.observe(time.time())).readings
        assert (dead.alive, dead.state) == (False, WorkerState.FAILED)
        assert "answers 503" in dead.reason
        assert dead.heartbeat_age_s > 0
        engine.fault = ""
        await until(lambda: fleet.scrapers["d0"].is_alive)


async def test_a_watched_file_adds_moves_and_removes_engines(tmp_path: Path) -> None:
    one, other = FakeEngine(text_of("decode-1")), FakeEngine(text_of("prefill-1"))
    path = tmp_path / "targets.json"

    def write(**roles: str) -> None:
        urls = {"one": one.url, "other": other.url}
        path.write_text(
            json.dumps(
                [{"targets": [urls[name]], "labels": {"role": role, "worker_id": name}} for name, role in roles.items()]
            )
        )

    async with engines(one, other):
        write(one="decode")
        async with fleet_of(attachment(targets_file=str(path))) as fleet, asyncio.timeout(20):
            assert [each.worker_id for each in (await seen(fleet, 1)).readings] == ["one"]
            write(one="prefill", other="decode")
            found = await seen(fleet, 2)
            while {each.role for each in found.readings} != {Role.PREFILL, Role.DECODE}:
                found = await seen(fleet, 2)
                await asyncio.sleep(0.02)
            write(other="decode")
            found = await fleet.observe(time.time())
            assert [each.worker_id for each in found.readings] == ["other"]
            assert [each.worker_id for each in found.lives] == ["other"]


async def test_a_survey_says_what_is_there_and_what_turns_on_the_rest() -> None:
    prefill, decode, away = FakeEngine(text_of("prefill-2")), FakeEngine(text_of("decode-2")), FakeEngine(fault="error")
    async with engines(prefill, decode, away):
        told = attachment(f"prefill:p0={prefill.url}", f"decode:d0={decode.url}", f"decode:d1={away.url}")
        found = await survey(plan_of(told))
    assert found.num_reachable == 2
    p0, d0, d1 = found.engines
    assert (p0.version, p0.model, p0.missing) == ("0.32.0", "tiny", ())
    assert {each.remedy for each in d0.missing} == {"start the engine with --enable-mfu-metrics"}
    assert "answers 503" in d1.problem
    assert [each.partition(":")[0] for each in found.notes] == ["no model shape", "no device"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "Not a name"}, "name"),
        ({"kind": "triton"}, "kind"),
        ({"every_s": 0.01}, "every_s"),
        ({"devices_per_worker": 0}, "devices_per_worker"),
        ({"model": "gpt-9"}, "model"),
        ({"device": "abacus"}, "device"),
        ({"dtype": "int3", "model": "llama-3.1-8b"}, "dtype"),
        ({"targets": ()}, "targets"),
        ({"peak_flops": 0.0}, "peak_flops"),
        ({"peak_bytes_per_s": float("nan")}, "peak_bytes_per_s"),
        ({"token_file": "/nowhere"}, "token_file"),
        ({"token_file": "x" * 5000}, "token_file"),
        ({"model": "x" * 5000}, "model"),
        ({"targets": (), "targets_file": "a\0b"}, "targets_file"),
    ],
)
def test_what_cannot_be_attached_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(CommandRefused) as caught:
        plan_of(attachment("decode=10.0.0.1:8000", **changes))
    assert caught.value.field == field


def test_a_peak_that_the_operator_gives_counts_and_says_so() -> None:
    told = attachment("decode=10.0.0.1:8000", device="h100-sxm-80gb", model="llama-3.1-8b", peak_flops=1e12)
    device = plan_of(told).device
    assert (device.peak_flops, device.peak_source, device.name) == (1e12, "assumed", "h100-sxm-80gb")
    assert device.peak_bytes_per_s == 3.35e12
