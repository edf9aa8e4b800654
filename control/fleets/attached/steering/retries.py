"""Which failed call to a controller is made again, and after how long. Pure.

Decided here: only what cannot have changed anything is made again: a question (GET), or any call whose connection never
came to be. A call that ran out of time is not: whoever hangs would cost twice. Orders that were lost are given again by
the plane, which looks first.
"""

from __future__ import annotations

from typing import Final

import httpx

MAX_CALLS: Final = 3
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 2.0
#: A proxy or a server that is busy or starting, not an answer to the question.
PASSING: Final = frozenset({429, 502, 503, 504})


def is_worth_another(method: str, failure: int | Exception, num_calls: int) -> bool:
    """`failure`: its status, or why there was none; `num_calls` have been made."""
    if num_calls >= MAX_CALLS:
        return False
    if isinstance(failure, httpx.ConnectError):
        return True
    if isinstance(failure, int):
        return method == "GET" and failure in PASSING
    return method == "GET" and isinstance(failure, httpx.NetworkError | httpx.RemoteProtocolError)


def pause_s(num_calls: int, share: float) -> float:
    """`share`, 0 to 1 and random, of a bound that doubles: callers that failed together do not come back together."""
    return share * min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (num_calls - 1))
