"""`python -m control.fleets.ray_node ARGS..`: Ray's own `ray start ARGS..` for a second node on this host's loopback.

Ray binds its ports to loopback alone only when it believes that there is no cluster of several machines
(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0), and then its command line refuses a second node, wherever that is. Both nodes
are on this host, so that refusal, and nothing else, is taken out: the processes that are started keep the setting.
"""

from __future__ import annotations

import sys

import ray._private.ray_constants
import ray._private.services
import ray.scripts.scripts

from control.fleets.ray_head import LOOPBACK


def main() -> None:
    """Runs until the node ends."""
    ray._private.services.get_node_ip_address = lambda address=None: LOOPBACK
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = True  # of this process: its children read their environment
    sys.argv[0] = "ray"
    ray.scripts.scripts.main()


if __name__ == "__main__":
    main()
