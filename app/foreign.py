"""Fleets that somebody else runs, in words and rows: what one is, what steers it, what it can, what it does not say.

Values in, text and cells out. Kinds and controllers that have no words here are shown under their own names: a new one
needs no change of the console.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from app import cards, words
from control.client import AttachedInfo, Attachment, ControllerChoice, EngineSurvey, KindChoice, Survey
from control.types.fleet import Capability, FleetSnapshot, Missing, PoolStatus
from control.types.workers import Role, WorkerStatus

NAMES: Mapping[str, str] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "openai": "OpenAI API",
    "ray-serve": "Ray Serve",
    "dynamo": "NVIDIA Dynamo",
    "sglang-router": "sglang-router",
    "smg": "SMG (sglang model gateway)",
    "prometheus": "Prometheus",
    "kubernetes": "Kubernetes",
    "llm-d": "llm-d",
    "production-stack": "vLLM production-stack",
}
PARTS = (
    "Prefill and decode engines time their own parts of it, mixed here: vLLM's decode engines the KV and a first step. "
    "A client waits for both."
)
ACTS: Mapping[Capability, str] = {
    Capability.ROUTE: "Route",
    Capability.RESIZE: "Resize",
    Capability.FLIP: "Flip",
    Capability.DRAIN: "Drain",
    Capability.MIGRATE: "Migrate",
}
ACT_WORDS: Mapping[Capability, str] = {
    Capability.ROUTE: "Requests may go through our gateway (`phaseline serve`), weighted and split.",
    Capability.RESIZE: "Pools may be resized.",
    Capability.FLIP: "Workers may change their role.",
    Capability.DRAIN: "Workers may be drained and let back in.",
    Capability.MIGRATE: "Running requests may move to another worker.",
}
#: What a quantity of an engine's page is, and what stays unknown without it.
QUANTITIES: Mapping[str, str] = {
    "prefill_tokens": "Prompt tokens computed (prefill work)",
    "cached_tokens": "Prompt tokens from its cache",
    "received_tokens": "Prompt tokens received over the wire",
    "decode_tokens": "Answer tokens (decode work)",
    "num_prompts": "Prompts ended",
    "prompt_tokens": "Prompt tokens ended",
    "length_tokens": "Tokens by prompt length",
    "lengths": "Prompt lengths",
    "steps": "Steps",
    "num_requests": "Requests answered",
    "itl_s": "Time between tokens, in all",
    "prefill_busy_s": "Time in prefill steps (in-phase prefill)",
    "decode_busy_s": "Time in decode steps (in-phase decode)",
    "busy": "How long its steps took (in-phase utilization)",
    "exported_flops": "Its own FLOPs estimate",
    "exported_bytes": "Its own bytes estimate",
    "work": "FLOPs and bytes (both utilization lines)",
    "peak": "Peak of its device (both utilization lines)",
    "num_running": "Running requests",
    "num_waiting": "Waiting requests",
    "kv_usage": "KV usage",
    "queue": "Time in the queue",
    "prefill": "Time in prefill",
    "handoff": "Time of a KV handoff",
    "ttft": "Time to the first token",
    "itl": "Gaps between tokens",
    "tpot": "Time per output token",
    "e2e": "Whole requests",
}
STATES: Mapping[str, str] = {"off": "off", "absent": "not exported", "refused": "refused"}
HEAD = ("What", "State", "On", "Looked for", "Remedy")
NEEDED: Mapping[str, tuple[str, ...]] = {
    "prefill": ("prefill_tokens", "work", "peak"),
    "decode": ("decode_tokens", "work", "peak"),
    "in_phase": ("busy", "prefill_busy_s", "decode_busy_s"),
    "kv": ("kv_usage",),
    "running": ("num_running",),
    "waiting": ("num_waiting",),
    "ttft": ("ttft",),
    "itl": ("itl",),
    "own": ("exported_flops", "exported_bytes"),
}
MANY = 4


def name(word: str) -> str:
    return NAMES.get(word, word)


# --- one attached fleet ------------------------------------------------------------


def found_by(told: Attachment) -> str:
    """Where its workers come from."""
    if told.controller:
        return f"listed by {name(told.controller.partition('=')[0])}"
    if told.targets_file:
        return f"listed in {told.targets_file}"
    return f"{len(told.targets)} target{'' if len(told.targets) == 1 else 's'}"


def steered_by(info: AttachedInfo) -> str:
    """ "Ray Serve at http://head:8265/pd", or our gateway, or whoever runs it."""
    told = info.attachment
    if Capability.ROUTE in {each.capability for each in info.allowed}:
        return f"our gateway: phaseline serve {told.name}"
    return _controller(told) if told.controller else "whoever runs it"


def _controller(told: Attachment) -> str:
    kind, _, url = told.controller.partition("=")
    return f"{name(kind)} at {url}"


def looked(info: AttachedInfo) -> tuple[str, str]:
    """(state, words): how the looking goes."""
    looks = info.looks
    if info.problem:
        return "attention", words.sentence(info.problem)
    if not looks.num_workers:
        return "attention", "No worker is known of it"
    if looks.num_answering < looks.num_workers:
        return "attention", f"{looks.num_answering} of {looks.num_workers} workers answer"
    return "ok", f"All {looks.num_workers} workers answer" if looks.num_workers > 1 else "Its worker answers"


def may(info: AttachedInfo) -> str:
    """What is allowed now, in one word or a few."""
    if not set(info.can) - {Capability.OBSERVE}:
        return "observed only: nothing else can be done to this kind of fleet"
    allowed = [ACTS.get(each.capability, each.capability.value).lower() for each in info.allowed]
    return f"may: {', '.join(allowed)}" if allowed else "observed only"


def grantable(kind: KindChoice, steers: ControllerChoice) -> str:
    """What can be allowed of a fleet of this kind that this controller lists."""
    may = {*steers.can, *(() if steers.sends else kind.can)}
    can = ", ".join(ACTS[each].lower() for each in ACTS if each in may) or "nothing"
    why = f" {words.sentence(steers.sends)} sends the requests, so our gateway cannot." if steers.sends else ""
    return f"Through {name(steers.name)} can be allowed: {can}.{why}"


def controller_of(kind: str, address: str, options: Mapping[str, str]) -> str:
    """KIND=URL, with those options that were given."""
    given = urlencode({key: value.strip() for key, value in options.items() if value.strip()}, safe="/:")
    joined = "&" if "?" in address else "?"
    return f"{kind}={address.strip()}" + (f"{joined}{given}" if given else "")


# --- what it does not say ------------------------------------------------------------


def lacking(survey: Survey) -> tuple[Missing, ...]:
    """The same of a first look: once for all engines, or exporters, that lack it."""
    found: dict[tuple[str, str, str, str], list[str]] = {}
    told = [(each.worker_id, each.missing) for each in survey.engines]
    told += [(each.url, each.missing) for each in survey.exporters]
    for who, findings in told:
        for each in findings:
            found.setdefault((each.quantity, each.state, each.series, each.remedy), []).append(who)
    return tuple(
        Missing(quantity=what, state="off" if state == "off" else "refused" if state == "refused" else "absent",
                series=series, remedy=remedy, worker_ids=tuple(ids))
        for (what, state, series, remedy), ids in found.items()
    )  # fmt: skip


def missing_rows(found: Sequence[Missing], num_workers: int) -> list[tuple[cards.Cell, ...]]:
    """Those with a remedy first; what nothing helps against last."""
    ordered = sorted(found, key=lambda each: (not each.remedy, each.state != "off"))
    return [
        (
            cards.Cell(QUANTITIES.get(each.quantity, each.quantity) or "A series"),
            cards.Cell(cards.state(STATES[each.state]), html=True),
            cards.Cell(_on(each.worker_ids, num_workers)),
            cards.Cell(each.series, mono=True),
            cards.Cell(cards.with_code(each.remedy) or "–", html=True),
        )
        for each in ordered
    ]


def _on(worker_ids: Sequence[str], num_workers: int) -> str:
    if len(worker_ids) == num_workers > 1:
        return f"all {num_workers}"
    more = f" and {len(worker_ids) - MANY} more" if len(worker_ids) > MANY else ""
    return ", ".join(worker_ids[:MANY]) + more


def survey_rows(engines: Iterable[EngineSurvey]) -> list[tuple[cards.Cell, ...]]:
    """One row per engine of a first look."""
    return [
        (
            cards.Cell(each.worker_id),
            cards.Cell(cards.state("no answer" if each.problem else "answers"), html=True),
            cards.Cell(cards.role(each.role), html=True),
            cards.Cell(each.version or "not said"),
            cards.Cell(each.model or "not said"),
            cards.Cell(str(each.num_found), num=True),
            cards.Cell(each.problem or "–"),
        )
        for each in engines
    ]


SURVEY_HEAD = ("Worker", "Answers", "Role", "Version", "Model", "Series found", "Problem")


@dataclass(frozen=True, slots=True)
class Unknown:
    """A figure that is not known: what is missing for it, in which state, and what shows it."""

    what: str
    state: str
    remedy: str = ""

    @property
    def words(self) -> str:
        return f"{self.what}: {self.state}" + (f": {self.remedy}" if self.remedy else "")


def unknown(snapshot: FleetSnapshot, figure: str, worker_ids: Collection[str] | None = None) -> Unknown | None:
    """Why a figure (a key of NEEDED) of an attached fleet, or of some of its workers, is not known; None: not told."""
    for each in snapshot.missing:
        concerned = worker_ids is None or set(worker_ids) & set(each.worker_ids)
        if each.quantity in NEEDED[figure] and concerned:
            return Unknown(QUANTITIES.get(each.quantity, each.quantity), STATES[each.state], each.remedy)
    return None


def notices(snapshot: FleetSnapshot) -> list[str]:
    """What a person must know of a foreign fleet to read its lines right."""
    remedies = {each.remedy for each in snapshot.missing if each.remedy and each.quantity in _DRAWN}
    return [f"Part of this fleet's work is unknown, not 0: {'; '.join(sorted(remedies))}."] if remedies else []


_DRAWN = frozenset(quantity for each in ("prefill", "decode", "kv") for quantity in NEEDED[each])


def title(snapshot: FleetSnapshot) -> str:
    """Which fleet a page is of: its name and its model, or its kind while no model is known."""
    beside = snapshot.model_id or (name(snapshot.kind) if snapshot.is_attached else "")
    return f"{snapshot.fleet_id} · {beside}" if beside else snapshot.fleet_id


def is_listed(snapshot: FleetSnapshot) -> bool:
    """Who its workers are is known, as of our own fleets always."""
    return not snapshot.pools or any(each.num_desired is not None for each in snapshot.pools)


def is_unseen(snapshot: FleetSnapshot) -> bool:
    """Its requests do not pass our gateways: of them we know what the engines say, and no more."""
    return snapshot.is_attached and Capability.ROUTE not in snapshot.capabilities


def first_token_words(snapshot: FleetSnapshot) -> str:
    """What the engines' time to the first token is not, where one prefills and another decodes; "" elsewhere."""
    roles = {each.role for each in snapshot.workers}
    return PARTS if {Role.PREFILL, Role.DECODE} <= roles else ""


def unseen_words(snapshot: FleetSnapshot) -> str:
    """Why there is no record of a request, and what would make some."""
    told, name_ = "Requests are seen where they pass our gateway; those of this fleet do not", snapshot.fleet_id
    if f"phaseline allow {name_} route" in snapshot.refusals.get(Capability.ROUTE.value, ""):
        return f"{told}: `phaseline allow {name_} route`, then `phaseline serve {name_}`."
    return f"{told}, and ours cannot stand in front of it."


def facts(snapshot: FleetSnapshot) -> tuple[str, ...]:
    """Beside the health of a foreign fleet: what it is and what we may."""
    if not snapshot.is_attached:
        return ()
    may = [ACTS.get(each, each.value).lower() for each in snapshot.capabilities if each != Capability.OBSERVE]
    return name(snapshot.kind), f"may {', '.join(may)}" if may else "observed only"


def no_estimate(worker: WorkerStatus, snapshot: FleetSnapshot) -> list[tuple[str, str]]:
    """What turns the engine's own account of its work on, where it gives none (`app.estimates` has those it gives)."""
    why = unknown(snapshot, "own", [worker.worker_id]) if worker.estimates is None else None
    return [("Its own estimate of its work", f"n/a: {why.words}")] if why is not None else []


# --- what may be done to it ------------------------------------------------------------


def sized(snapshot: FleetSnapshot) -> list[PoolStatus]:
    """Its pools that have a size and no fixed workers; none of a fleet whose workers flip."""
    return [each for each in snapshot.pools if each.most_workers is not None]


def refused_rows(snapshot: FleetSnapshot) -> list[tuple[cards.Cell, ...]]:
    """What is not offered, and why; the plane's words name what allows it."""
    return [
        (
            cards.Cell(ACTS[each]),
            cards.Cell(_refusal(snapshot, each), html=True),
        )
        for each in (Capability.RESIZE, Capability.FLIP, Capability.DRAIN, Capability.ROUTE)
        if each.value in snapshot.refusals and each not in snapshot.capabilities
    ]


def _refusal(snapshot: FleetSnapshot, capability: Capability) -> str:
    told = snapshot.refusals[capability.value]
    by_switch = f"phaseline allow {snapshot.fleet_id} {capability}" in told
    return cards.with_code(told) + (", or its switch on the page Fleets" if by_switch else "")


def rival_words(snapshot: FleetSnapshot) -> str:
    """Who else sets a pool's size: we leave it to them."""
    told = [f"The {each.role} pool is not ours to resize: {each.rival}." for each in snapshot.pools if each.rival]
    return "".join(f'<div style="margin:6px 0">{cards.banner(each)}</div>' for each in told)
