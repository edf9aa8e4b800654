"""A fleet that somebody else runs, attached to a plane that runs, by the command line: seen, kept, and let go."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyarrow.parquet import read_table

from control.processes import send_signal
from tests.control.attached.fake_engines import FakeEngine, engines
from tests.control.attached.pages_of import text_of
from tests.integration.deployment import Deployment

pytestmark = pytest.mark.integration


@contextmanager
def served(*fakes: FakeEngine) -> Iterator[None]:
    """On an event loop of their own, until the end."""
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def live() -> None:
        async with engines(*fakes):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(live(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_a_fleet_is_attached_seen_kept_over_a_restart_and_let_go(sim: Deployment) -> None:
    prefill, decode = FakeEngine(text_of("prefill-1")), FakeEngine(text_of("decode-1"))
    sim.must("up", "--detach", "--workers", "4")
    with served(prefill, decode):
        targets = ("--targets", f"prefill:p0={prefill.url}", "--targets", f"decode:d0={decode.url}")
        told = ("theirs", "--kind", "vllm", *targets, "--device", "h100-sxm-80gb", "--every", "0.5")
        found = sim.json("attach", *told, "--dry-run")
        assert [(each["version"], each["model"], each["problem"]) for each in found["engines"]] == [
            ("0.32.0", "tiny", "")
        ] * 2
        assert sim.json("fleets")["attached"] == []

        sim.must("attach", *told)
        sim.must("attach", *told)  # again: nothing changes
        sim.until(lambda: sim.num_ready("theirs") == 2, "the attached fleet")
        assert {each["role"] for each in sim.json("--fleet", "theirs", "status")["workers"]} == {"prefill", "decode"}
        prefill.page, decode.page = text_of("prefill-2"), text_of("decode-2")
        sim.until(lambda: prefilled(sim) == 7000, "the work of the attached fleet")
        assert sim.run("--fleet", "theirs", "flip", "p0", "decode").returncode == 4  # observed only
        assert "theirs" not in str(sim.snapshot())
        file = sim.run_dir / "theirs.parquet"
        asked = ("export", "prefill_tokens_per_s", "kv_usage", "--since", "10m", "--step", "1s", "--out", str(file))
        wrote = sim.json("--fleet", "theirs", *asked)
        assert (wrote["format"], wrote["bytes"]) == ("parquet", file.stat().st_size)
        rows = read_table(file).to_pylist()
        assert {(each["fleet_id"], each["metric"]) for each in rows} >= {("theirs", "prefill_tokens_per_s")}
        assert sum(each["value"] or 0.0 for each in rows if each["metric"] == "prefill_tokens_per_s") > 6999

        plane = sim.root("plane")
        send_signal(plane, signal.SIGKILL)
        sim.until(lambda: sim.root_or_none("plane") not in (None, plane), "another plane")
        sim.until(lambda: sim.num_ready("theirs") == 2, "the attached fleet again")

        sim.must("detach", "theirs")
        assert sim.json("fleets")["attached"] == []
        assert sim.run("--fleet", "theirs", "status").returncode == 2
        looks = prefill.num_looks
        sim.must("status")
        assert prefill.num_looks <= looks + 1


def prefilled(sim: Deployment) -> float:
    """Prompt tokens that the history has for the attached fleet."""
    with sim.client("theirs") as client:
        found = client.series("prefill_tokens_per_s", time.time() - 600, step_s=1)
    return float(sum(point.value or 0.0 for line in found.series for point in line.points))
