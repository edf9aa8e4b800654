"""The plane's connection to one worker: orders down, status up. No Ray call and no polling is in this path.

Decided here: when to connect again, and what an order's answer means as a `StepOutcome`. Not here: which order to give
(`control.reconcile`), and where the worker listens (the fleet tells us with `aim`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from control.fleets.base import FleetStep, StepOutcome
from control.types.routing import WorkerRoute
from engine.connection import Connection, connect
from engine.errors import EngineError
from engine.types import Role, WorkerState
from engine.wire import Goodbye, Hello, Order, OrderResult, Status

ORDER_TIMEOUT_S = 2.0
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 0.5


class WorkerLink:
    """One worker slot. Keeps the last role and state it heard, also while the connection is away."""

    def __init__(
        self,
        worker_id: str,
        token: str,
        *,
        on_change: Callable[[], None],
        on_lost: Callable[[str, str], None],
        simulated: bool = False,
    ) -> None:
        """`on_lost(worker_id, reason)` is called when an open connection ends without our asking."""
        self.worker_id = worker_id
        self.problem = "the worker is starting"
        self._token = token
        self._on_change = on_change
        self._on_lost = on_lost
        self._simulated = simulated
        self._address = ""
        self._epoch = 0
        self._route: WorkerRoute | None = None
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._connected = asyncio.Event()
        self._orders: dict[str, asyncio.Future[OrderResult]] = {}
        self._order_ids = itertools.count(1)
        self._is_closing = False

    @property
    def route(self) -> WorkerRoute | None:
        """Where the worker listens, with its latest role and state; FAILED while it is lost; None: never seen."""
        return self._route

    @property
    def is_connected(self) -> bool:
        return self._connection is not None and self._connection.is_open

    def aim(self, address: str, epoch: int) -> None:
        """Say where the worker listens now. An older epoch than the known one is ignored."""
        if not address or epoch < self._epoch or (address, epoch) == (self._address, self._epoch):
            return
        self._address, self._epoch = address, epoch
        if self._connection is not None:
            self._connection.close("the worker has a new process")
        self._wake.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"link-{self.worker_id}")

    async def order(self, step: FleetStep, timeout_s: float = ORDER_TIMEOUT_S) -> StepOutcome:
        """Give one order and wait for its answer; first for the connection, where it is being made. Never raises."""
        began_s = time.monotonic()
        connection = await self._open_connection(timeout_s)
        if connection is None:
            return StepOutcome(accepted=False, detail=f"{self.worker_id} is not connected: {self.problem}")
        timeout_s -= time.monotonic() - began_s
        order_id = f"{self.worker_id}-{self._epoch}-{next(self._order_ids)}"
        answer: asyncio.Future[OrderResult] = asyncio.get_running_loop().create_future()
        self._orders[order_id] = answer
        try:
            connection.send(Order(order_id, step.fence, step.verb, step.role, step.reason))
            async with asyncio.timeout(timeout_s):
                result = await answer
        except TimeoutError:
            return StepOutcome(accepted=False, detail=f"{self.worker_id} did not answer within {timeout_s:g} s")
        except ConnectionError as error:
            return StepOutcome(accepted=False, detail=f"{self.worker_id}: {error}")
        finally:
            self._orders.pop(order_id, None)
        self._heard(result.role, result.state)
        return StepOutcome(accepted=result.ok, detail=result.error, retry_helps=not result.is_final)

    async def close(self) -> None:
        """End the connection and stop connecting."""
        self._is_closing = True
        if self._connection is not None:
            self._connection.close("the plane lets go")
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # --- connecting ----------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Connect, wait for the end, connect again; waits grow up to MAX_BACKOFF_S, and end early on a new aim."""
        backoff_s = FIRST_BACKOFF_S
        while not self._is_closing:
            self._wake.clear()
            if await self._connect_once():
                backoff_s = FIRST_BACKOFF_S
                await self._ended.wait()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s):
                    await self._wake.wait()
                    backoff_s = FIRST_BACKOFF_S / 2
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _open_connection(self, limit_s: float) -> Connection | None:
        """The open one, or the one that comes within `limit_s`: a plane that takes over orders at once, before it."""
        if self._task is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._connected.wait()
        return self._connection if self.is_connected else None

    async def _connect_once(self) -> bool:
        address = self._address
        self._ended.clear()
        hello, on_welcome = Hello("plane", "plane", self._token), partial(self._on_welcome, address, self._epoch)
        try:
            connection = await connect(address, hello, self._on_message, self._on_close, on_welcome=on_welcome)
        except EngineError as error:
            self.problem = str(error)
            return False
        return connection is self._connection  # else it is another worker, or ended between its Welcome and now

    def _on_welcome(self, address: str, epoch: int, connection: Connection) -> None:
        """Before the messages behind it, which may say already that it is something else now."""
        welcome = connection.welcome
        if welcome.worker_id != self.worker_id or welcome.epoch != epoch:
            self.problem = f"{address} is {welcome.worker_id} epoch {welcome.epoch}, not {self.worker_id} epoch {epoch}"
            connection.on_close = lambda _connection, _reason: None
            connection.close(self.problem)
            return
        self._connection, self.problem = connection, ""
        self._connected.set()
        self._heard(welcome.role, welcome.state)

    # --- what the worker says ------------------------------------------------------------------------------------

    def _on_message(self, connection: Connection, message: Any) -> None:
        if isinstance(message, Status):
            if message.epoch == self._epoch and message.worker_id == self.worker_id:
                self._heard(message.role, message.state)
        elif isinstance(message, OrderResult):
            answer = self._orders.get(message.order_id)
            if answer is not None and not answer.done():
                answer.set_result(message)
        elif isinstance(message, Goodbye):
            self.problem = message.reason

    def _on_close(self, connection: Connection, reason: str) -> None:
        self._connection = None
        self._connected.clear()
        self.problem = self.problem or reason
        self._ended.set()
        for answer in self._orders.values():
            if not answer.done():
                answer.set_exception(ConnectionError(reason))
        if self._is_closing:
            return
        if self._route is not None:
            self._heard(self._route.role, WorkerState.FAILED)
        self._on_lost(self.worker_id, reason)

    def _heard(self, role: Role, state: WorkerState) -> None:
        route = WorkerRoute(
            worker_id=self.worker_id,
            epoch=self._epoch,
            address=self._address,
            role=role,
            state=state,
            simulated=self._simulated,
        )
        if route != self._route:
            self._route = route
            self._on_change()
