"""A worker is killed under traffic, on real paced processes: its story from the line to the request and its life."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from control.client import PhaselineClient
from control.types.requests import RequestRecord
from control.types.workers import LossCause
from tests.browser.conftest import LIMIT_MS
from tests.integration.deployment import Deployment

pytestmark = [pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(300)]
expect.set_options(timeout=LIMIT_MS)
NUM_STREAMS = 12
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One prefill and three decode workers, each a process of its own, with gateway and console."""
    found = Deployment(tmp_path_factory.mktemp("paced") / "run", PHASELINE_PACED_WORKERS_PER_PROCESS="1")
    try:
        found.must("up", "--detach", "--kind", "paced", "--workers", "4", "--prefill", "1")
        yield found
    finally:
        found.end()


def client(fleet: Deployment) -> PhaselineClient:
    token = (fleet.run_dir / "secrets" / "operator_token").read_text().strip()
    return PhaselineClient(f"http://127.0.0.1:{fleet.ports['API']}", token)


def ask(fleet: Deployment, number: int) -> int:
    """One request with a long answer; its number of tokens."""
    with client(fleet) as plane:
        model = plane.snapshot().model_id
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": f"Story number {number}. " + "Tell me more about it. " * 20}],
        "max_tokens": 400,
        "ignore_eos": True,
    }
    url = f"http://127.0.0.1:{fleet.ports['GATEWAY']}/v1/chat/completions"
    answer = httpx.post(url, json=body, timeout=LIMIT_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["completion_tokens"])


def until_found(look: Any) -> Any:
    deadline_s = time.monotonic() + LIMIT_S
    while not (found := look()):
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.1)
    return found


def kill_one_that_decodes(fleet: Deployment) -> str:
    """kill -9 of a decode worker that has several sequences; its name."""
    with client(fleet) as plane:

        def busy() -> Any:
            workers = plane.snapshot().workers
            return next((each for each in workers if each.role == "decode" and each.num_running >= 2), None)

        worker = until_found(busy)
    os.kill(worker.pid, signal.SIGKILL)
    return str(worker.worker_id)


def has_died_under(record: RequestRecord) -> bool:
    """Its worker died while it decoded."""
    return any(each.cause is LossCause.DIED and each.stall_s is not None for each in record.moves)


def test_a_killed_workers_story_is_told_from_the_line_to_the_request(page: Page, fleet: Deployment) -> None:
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        asked = [pool.submit(ask, fleet, number) for number in range(NUM_STREAMS)]
        victim = kill_one_that_decodes(fleet)
        assert [each.result(LIMIT_S) for each in asked] == [400] * NUM_STREAMS
    with client(fleet) as plane:
        (moved,) = until_found(lambda: plane.fleet_events(0.0, kinds=("failover",), worker_id=victim))[-1:]
        until_found(lambda: plane.fleet_events(0.0, kinds=("restarted",), worker_id=victim))
        request = next(each for each in plane.requests(moved=True) if has_died_under(each))
        code = plane.create_login_code()
    console = f"http://127.0.0.1:{fleet.ports['CONSOLE']}"

    page.goto(f"{console}/?code={code}")
    latest = page.get_by_role("table", name="Latest commands and events")
    expect(latest).to_contain_text(re.compile(rf"continued on .* after {victim} died"))
    expect(latest).to_contain_text(re.compile(rf"{victim} was back after"))
    chart = page.get_by_label(re.compile("^Wall utilization: Prefill compute, Decode bandwidth"))
    expect(chart.locator("svg")).to_contain_text(re.compile(rf"{victim} died, \d+ continued"))

    page.goto(f"{console}/requests?moved=yes&request={request.request_id}")
    way = page.get_by_role("list", name=f"The way of {request.request_id}")
    expect(way).to_contain_text(re.compile(rf"Continued on \S+ after {victim} died \(noticed after .*, stall .*\)"))

    page.goto(f"{console}/workers?worker={victim}")
    life = page.get_by_role("table", name=f"Life of {victim}")
    expect(life).to_contain_text(re.compile(rf"continued on .* after {victim} died"))
    expect(life).to_contain_text("died")
    assert moved.num_failed == 0
