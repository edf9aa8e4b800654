"""Ray's metrics agents: a recorded page becomes a page per replica, and what Ray does to vLLM's series is undone."""

from __future__ import annotations

import dataclasses

from control.fleets.attached.derive import derive
from control.fleets.attached.engine_page import Counters, EnginePage
from control.fleets.attached.steering.calls import Caller
from control.fleets.attached.steering.ray_metrics import RayMetrics
from control.fleets.attached.steering.ray_pages import STILL_S, counting, lines_by_replica, page_of
from control.fleets.attached.steering.ray_serve import RayServeSteering
from control.types.workers import Phase, Role
from tests.control.attached.fake_controllers import FakeRay, served
from tests.control.attached.pages_of import PAGES

AGENT = (PAGES / "ray-2.60.0-agent.txt").read_text()
PREFILL, DECODE = "5rumg8em", "f0qx30q9"


def recorded() -> dict[str, EnginePage]:
    return {name: page_of(lines) for name, lines in lines_by_replica([AGENT], {}).items()}


def test_each_replica_has_its_own_lines_of_a_nodes_page():
    pages = recorded()
    assert set(pages) == {PREFILL, DECODE}
    assert {each.model_id for each in pages.values()} == {"made-up"}


def test_sources_that_never_grew_are_zero_and_the_sums_are_those_of_the_exact_counters():
    prefill, decode = recorded()[PREFILL].counters, recorded()[DECODE].counters
    assert (prefill.prefill_tokens, prefill.received_tokens, prefill.cached_tokens) == (2800, 0, 0)
    assert (decode.prefill_tokens, decode.received_tokens, decode.decode_tokens) == (0, 2100, 120)
    assert (prefill.prompt_tokens, decode.prompt_tokens) == (2800, 2100)  # their histograms say 3000 and 2250


def test_work_is_of_the_phase_that_did_it_though_rays_sums_are_of_bucket_middles():
    done = derive(page_of(["ray_vllm_num_requests_running 0"]), recorded()[PREFILL], Role.PREFILL, None)
    assert (done[Phase.PREFILL].tokens, done[Phase.DECODE].tokens) == (2800, 0)


def test_a_counter_that_is_absent_though_the_engine_answers_is_unknown_and_one_with_a_flag_always():
    page = page_of(["ray_vllm_generation_tokens_total 5.0", "ray_vllm_num_requests_running 1.0"])
    assert (page.counters.decode_tokens, page.counters.prefill_tokens, page.counters.steps) == (5, None, None)
    idle = page_of(["ray_vllm_num_requests_running 0.0"]).counters
    assert (idle.decode_tokens, idle.prefill_tokens, idle.steps) == (0, 0, 0)
    assert (idle.exported_flops, idle.exported_bytes, idle.prefill_busy_s) == (None, None, None)


def test_a_replica_without_a_label_of_its_own_is_known_by_its_process():
    bare = AGENT.replace(f'ReplicaId="{DECODE}",', "")
    worker = "1d0fc689c0b6f414b0e1d9d16bfd5f1d4ce62283eb9cc70eee5e5344"
    assert set(lines_by_replica([bare], {})) == {PREFILL}
    assert set(lines_by_replica([bare], {worker: "other"})) == {PREFILL, "other"}


def test_a_page_that_stands_still_says_nothing_new_until_it_has_stood_for_long():
    pages = recorded()
    seen = counting(pages, {}, 100.0)
    assert set(seen) == {PREFILL, DECODE}
    assert counting(pages, seen, 110.0) == {}
    grown = dataclasses.replace(pages[DECODE], counters=Counters(decode_tokens=160.0))
    assert set(counting({**pages, DECODE: grown}, seen, 110.0)) == {DECODE}
    assert set(counting(pages, seen, 100.0 + STILL_S)) == {PREFILL, DECODE}


async def test_replicas_in_ray_serve_have_the_pages_of_their_agents():
    ray = FakeRay(agent_page=AGENT, ids={"Prefill:m": PREFILL, "Decode:m": DECODE})
    ray.targets["Decode:m"] = 1
    async with served(ray):
        ray.agents = [ray.url.removeprefix("http://")]
        steering = RayServeSteering(Caller(ray.url), "pd", {})
        roster = await steering.look()
        tokens = {each.role: each.told.counters.decode_tokens for each in roster.members}
        assert tokens == {Role.PREFILL: 4, Role.DECODE: 120}
        assert roster.problem == ""
        await steering.close()


async def test_a_replica_that_says_nothing_among_others_that_do_has_done_nothing():
    ray = FakeRay(agent_page=AGENT)
    async with served(ray):
        ray.agents = [ray.url.removeprefix("http://")]
        metrics = RayMetrics(Caller(ray.url))
        pages = await metrics.read({PREFILL: "w0", DECODE: "w1", "new": "w2"})
        assert (pages["new"].page.counters.decode_tokens, pages["new"].page.counters.exported_flops) == (0, None)
        await metrics.close()
        ray.agent_page = "ray_node_cpu_count 2.0\n"
        metrics = RayMetrics(Caller(ray.url))
        assert await metrics.read({"new": "w2"}) == {}  # no engine of vLLM: unknown
        await metrics.close()


async def test_an_agent_that_lies_and_one_that_is_gone_are_told_and_cost_their_replicas_a_look():
    ray = FakeRay(agent_page='ray_vllm_generation_tokens_total{ReplicaId="f0qx30q9"} ???\n')
    async with served(ray):
        ray.agents = [ray.url.removeprefix("http://"), "127.0.0.1:9"]
        metrics = RayMetrics(Caller(ray.url))
        assert await metrics.read({DECODE: "w"}) == {}
        assert "f0qx30q9: not a Prometheus text page" in metrics.problem
        assert "127.0.0.1:9/metrics cannot be read" in metrics.problem
        await metrics.close()


async def test_agents_are_read_at_their_own_pace_and_a_list_that_is_none_is_told():
    ray, now = FakeRay(agents=None), [100.0]
    async with served(ray):
        metrics = RayMetrics(Caller(ray.url), now=lambda: now[0])
        assert await metrics.read({}) == {}
        assert "answers with no list" in metrics.problem
        ray.agents = []
        assert await metrics.read({}) == {}
        assert "answers with no list" in metrics.problem  # not asked again so soon
        now[0] = 102.0
        await metrics.read({})
        assert metrics.problem == ""
        await metrics.close()
