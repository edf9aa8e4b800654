"""Our gateway before engines that a fake Kubernetes API server lists: pods come, go and flip while streams run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.control.attached.fake_pods import add_engine, go_away, terminate
from tests.integration.foreign_site import NAME, pods

pytestmark = pytest.mark.integration


def test_pods_flip_come_and_are_deleted_while_streams_run_and_none_fails(tmp_path: Path) -> None:
    with pods(tmp_path, "v0", "v1", "v2") as (here, cluster):
        here.place.must("allow", NAME, "route", "flip", "drain")
        here.serve()
        here.until_ready(v0="mixed", v1="mixed", v2="mixed")
        here.of("route", "set", "min_remote_prefill_tokens=16", "max_local_output_tokens=8", "--wait")
        with here.clients() as clients:
            here.of("flip", "v0", "prefill", "--wait")
            here.served_more(clients)
            assert sum(each.num_pulled for each in here.engines.servers.values()) > 0

            came = here.engines.servers["v3"] = here.engines.another("v3")
            here.engines.start(came)
            add_engine(cluster, "v3", came.url)
            here.until_ready(v0="prefill", v1="mixed", v2="mixed", v3="mixed")

            terminate(cluster, "v1")
            here.until_ready(v0="prefill", v2="mixed", v3="mixed")
            assert here.engines.servers["v1"].num_running == 0
            here.engines.kill("v1")
            cluster.remove("pods", "v1")
            here.served_more(clients)

            go_away(cluster)
            here.of("flip", "v0", "mixed", "--wait", "--confirm", "prefill")
            here.served_more(clients)
        assert not clients.failures
        assert not [each for each in cluster.calls if not each.startswith("GET")]
