"""`phaseline serve` as a process beside a real plane, in front of fake vLLM servers that hand KV to each other."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from control.processes import send_signal
from tests.integration.foreign_site import NAME, Site, site

pytestmark = pytest.mark.integration
LONG = 100  # tokens
PAIR = {"p": "prefill", "d": "decode"}


def test_a_served_fleet_lives_through_flips_kills_and_an_upgrade_and_ends_whole(tmp_path: Path) -> None:
    with site(tmp_path, **PAIR) as here:
        place = here.place
        refused = place.run("serve", NAME, *here.words, "--detach")
        assert (refused.returncode, f"phaseline allow {NAME} route" in refused.stderr) == (4, True)
        place.must("allow", NAME, "route", "flip", "drain")
        assert f"{here.url}/v1" in here.serve()
        here.serve()  # the same words again: nothing changes
        assert f"{here.url}/v1 (pid {place.root('serve-prod').pid}, kept by" in place.must("status")
        second = place.run("serve", NAME, "--tokenizer", here.tokenizer, "--port", str(here.port + 1))
        assert (second.returncode, "serves fleet prod already" in second.stderr) == (4, True)
        here.until_ready(**PAIR)

        here.of("route", "set", "min_remote_prefill_tokens=16", "max_local_output_tokens=8", "--wait")
        with here.clients() as clients:
            here.served_more(clients)
            assert here.engines.servers["d"].num_pulled > 0
            here.of("flip", "p", "mixed", "--confirm", "prefill")
            send_signal(place.root("plane"), signal.SIGKILL)  # the next one ends the flip
            here.served_more(clients)
            here.until_ready(p="mixed", d="decode")
            here.engines.kill("d")
            here.served_more(clients)
            here.engines.start(here.engines.servers["d"])
            here.until_ready(p="mixed", d="decode")
            here.served_more(clients)
            before = place.root("serve-prod")
            notes = {each["name"]: each["state"] for each in place.json("upgrade")["steps"]}
            assert notes["serve-prod"] == "done"
            assert place.root("serve-prod") != before
            here.served_more(clients)
        assert not clients.failures

        before = place.root("serve-prod")
        send_signal(before, signal.SIGKILL)
        whole = here.stream(LONG)  # it waits in the socket until the process is back
        assert (len(whole[0]), whole[1]) == (LONG, "[DONE]")
        assert place.root("serve-prod") != before

        ended_whole(here, whole, "forbid", NAME, "route")
        place.until(lambda: "serve-prod" not in place.state.components, "the end of the process")
        assert "is served at" not in place.must("status")
        place.must("allow", NAME, "route")
        here.serve()
        ended_whole(here, whole, "down")
        assert not place.processes()


def ended_whole(here: Site, whole: tuple[str, str], *command: str) -> None:
    """Streams that are open when this is said end as they do when nothing is said."""
    with ThreadPoolExecutor() as pool:
        streams = [pool.submit(here.stream, LONG) for _ in range(3)]
        here.place.until(lambda: here.engines.num_running > 0, "open streams")
        here.place.must(*command)
        assert [each.result() for each in streams] == [whole] * 3
