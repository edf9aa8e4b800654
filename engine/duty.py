"""What a worker is told to be, and what it is: role, state, fence, and the order it is carrying out. Pure of I/O.

Decided here: which orders hold, and when a flip or drain is complete. Not decided here: what runs; the caller says so
through `busy(role)`: is there work here that `role` does not serve (None: any work at all)?

Two independent wishes ride on a worker, the role it shall have (`target`) and whether it shall be closed (`closing`):
the newest order of each kind wins and any mix of them converges. `settle` moves the state as far as the work allows.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.lifecycle import NOTHING, SERVES, leaves_decode, transition
from engine.types import Role, WorkerState, WorkKind
from engine.wire import Order

Busy = Callable[[Role | None], bool]

_OVER = (WorkerState.FAILED, WorkerState.STOPPED)


class Duty:
    """Role and state of one worker."""

    __slots__ = ("_closing", "_order_reason", "_target", "fence", "reason", "role", "state")

    def __init__(self) -> None:
        self.role = Role.UNASSIGNED
        self.state = WorkerState.STARTING
        self.fence = 0
        self.reason = "loading"
        self._target: Role | None = None
        self._closing = False
        self._order_reason = ""

    @property
    def wanted(self) -> Role:
        """The role it has or is on its way to."""
        return self.role if self._target is None else self._target

    @property
    def stays_for(self) -> frozenset[WorkKind]:
        """Kinds of queued work that will be served here after all orders are carried out."""
        return NOTHING if self._closing else SERVES[self.wanted]

    @property
    def leaves_decode(self) -> bool:
        """It waits for running work, and will not serve decode afterwards."""
        return self.state is WorkerState.DRAINING and leaves_decode(self.stays_for)

    def admits(self, kind: WorkKind) -> bool:
        return self.state is WorkerState.READY and kind in SERVES[self.role]

    def loaded(self) -> None:
        self.state = transition(self.state, "loaded")
        self.reason = "waits for a role"

    def fail(self, reason: str) -> None:
        self.state = transition(self.state, "fail")
        self.reason = reason

    def take(self, order: Order) -> str:
        """Note an order; '' when it holds, else why it is refused. The caller bounces its queue, then settles."""
        if order.fence < self.fence:
            return f"fence {order.fence} is older than the newest seen here, {self.fence}"
        verb = _VERBS.get(order.verb)
        if verb is None:
            return f"verb {order.verb!r} is unknown; known are {', '.join(_VERBS)}"
        if self.state in _OVER and order.verb != "stop":
            return f"the worker is {self.state}: {self.reason}"
        if self.state is WorkerState.STARTING and order.verb != "stop":
            return "the worker is starting and takes no order yet"
        refusal = verb(self, order)
        if not refusal:
            self.fence = order.fence
            self._order_reason = order.reason
        return refusal

    def _place(self, order: Order) -> str:
        if order.role is Role.UNASSIGNED:
            return "role unassigned cannot be ordered; it is one of prefill, decode, mixed"
        if self.role is Role.UNASSIGNED:
            self.role = order.role
        elif self.wanted is not order.role:
            return f"the worker has the role {self.wanted} already; flip it to {order.role}"
        return ""

    def _flip(self, order: Order) -> str:
        if order.role is Role.UNASSIGNED:
            return "role unassigned cannot be ordered; it is one of prefill, decode, mixed"
        if self.role is Role.UNASSIGNED:
            self.role = order.role
        self._target = None if order.role is self.role else order.role
        return ""

    def _drain(self, _order: Order) -> str:
        self._closing = True
        return ""

    def _undrain(self, _order: Order) -> str:
        self._closing = False
        return ""

    def _stop(self, order: Order) -> str:
        self.state = transition(self.state, "stop")
        self.reason = order.reason or "stopped by order"
        return ""

    def settle(self, busy: Busy) -> None:
        """Move as far as the running work allows. Cheap when nothing is pending."""
        state = self.state
        if (state is WorkerState.READY and self._target is None and not self._closing) or state in _OVER:
            return
        wanted = self.wanted
        if self._closing:
            event = "wait" if busy(None) else "close"
        elif wanted is Role.UNASSIGNED:
            event = "unassign" if state is WorkerState.DRAINED else ""
        else:
            event = "wait" if busy(wanted) else "open"
        if not event:
            return
        self.state = transition(state, event)
        if event != "wait":
            self.role, self._target = wanted, None
        self.reason = self._explain(wanted)

    def _explain(self, wanted: Role) -> str:
        because = f": {self._order_reason}" if self._order_reason else ""
        if self.state is WorkerState.DRAINING:
            return f"drains{because}" if self._closing else f"drains to become {wanted}{because}"
        if self.state is WorkerState.DRAINED:
            return f"drained by order{because}"
        return "waits for a role" if self.state is WorkerState.UNASSIGNED else ""


_VERBS: dict[str, Callable[[Duty, Order], str]] = {
    "place": Duty._place,
    "flip": Duty._flip,
    "drain": Duty._drain,
    "undrain": Duty._undrain,
    "stop": Duty._stop,
}
