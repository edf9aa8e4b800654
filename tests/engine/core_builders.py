"""Defaults for tests of the torch-free engine: a tiny model, a core, and the loop that runs it by hand."""

from __future__ import annotations

from typing import Any

from engine.core import CoreConfig, EngineCore, Outbox
from engine.cost_model import SeededTokens
from engine.meter import Clock, Meter
from engine.readings import DeviceInfo
from engine.types import (
    KvLayout,
    ModelConfig,
    Phase,
    PhaseTiming,
    Role,
    SamplingParams,
    StepPlan,
    StepResult,
    WorkKind,
)
from engine.wire import Order, Prefilled, Pull, Rejected, Submit, TokenEvent

MODEL = ModelConfig(
    model_id="tiny",
    vocab_size=1000,
    hidden_size=8,
    intermediate_size=16,
    num_layers=2,
    num_q_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_context=256,
    eos_token_ids=(0,),
)
LAYOUT = KvLayout(
    model_id="tiny", weights_digest="d", dtype="seeded", num_layers=2, block_tokens=4, num_kv_heads=1, head_dim=4
)
PREFILL_S, DECODE_S = 0.5, 0.1
TOKENS = SeededTokens(MODEL.vocab_size, avoid=(0,))


def expected_tokens(seed: int, start: int, count: int) -> list[int]:
    """What an undisturbed run of a seeded sequence samples at positions [start, start + count)."""
    return [TOKENS.token(seed, position) for position in range(start, start + count)]


def submit(req_id: str = "r1", num_tokens: int = 10, kind: WorkKind = WorkKind.LOCAL, **more: Any) -> Submit:
    """Prompts of different requests share nothing, unless `first` says where their tokens begin."""
    first = more.pop("first", 1 + sum(req_id.encode()) % 400)
    sampling = SamplingParams(
        seed=more.pop("seed", 7),
        max_tokens=more.pop("max_tokens", 5),
        stop_token_ids=more.pop("stop_token_ids", ()),
    )
    prompt = more.pop("prompt", [first + index for index in range(num_tokens)])
    return Submit(req_id, more.pop("attempt", 1), kind, prompt, more.pop("num_prompt", len(prompt)), sampling, **more)


def memory_meter() -> Meter:
    return Meter.create(
        None,
        worker_id="w1",
        epoch=3,
        model_id="tiny",
        address="",
        simulated=True,
        device=DeviceInfo(name="test", kind="paced"),
        host_id="h",
        max_context=MODEL.max_context,
        clock=Clock(monotonic=lambda: 0.0, unix=lambda: 0.0),
    )


class Bench:
    """A core, its clock, and all that its peers were told."""

    def __init__(self, role: Role = Role.MIXED, *, meter: Meter | None = None, **config: Any) -> None:
        defaults: dict[str, Any] = {"num_blocks": 64, "max_batch": 8, "prefill_chunk_tokens": 16}
        self.core = EngineCore(
            config=CoreConfig(model=MODEL, layout=LAYOUT, worker_id="w1", epoch=3, **{**defaults, **config}),
            meter=meter,
        )
        self.now_s = 100.0
        self.told: dict[str, Outbox] = {}
        if role is not Role.UNASSIGNED:
            assert self.order("place", role).ok

    @property
    def pool(self) -> Any:
        return self.core._scheduler.pool

    @property
    def scheduler(self) -> Any:
        return self.core._scheduler

    def order(self, verb: str, role: Role = Role.UNASSIGNED, fence: int = 1) -> Any:
        result = self.core.order(Order("o", fence, verb, role), self.now_s)
        self.collect(self.core.take_outbox())
        return result

    def submit(self, *args: Any, peer: str = "g1", **kwargs: Any) -> list[Any]:
        return self.core.submit(peer, submit(*args, **kwargs), self.now_s)

    def begin(self) -> StepPlan | None:
        return self.core.next_step(self.now_s)

    def finish(self, plan: StepPlan) -> None:
        timings = []
        for phase, part, seconds in (
            (Phase.PREFILL, plan.prefill, PREFILL_S),
            (Phase.DECODE, plan.decode, DECODE_S),
        ):
            if part:
                timings.append(PhaseTiming(phase, self.now_s, self.now_s + seconds, 0.0))
                self.now_s += seconds
        self.collect(self.core.finish_step(plan, StepResult(TOKENS.sample(plan), tuple(timings)), self.now_s))

    def step(self) -> StepPlan | None:
        plan = self.begin()
        if plan is not None:
            self.finish(plan)
        return plan

    def run(self, most: int = 500) -> int:
        for count in range(most):
            if self.step() is None:
                return count
        raise AssertionError(f"still busy after {most} steps")

    def collect(self, outboxes: dict[str, Outbox]) -> None:
        for peer, box in outboxes.items():
            mine = self.told.setdefault(peer, Outbox())
            mine.events += box.events
            mine.messages += [*box.messages, *box.after]

    def flush(self) -> None:
        self.collect(self.core.take_outbox())

    def events(self, req_id: str = "r1", peer: str = "g1") -> list[TokenEvent]:
        self.flush()
        return [event for event in self.told.get(peer, Outbox()).events if event.req_id == req_id]

    def tokens(self, req_id: str = "r1") -> list[int]:
        """All tokens of a request in order; fails when a position is missing, repeated or out of order."""
        tokens: list[int] = []
        start = None
        for event in self.events(req_id):
            start = event.position if start is None else start
            assert event.position == start + len(tokens)
            tokens += event.tokens
        return tokens

    def message(self, kind: type, req_id: str = "r1") -> Any:
        self.flush()
        found = [
            message
            for box in self.told.values()
            for message in box.messages
            if isinstance(message, kind) and message.req_id == req_id  # type: ignore[attr-defined]
        ]
        return found[-1] if found else None

    def prefilled(self, req_id: str = "r1") -> Prefilled:
        message = self.message(Prefilled, req_id)
        assert message is not None
        return message

    def rejected(self, req_id: str = "r1") -> Rejected:
        message = self.message(Rejected, req_id)
        assert message is not None
        return message


def hand_over(source: Bench, target: Bench, req_id: str = "r1", attempt: int = 1) -> Any:
    """Pull a finished prefill into a reserved sequence; returns the pull plan."""
    done = source.prefilled(req_id)
    assert done.lease is not None
    plan = target.core.begin_pull("g1", Pull(req_id, attempt, done.lease, done.first_token), target.now_s)
    if not isinstance(plan, Rejected):
        ok = source.core.ack(done.lease.lease_id, source.now_s)
        target.core.pull_done(req_id, attempt, ok, target.now_s)
    return plan


def split(num_tokens=10, max_tokens=5, prefill=None, decode=None, **more):
    """Submit one request to both sides, as a gateway does, and compute its prompt."""
    source = prefill or Bench(Role.PREFILL)
    target = decode or Bench(Role.DECODE)
    (reserved,) = target.submit("r1", num_tokens, WorkKind.DECODE, max_tokens=max_tokens, **more)
    assert source.submit("r1", num_tokens, WorkKind.PREFILL, max_tokens=max_tokens, **more) == []
    source.run()
    return source, target, reserved
