"""remote_share from 1 to 0 and back: where the next requests go, by the route that each answer names. No restart."""

from __future__ import annotations

import argparse
import json
from collections import Counter

from openai import OpenAI

from _deployment import Deployment, deployment
from control.types.commands import Action, CommandRequest, Verb


def routes(fleet: Deployment, client: OpenAI, model: str, count: int, label: str) -> Counter[str]:
    """Rules that decided the next `count` requests, each with a prompt of its own."""
    found: Counter[str] = Counter()
    for index in range(count):
        text = f"{label} {index}. " + "A queue grows without bound once arrivals outpace service. " * 40
        answer = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": text}], max_tokens=8
        )
        found[answer.headers["X-Phaseline-Route"].split(";")[0].removeprefix("rule=")] += 1
    return found


def measure(count: int) -> dict[str, object]:
    with deployment(num_workers=4, num_prefill=1, worker_kind="paced") as fleet:
        client = OpenAI(base_url=f"{fleet.gateway_url}/v1", api_key="bench", max_retries=0)
        model = client.models.list().data[0].id
        before = [(each.worker_id, each.epoch, each.pid) for each in fleet.client.snapshot().workers]
        stages = {}
        for share in (1.0, 0.0, 0.5, 1.0):
            action = Action(verb=Verb.SET_ROUTING, policy={"remote_share": share})
            fleet.client.wait(fleet.client.submit(CommandRequest(action=action, why="bench")).command_id)
            stages[f"{len(stages)}: remote_share={share:g}"] = dict(
                routes(fleet, client, model, count, str(len(stages)))
            )
        after = [(each.worker_id, each.epoch, each.pid) for each in fleet.client.snapshot().workers]
    return {"stages": stages, "same processes": before == after}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.count)
    print(json.dumps(result) if options.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
