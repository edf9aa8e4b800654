"""Fields of a body that nobody reads: a misspelt one must not be taken for one that was left out."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError


async def refuse_unknown_fields(request: Request, kind: type[Any], **parts: type[Any]) -> None:
    """`kind`: a dataclass, of the body; `parts`: of fields in it. Raises RequestValidationError naming the field."""
    body = await request.json()
    inner = [(("body", name), body.get(name), part) for name, part in parts.items()]
    for where, value, each in [(("body",), body, kind), *inner]:
        known = [one.name for one in dataclasses.fields(each)]
        for name in value if isinstance(value, dict) else ():
            if name not in known:
                context = {"expected": ", ".join(known)}
                error = {"type": "unknown_field", "loc": (*where, name), "msg": "Unknown field", "input": value[name]}
                raise RequestValidationError([{**error, "ctx": context}])
