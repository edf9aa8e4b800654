"""A pair whose engines change places under load: four flips, through mixed, so that each pool keeps a worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle

from control.client import PhaselineClient
from control.errors import ControlError
from control.types.commands import Action, CommandRequest, CommandState, Verb
from control.types.workers import Role

WORKERS = ("v0", "v1")
SWAP = ((0, Role.MIXED), (1, Role.MIXED), (0, Role.DECODE), (1, Role.PREFILL))
BACK = ((1, Role.MIXED), (0, Role.MIXED), (1, Role.DECODE), (0, Role.PREFILL))
POOL_LIMIT_S = 60.0  # for a pool that holds work only for now


@dataclass(slots=True)
class Swaps:
    """So many, evenly over the seconds; each flip is a recorded command that is waited for."""

    wanted: int
    seconds: float
    flips_s: list[float] = field(default_factory=list)
    done: int = 0
    problem: str = ""

    def run(self, client: PhaselineClient, stop: threading.Event) -> None:
        begun_s = time.monotonic()
        for number, swap in zip(range(self.wanted), cycle((SWAP, BACK)), strict=False):
            if stop.wait(max(0.0, begun_s + (number + 0.5) * self.seconds / self.wanted - time.monotonic())):
                return
            for index, role in swap:
                try:
                    self.flips_s.append(flip(client, WORKERS[index], role))
                except (ControlError, RuntimeError) as error:  # told at the end of the run, which goes on
                    self.problem = f"swap {number + 1}, {WORKERS[index]} to {role}: {error}"
                    return
            self.done += 1


@contextmanager
def swapping(client: PhaselineClient, wanted: int, seconds: float) -> Iterator[Swaps]:
    """Beside what is done inside; a swap that has begun is finished."""
    swaps, stop = Swaps(wanted, seconds), threading.Event()
    thread = threading.Thread(target=swaps.run, args=(client, stop))
    thread.start()
    try:
        yield swaps
    finally:
        stop.set()
        thread.join()


def flip(client: PhaselineClient, worker_id: str, role: Role) -> float:
    """How long it took. Raises ControlError, RuntimeError."""
    action = Action(verb=Verb.FLIP, worker_id=worker_id, role=role)
    begun_s = time.monotonic()
    while True:
        try:
            word = client.preview(CommandRequest(action=action)).needs_confirmation
            command = client.submit(CommandRequest(action=action, why="a swap of the pair", confirmation=word))
            break
        except ControlError:
            if time.monotonic() > begun_s + POOL_LIMIT_S:
                raise
            time.sleep(0.5)
    ended = client.wait(command.command_id, timeout_s=120)
    if ended.state is not CommandState.DONE:
        raise RuntimeError(f"{ended.state}: {ended.result}")
    return time.monotonic() - begun_s
