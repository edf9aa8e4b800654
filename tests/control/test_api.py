from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import pytest

from control.api.app import create_app
from control.api.limits import MAX_BODY_BYTES, depth_of
from control.export import SCHEMA
from control.history.store import History
from control.settings import Settings
from control.types.commands import CommandState
from tests.control.builders import FakeFleet, lease, record
from tests.control.rig import Rig

API = "/api/v1"
RESIZE = {"action": {"verb": "resize", "prefill": 2, "decode": 2}}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig(tmp_path).start()
    yield rig
    await rig.plane.close()


def caller(rig: Rig, role: str | None = "operator") -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {rig.token(role)}"} if role else {}
    transport = httpx.ASGITransport(app=rig.app(), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)


async def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status
    assert found["detail"]
    return found


async def test_everything_below_the_api_needs_a_token(rig: Rig) -> None:
    paths = [path for path in rig.app().openapi()["paths"] if path.startswith(API)]
    assert len(paths) >= 15
    async with caller(rig, None) as http:
        for path, operations in rig.app().openapi()["paths"].items():
            if not path.startswith(API) or path == f"{API}/login":
                continue
            for method in operations:
                answer = await http.request(method, path.replace("{command_id}", "1"), json=RESIZE)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_viewer_reads_and_does_not_act_and_a_service_does_neither(rig: Rig) -> None:
    async with caller(rig, "viewer") as http:
        assert (await http.get(f"{API}/fleets/-/snapshot")).status_code == 200
        assert (await http.post(f"{API}/commands/preview", json=RESIZE)).status_code == 200
        found = await problem(await http.post(f"{API}/commands", json=RESIZE), 403)
        assert found["detail"] == "vera is a viewer; this needs operator"
    async with caller(rig, "service") as http:
        await problem(await http.get(f"{API}/fleets/-/snapshot"), 403)
    assert rig.plane.desired.version == 1


async def test_a_command_is_accepted_recorded_with_its_principal_and_read_back(rig: Rig) -> None:
    async with caller(rig) as http:
        answer = await http.post(f"{API}/commands", json={**RESIZE, "why": "peak", "base_version": 1})
        assert answer.status_code == 202
        assert (answer.json()["who"], answer.json()["state"]) == ("operator", "accepted")
        await rig.ticks(2)
        number = answer.json()["command_id"]
        assert (await http.get(f"{API}/commands/{number}")).json()["state"] == CommandState.DONE
        assert [each["command_id"] for each in (await http.get(f"{API}/commands")).json()] == [number, 1]
        until = answer.json()["created_unix_s"]
        before = await http.get(f"{API}/commands", params={"until_unix_s": until})
        since = await http.get(f"{API}/commands", params={"since_unix_s": until})
        assert [each["command_id"] for each in before.json()] == [1]
        assert [each["command_id"] for each in since.json()] == [number]
        stale = await problem(await http.post(f"{API}/commands", json={**RESIZE, "base_version": 1}), 409)
        assert stale["type"] == "urn:phaseline:StaleVersion"
        assert stale["field"] == "base_version"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b"{}", "action"),
        (b'{"action": {"verb": "explode"}}', "action.verb"),
        (b'{"action": {"verb": "resize", "prefill": -1}}', "action.prefill"),
        (b'{"action": {"verb": "resize", "prefill": 1.5}}', "action.prefill"),
        (b'{"action": {"verb": "resize", "prefill": NaN}}', "action.prefill"),
        (b'{"action": {"verb": "resize", "prefil": 1}}', "action.prefil"),
        (b'{"action": {"verb": "resize", "prefill": 1}, "reason": "x"}', "reason"),
        (b'{"action": {"verb": "resize", "prefill": 99}}', "prefill"),
        (b'{"action": {"verb": "set_routing", "policy": {"remote_share": NaN}}}', "policy.remote_share"),
        (b'{"action": {"verb": "set_routing", "policy": {"remote_share": "x"}}}', "action.policy.remote_share"),
        (b'{"action": {"verb": "set_routing", "weights": {"w0": -1}}}', "action.weights.w0"),
        (b'{"action": {"verb": "set_routing", "weights": {"w0": Infinity}}}', "action.weights.w0"),
        (b'{"action": {"verb": "undo", "command_id": "x"}}', "action.command_id"),
        (b'{"action": {"verb": "undo", "command_id": 9223372036854775808}}', "action.command_id"),
        (b'{"action": {"verb": "undo", "command_id": -1}}', "action.command_id"),
        (b'{"action": {"verb": "resize", "prefill": true}}', "action.prefill"),
        (b'{"action": {"verb": "resize", "prefill": "3"}}', "action.prefill"),
        (b'{"action": {"verb": "resize", "prefill": 2}, "base_version": -1}', "base_version"),
        (b'{"action": {"verb": "resize", "prefill": 2}, "why": "a\\u0000b"}', "why"),
        (b'{"action": {"verb": "drain", "worker_id": "\xff"}}', "body"),
        (json.dumps({**RESIZE, "why": "x" * 501}).encode(), "why"),
        (json.dumps({**RESIZE, "idempotency_key": "x" * 201}).encode(), "idempotency_key"),
        (b'{"action":' * 200 + b"1" + b"}" * 200, "body"),
        (b"[" * 100_000, "body"),
    ],
)
async def test_bad_bodies_get_a_problem_that_names_the_field(rig: Rig, body: bytes, field: str) -> None:
    async with caller(rig) as http:
        answer = await http.post(f"{API}/commands", content=body, headers={"Content-Type": "application/json"})
        found = await problem(answer, 422)
        assert found["field"].split("|")[0].rstrip(".").startswith(field), found
        assert rig.plane.desired.version == 1


async def test_a_body_over_the_limit_is_refused_unread(rig: Rig) -> None:
    async with caller(rig) as http:
        found = await problem(await http.post(f"{API}/commands", content=b" " * (MAX_BODY_BYTES + 1)), 413)
        assert found["bound"] == f"at most {MAX_BODY_BYTES} bytes"


def test_brackets_inside_strings_are_no_depth() -> None:
    assert depth_of(b'{"a": "[[[[[[", "b": [1, "\\"[["]}') == 2
    assert depth_of(b'"[[[[') == 0


async def test_unknown_things_are_404_and_name_themselves(rig: Rig) -> None:
    async with caller(rig) as http:
        assert (await problem(await http.get(f"{API}/commands/999"), 404))["value"] == 999
        assert (await problem(await http.get(f"{API}/fleets/mars/snapshot"), 404))["bound"] == "test"
        worker = {"action": {"verb": "drain", "worker_id": "w77"}}
        found = await problem(await http.post(f"{API}/commands", json=worker), 404)
        assert (found["field"], found["value"], found["bound"]) == ("worker_id", "w77", "w0, w1, w2, w3")
        assert "/nothing" in (await problem(await http.get("/nothing"), 404))["detail"]
        await problem(await http.delete(f"{API}/commands"), 405)
        found = await problem(await http.get(f"{API}/commands/{10**30}"), 422)
        assert (found["field"], found["bound"]) == ("command_id", f"<= {2**53}")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=99999", "limit"),
        ("before_id=0", "before_id"),
        (f"before_id={2**63}", "before_id"),
    ],
)
async def test_bad_queries_name_the_parameter(rig: Rig, query: str, field: str) -> None:
    async with caller(rig) as http:
        assert (await problem(await http.get(f"{API}/commands?{query}"), 422))["field"] == field


async def test_without_a_history_a_command_gets_503_and_the_snapshot_goes_on(rig: Rig) -> None:
    rig.history.broken = "disk full"
    async with caller(rig) as http:
        found = await problem(await http.post(f"{API}/commands", json=RESIZE), 503)
        assert found["retry_helps"]
        assert "disk full" in found["detail"]
        assert (await http.get(f"{API}/fleets/-/snapshot")).status_code == 200
    rig.history.broken = ""


async def test_health_needs_no_token_and_readiness_waits_for_the_first_look(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    from control.adoption import adopt
    from control.auth import open_auth

    rig.plane = await adopt(rig.fleet, rig.history, Settings(run_dir=tmp_path), lease(), "test", lambda: rig.now)
    rig.auth = open_auth(tmp_path, rig.now)
    async with caller(rig, None) as http:
        assert (await http.get("/healthz")).json()["status"] == "ok"
        await problem(await http.get("/readyz"), 503)
        await rig.ticks()
        assert (await http.get("/readyz")).json() == {"status": "ready"}
    await rig.plane.close()


async def test_a_process_that_is_not_active_says_why_and_that_another_try_helps(rig: Rig) -> None:
    context = replace(rig.app().state.context, planes={}, waiting=lambda: "the database does not answer")
    transport = httpx.ASGITransport(app=create_app(context))
    headers = {"Authorization": f"Bearer {rig.token('operator')}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        health = (await http.get("/healthz")).json()
        assert (health["status"], health["problem"]) == ("waiting", "the database does not answer")
        for path in ("/readyz", f"{API}/fleets", f"{API}/fleets/-/snapshot", f"{API}/info", f"{API}/commands"):
            found = await problem(await http.get(path), 503)
            assert found["type"] == "urn:phaseline:NotActive", path
            assert found["retry_helps"]
            assert "the database does not answer" in found["detail"]
        found = await problem(await http.post(f"{API}/commands", json=RESIZE), 503)
        assert found["type"] == "urn:phaseline:NotActive"


async def test_login_exchanges_a_code_once(rig: Rig) -> None:
    async with caller(rig) as operator, caller(rig, None) as http:
        code = (await operator.post(f"{API}/login/codes", json={})).json()["code"]
        session = (await http.post(f"{API}/login", json={"code": code})).json()
        assert session["principal"] == {"name": "operator", "role": "operator"}
        await problem(await http.post(f"{API}/login", json={"code": code}), 401)
        headers = {"Authorization": f"Bearer {session['token']}"}
        assert (await http.get(f"{API}/whoami", headers=headers)).json()["name"] == "operator"


async def test_the_configuration_is_shown_with_passwords_masked(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).start(database_url="postgresql://phaseline:geheim@db/history")
    async with caller(rig, "viewer") as http:
        answer = await http.get(f"{API}/info")
        assert "geheim" not in answer.text
        assert answer.json()["settings"]["database_url"] == "postgresql://phaseline:***@db/history"
        assert answer.json()["principal"]["name"] == "vera"
        assert answer.json()["settings"]["routing"]["remote_share"] == 1.0  # effective, though no setting names it
    await rig.plane.close()


async def test_the_docs_page_and_the_openapi_document_need_nothing_from_outside(rig: Rig) -> None:
    async with caller(rig, None) as http:
        page = await http.get("/docs")
        assert page.status_code == 200
        assert "/api/v1/commands" in page.text
        assert "//cdn" not in page.text
        assert "src=" not in page.text
        assert (await http.get("/openapi.json")).json()["info"]["title"] == "Phaseline control API"


async def test_what_if_over_the_api(rig: Rig) -> None:
    rig.history.records = {("g", 1): record("r", prompt_tokens=10, max_tokens=4)}
    async with caller(rig) as http:
        body = {"policy": {"min_remote_prefill_tokens": 100}}
        found = (await http.post(f"{API}/routing/what-if", json=body)).json()
        assert (found["before"], found["after"]) == ({"remote": 1}, {"short_local": 1})
        bad = {"policy": {"remote_share": 7}}
        assert (await problem(await http.post(f"{API}/routing/what-if", json=bad), 422))[
            "field"
        ] == "policy.remote_share"


async def test_a_bug_is_a_problem_without_a_traceback(rig: Rig) -> None:
    rig.history.rows = None
    async with caller(rig) as http:
        found = await problem(await http.get(f"{API}/commands"), 500)
        assert "Traceback" not in found["detail"]
    rig.history.rows = {}


async def test_a_snapshot_of_48_workers_is_serialised_once_per_tick(tmp_path: Path) -> None:
    rig = await Rig(tmp_path, FakeFleet.of(48)).start()
    first, second = rig.plane.snapshot_json(), rig.plane.snapshot_json()
    assert first is second
    assert len(json.loads(first)["workers"]) == 48
    rig.now += 100
    assert json.loads(rig.plane.snapshot_json())["stale_s"] >= 100
    await rig.plane.close()


async def test_the_bottleneck_is_told_with_its_evidence(rig: Rig) -> None:
    async with caller(rig, "viewer") as http:
        found = (await http.get(f"{API}/bottleneck")).json()
        assert (found["kind"], found["resources"]) == ("unknown", [])
        assert found["text"] == "Unknown: no gateway is heard, so nobody says what is lost"
        lines = {each["name"]: each for each in found["evidence"]}
        assert (lines["kv_used"]["value"], lines["kv_used"]["provenance"]) == (0.0, "simulated")
        assert lines["good"]["value"] is None
        shown = (await http.get(f"{API}/fleets/-/snapshot")).json()["bottleneck"]
        assert shown["text"] == found["text"]
        await problem(await http.get(f"{API}/bottleneck?fleet_id=other"), 404)


async def test_the_roofline_of_the_last_minute_is_read_by_a_viewer(rig: Rig) -> None:
    await rig.ticks(2)
    async with caller(rig, "viewer") as http:
        live = (await http.get(f"{API}/roofline")).json()
    assert (live["fleet_id"], live["provenance"]) == (rig.plane.fleet.fleet_id, "derived")
    assert live["until_unix_s"] - live["since_unix_s"] == 60.0


async def test_series_are_read_as_a_file_by_a_viewer_and_a_gap_is_no_zero(tmp_path: Path) -> None:
    rig = await Rig(tmp_path, history=History.open(f"sqlite:///{tmp_path}/history.db")).start()
    await rig.ticks(20)
    asked: dict[str, Any] = {"metric": ["kv_usage", "ttft_p99_s"], "since_unix_s": rig.now - 60, "step_s": 1}
    async with caller(rig, "viewer") as http:
        as_csv = await http.get(f"{API}/series/export", params=asked)
        as_parquet = await http.get(f"{API}/series/export", params={**asked, "format": "parquet"})
        series = (await http.get(f"{API}/series", params={**asked, "metric": "kv_usage"})).json()
        many = (await http.get(f"{API}/series/many", params={**asked, "until_unix_s": rig.now})).json()
    await rig.plane.close()
    assert [each["metric"] for each in many] == asked["metric"]
    assert many[0]["series"] == series["series"]
    assert (as_csv.status_code, as_csv.headers["content-type"]) == (200, "text/csv; charset=utf-8")
    name = f"phaseline-test-series-{asked['since_unix_s']:.0f}"
    assert as_csv.headers["content-disposition"] == f'attachment; filename="{name}.csv"'
    table = pa_parquet.read_table(io.BytesIO(as_parquet.content))
    assert table.schema.equals(SCHEMA)
    shown = [each["value"] for line in series["series"] for each in line["points"]]
    values = [each["value"] for each in table.to_pylist() if each["metric"] == "kv_usage"]
    assert values == shown
    assert None in values
    assert any(each is not None for each in values)
    assert pa_csv.read_csv(io.BytesIO(as_csv.content))["value"].to_pylist() == table["value"].to_pylist()


async def test_a_file_that_cannot_be_made_is_refused_with_field_value_and_bound(tmp_path: Path) -> None:
    rig = await Rig(tmp_path, history=History.open(f"sqlite:///{tmp_path}/history.db")).start()
    good: dict[str, Any] = {"metric": "kv_usage", "since_unix_s": rig.now - 60}
    cases: tuple[tuple[dict[str, Any], int, str, Any], ...] = (
        ({"metric": ["kv_usage"] * 21}, 422, "metric", 21),
        ({"metric": "nothing"}, 404, "metric", "nothing"),
        ({"format": "xml"}, 422, "format", "xml"),
        ({"step_s": 0}, 422, "step_s", "0"),
        ({"by": "rule"}, 422, "by", "rule"),
    )
    async with caller(rig, "viewer") as http:
        for wrong, status, field, value in cases:
            answer = await http.get(f"{API}/series/export", params={**good, **wrong})
            found = await problem(answer, status)
            assert (found["field"], found["value"]) == (field, value)
            assert status == 404 or found["bound"], found
            if wrong != {"format": "xml"}:
                await problem(await http.get(f"{API}/series/many", params={**good, **wrong}), status)
    await rig.plane.close()
