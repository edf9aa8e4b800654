"""Dynamo's own two ends of its virtual connector, in Dynamo's environment with ETCD_ENDPOINTS set.

python bench/_dynamo_controller.py NAMESPACE                   the controller that Dynamo leaves to its operator
python bench/_dynamo_controller.py NAMESPACE PREFILL DECODE    a wish, as its planner writes one

The controller prints each wish as a line "PREFILL DECODE" on stdout; whoever reads it does what it says and answers
with a line.
"""

from __future__ import annotations

import asyncio
import sys

from dynamo._core import VirtualConnectorClient, VirtualConnectorCoordinator
from dynamo.runtime import DistributedRuntime


async def carry_out(namespace: str) -> None:
    loop = asyncio.get_running_loop()
    client = VirtualConnectorClient(DistributedRuntime(loop, "etcd", "tcp"), namespace)
    while True:
        await client.wait()
        wish = await client.get()
        print(wish.num_prefill_workers, wish.num_decode_workers, flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        await client.complete(wish)


async def plan(namespace: str, num_prefill: int, num_decode: int) -> None:
    runtime = DistributedRuntime(asyncio.get_running_loop(), "etcd", "tcp")
    planner = VirtualConnectorCoordinator(runtime, namespace, 1, 10, 3)
    await planner.async_init()
    await planner.update_scaling_decision(num_prefill, num_decode)


if __name__ == "__main__":
    name, *sizes = sys.argv[1:]
    asyncio.run(plan(name, *map(int, sizes)) if sizes else carry_out(name))
