"""The wire between gateways, workers and the plane: messages and framing. No I/O, no torch.

A frame is a 4-byte little-endian payload length and a msgpack array whose first item is the message's tag.
Fields are positional and append-only: an older peer ignores fields it does not know, a newer one fills in defaults,
so two versions run side by side. `PROTOCOL` changes only when that no longer holds, and `Hello` refuses it.

Ownership of a KV block across a handoff: the prefill worker owns it until it has sent `HandoffReleased(ok=True)`;
the decode worker's copy is good only after it has received that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from engine.errors import WireError
from engine.types import FinishReason, KvLayout, Load, Role, SamplingParams, WorkerState, WorkKind

PROTOCOL: Final = 1
#: What this version's workers say of themselves in `Welcome.features`.
FEATURES: Final = ("migrate",)
MAX_FRAME_BYTES: Final = 16 * 2**20
_HEADER = struct.Struct("<I")


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all wire messages; the tag is the class name."""


# --- opening -----------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """First frame of the side that connects. `token` is the fleet's secret from the run folder."""

    peer_id: str
    peer_kind: str  # gateway | plane | worker
    token: str
    protocol: int = PROTOCOL


class Welcome(Message, frozen=True):
    """First frame of a worker. Everything a peer must know before it may send work."""

    worker_id: str
    epoch: int
    role: Role
    state: WorkerState
    model_id: str
    layout: KvLayout
    max_context: int
    simulated: bool
    load: Load
    protocol: int = PROTOCOL
    pid: int = 0  # of the worker's process on this host; 0: unknown
    features: tuple[
        str, ...
    ] = ()  # what it takes beyond the first version; "migrate": Offer, Prefetch, Yield, Pull.more


class Goodbye(Message, frozen=True):
    """The peer refuses or ends the connection, and says why."""

    reason: str


# --- gateway -> worker -------------------------------------------------------------------------------------------


class Submit(Message, frozen=True):
    """One request for one worker. `prompt` holds prompt tokens and, on a continuation, the tokens already sent:
    the first token this worker may emit has position len(prompt), and `num_prompt` says where the real prompt ends.
    """

    req_id: str
    attempt: int
    kind: WorkKind
    prompt: list[int]
    num_prompt: int
    sampling: SamplingParams
    priority: int = 0  # lower is sooner
    deadline_unix_s: float | None = None
    api_key_id: str = ""
    traceparent: str = ""
    fence: int = 0


class Pull(Message, frozen=True):
    """Tell a decode worker, which has reserved, where the KV is and which token came first.

    `more`: tokens between the prompt that was submitted and `first_token`, sampled elsewhere since the reservation."""

    req_id: str
    attempt: int
    lease: Lease
    first_token: int
    more: list[int] = []


class Offer(Message, frozen=True):
    """Migration, to the source: lease the full blocks of a sequence that goes on decoding there."""

    req_id: str
    attempt: int


class Prefetch(Message, frozen=True):
    """Migration, to the target, which has reserved: copy these full blocks already. The reservation stays."""

    req_id: str
    attempt: int
    lease: Lease


class Yield(Message, frozen=True):
    """Migration, to the source: stop this sequence at the end of the step, and lease all of its KV."""

    req_id: str
    attempt: int


class Cancel(Message, frozen=True):
    req_id: str
    attempt: int


class ReleaseLease(Message, frozen=True):
    """The gateway gives a lease up (its request ended or moves elsewhere)."""

    lease_id: str


# --- worker -> gateway -------------------------------------------------------------------------------------------


class Reserved(Message, frozen=True):
    """The decode worker has room for the prompt; `num_cached` leading tokens are in its prefix cache already."""

    req_id: str
    attempt: int
    num_cached: int


class Rejected(Message, frozen=True):
    """Not admitted, nothing held.

    code: draining | role | queue_full | no_kv | too_long | deadline | layout | handoff | invalid | unknown.
    """

    req_id: str
    attempt: int
    code: str
    detail: str
    retry_after_s: float = 0.0


class StageTimes(Message, frozen=True):
    """Durations of one request on one worker, in seconds; durations, not clocks, so hosts need not agree."""

    queue_s: float = 0.0
    prefill_s: float = 0.0  # from first scheduled to first token
    handoff_s: float = 0.0
    decode_s: float = 0.0
    num_cached: int = 0


class Lease(Message, frozen=True):
    """KV kept by a prefill worker for somebody to fetch. Covers positions [0, num_tokens)."""

    lease_id: str
    worker_id: str
    epoch: int
    address: str  # host:port of the holder's wire
    layout: KvLayout
    num_tokens: int
    blocks: list[int]
    pool_path: str  # shared-memory file of the holder's pool; "" when there is none
    host_id: str  # shared memory works only between equal host ids
    expires_in_s: float


class Prefilled(Message, frozen=True):
    """The prompt's KV is ready under `lease`, and `first_token` (position len(prompt)) has been sampled."""

    req_id: str
    attempt: int
    first_token: int
    finish: FinishReason | None  # set when the first token ends the request; then there is no lease
    lease: Lease | None
    times: StageTimes


class Offered(Message, frozen=True):
    """Full blocks of a running sequence. No lease: it has no full block, or `reason` says why it cannot move."""

    req_id: str
    attempt: int
    lease: Lease | None
    reason: str = ""


class Prefetched(Message, frozen=True):
    """KV of [0, num_tokens) is at the target; `error` says why it is not. The reservation is held as before."""

    req_id: str
    attempt: int
    num_tokens: int
    num_bytes: int = 0  # copied now
    copy_s: float = 0.0
    error: str = ""


class Yielded(Message, frozen=True):
    """The sequence has ended here, all its tokens were sent before this; KV of all but the last is under `lease`.

    No lease: it runs on as if nothing had been asked, and `reason` says why.
    """

    req_id: str
    attempt: int
    lease: Lease | None
    reason: str = ""
    times: StageTimes | None = None


class TokenEvent(Message, frozen=True):
    """New tokens of one request: token i of `tokens` has position `position + i`. `times` comes with `finish`."""

    req_id: str
    attempt: int
    position: int
    tokens: list[int]
    finish: FinishReason | None = None
    error: str = ""
    times: StageTimes | None = None


class CacheDelta(Message, frozen=True):
    """Change of the worker's prefix index: chained block hashes. `reset` means forget all before."""

    added: list[int] = []
    removed: list[int] = []
    reset: bool = False


class Step(Message, frozen=True):
    """One message per engine step and peer: all its new tokens, and what routing needs to know."""

    worker_id: str
    epoch: int
    step_id: int
    events: list[TokenEvent]
    load: Load
    cache: CacheDelta | None = None


class Status(Message, frozen=True):
    """The worker's role or state changed; sent to every peer at once."""

    worker_id: str
    epoch: int
    role: Role
    state: WorkerState
    fence: int
    reason: str
    load: Load
    leaves_decode: bool = False  # it is on its way to what serves no decode: running sequences may be moved


# --- plane -> worker ---------------------------------------------------------------------------------------------


class Order(Message, frozen=True):
    """An order under a fencing version: a worker refuses one older than the newest it has seen.

    verb: place (role to take, from unassigned), flip (drain what the new role does not serve, then take `role`),
    drain, undrain, stop. Orders are idempotent: repeating one that holds already answers ok.
    """

    order_id: str
    fence: int
    verb: str
    role: Role = Role.UNASSIGNED
    reason: str = ""


class OrderResult(Message, frozen=True):
    """Accepted or refused; completion shows as a `Status`."""

    order_id: str
    ok: bool
    role: Role
    state: WorkerState
    error: str = ""
    is_final: bool = False  # refused, and asked again it would be refused again


class Ping(Message, frozen=True):
    nonce: int


class Pong(Message, frozen=True):
    nonce: int
    load: Load


# --- worker <-> worker -------------------------------------------------------------------------------------------


class Fetch(Message, frozen=True):
    """A decode worker asks a holder for leased blocks. transport: shm (the asker copies from the holder's pool
    itself, then acknowledges) or tcp (the holder streams the blocks as `Blocks` frames)."""

    lease_id: str
    layout: KvLayout
    transport: str
    blocks: list[int]  # indices into the holder's pool


class Blocks(Message, frozen=True):
    """Raw bytes of consecutive requested blocks, in order, at most MAX_FRAME_BYTES a frame."""

    lease_id: str
    first: int
    count: int
    payload: bytes


class HandoffAck(Message, frozen=True):
    """The asker has copied all it wants."""

    lease_id: str
    ok: bool = True


class HandoffReleased(Message, frozen=True):
    """Answer to `HandoffAck`: ok means that the lease still held when the copy ended, so the copy is good."""

    lease_id: str
    ok: bool
    reason: str = ""


AnyMessage = (
    Hello | Welcome | Goodbye | Submit | Pull | Cancel | ReleaseLease | Reserved | Rejected | Prefilled | Step | Status
    | Order | OrderResult | Ping | Pong | Fetch | Blocks | HandoffAck | HandoffReleased
    | Offer | Offered | Prefetch | Prefetched | Yield | Yielded
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """One whole frame. Raises WireError when it would exceed MAX_FRAME_BYTES."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise WireError(f"frame of {len(payload)} bytes is over the bound of {MAX_FRAME_BYTES} bytes")
    return _HEADER.pack(len(payload)) + payload


class Framer:
    """Turns a byte stream into messages; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield every whole message. Raises WireError on an oversized or malformed frame: close the connection."""
        self._buffer += data
        offset = 0
        try:
            while len(self._buffer) - offset >= _HEADER.size:
                (size,) = _HEADER.unpack_from(self._buffer, offset)
                if size > MAX_FRAME_BYTES:
                    raise WireError(f"frame of {size} bytes is over the bound of {MAX_FRAME_BYTES} bytes")
                end = offset + _HEADER.size + size
                if len(self._buffer) < end:
                    break
                payload = bytes(memoryview(self._buffer)[offset + _HEADER.size : end])
                offset = end
                try:
                    message = _decoder.decode(payload)
                except msgspec.MsgspecError as error:
                    raise WireError(f"malformed frame: {error}") from error
                yield message
        finally:
            del self._buffer[:offset]
