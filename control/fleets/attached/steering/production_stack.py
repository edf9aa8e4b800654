"""vLLM production-stack's router, steered by the dynamic config file that it polls every 10 s (0.1.12 tried).

Decided here: the order of a change. The router must serve a request first; then the file is replaced in one step; then
the router must tell that this config is in force (`/health`), and serve a request again. If it does not within the
limit, the file is put back as it was, and the change has failed. Whoever else writes the file meanwhile is yielded to.
How a file is read and edited is `router_file`.

The request before a change is no formality: the router of 0.1.12 loses its prefill and decode labels whenever it reads
another config (`reconfigure_routing_logic` passes none), and answers 503 from then on. Such a router is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Final

from control.errors import FleetError
from control.fleets.attached.steering.calls import Caller, table
from control.fleets.attached.steering.engine_role import is_empty
from control.fleets.attached.steering.memory import Memory
from control.fleets.attached.steering.roster import Member, Roster
from control.fleets.attached.steering.router_file import Backend, RouterFile, edited, read_router_file
from control.fleets.base import FleetStep, StepOutcome
from control.types.workers import WorkerState

FILE_ENDINGS: Final = (".yaml", ".yml", ".json")
MAX_FILE_BYTES: Final = 1024 * 1024
POLL_S: Final = 0.5
#: Somebody who undoes our change so soon after it is another controller.
RIVAL_S: Final = 60.0


class ProductionStackSteering:
    """`path`: of its file, YAML or JSON, on this host. `memory`: of workers that we took out of it.

    `limit_s`: in which a change must be in force.
    """

    def __init__(
        self,
        router: Caller,
        path: Path,
        memory: Memory | None = None,
        *,
        limit_s: float = 60.0,
        poll_s: float = POLL_S,
    ) -> None:
        self._router = router
        self._path = path
        self._memory = memory or Memory()
        self._limit_s = limit_s
        self._poll_s = poll_s
        self._out = _read_out(self._memory.told)  # by us
        self._made: tuple[str, float] = ("", 0.0)  # the text that we wrote last, and when
        self._turn = asyncio.Lock()

    async def look(self) -> Roster:
        file = await self._read()
        listed = {each.worker_id for each in file.backends}
        if listed & self._out.keys() and not self._turn.locked():
            await self._remember({name: each for name, each in self._out.items() if name not in listed})
        members = [self._member(file, each, is_listed=True) for each in file.backends]
        return Roster(
            members=(
                *members,
                *(self._member(file, self._out[name], is_listed=False) for name in sorted(self._out.keys() - listed)),
            )
        )

    async def apply(self, step: FleetStep) -> StepOutcome:
        async with self._turn:
            try:
                file = await self._read()
                wanted = self._wanted(file, step)
                if wanted is None:
                    return StepOutcome(accepted=True)
                self._check_alone(file)
                await self._serves(file, "the router does not serve now, so nothing is changed")
                leaving = [each for each in file.backends if each.worker_id == step.worker_id and step.verb == "drain"]
                await self._remember({**self._out, **{each.worker_id: each for each in leaving}})
                await self._change(file, wanted, leaving)
            except FleetError as error:
                return StepOutcome(accepted=False, detail=error.detail, retry_helps=False)
            return StepOutcome(accepted=True)

    async def close(self) -> None:
        await self._router.close()

    # --- the change -------------------------------------------------------------------------------------------------

    def _wanted(self, file: RouterFile, step: FleetStep) -> RouterFile | None:
        """The file after this order; None where it says so already. Raises FleetError."""
        listed = {each.worker_id: each for each in file.backends}
        one = listed.get(step.worker_id) or self._out.get(step.worker_id)
        if one is None:
            raise FleetError(f"the router's file does not list {step.worker_id}")
        others = [each for each in file.backends if each.worker_id != step.worker_id]
        if step.verb == "drain":
            return edited(file, others) if step.worker_id in listed else None
        changed = one if file.role(one) is step.role else replace(one, label=file.label(step.role))
        if listed.get(step.worker_id) == changed:
            return None
        if step.worker_id not in listed:
            return edited(file, [*others, changed])
        return edited(file, [changed if each.worker_id == step.worker_id else each for each in file.backends])

    def _check_alone(self, file: RouterFile) -> None:
        made, at_s = self._made
        if made and file.text != made and time.monotonic() - at_s < RIVAL_S:
            raise FleetError(f"{self._path.name} is not as we left it {time.monotonic() - at_s:.0f} s ago: we stop")

    async def _change(self, before: RouterFile, after: RouterFile, leaving: Sequence[Backend]) -> None:
        """Raises FleetError when it is not in force, or who leaves not empty, within the limit; the file is then as it
        was."""
        await asyncio.to_thread(_put, self._path, before.text, after.text)
        try:
            await self._until(lambda: self._is_in_force(after), "the router does not tell that it uses the new config")
            await self._serves(after, "the new config is in force, but a request after it failed")
            for each in leaving:
                await self._until(partial(is_empty, each), f"{each.worker_id} still holds requests")
        except FleetError as error:
            await asyncio.to_thread(_put, self._path, after.text, before.text)
            raise FleetError(f"{error.detail}; the file is as it was") from error
        self._made = after.text, time.monotonic()

    async def _is_in_force(self, file: RouterFile) -> bool:
        if (await self._text()) != file.text:
            raise FleetError(f"somebody else has written {self._path.name} meanwhile: we stop")
        told = table(await self._router.json("GET", "/health"), "dynamic_config")
        if not told:
            raise FleetError("the router tells of no dynamic config: it runs without --dynamic-config-yaml or -json")
        return all(told.get(key) == value for key, value in file.in_force.items())

    async def _serves(self, file: RouterFile, otherwise: str) -> None:
        """One token, through the router."""
        body = {"model": file.backends[0].model, "prompt": "Hello", "max_tokens": 1}
        try:
            await self._router.json("POST", "/v1/completions", body)
        except FleetError as error:
            raise FleetError(f"{otherwise}: {error.detail}") from error

    async def _until(self, holds: Callable[[], Awaitable[bool]], otherwise: str) -> None:
        deadline_s = time.monotonic() + self._limit_s
        while not await holds():
            if time.monotonic() > deadline_s:
                raise FleetError(f"{otherwise} after {self._limit_s:g} s")
            await asyncio.sleep(self._poll_s)

    async def _remember(self, out: dict[str, Backend]) -> None:
        await self._memory.put(json.dumps({name: asdict(each) for name, each in out.items()}))
        self._out = out

    # --- the file ---------------------------------------------------------------------------------------------------

    async def _text(self) -> str:
        return await asyncio.to_thread(_text_of, self._path)

    async def _read(self) -> RouterFile:
        return read_router_file(await self._text(), is_json=self._path.suffix == ".json")

    def _member(self, file: RouterFile, backend: Backend, *, is_listed: bool) -> Member:
        return Member(
            worker_id=backend.worker_id,
            role=file.role(backend),
            state=WorkerState.READY if is_listed else WorkerState.DRAINED,
            reason="" if is_listed else "taken out of the router's file",
            metrics_url=f"{backend.url.rstrip('/')}/metrics",
        )


def _read_out(text: str) -> dict[str, Backend]:
    """What is not of ours is forgotten."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return {name: Backend(**each) for name, each in json.loads(text or "{}").items()}
    return {}


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FleetError(f"{path.name} has more than {MAX_FILE_BYTES} bytes")
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(f"the router's file cannot be read: {error}") from error


def _put(path: Path, before: str, after: str) -> None:
    """In one step, if it is still as it was. Raises FleetError."""
    real = path.resolve()
    new = real.with_name(f".{real.name}.phaseline")
    try:
        new.write_text(after)
        shutil.copymode(real, new)
        if _text_of(real) != before:
            raise FleetError(f"somebody else has written {path.name} meanwhile: we stop")
        os.replace(new, real)
    except OSError as error:
        raise FleetError(f"the router's file cannot be written: {error}") from error
    finally:
        new.unlink(missing_ok=True)
