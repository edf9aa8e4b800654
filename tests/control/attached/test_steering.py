"""What steers somebody else's fleet, over real HTTP: who lists whom, who obeys, who only says so, who else is at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.errors import CommandRefused, FleetError
from control.fleets.attached.attachment import Plan, plan_of
from control.fleets.attached.steered import SteeredFleet
from control.fleets.attached.steering.calls import Caller
from control.fleets.attached.steering.controllers import open_steering
from control.fleets.attached.steering.dynamo import PLANNED, RIVAL_S, DynamoSteering
from control.fleets.attached.steering.etcd import Etcd
from control.fleets.attached.steering.ray_serve import RayServeSteering
from control.fleets.attached.steering.sglang_router import SglangRouterSteering
from control.fleets.attached.survey import survey
from control.fleets.attached.types import Attachment, Permission
from control.fleets.base import FleetStep
from control.types.fleet import Capability
from control.types.workers import Role, WorkerState
from tests.control.attached.fake_controllers import (
    FakeDynamo,
    FakeEtcd,
    FakePrometheus,
    FakeRay,
    FakeRouter,
    FakeSglangEngine,
    served,
)


def plan(kind: str, controller: str, *allowed: Capability, **changes: object) -> Plan:
    told = Attachment(name="theirs", kind=kind, controller=controller, **changes)  # type: ignore[arg-type]
    return plan_of(told, [Permission(capability=each, who="ann", at_unix_s=1.0) for each in allowed])


def scale(role: Role, size: int) -> FleetStep:
    return FleetStep(verb="scale", worker_id=f"{role} pool", role=role, fence=1, size=size)


async def test_a_role_changes_out_of_the_router_when_empty_and_back_in_and_is_tried():
    router, engine = FakeRouter(), FakeSglangEngine(num_running=2)
    async with served(router, engine):
        router.add(engine.url, "decode")
        steering = SglangRouterSteering(Caller(router.url), switch=True)
        (member,) = (await steering.look()).members
        flip = FleetStep(verb="flip", worker_id=member.worker_id, role=Role.PREFILL, fence=1)
        assert (await steering.apply(flip)).accepted
        assert engine.num_running == 0
        assert engine.switches == [True, False]  # asked first
        assert router.calls == ["DELETE /workers", "POST /workers", "GET /v1/models", "POST /v1/completions"]
        assert [each.role for each in (await steering.look()).members] == [Role.PREFILL]
        await steering.close()


async def test_a_change_that_the_router_accepts_and_ignores_has_failed():
    router, engine = FakeRouter(), FakeSglangEngine()
    async with served(router, engine):
        router.add(engine.url, "decode")
        steering = SglangRouterSteering(Caller(router.url), in_place=True, shows_s=0.3)
        (member,) = (await steering.look()).members
        outcome = await steering.apply(FleetStep(verb="flip", worker_id=member.worker_id, role=Role.PREFILL, fence=1))
        assert (outcome.accepted, outcome.retry_helps) == (False, False)
        assert "does not list it so: not obeyed" in outcome.detail
        await steering.close()


async def test_an_engine_that_will_not_change_its_role_and_a_canary_that_fails_are_told():
    router, engine = FakeRouter(), FakeSglangEngine(role_switch=False)
    async with served(router, engine):
        router.add(engine.url, "decode")
        steering = SglangRouterSteering(Caller(router.url), switch=True)
        (member,) = (await steering.look()).members
        flip = FleetStep(verb="flip", worker_id=member.worker_id, role=Role.PREFILL, fence=1)
        assert "does not change its role: speculative decoding" in (await steering.apply(flip)).detail
        assert engine.switches == [True]
        (back,) = (await steering.look()).members
        assert (back.state, back.role) == (WorkerState.READY, Role.DECODE)
        engine.role_switch, router.canary_status = True, 503
        assert "a request after it failed" in (await steering.apply(flip)).detail
        await steering.close()


async def test_a_worker_that_somebody_changes_back_is_left_to_them():
    router, engine = FakeRouter(), FakeSglangEngine()
    async with served(router, engine):
        router.add(engine.url, "decode")
        steering = SglangRouterSteering(Caller(router.url))
        (member,) = (await steering.look()).members
        flip = FleetStep(verb="flip", worker_id=member.worker_id, role=Role.PREFILL, fence=1)
        assert (await steering.apply(flip)).accepted
        for each in router.workers.values():
            each["worker_type"] = "decode"
        outcome = await steering.apply(flip)
        assert (outcome.accepted, outcome.retry_helps) == (False, False)
        assert "somebody else made it decode: we stop" in outcome.detail
        await steering.close()


async def test_deployments_are_pools_that_are_resized_and_what_keeps_ray_from_it_is_said():
    ray = FakeRay()
    async with served(ray):
        steering = RayServeSteering(Caller(ray.url), "pd", {})
        pools = (await steering.look()).pools
        assert {role: (pool.target, pool.num_ready) for role, pool in pools.items()} == {
            Role.PREFILL: (1, 1),
            Role.DECODE: (2, 2),
        }
        assert (await steering.apply(scale(Role.PREFILL, 3))).accepted
        assert len((await steering.look()).members) == 5
        ray.external_scaler, ray.autoscaled = False, True
        outcome = await steering.apply(scale(Role.PREFILL, 1))
        assert "external_scaler_enabled: true" in outcome.detail
        assert not outcome.retry_helps
        assert (await steering.look()).pools[Role.PREFILL].rival == "its deployment is autoscaled"
        with pytest.raises(FleetError, match="no application other"):
            await RayServeSteering(Caller(ray.url), "other", {}).look()
        await steering.close()


async def test_a_wish_goes_into_the_virtual_connector_and_another_planners_is_seen():
    frontend, etcd = FakeDynamo(), FakeEtcd()
    async with served(frontend, etcd):
        clock = [0.0]
        steering = DynamoSteering(Caller(frontend.url), Etcd(Caller(etcd.url)), "dynamo", now=lambda: clock[0])
        roster = await steering.look()
        assert {each.worker_id: each.role for each in roster.members} == {
            "ff": Role.PREFILL,
            "c52be61937e7fab2": Role.DECODE,
        }
        assert roster.pools[Role.DECODE].target is None
        assert (await steering.apply(scale(Role.DECODE, 2))).accepted
        assert (await steering.apply(scale(Role.PREFILL, 3))).accepted
        root = "v1/dynamo/planner/"
        wish = {"num_decode_workers": "2", "num_prefill_workers": "3", "decision_id": "1"}
        assert etcd.keys == {f"{root}{name}": value for name, value in wish.items()}
        assert (await steering.look()).pools[Role.DECODE].rival == ""
        etcd.keys[f"{root}scaled_decision_id"] = "1"  # its controller says that it has carried it out
        assert (await steering.look()).pools[Role.DECODE].rival == ""
        etcd.write({f"{root}decision_id": "1", f"{root}num_decode_workers": "1"})  # Dynamo's planner counts by itself
        rival = (await steering.look()).pools[Role.DECODE].rival
        assert rival == "another planner has written its wish (prefill 3, decode 1) over ours"
        clock[0] = RIVAL_S + 1  # it has said nothing since
        assert (await steering.look()).pools[Role.DECODE].rival == ""
        del etcd.keys[f"{root}decision_id"]  # the planner has ended, and its wish with it
        assert (await steering.apply(scale(Role.DECODE, 2))).accepted
        assert etcd.keys[f"{root}decision_id"] == "2"  # after the one that was carried out
        frontend.workers[9] = "Planner"
        roster = await steering.look()
        assert (len(roster.members), {pool.rival for pool in roster.pools.values()}) == (2, {PLANNED})
        await steering.close()


async def test_prometheus_lists_the_engines_and_a_label_of_its_own_words_gives_the_role():
    server = FakePrometheus([{"instance": "10.0.0.1:8000", "stage": "first"}])
    async with served(server):
        query = "query=up%7Bjob%3D%22vllm%22%7D&role=stage&prefill=first&decode=second"
        address = plan("vllm", f"prometheus={server.url}?{query}").controller
        assert address is not None
        steering = open_steering(address)
        (member,) = (await steering.look()).members
        assert (member.role, member.metrics_url) == (Role.PREFILL, "http://10.0.0.1:8000/metrics")
        assert server.queries == ["/api/v1/query?query=up%7Bjob%3D%22vllm%22%7D"]
        server.series.append({"instance": "10.0.0.2:8000", "stage": "third"})
        with pytest.raises(FleetError, match="stage='third'"):
            await steering.look()
        await steering.close()


async def test_an_engine_of_prometheus_without_a_role_has_the_one_that_is_said_and_requests_go_where_it_is_said():
    server = FakePrometheus([{"instance": "10.0.0.1:9400"}, {"instance": "10.0.0.2:9400", "role": "decode"}])
    async with served(server):
        options = "query=up&unlabelled=mixed&serve_port=8000"
        address = plan("vllm", f"prometheus={server.url}?{options}").controller
        assert address is not None
        steering = open_steering(address)
        found = [(each.worker_id, each.role, each.serve_url) for each in (await steering.look()).members]
        assert found == [
            ("10.0.0.1:9400", Role.MIXED, "http://10.0.0.1:8000"),
            ("10.0.0.2:9400", Role.DECODE, "http://10.0.0.2:8000"),
        ]
        await steering.close()


async def test_an_order_that_was_not_allowed_is_refused_and_one_that_is_accepted_and_does_not_show_has_failed():
    ray = FakeRay(obeys=False)
    async with served(ray):
        told = ("ray-serve", f"ray-serve={ray.url}/pd")
        watching = SteeredFleet(plan(*told), open_steering(plan(*told).controller))  # type: ignore[arg-type]
        refused = await watching.apply(scale(Role.DECODE, 3))
        assert "no operator has allowed resize of theirs: `phaseline allow theirs resize`" in refused.detail
        assert ray.targets["Decode:m"] == 2
        mine = plan(*told, Capability.RESIZE)
        fleet = SteeredFleet(mine, open_steering(mine.controller))  # type: ignore[arg-type]
        await fleet.start(lambda: None)
        assert (await fleet.apply(scale(Role.DECODE, 3))).accepted
        assert (fleet.pools()[Role.DECODE].target, fleet.pools()[Role.DECODE].num_ready) == (3, 2)
        seen = await fleet.observe(10.0)
        assert {each.role for each in seen.readings} == {Role.PREFILL, Role.DECODE}
        assert all({"num_running", "num_waiting"} <= set(each.unknown) for each in seen.readings)
        await fleet.close()
        await watching.close()


async def test_the_workers_of_a_fleet_are_unknown_until_what_steers_it_has_answered_once():
    router = FakeRouter()
    async with served(router):
        told = plan("sglang", f"sglang-router={router.url}")
    fleet = SteeredFleet(told, open_steering(told.controller))  # type: ignore[arg-type]
    await fleet.start(lambda: None)
    seen = await fleet.observe(10.0)
    assert (seen.is_listed, seen.lives, len(seen.problems)) == (False, (), 1)
    await fleet.close()
    async with served(router):
        told = plan("sglang", f"sglang-router={router.url}")
        fleet = SteeredFleet(told, open_steering(told.controller))  # type: ignore[arg-type]
        await fleet.start(lambda: None)
        assert (await fleet.observe(11.0)).is_listed
        await fleet.close()


async def test_a_dry_run_says_that_work_is_not_exported_and_what_shows_it():
    ray = FakeRay()
    async with served(ray):
        found = await survey(plan("ray-serve", f"ray-serve={ray.url}/pd"))
    assert [(each.role, each.version) for each in found.engines] == [("prefill", "2.60.0"), *[("decode", "2.60.0")] * 2]
    (missing, *_) = found.engines[0].missing
    assert (missing.quantity, missing.state) == ("prefill_tokens", "absent")
    assert "log_engine_metrics" in missing.remedy


async def test_a_token_is_read_from_its_place_and_its_absence_named_without_it(tmp_path: Path):
    path = tmp_path / "token"
    with pytest.raises(FleetError, match="cannot be read from") as caught:
        await Caller("http://127.0.0.1:9", str(path)).json("GET", "/")
    path.write_text("secret-word")
    with pytest.raises(FleetError) as caught:
        await Caller("http://127.0.0.1:9", str(path)).json("GET", "/")
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "controller", "words"),
    [
        ("sglang", "haproxy=http://h:1", "a controller is KIND=URL"),
        ("sglang", "sglang-router=h:1", "has an http address"),
        ("sglang", "sglang-router=http://u:p@h:1", "holds a password"),
        ("sglang", "sglang-router=http://h:1?port=3", "takes no port"),
        ("vllm", "ray-serve=http://h:1/pd", "ray-serve steers no vllm"),
        ("dynamo", "", "give targets"),
        ("vllm", "prometheus=http://h:9090?query=up&unlabelled=both", "no such role"),
        ("vllm", "prometheus=http://h:9090?query=up&serve_port=0", "serve_port is no port"),
    ],
)
def test_a_controller_that_cannot_be_used_says_why(kind: str, controller: str, words: str):
    with pytest.raises(CommandRefused, match=words):
        plan(kind, controller)


def test_what_a_fleet_can_is_what_its_controller_can():
    with_etcd = plan("dynamo", "dynamo=http://h:1?etcd=http://h:2", Capability.RESIZE, Capability.FLIP)
    assert SteeredFleet(with_etcd, open_steering(with_etcd.controller)).capabilities == {  # type: ignore[arg-type]
        Capability.OBSERVE,
        Capability.RESIZE,
    }
    without = plan("dynamo", "dynamo=http://h:1", Capability.RESIZE)
    assert SteeredFleet(without, open_steering(without.controller)).capabilities == {Capability.OBSERVE}  # type: ignore[arg-type]
