"""What fields hold, of whatever noun: where a number comes from, and bounded numbers and words.

The modules beside this one hold the values that cross control's borders, by noun: the console, the CLI, the API and the
pure policies share them. Frozen dataclasses, validated where they come in from outside (pydantic `TypeAdapter`, which
FastAPI and `control.client` use). Units are in the names; fractions are 0..1; None is "unknown" and never zero.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Provenance = Literal["measured", "derived", "assumed", "simulated"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=100_000, strict=True)]
Number = Annotated[int, Field(ge=0, le=2**53, strict=True)]  # of a command or a version
Words = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")]  # typed by a person; PostgreSQL keeps no NUL
