"""A chat's messages: which shapes are taken, and the plain text they become. Text only."""

from __future__ import annotations

from typing import Any, Final

from control.gateway.errors import bad_request, bad_value, shown

ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MAX_MESSAGES: Final = 10_000
#: Fields that the official client sends back with an assistant's message; without a value they mean nothing.
_EMPTY_FIELDS: Final = frozenset(
    {"refusal", "annotations", "audio", "function_call", "tool_calls", "reasoning_content"}
)


def parse_messages(name: str, value: Any) -> tuple[dict[str, str], ...]:
    """Messages as role and content. Raises GatewayError that names the message and the field."""
    if type(value) is not list or not value:
        raise bad_value(name, "a list of messages that is not empty", value)
    if len(value) > MAX_MESSAGES:
        raise bad_value(name, f"a list of up to {MAX_MESSAGES} messages", f"{len(value)} messages")
    return tuple([_message(f"{name}[{at}]", each) for at, each in enumerate(value)])


def _message(where: str, value: Any) -> dict[str, str]:
    if type(value) is not dict:
        raise bad_value(where, "an object with role and content", value)
    for key, field in value.items():
        if key in ("role", "content", "name"):
            continue
        if key not in _EMPTY_FIELDS:
            raise bad_request(f"unknown parameter {where}.{shown(key)}", param=where, code="unknown_parameter")
        if field:
            message = f"{where}.{key} is not supported: text only, no tool calls; got {shown(field)}"
            raise bad_request(message, param=f"{where}.{key}", code="unsupported_parameter")
    role = value.get("role")
    if type(role) is not str or role not in ROLES:
        raise bad_value(f"{where}.role", f"one of {', '.join(ROLES)}", role)
    return {"role": ROLES[role], "content": _content(f"{where}.content", value.get("content"))}


def _content(where: str, value: Any) -> str:
    if type(value) is str:
        return value
    if type(value) is not list:
        raise bad_value(where, "a string or a list of text parts", value)
    texts = []
    for at, part in enumerate(value):
        text = part.get("text") if type(part) is dict and part.get("type") == "text" else None
        if type(text) is not str:
            raise bad_value(f"{where}[{at}]", "a text part", part)
        texts.append(text)
    return "".join(texts)
