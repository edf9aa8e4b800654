"""HTTP clients of attached fleets: each engine and each controller has one of its own. Nothing is decided here.

httpx looks at all connections of a client at each of its requests. With one client for 200 engines that was four fifths
of what looking at them cost.
"""

from __future__ import annotations

import functools
import ssl

import httpx


@functools.cache
def _tls() -> ssl.SSLContext:
    """Of all of them: to load the trusted certificates takes longer than most requests."""
    return httpx.create_ssl_context(trust_env=False)


def own_client() -> httpx.AsyncClient:
    """No proxy of our environment, no redirects, and no compression: a small answer cannot become a large one."""
    plain = {"Accept-Encoding": "identity"}
    return httpx.AsyncClient(verify=_tls(), trust_env=False, follow_redirects=False, headers=plain)
