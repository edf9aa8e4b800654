"""What we can do to an attached fleet, and what of it we may: observe only, unless an operator allowed more.

Decided here: what each kind of fleet declares, and the words of a refusal. A permission is one capability of one
fleet, given by an operator on its own, after the fleet was attached; it is in the history, beside the attachment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from control.errors import CommandRefused, NotAllowed
from control.fleets.attached.steering.controllers import controller_can, why_not_sent
from control.fleets.attached.types import Attachment, Permission
from control.types.events import FleetEvent
from control.types.fleet import Capability

#: Beyond observing, which every kind can, where we send its requests: it has no controller, or one that only lists its
#: engines. Else what its controller can counts in its place.
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
    is_theirs = attachment.controller and why_not_sent(attachment)
    return (controller_can(attachment) if is_theirs else by_us) | {Capability.OBSERVE}


def acting(attachment: Attachment, allowed: Sequence[Permission]) -> frozenset[Capability]:
    """What is offered of it: what it can, as far as it was allowed. A permission for what it cannot says nothing, and
    where roles are our gateway's, none says anything without that to route."""
    can = can_of(attachment)
    may = can & ({each.capability for each in allowed} | {Capability.OBSERVE})
    return may if may & {Capability.ROUTE} == can & {Capability.ROUTE} else frozenset({Capability.OBSERVE})


def check_grantable(attachment: Attachment, capability: Capability) -> None:
    """Raises CommandRefused when this kind of fleet cannot do it, or when nothing needs to be allowed."""
    choice = sorted(can_of(attachment) - {Capability.OBSERVE})
    if capability not in choice:
        raise CommandRefused(
            cannot_words(attachment, capability)
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


def cannot_words(attachment: Attachment, capability: Capability) -> str:
    """ "prod (vllm) cannot route: this router sends its requests"."""
    why = why_not_sent(attachment) if attachment.controller and capability == Capability.ROUTE else ""
    return f"{attachment.name} ({attachment.kind}) cannot {capability}" + (f": {why}" if why else "")


def not_allowed(attachment: Attachment, capability: Capability, allowed: Sequence[Permission] = ()) -> NotAllowed:
    """Why an order was refused, and what would allow it. `allowed`: what is allowed of this fleet."""
    name = attachment.name
    if capability not in can_of(attachment):
        return NotAllowed(cannot_words(attachment, capability), field="capability", value=capability.value)
    missing = Capability.ROUTE if capability in {each.capability for each in allowed} else capability
    return NotAllowed(
        f"no operator has allowed {missing} of {name}: `phaseline allow {name} {missing}`",
        field="capability",
        value=capability.value,
    )
