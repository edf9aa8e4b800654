from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from control.faults.actions import HangUp, draw
from control.faults.load import Load, verdict
from control.faults.scenario import Traffic
from control.faults.streams import Target, plan_streams
from control.faults.usage import NUM_MEAN, Usage, growth
from control.traffic.client import Outcome
from control.types.commands import Verb
from tests.control.builders import desired


def answer(text: str = "abcdef", **changes: object) -> Outcome:
    outcome = Outcome(index=0, status=200, text=text, finish="length", output_tokens=len(text))
    for name, value in changes.items():
        setattr(outcome, name, value)
    return outcome


@pytest.mark.parametrize(
    ("ours", "is_cut", "expected"),
    [
        (answer(), False, "equal"),
        (answer("abc"), False, "truncated"),
        (answer("abcdefdef"), False, "repeated"),
        (answer("abcxef"), False, "changed"),
        (answer("abc", error="lost", status=500), False, "failed"),
        (answer("", error="later", status=429), False, "refused"),
        (answer("abc"), True, "hung_up"),
        (answer("abx"), True, "changed"),
    ],
)
def test_a_stream_is_judged_beside_its_undisturbed_answer(ours: Outcome, is_cut: bool, expected: str) -> None:
    what, problem = verdict(ours, answer(), is_cut=is_cut)
    assert what == expected
    assert bool(problem) == (expected not in ("equal", "hung_up", "refused"))


async def test_a_stream_that_is_hung_up_on_before_it_was_sent_ends_no_other() -> None:
    nobody = Target(gateway_url="http://127.0.0.1:1", model_id="m", run_id="r", temperature=0.0, timeout_s=5.0)
    load = Load(nobody, plan_streams(Traffic(streams=1)), num_open=1, seed=1)
    load._expected = {0: answer()}

    async def hang_up() -> None:
        while not load.streams.cancel(1, random.Random(1)):  # noqa: ASYNC110
            await asyncio.sleep(0)  # it looks before the stream does
        load.stop.set()

    await asyncio.gather(hang_up(), load.run())
    assert load.tally.num == {"hung_up": 1}


def test_acts_are_the_same_for_a_seed_and_every_kind_comes() -> None:
    state = desired(1, 3, drained=frozenset({"w3"}))
    acts = [draw(random.Random(seed), state) for seed in range(200)]
    assert acts == [draw(random.Random(seed), state) for seed in range(200)]
    kinds = Counter("hang_up" if isinstance(act, HangUp) else act.verb for act in acts)
    assert set(kinds) == {"hang_up", Verb.RESIZE, Verb.FLIP, Verb.DRAIN, Verb.UNDRAIN, Verb.SET_ROUTING}


def test_the_last_worker_that_decodes_is_not_drained() -> None:
    state = desired(2, 1)
    acts = [draw(random.Random(seed), state) for seed in range(300)]
    drained = {act.worker_id for act in acts if not isinstance(act, HangUp) and act.verb is Verb.DRAIN}
    assert drained == {"w0", "w1"}


def test_a_resize_leaves_nobody_without_a_pool() -> None:
    acts = [draw(random.Random(seed), desired(1, 3)) for seed in range(200)]
    sizes = [act for act in acts if not isinstance(act, HangUp) and act.verb is Verb.RESIZE]
    assert {(act.prefill or 0) + (act.decode or 0) + (act.mixed or 0) for act in sizes} == {4}
    assert all(act.decode for act in sizes)


def test_growth_compares_the_means_of_first_and_last_samples_of_who_lived_throughout() -> None:
    early = {"plane 1": Usage(100, 7), "w0 2": Usage(50, 3)}
    late = {"plane 1": Usage(102, 9), "w0 3": Usage(50, 3)}
    (grown,) = growth([early] * NUM_MEAN + [late] * NUM_MEAN)
    assert (grown.name, round(grown.share, 3), grown.files_last - grown.files_first) == ("plane 1", 0.02, 2)


def test_growth_is_unknown_with_too_few_samples() -> None:
    assert growth([{"plane 1": Usage(1, 1)}] * (2 * NUM_MEAN - 1)) == []
