"""Our gateway in front of engines that it did not start: split requests, deaths, and roles that are its decision."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
from bridge_builders import FLEET, Prod, followed, prod
from fake_servers import BLOCK, FakeServer, answer_of
from gateway_builders import LOCAL_ALWAYS, until

from control.fleets.attached.bridge_file import bridge_path, hold_bridge
from control.fleets.attached.targets import make_target
from control.types.routing import RouteRule
from control.types.workers import Role, WorkerState

PAIR = {"p": Role.PREFILL, "d": Role.DECODE}
PROMPT = "The capital of France is Paris."


def pair(**fields: object) -> dict[str, FakeServer]:
    kept: dict[str, list[int]] = {}
    return {name: FakeServer(name=name, kept=kept, **fields) for name in ("p", "d")}  # type: ignore[arg-type]


def text_of(place: Prod, prompt: str, num: int) -> str:
    """What an engine says that nobody disturbs."""
    tokens = place.text.encode(prompt)
    stream = place.text.detokenizer(tokens)
    return "".join(stream.push([each]) for each in answer_of(tokens, num))


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


async def test_a_plain_server_serves_behind_the_gateway(tmp_path: Path) -> None:
    async with prod(tmp_path, {"m": Role.MIXED}, LOCAL_ALWAYS, m=FakeServer(kind="openai")) as place:
        response = await place.complete(PROMPT)
        assert len(said(response)) == 12
        body = place.servers["m"].seen[0]
        assert body["prompt"] == place.text.encode(PROMPT)
        assert set(body) == {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stream"}
        (record,) = place.records
        assert (record.decode_worker, record.status, record.fleet_id) == ("m", 200, "prod")
        assert record.ttft_s is not None


async def test_a_request_is_split_over_a_vllm_pair(tmp_path: Path) -> None:
    async with prod(tmp_path, PAIR, **pair()) as place:
        assert said(await place.complete(PROMPT)) == text_of(place, PROMPT, 12)
        asked, fetched = place.servers["p"].seen[0], place.servers["d"].seen[0]
        assert (asked["max_tokens"], asked["stream"]) == (1, False)
        assert asked["kv_transfer_params"]["do_remote_decode"] is True
        assert fetched["kv_transfer_params"]["remote_engine_id"] == "p"
        assert asked["prompt"] == place.text.encode(PROMPT)
        assert fetched["prompt"] == [*asked["prompt"], *answer_of(asked["prompt"], 1)]
        assert fetched["max_tokens"] == 11
        assert (place.servers["d"].num_pulled, place.servers["p"].kept) == (1, {})
        (record,) = place.records
        assert (record.rule, record.prefill_worker, record.decode_worker) == (RouteRule.REMOTE, "p", "d")
        assert record.handoff_s is not None
        assert record.prefill_s is not None


async def test_a_prompt_that_fills_its_last_block_is_sent_without_its_first_token(tmp_path: Path) -> None:
    """The prefill server has no block that the first token could lie in."""
    async with prod(tmp_path, PAIR, **pair()) as place:
        prompt = "a" * (2 * BLOCK - len(place.text.encode("")))
        assert len(place.text.encode(prompt)) == 2 * BLOCK
        assert said(await place.complete(prompt)) == text_of(place, prompt, 12)
        assert place.servers["d"].seen[0]["prompt"] == place.text.encode(prompt)


async def test_a_sampled_answer_is_split_and_drawn_from_its_start(tmp_path: Path) -> None:
    async with prod(tmp_path, PAIR, **pair()) as place:
        assert said(await place.complete(PROMPT, temperature=0.8, seed=7)) == text_of(place, PROMPT, 12)
        assert place.servers["d"].seen[0]["prompt"] == place.text.encode(PROMPT)


async def test_kv_that_is_lost_on_the_way_is_computed_again(tmp_path: Path) -> None:
    async with prod(tmp_path, PAIR, **pair(loses_kv=True)) as place:
        assert said(await place.complete(PROMPT)) == text_of(place, PROMPT, 12)
        assert place.records[0].attempt > 1


async def test_two_servers_that_disagree_on_a_greedy_token_are_not_mixed(tmp_path: Path) -> None:
    """What was sent stays: the rest is computed from it."""
    servers = pair()
    servers["p"].skew = 1
    async with prod(tmp_path, PAIR, **servers) as place:
        tokens = place.text.encode(PROMPT)
        first = answer_of(tokens, 1)[0] + 1
        stream = place.text.detokenizer(tokens)
        expected = "".join(stream.push([each]) for each in [first, *answer_of([*tokens, first], 11)])
        assert said(await place.complete(PROMPT)) == expected


async def test_a_greedy_stream_goes_on_after_its_server_died(tmp_path: Path) -> None:
    roles = {"a": Role.MIXED, "b": Role.MIXED}
    servers = {name: FakeServer(name=name, pace_s=0.01) for name in roles}
    async with prod(tmp_path, roles, LOCAL_ALWAYS, **servers) as place:
        asked = asyncio.create_task(place.complete(PROMPT, 60))
        await until(lambda: any(each.num_running for each in servers.values()))
        await asyncio.sleep(0.1)
        dying = next(each for each in servers.values() if each.num_running)
        await dying.die()
        assert said(await asked) == text_of(place, PROMPT, 60)
        (record,) = place.records
        assert [each.kind for each in record.moves] == ["failover"]
        await dying.start()
        await followed(place, lambda: len(place.bridged.routes()) == 2)
        back = place.bridge.workers[dying.name]
        await until(lambda: back.is_up and back.epoch > 0)


async def test_a_sampled_stream_that_is_cut_fails_and_says_why(tmp_path: Path) -> None:
    roles = {"a": Role.MIXED, "b": Role.MIXED}
    servers = {name: FakeServer(name=name, pace_s=0.01) for name in roles}
    async with prod(tmp_path, roles, LOCAL_ALWAYS, **servers) as place:
        asked = asyncio.create_task(place.complete(PROMPT, 60, temperature=0.8, seed=7))
        await until(lambda: any(each.num_running for each in servers.values()))
        await asyncio.sleep(0.1)
        await next(each for each in servers.values() if each.num_running).die()
        response = await asked
        assert response.status_code == 502
        error = response.json()["error"]
        assert error["code"] == "not_continued"
        assert "sampled" in error["message"]


async def test_roles_flip_under_load_and_every_answer_is_the_same(tmp_path: Path) -> None:
    """The swap of a pair takes four flips, through mixed, as guard rails want it."""
    servers = pair(pace_s=0.002)
    async with prod(tmp_path, PAIR, **servers) as place:
        done = asyncio.Event()
        answers: list[tuple[str, str]] = []

        async def load(number: int) -> None:
            while not done.is_set():
                prompt = f"{PROMPT} {number} {len(answers)}"
                answers.append((said(await place.complete(prompt, 20)), text_of(place, prompt, 20)))

        clients = [asyncio.create_task(load(number)) for number in range(4)]
        for first, second in (("p", "d"), ("d", "p")):
            for worker_id, role in (
                (first, Role.MIXED),
                (second, Role.MIXED),
                (first, Role.DECODE),
                (second, Role.PREFILL),
            ):
                assert (await place.give("flip", worker_id, role)).accepted
                await place.became(worker_id, role)
        done.set()
        await asyncio.gather(*clients)
        assert len(answers) >= 4
        assert all(got == expected for got, expected in answers)
        assert {each.status for each in place.records} == {200}


async def test_a_role_is_proved_before_it_holds(tmp_path: Path) -> None:
    servers = pair()
    async with prod(tmp_path, PAIR, **servers) as place:
        servers["d"].skew = 1  # as a prefill server it would be wrong
        assert (await place.give("flip", "p", Role.MIXED)).accepted
        await place.became("p", Role.MIXED)
        assert (await place.give("flip", "d", Role.MIXED)).accepted
        await place.became("d", Role.MIXED)
        servers["d"].loses_kv = servers["p"].loses_kv = True
        assert (await place.give("flip", "d", Role.PREFILL)).accepted
        worker = place.bridge.workers["d"]
        await until(lambda: worker.duty.wanted is Role.MIXED)
        outcome = await place.give("flip", "d", Role.PREFILL)
        assert not outcome.accepted
        assert "KV load failure" in outcome.detail
        await place.became("d", Role.MIXED)


async def test_an_engine_that_comes_back_serves_only_once_a_canary_has_shown_its_role_again(tmp_path: Path) -> None:
    servers = pair()
    async with prod(tmp_path, PAIR, **servers) as place:
        worker = place.bridge.workers["d"]
        worker.distrust_s = 0.0
        await servers["d"].die()
        await until(lambda: not worker.is_up)
        servers["d"].loses_kv = True
        await servers["d"].start()
        await until(lambda: worker.is_up)
        await followed(place, lambda: (route := place.bridged.route("d")) is not None and route.role is Role.UNASSIGNED)
        assert (await place.give("place", "d", Role.DECODE)).accepted
        await followed(place, lambda: "canary as decode failed: KV load failure" in place.bridged.reason("d"))
        assert worker.duty.state is WorkerState.UNASSIGNED
        servers["d"].loses_kv = False
        await until(lambda: worker.duty.state is WorkerState.READY)
        await followed(place, lambda: place.bridged.reason("d") == "")
        place.retable()
        await place.became("d", Role.DECODE)
        assert said(await place.complete(PROMPT)) == text_of(place, PROMPT, 12)


async def test_an_engine_that_comes_to_a_fleet_which_serves_shows_its_role_first(tmp_path: Path) -> None:
    servers = pair()
    async with prod(tmp_path, PAIR, **servers) as place:
        assert not servers["d"].seen  # those that were there at the beginning are taken at their word
        came = servers["e"] = FakeServer(name="e", kept=servers["d"].kept, ignores_kv=True)
        await came.start()
        place.registry.listed = (*place.registry.listed, make_target(came.url, "decode", "e"))
        await followed(place, lambda: place.bridged.route("e") is not None)
        worker = place.bridge.workers["e"]
        assert (await place.give("place", "e", Role.DECODE)).accepted
        await until(lambda: "canary as decode failed" in worker.problem)
        assert f"KV was not fetched: {came.url} decodes, but it computed 166 prompt tokens" in worker.problem
        assert worker.duty.state is WorkerState.UNASSIGNED
        await came.die()


async def test_an_engine_that_owes_its_canary_can_be_drained_and_let_back_in(tmp_path: Path) -> None:
    servers = pair()
    async with prod(tmp_path, PAIR, **servers) as place:
        worker = place.bridge.workers["d"]
        worker.distrust_s = 0.0
        await servers["d"].die()
        await until(lambda: not worker.is_up)
        servers["d"].loses_kv = True
        await servers["d"].start()
        await followed(place, lambda: worker.is_up and place.bridged.route("d") is not None)
        await until(lambda: place.bridged._links["d"].is_connected)
        assert (await place.give("place", "d", Role.DECODE)).accepted
        await until(lambda: "canary as decode failed" in worker.problem)
        assert (await place.give("drain", "d")).accepted
        await until(lambda: worker.duty.state is WorkerState.DRAINED)
        servers["d"].loses_kv = False
        assert (await place.give("undrain", "d")).accepted
        await until(lambda: worker.duty.state is WorkerState.READY)


async def test_a_drain_waits_for_its_requests_and_takes_nothing_new(tmp_path: Path) -> None:
    roles = {"a": Role.MIXED, "b": Role.MIXED}
    servers = {name: FakeServer(name=name, pace_s=0.01) for name in roles}
    async with prod(tmp_path, roles, LOCAL_ALWAYS, **servers) as place:
        asked = [asyncio.create_task(place.complete(f"{PROMPT} {n}", 30)) for n in range(6)]
        await until(lambda: servers["a"].num_running > 0)
        assert (await place.give("drain", "a")).accepted
        await place.became("a", Role.MIXED, WorkerState.DRAINED)
        assert servers["a"].num_running == 0
        num_before = len(servers["a"].seen)
        said(await place.complete(PROMPT))
        assert len(servers["a"].seen) == num_before
        for each in asked:
            said(await each)
        assert (await place.give("undrain", "a")).accepted
        await place.became("a", Role.MIXED)


async def test_a_client_that_goes_away_ends_its_request_in_the_engine(tmp_path: Path) -> None:
    async with prod(tmp_path, {"m": Role.MIXED}, LOCAL_ALWAYS, m=FakeServer(pace_s=0.01)) as place:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 500, "temperature": 0, "stream": True}
        async with place.client.stream("POST", "/v1/completions", json=body) as response:
            async for _ in response.aiter_lines():
                break
        await until(lambda: place.servers["m"].num_running == 0)


async def test_sglang_halves_meet_in_a_room(tmp_path: Path) -> None:
    """In shape only: against a fake server."""
    rooms: dict[int, asyncio.Future[list[int]]] = {}
    servers = {name: FakeServer(kind="sglang", name=name, rooms=rooms) for name in ("p", "d")}
    async with prod(tmp_path, PAIR, **servers) as place:
        assert said(await place.complete(PROMPT)) == text_of(place, PROMPT, 12)
        asked, fetched = servers["p"].seen[0], servers["d"].seen[0]
        assert asked["bootstrap_room"] == fetched["bootstrap_room"]
        assert asked["sampling_params"]["max_new_tokens"] == 1
        (record,) = place.records
        assert (record.rule, record.prefill_worker, record.decode_worker) == (RouteRule.REMOTE, "p", "d")


async def test_a_streamed_answer_has_every_token_once(tmp_path: Path) -> None:
    async with prod(tmp_path, PAIR, **pair()) as place:
        response = await place.complete(PROMPT, 20, stream=True)
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        events = [json.loads(line) for line in lines if line != "[DONE]"]
        text = "".join(each["choices"][0]["text"] for each in events if each["choices"])
        assert text == text_of(place, PROMPT, 20)


async def test_an_engine_that_leaves_the_targets_ends_its_streams_first(tmp_path: Path) -> None:
    servers = {name: FakeServer(name=name, pace_s=0.05) for name in ("a", "b")}
    async with prod(tmp_path, dict.fromkeys(servers, Role.MIXED), LOCAL_ALWAYS, **servers) as place:
        asked = [asyncio.create_task(place.complete(PROMPT, 40)) for _ in range(4)]
        await until(lambda: servers["b"].num_running > 0)
        place.registry.listed = tuple(each for each in place.registry.listed if each.worker_id == "a")
        await followed(place, lambda: "b" not in place.bridge.workers)
        assert {said(each) for each in await asyncio.gather(*asked)} == {text_of(place, PROMPT, 40)}
        assert servers["b"].num_running == 0
        await followed(place, lambda: [each.worker_id for each in place.bridged.routes()] == ["a"])
        assert place.bridged.route("b") is None


async def test_one_process_at_a_time_is_a_fleets_bridge(tmp_path: Path) -> None:
    async with prod(tmp_path, {"a": Role.MIXED}, LOCAL_ALWAYS, a=FakeServer()) as place:
        path = bridge_path(tmp_path, FLEET)
        assert hold_bridge(path) is None
        place.bridge.leave()
        lock = hold_bridge(path)
        assert lock is not None
        assert said(await place.complete(PROMPT)) == text_of(place, PROMPT, 12)  # what it has begun it ends
        lock.close()
