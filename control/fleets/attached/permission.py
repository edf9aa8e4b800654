"""What we can do to an attached fleet, and what of it we may: observe only, unless an operator allowed more.

Decided here: what each kind of fleet declares, and the words of a refusal. A permission is one capability of one
fleet, given by an operator on its own, after the fleet was attached; it is in the history, beside the attachment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from control.errors import CommandRefused, NotAllowed
from control.fleets.attached.steering.controllers import controller_can
from control.fleets.attached.types import Attachment, Permission
from control.types.events import FleetEvent
from control.types.fleet import Capability

#: Beyond observing, which every kind can; where a controller steers the fleet, what that can counts in its place.
DECLARED: Final[Mapping[str, frozenset[Capability]]] = MappingProxyType(
    {
        # With NIXL on both sides (`kv_both`) a vLLM server's role is its router's decision alone.
        "vllm": frozenset({Capability.ROUTE, Capability.FLIP, Capability.RESIZE, Capability.DRAIN}),
        "sglang": frozenset({Capability.ROUTE, Capability.DRAIN}),
        "openai": frozenset({Capability.ROUTE, Capability.DRAIN}),
    }
)


def can_of(attachment: Attachment) -> frozenset[Capability]:
    """All that could be allowed of this fleet."""
    by_us = DECLARED.get(attachment.kind, frozenset())
    return (controller_can(attachment) if attachment.controller else by_us) | {Capability.OBSERVE}


def acting(attachment: Attachment, allowed: Sequence[Permission]) -> frozenset[Capability]:
    """What is offered of it: what it can, as far as it was allowed. A permission for what it cannot says nothing."""
    return can_of(attachment) & ({each.capability for each in allowed} | {Capability.OBSERVE})


def check_grantable(attachment: Attachment, capability: Capability) -> None:
    """Raises CommandRefused when this kind of fleet cannot do it, or when nothing needs to be allowed."""
    choice = sorted(can_of(attachment) - {Capability.OBSERVE})
    if capability not in choice:
        raise CommandRefused(
            f"{attachment.name} ({attachment.kind}) cannot {capability}"
            if capability != Capability.OBSERVE
            else f"{attachment.name} is observed already: that needs no permission",
            field="capability",
            value=capability.value,
            bound=", ".join(choice) or "nothing but observing",
        )


def permission_event(fleet_id: str, words: str, at_unix_s: float) -> FleetEvent:
    """Who attached, allowed, took back or detached what: part of the fleet's history."""
    millisecond = round(at_unix_s * 1000)
    return FleetEvent(
        fleet_id=fleet_id, kind="permission", at_unix_s=at_unix_s, worker_id="", epoch=millisecond, reason=words
    )


def not_allowed(attachment: Attachment, capability: Capability) -> NotAllowed:
    """Why an order was refused, and what would allow it."""
    name = attachment.name
    if capability not in can_of(attachment):
        return NotAllowed(f"{name} ({attachment.kind}) cannot {capability}", field="capability", value=capability.value)
    return NotAllowed(
        f"no operator has allowed {capability} of {name}: `phaseline allow {name} {capability}`",
        field="capability",
        value=capability.value,
    )
