"""Flip of an idle worker: command accepted to ready, and to its first token in the new role, beside one decode step.

phaseline bench flip                  three workers of the default kind; `w2` goes to prefill and back
phaseline bench flip -- --paced       the same with paced workers

Accepted and ready are the journal's own times: when the command was taken, and when the plane saw the worker ready in
its new role. A short request follows each flip at once; the first token that `w2` computes for it in the new role ends
the second measure: to prefill that is the request's first token, to decode its second.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import httpx

from _deployment import Deployment, deployment
from control.client import PhaselineClient
from control.traffic.report import quantiles
from control.types.commands import Action, Command, CommandRequest, CommandState, Verb
from control.types.workers import Role

FLIPPED = "w2"
OTHERS_WEIGHT = 0.001  # so that requests go to the flipped worker wherever there is a choice
POLL_S = 0.005
SETTLE_S = 0.05  # between one request's end and the next flip: nothing runs on the worker then


def flip(client: PhaselineClient, role: Role) -> tuple[float, Command]:
    """One flip to its end: (submit to done as the client sees it in seconds, the command)."""
    request = CommandRequest(action=Action(verb=Verb.FLIP, worker_id=FLIPPED, role=role), why="bench")
    word = client.preview(request).needs_confirmation
    begin_s = time.monotonic()
    accepted = client.submit(CommandRequest(action=request.action, why="bench", confirmation=word))
    command = accepted
    while command.state in (CommandState.ACCEPTED, CommandState.RUNNING):
        time.sleep(POLL_S)
        command = client.command(accepted.command_id)
    if command.state is not CommandState.DONE:
        raise SystemExit(f"flip of {FLIPPED} to {role} failed: {command.result}")
    return time.monotonic() - begin_s, command


def ready_unix_s(command: Command) -> float:
    """When the journal says that the flipped worker was ready in its new role."""
    return next(step.at_unix_s for step in command.steps if step.worker_id == FLIPPED and step.state == "done")


def token_times(fleet: Deployment, model_id: str, index: int) -> tuple[list[float], str]:
    """Unix times of a short request's tokens, and its route."""
    prompt = (
        f"Number {index}: name one colour, say in a line of its own why it is calm, and where one sees it in spring."
    )
    body = {"model": model_id, "prompt": prompt, "max_tokens": 12, "ignore_eos": True, "stream": True}
    times = []
    with httpx.stream("POST", f"{fleet.gateway_url}/v1/completions", json=body, timeout=60) as response:
        route = response.headers["X-Phaseline-Route"]
        for line in response.iter_lines():
            if '"text":"' in line and '"text":""' not in line:
                times.append(time.time())
    return times, route


def measure(num_flips: int, paced: bool) -> dict[str, object]:
    kind = {"worker_kind": "paced", "profile": "local"} if paced else {}
    seen, ready, tokens = [], [], []
    with deployment(num_workers=3, num_prefill=1, **kind) as fleet:
        client = fleet.client
        model_id = httpx.get(f"{fleet.gateway_url}/v1/models").json()["data"][0]["id"]
        client.wait(client.submit(_prefer_flipped()).command_id)
        token_times(fleet, model_id, -1)
        since, load = time.time(), os.getloadavg()[0]
        for index in range(num_flips):
            role = Role.PREFILL if index % 2 == 0 else Role.DECODE
            whole_s, command = flip(client, role)
            seen.append(whole_s)
            ready.append(ready_unix_s(command) - command.created_unix_s)
            times, route = token_times(fleet, model_id, index)
            if f"{role}={FLIPPED}" in route:
                tokens.append(times[0 if role is Role.PREFILL else 1] - command.created_unix_s)
            time.sleep(SETTLE_S)
        worker = client.snapshot().workers[0]
        steps = [point.value for line in client.series("itl_p50_s", since).series for point in line.points]
    return {
        "device": worker.device,
        "simulated": worker.simulated,
        "flips": num_flips,
        "load_average_1m_before_and_after": (round(load, 1), round(os.getloadavg()[0], 1)),
        "accepted_to_ready_s": _row(ready),
        "submit_to_done_seen_by_client_s": _row(seen),
        "accepted_to_first_token_in_new_role_s": _row(tokens),
        "one_decode_step_p50_s": quantiles([value for value in steps if value is not None]).p50,
    }


def _prefer_flipped() -> CommandRequest:
    weights = {"w0": OTHERS_WEIGHT, "w1": OTHERS_WEIGHT, FLIPPED: 1.0}
    return CommandRequest(action=Action(verb=Verb.SET_ROUTING, weights=weights), why="bench")


def _row(values: list[float]) -> dict[str, float | int | None]:
    q = quantiles(values)
    return {"n": len(values), "p50": q.p50, "p99": q.p99, "max": q.max}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--paced", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.flips, options.paced)
    print(json.dumps(result) if options.json else "\n".join(f"{name:<40} {value}" for name, value in result.items()))


if __name__ == "__main__":
    main()
