"""The controller that Dynamo leaves to its operator: takes wishes from the virtual connector, says when they are done.

python bench/_dynamo_controller.py NAMESPACE    (in Dynamo's environment, ETCD_ENDPOINTS set)

Each wish is a line "PREFILL DECODE" on stdout; whoever reads it does what it says and answers with a line.
"""

from __future__ import annotations

import asyncio
import sys

from dynamo._core import VirtualConnectorClient
from dynamo.runtime import DistributedRuntime


async def main(namespace: str) -> None:
    loop = asyncio.get_running_loop()
    client = VirtualConnectorClient(DistributedRuntime(loop, "etcd", "tcp"), namespace)
    while True:
        await client.wait()
        wish = await client.get()
        print(wish.num_prefill_workers, wish.num_decode_workers, flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        await client.complete(wish)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
