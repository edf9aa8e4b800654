"""Commands, rules and states in words: one spelling for every page.

Nothing is decided here; the plane's own texts (reasons, results, refusals) are shown as they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from app import format
from control.stories import event_words
from control.types.commands import Action, Command, Verb
from control.types.events import FleetEvent
from control.types.fleet import PoolStatus

HEALTH_WORDS: dict[str, str] = {"ok": "Fine", "attention": "Attention", "broken": "Broken", "starting": "Starting"}
RULE_WORDS: dict[str, str] = {
    "cannot_fit": "refused: can never fit",
    "no_capacity": "refused: no capacity",
    "empty_pool": "local: a pool is empty",
    "small_fleet": "local: small fleet",
    "cached_local": "local: prompt is cached there",
    "short_local": "local: short request",
    "control_arm": "local: control arm",
    "remote": "split: prefill, then decode",
}
FIELD_WORDS: dict[str, str] = {
    "min_fleet_devices": "Smallest fleet that splits",
    "local_cache_ratio": "Cached share that stays local",
    "min_remote_prefill_tokens": "Shortest prompt that splits",
    "max_local_output_tokens": "Longest output that stays local",
    "remote_share": "Share of eligible requests that is split",
}


def action(wanted: Action) -> str:
    """What was asked, in one line: "resize: 2 prefill, 2 decode"."""
    if wanted.verb == Verb.RESIZE:
        sizes = (("prefill", wanted.prefill), ("decode", wanted.decode), ("mixed", wanted.mixed))
        named = [(name, size) for name, size in sizes if size is not None and (size or name != "mixed")]
        return "resize: " + ", ".join(f"{size} {name}" for name, size in named)
    if wanted.verb == Verb.FLIP:
        return f"flip {wanted.worker_id} to {wanted.role}"
    if wanted.verb in (Verb.DRAIN, Verb.UNDRAIN):
        return f"{wanted.verb} {wanted.worker_id}"
    if wanted.verb == Verb.UNDO:
        return f"undo command {wanted.command_id}"
    return "routing: " + ", ".join(_routing_parts(wanted))


def _routing_parts(wanted: Action) -> Iterable[str]:
    for name, value in (wanted.policy or {}).items():
        yield f"{name} = {format.number(value)}"
    weights = wanted.weights or {}
    if len(weights) > 3:
        yield f"weights of {len(weights)} workers"
    else:
        yield from (f"weight of {worker} = {format.number(value)}" for worker, value in weights.items())


def short_action(wanted: Action) -> str:
    """The label beside a rule on a chart: "resize 2:2", "flip w3"."""
    if wanted.verb == Verb.RESIZE:
        sizes = [size for size in (wanted.prefill, wanted.decode) if size is not None]
        return "resize " + ":".join(str(size) for size in sizes) if sizes else "resize"
    if wanted.verb == Verb.FLIP:
        return f"flip {wanted.worker_id}"
    if wanted.verb in (Verb.DRAIN, Verb.UNDRAIN):
        return f"{wanted.verb} {wanted.worker_id}"
    return "routing" if wanted.verb == Verb.SET_ROUTING else f"undo {wanted.command_id}"


def label(command: Command) -> str:
    """Beside a command's rule on a chart: what was asked; how a fleet began is not an order."""
    return "start" if began(command) else short_action(command.action)


def began(command: Command) -> bool:
    """The record by which a fleet's desired state begins: nothing was there before."""
    return command.base_version == 0 and command.desired_before is None


def command(given: Command) -> str:
    """A command in one line; how a fleet began is no resize."""
    text = action(given.action)
    return text.replace("resize", "start", 1) if began(given) else text


def events_parts(events: Sequence[FleetEvent]) -> tuple[str, str]:
    """What happened, and the figures or the reason behind it; several lives that ended or began together as one."""
    what, _, rest = event_words(events[0]).partition(": ")
    if len(events) > 1:
        names = [each.worker_id for each in events]
        listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        what = f"{len(names)} workers {'died' if events[0].kind == 'died' else 'were back'}: {listed}"
    return what, sentence(rest)


def changed_since(version: int, commands: Iterable[Command]) -> list[Command]:
    """The commands that moved the desired state past `version`, newest first."""
    return [each for each in commands if each.version_after > version and each.state != "failed"]


def stale_age(age_s: float | None, answered: str) -> str:
    return f"The plane has not answered for {format.duration(round(age_s or 0.0))}; this is the state of {answered}."


def pool_sizes(sizes: dict[str, int]) -> str:
    """ "1 prefill, 3 decode"; roles with nobody are left out."""
    return ", ".join(f"{size} {role}" for role, size in sizes.items() if size) or "no workers"


def difference(name: str, now: float | None, then: float | None, when: str, unit: str) -> str:
    """ "Decode bandwidth 62.0%: 4.00 points more than yesterday (58.0%)." Shares differ in points, else in percent."""
    if now is None or then is None:
        return f"{name}: nothing to compare."
    told, before = format.quantity(now, unit), format.quantity(then, unit)
    if told == before:
        return f"{name} {told}: as {when}."
    if unit == "fraction":
        size = f"{format.number(abs(now - then) * 100)} points"
    else:
        size = f"{format.percent(abs(now - then) / abs(then))}" if then else told
    return f"{name} {told}: {size} {'more' if now > then else 'less'} than {when} ({before})."


def load(pool: PoolStatus) -> str:
    """Prefill: seconds of queued work. Decode and mixed: the share of KV blocks held and reserved."""
    return format.duration(pool.load) if pool.role == "prefill" else format.percent(pool.load)


def sentence(text: str) -> str:
    """A text of the plane's as the start of a line: capital first, no full stop."""
    return text[:1].upper() + text[1:].rstrip(".")
