"""What a client may ask for: the parameters of the two endpoints, and the parsing of a body.

Decided here: which parameters are honoured, which are accepted without effect, which are refused and why, and every
bound. Any other parameter is an error that names it. Not here: what needs the model (tokens, context) or the fleet.

The tables are data: `parameters_markdown()` prints them for the documentation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from control.gateway.errors import GatewayError, bad_request, bad_value, shown
from control.gateway.messages import parse_messages
from control.gateway.urgency import TIERS, parse_deadline, parse_priority

Endpoint = Literal["chat", "completions"]
Treatment = Literal["honoured", "ignored", "refused"]
Check = Callable[[str, Any], Any]

MAX_STOPS: Final = 4
MAX_STOP_CHARS: Final = 256
MAX_INT: Final = 2**63 - 1


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed body. `messages` for chat, `prompt` (text or token ids) for completions."""

    endpoint: Endpoint
    model: str
    messages: tuple[dict[str, str], ...] = ()
    prompt: str | list[int] = ""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False
    priority: int | None = None
    service_tier: str | None = None
    deadline_s: float | None = None


class Parameter(msgspec.Struct, frozen=True):
    """One parameter. `check(name, value)` returns the value to use; for a refused one it raises unless neutral."""

    treatment: Treatment
    help: str
    check: Check
    endpoints: tuple[Endpoint, ...] = ("chat", "completions")


# --- checks ------------------------------------------------------------------------------------------------------


def _whole(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise bad_value(name, f"a whole number in {low}..{high}", value)
        return value

    return check


def _number(low: float, high: float, *, above_low: bool = False) -> Check:
    bound = f"a number above {low:g} and up to {high:g}" if above_low else f"a number in {low:g}..{high:g}"

    def check(name: str, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise bad_value(name, bound, value)
        if not low <= value <= high or (above_low and value == low):
            raise bad_value(name, bound, value)
        return float(value)

    return check


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise bad_value(name, "true or false", value)
    return value


def _text(name: str, value: Any) -> str:
    if type(value) is not str or not value:
        raise bad_value(name, "a string that is not empty", value)
    return value


def _stop(name: str, value: Any) -> tuple[str, ...]:
    stops = [value] if type(value) is str else value
    if type(stops) is not list or len(stops) > MAX_STOPS:
        raise bad_value(name, f"a string or a list of up to {MAX_STOPS} strings", value)
    for stop in stops:
        if type(stop) is not str or not 0 < len(stop) <= MAX_STOP_CHARS:
            raise bad_value(name, f"strings of 1..{MAX_STOP_CHARS} characters", stop)
    return tuple(stops)


def _stream_options(name: str, value: Any) -> bool:
    if type(value) is not dict:
        raise bad_value(name, "an object", value)
    for key in value:
        if key not in ("include_usage", "include_obfuscation"):
            raise bad_request(f"unknown parameter {name}.{shown(key)}", param=name, code="unknown_parameter")
    return _flag(f"{name}.include_usage", value.get("include_usage", False))


def _prompt(name: str, value: Any) -> str | list[int]:
    if type(value) is list and len(value) == 1 and type(value[0]) in (str, list):
        value = value[0]
    if type(value) is str:
        if not value:
            raise bad_value(name, "not empty", value)
        return value
    if type(value) is not list or not value:
        raise bad_value(name, "a string or a list of token ids that is not empty", value)
    if type(value[0]) in (str, list):
        raise bad_request(f"{name} holds {len(value)} prompts; one prompt per request is served", param=name)
    for at, token_id in enumerate(value):
        if type(token_id) is not int or not 0 <= token_id <= MAX_INT:
            raise bad_value(f"{name}[{at}]", "a token id, a whole number from 0", token_id)
    return value


def _anything(_name: str, value: Any) -> Any:
    return value


def _only(*neutral: Any) -> Check:
    """For a refused parameter: values that ask for nothing are let pass."""

    def check(name: str, value: Any) -> None:
        if not any(value == each and type(value) is type(each) for each in neutral):
            allowed = " or ".join(msgspec.json.encode(each).decode() for each in neutral)
            reason = PARAMETERS[name].help
            more = f"; only {allowed} is accepted" if neutral else ""
            raise bad_request(
                f"{name} is not supported: {reason}; got {shown(value)}{more}",
                param=name,
                code="unsupported_parameter",
            )

    return check


def _one_of(*names: str) -> Check:
    def check(name: str, value: Any) -> str:
        if type(value) is not str or value not in names:
            raise bad_value(name, f"one of {', '.join(names)}", value)
        return value

    return check


def _honoured(help: str, check: Check, *endpoints: Endpoint) -> Parameter:
    return Parameter("honoured", help, check, endpoints or ("chat", "completions"))


def _ignored(help: str, *endpoints: Endpoint) -> Parameter:
    return Parameter("ignored", help, _anything, endpoints or ("chat", "completions"))


def _refused(help: str, *neutral: Any, to: tuple[Endpoint, ...] = ("chat", "completions")) -> Parameter:
    return Parameter("refused", help, _only(*neutral), to)


_NO_TOOLS: Final = "tool calls are not served"
_NO_PENALTY: Final = "sampling is stateless in (seed, position), so nothing counts earlier tokens"
_CHAT: Final[tuple[Endpoint, ...]] = ("chat",)
_COMPLETIONS: Final[tuple[Endpoint, ...]] = ("completions",)

#: Every parameter that is known. `null` always means absent.
PARAMETERS: Final[Mapping[str, Parameter]] = {
    "model": _honoured("the id in /v1/models", _text),
    "messages": _honoured("roles system, developer, user, assistant; text content", parse_messages, "chat"),
    "prompt": _honoured("a string, or a list of token ids", _prompt, "completions"),
    "max_tokens": _honoured("1..; default: setting `default_max_tokens`, or the room left", _whole(1, MAX_INT)),
    "max_completion_tokens": _honoured("the same as max_tokens", _whole(1, MAX_INT), "chat"),
    "temperature": _honoured("0..2, default 1; 0 is greedy, and so is all below 0.0001", _number(0, 2)),
    "top_p": _honoured("above 0 up to 1, default 1", _number(0, 1, above_low=True)),
    "top_k": _honoured("extension: 0 (off) .. 1000000, default 0", _whole(0, 1_000_000)),
    "seed": _honoured("default: drawn at admission", _whole(-MAX_INT - 1, MAX_INT)),
    "stop": _honoured(f"a string or up to {MAX_STOPS}, of up to {MAX_STOP_CHARS} characters", _stop),
    "ignore_eos": _honoured("extension: go on to max_tokens", _flag),
    "stream": _honoured("server-sent events", _flag),
    "stream_options": _honoured("include_usage", _stream_options),
    "n": _honoured("one answer a request is served", _only(1)),
    "priority": _honoured(
        "extension: `interactive` (0, the default), `batch` (10), or -100..100; all above 0 is batch", parse_priority
    ),
    "service_tier": _honoured(
        "`flex` is batch; `auto`, `default`, `scale` and `priority` are interactive", _one_of(*TIERS)
    ),
    "deadline_s": _honoured(
        "extension: seconds from arrival until the whole answer is there; else it ends with an error", parse_deadline
    ),
    "timeout": _honoured("extension: the same as deadline_s", parse_deadline),
    "user": _ignored("accepted without effect"),
    "metadata": _ignored("accepted without effect"),
    "store": _ignored("nothing is stored", "chat"),
    "safety_identifier": _ignored("accepted without effect"),
    "prompt_cache_key": _ignored("the prefix cache needs no key"),
    "prompt_cache_retention": _ignored("the prefix cache keeps what fits"),
    "parallel_tool_calls": _ignored("there are no tool calls", "chat"),
    "tools": _refused(_NO_TOOLS, [], to=_CHAT),
    "tool_choice": _refused(_NO_TOOLS, "none", "auto", to=_CHAT),
    "functions": _refused(_NO_TOOLS, [], to=_CHAT),
    "function_call": _refused(_NO_TOOLS, "none", "auto", to=_CHAT),
    "logprobs": _refused("log probabilities do not travel on the wire", False, 0),
    "top_logprobs": _refused("log probabilities do not travel on the wire", 0, to=_CHAT),
    "response_format": _refused("output is not constrained to a grammar", {"type": "text"}),
    "logit_bias": _refused("logits are not biased", {}),
    "presence_penalty": _refused(_NO_PENALTY, 0, 0.0),
    "frequency_penalty": _refused(_NO_PENALTY, 0, 0.0),
    "repetition_penalty": _refused(_NO_PENALTY, 1, 1.0),
    "best_of": _refused("one answer is sampled", 1, to=_COMPLETIONS),
    "echo": _refused("the prompt is not repeated", False, to=_COMPLETIONS),
    "suffix": _refused("text is not inserted in the middle", "", to=_COMPLETIONS),
    "modalities": _refused("text only", ["text"], to=_CHAT),
    "audio": _refused("text only", to=_CHAT),
    "prediction": _refused("output is not predicted", to=_CHAT),
    "reasoning_effort": _refused("no reasoning mode", "none", to=_CHAT),
    "verbosity": _refused("no verbosity mode", "medium", to=_CHAT),
    "web_search_options": _refused("no web search", to=_CHAT),
    "min_p": _refused("top_k and top_p are served", 0, 0.0),
}

_FIELDS: Final = frozenset(name for name, each in PARAMETERS.items() if each.treatment == "honoured") - {"n"}


# --- parsing -----------------------------------------------------------------------------------------------------


def parse_ask(endpoint: Endpoint, body: bytes) -> Ask:
    """The request in a body. Raises GatewayError (400) that names field, value and bound."""
    values = _decode_object(body)
    found: dict[str, Any] = {}
    for name, value in values.items():
        parameter = PARAMETERS.get(name)
        if parameter is None or endpoint not in parameter.endpoints:
            raise bad_request(f"unknown parameter {shown(name)}", param=name[:100], code="unknown_parameter")
        if value is not None:
            checked = parameter.check(name, value)
            if name in _FIELDS:
                found[name] = checked
    return _build(endpoint, found)


def _build(endpoint: Endpoint, found: dict[str, Any]) -> Ask:
    content = "messages" if endpoint == "chat" else "prompt"
    for required in ("model", content):
        if required not in found:
            raise bad_request(f"{required} is required", param=required, code="missing_required_parameter")
    if "stream_options" in found:
        found["include_usage"] = found.pop("stream_options")
        if not found.get("stream"):
            raise bad_request("stream_options is allowed only with stream: true", param="stream_options")
    _same(found, "max_completion_tokens", "max_tokens")
    _same(found, "timeout", "deadline_s")
    return Ask(endpoint=endpoint, **found)


def _same(found: dict[str, Any], alias: str, name: str) -> None:
    """Two names of one value: either may be given, or both if they agree."""
    if alias in found:
        value = found.pop(alias)
        if found.setdefault(name, value) != value:
            raise bad_request(f"{name} {found[name]} and {alias} {value} differ", param=alias)


_decoder = msgspec.json.Decoder()


def _decode_object(body: bytes) -> dict[str, Any]:
    try:
        values = _decoder.decode(body)
    except UnicodeDecodeError as error:
        raise _bad_json(f"invalid UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise _bad_json("nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        field = _not_finite(body)
        why = f"{field} must be a finite number" if field else str(error)
        raise _bad_json(why, field) from error
    if type(values) is not dict:
        raise _bad_json(f"it must be an object, got {shown(values)}")
    return values


def _not_finite(body: bytes) -> str | None:
    """The first field that holds NaN, Infinity or a number beyond them all, which JSON has no word for."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if type(values) is not dict:
        return None
    bad = (name for name, value in values.items() if type(value) is float and not math.isfinite(value))
    return next(bad, None)


def _bad_json(why: str, param: str | None = None) -> GatewayError:
    return bad_request(f"the body is not a valid JSON request: {why}", param=param, code="invalid_json")


def parameters_markdown() -> str:
    """The three tables, for docs/operations.md."""
    parts = []
    for treatment in ("honoured", "ignored", "refused"):
        parts += [f"**{treatment.capitalize()}**", "", "| Parameter | Endpoints | Notes |", "|---|---|---|"]
        for name, each in PARAMETERS.items():
            if each.treatment == treatment:
                parts.append(f"| `{name}` | {', '.join(each.endpoints)} | {each.help} |")
        parts.append("")
    return "\n".join(parts)
