"""What limits, from evidence: 100 requests, two prefill workers, two decode workers, one gateway."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control.bottleneck import HOLD_S, Standing, settle, verdict
from control.evidence import Decode, Evidence, Prefill
from control.lost import Loss, Tally
from control.traffic_stats import Gateways
from control.types.bottleneck import Bottleneck, Resource

NOW = 1_000.0
PREFILL, KV, DECODE, HANDOFF, GATEWAY = Resource


def refused(resource: Resource) -> Loss:
    return Loss("refused", resource)


def late(resource: Resource) -> Loss:
    return Loss("late", resource)


def tally(lost: dict[Loss, int], **stage_s: float) -> Tally:
    """Of 100 requests; a served one takes 0.2 s of prefill, 0.1 s of handoff and 2.7 s of decode: 3 s in all."""
    found = Tally(num_good=100 - sum(lost.values()))
    found.lost.update(lost)
    means = {"line_s": 0.0, "queue_s": 0.0, "prefill_s": 0.2, "handoff_s": 0.1, "decode_s": 2.7, **stage_s}
    found.stage_s = dict(means)
    found.num_staged.update(dict.fromkeys(means, 1))
    return found


def evidence(lost: dict[Loss, int], **changes: Any) -> Evidence:
    """Everything has room, but for what is changed."""
    values: dict[str, Any] = {
        "at_unix_s": NOW,
        "window_s": 60.0,
        "requests": tally(lost),
        "prefill": Prefill(num_workers=2, busy=0.5),
        "decode": Decode(num_workers=2, kv_used=0.4, bandwidth=0.5, tpot_s=0.03),
        "gateways": Gateways(num=1, cpu=0.1, loop_late_s=0.01),
    }
    return Evidence(**{**values, **changes})


BUSY_PREFILL = Prefill(num_workers=2, busy=0.99, queue_s=0.6)
FULL_KV = Decode(num_workers=2, kv_used=0.98, bandwidth=0.5, tpot_s=0.03)
FULL_KV_AT_ITS_CEILING = replace(FULL_KV, bandwidth=1.0)
STUCK_IN_HANDOFF = tally({refused(KV): 80}, handoff_s=20.0, decode_s=1.0)

CASES: list[tuple[str, Evidence, tuple[Resource, ...]]] = [
    ("nothing is lost", evidence({}), ()),
    ("too little is lost", evidence({refused(PREFILL): 4}), ()),
    ("prompts are refused", evidence({refused(PREFILL): 30}, prefill=BUSY_PREFILL), (PREFILL,)),
    ("prompts are late in a worker's queue", evidence({late(PREFILL): 60}, prefill=BUSY_PREFILL), (PREFILL,)),
    ("KV is full, and steps are mostly overhead", evidence({refused(KV): 40}, decode=FULL_KV), (KV,)),
    ("KV is full, steps are all bandwidth", evidence({refused(KV): 40}, decode=FULL_KV_AT_ITS_CEILING), (KV, DECODE)),
    ("there are too few slots", evidence({refused(DECODE): 30}), (DECODE,)),
    ("steps are too slow", evidence({late(DECODE): 30}), (DECODE,)),
    (
        "steps are too slow, and would be with one more unit too",
        evidence({late(DECODE): 100}, decode=replace(FULL_KV_AT_ITS_CEILING, tpot_s=0.2)),
        (),
    ),
    (
        "slots run out at times, so that more prefill alone does not help",
        evidence({refused(PREFILL): 40, refused(DECODE): 20}, prefill=Prefill(num_workers=2, busy=0.6)),
        (PREFILL, DECODE),
    ),
    (
        "more KV would make steps too slow",
        evidence({refused(KV): 40}, decode=replace(FULL_KV_AT_ITS_CEILING, tpot_s=0.095)),
        (DECODE,),
    ),
    ("KV comes late", evidence({late(HANDOFF): 20}), (HANDOFF,)),
    (
        "KV is full of what waits for a slow link",
        evidence({}, decode=FULL_KV, requests=STUCK_IN_HANDOFF),
        (HANDOFF,),
    ),
    (
        "links are late already, so that more KV would make them later",
        evidence({refused(KV): 40, late(HANDOFF): 20}, decode=FULL_KV),
        (HANDOFF,),
    ),
    ("the gateway holds all that it may", evidence({refused(GATEWAY): 40}), (GATEWAY,)),
    (
        "of what is refused most, a little is refused for want of another one too",
        evidence({refused(PREFILL): 40, refused(KV): 6}, prefill=BUSY_PREFILL),
        (PREFILL,),
    ),
    ("tokens are passed on late", evidence({late(GATEWAY): 40}), (GATEWAY,)),
    ("the gateway's core is used up", evidence({}, gateways=Gateways(num=1, cpu=0.97)), (GATEWAY,)),
    (
        "the gateway is given little of a core, and never rests",
        evidence({}, gateways=Gateways(num=1, cpu=0.05, cpu_wait=0.94)),
        (GATEWAY,),
    ),
    (
        "the gateway waits for a core most of the time",
        evidence({}, gateways=Gateways(num=1, cpu=0.01, cpu_wait=0.82)),
        (GATEWAY,),
    ),
    (
        "the gateway shares its core, and rests half of the time",
        evidence({}, gateways=Gateways(num=1, cpu=0.2, cpu_wait=0.3)),
        (),
    ),
    ("the gateway's loop is late", evidence({}, gateways=Gateways(num=1, loop_late_s=0.4)), (GATEWAY,)),
    (
        "prefill and KV are both used up, so that neither alone helps",
        evidence({refused(PREFILL): 25, refused(KV): 15}, prefill=BUSY_PREFILL, decode=FULL_KV),
        (PREFILL, KV),
    ),
    ("prompts take too long by themselves", evidence({Loss("alone"): 50}), ()),
    ("workers fail", evidence({Loss("failed"): 50}), ()),
]  # fmt: skip


@pytest.mark.parametrize(("why", "seen", "resources"), CASES, ids=[why for why, _, _ in CASES])
def test_the_bottleneck_is_what_one_more_unit_would_help_most(
    why: str, seen: Evidence, resources: tuple[Resource, ...]
) -> None:
    found = verdict(seen)
    assert set(found.resources) == set(resources), found.text
    assert found.kind == {0: "none", 1: resources[0].value if resources else "", 2: "two"}[len(resources)]


def test_one_more_unit_saves_no_more_than_its_part_of_what_is_served() -> None:
    """Half is refused; one more of two workers serves half as much again."""
    found = verdict(evidence({refused(PREFILL): 50}, prefill=BUSY_PREFILL))
    assert found.gains["prefill"] == pytest.approx(0.25)


def test_one_more_unit_saves_no_more_than_the_next_resource_has_room_for() -> None:
    """KV at 0.776 takes a quarter more before it is full (0.97): a quarter of the half that is served."""
    nearly_full = Decode(num_workers=2, kv_used=0.776, bandwidth=0.5)
    found = verdict(evidence({refused(PREFILL): 50}, prefill=BUSY_PREFILL, decode=nearly_full))
    assert found.gains["prefill"] == pytest.approx(0.125)


def test_what_nobody_measured_is_told_as_unknown() -> None:
    silent = verdict(evidence({}, gateways=Gateways(num=0)))
    assert (silent.kind, silent.text) == ("unknown", "Unknown: no gateway is heard, so nobody says what is lost")
    few = verdict(evidence({}, requests=Tally(num_good=3)))
    assert (few.kind, few.text) == ("unknown", "Unknown: 3 requests in 60 s say too little, 20 are needed")
    idle = verdict(evidence({}, requests=Tally()))
    assert (idle.kind, idle.text) == ("none", "No bottleneck: nothing is asked of the fleet")
    blind = verdict(evidence({refused(PREFILL): 30}, prefill=Prefill(num_workers=2)))
    values = {line.name: line.value for line in blind.evidence}
    assert (values["prefill_busy"], values["prefill_queue_s"]) == (None, None)


def test_the_sentence_has_its_numbers() -> None:
    found = verdict(evidence({refused(PREFILL): 30}, prefill=BUSY_PREFILL))
    assert found.text == (
        "Prefill is the bottleneck: 30% of requests are refused for want of it, 0.6 s of prompts queued, 99% busy "
        "(estimated: one more prefill worker about 30% more good requests)"
    )
    both = verdict(evidence({refused(KV): 40}, decode=FULL_KV_AT_ITS_CEILING))
    assert both.text.startswith("KV room and decode bandwidth limit together: 40% of requests are refused for want of")


def test_each_number_says_where_it_comes_from_and_simulated_workers_are_marked() -> None:
    sources = {line.name: line.provenance for line in verdict(evidence({})).evidence}
    assert (sources["prefill_busy"], sources["good"], sources["decode_bandwidth"]) == ("measured", "derived", "assumed")
    sources = {line.name: line.provenance for line in verdict(evidence({}, simulated=True)).evidence}
    assert (sources["prefill_busy"], sources["gateway_cpu"]) == ("simulated", "measured")


# --- hysteresis ---------------------------------------------------------------------------------------------------


NONE = verdict(evidence({}))
BUSY = verdict(evidence({refused(PREFILL): 30}, prefill=BUSY_PREFILL))


def told_after(founds: list[tuple[float, Bottleneck]]) -> list[str]:
    standing: Standing | None = None
    told = []
    for at, found in founds:
        standing = settle(standing, found, at)
        told.append(standing.told.kind)
    return told


def test_a_new_verdict_is_told_once_it_has_held() -> None:
    assert told_after([(0, NONE), (1, BUSY), (HOLD_S, BUSY), (1 + HOLD_S, BUSY)]) == ["none", "none", "none", "prefill"]


def test_a_verdict_that_comes_and_goes_is_not_told() -> None:
    flaps = [(float(at), BUSY if at % 2 else NONE) for at in range(20)]
    assert set(told_after(flaps)) == {"none"}


def test_what_was_unknown_gives_way_at_once() -> None:
    unknown = verdict(evidence({}, gateways=Gateways(num=0)))
    assert told_after([(0, unknown), (1, BUSY)]) == ["unknown", "prefill"]


def test_it_is_since_when_it_was_first_found_and_its_numbers_are_fresh() -> None:
    standing = settle(settle(settle(None, NONE, 0.0), BUSY, 3.0), BUSY, 3.0 + HOLD_S)
    assert standing.told.since_unix_s == 3.0
    newer = verdict(evidence({refused(PREFILL): 40}, prefill=BUSY_PREFILL))
    assert settle(standing, newer, 20.0).told.text == newer.text
    assert settle(standing, newer, 20.0).told.since_unix_s == 3.0


def test_two_resources_are_the_same_verdict_in_any_order() -> None:
    one = replace(BUSY, kind="two", resources=(PREFILL, KV))
    other = replace(one, resources=(KV, PREFILL))
    assert settle(settle(None, one, 0.0), other, 1.0).told.since_unix_s == 0.0
