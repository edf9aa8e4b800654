"""Whose turn it is between API keys: start-time fair queueing over weighted device-seconds.

    https://www.cs.utexas.edu/~vin/pub/pdf/sfq-ton97.pdf (Goyal, Vin, Cheng: Start-time Fair Queueing)

Each request starts, in virtual time, when its key's last one has finished, but never before now: a key that was idle
has saved up nothing. Virtual time is the start of the request that was served last. A key's virtual time runs by
device-seconds / weight: those of prefill, and KV-block-seconds of decode as a share of the worker's KV. What was
charged in advance is put right when the request ends, and what a key uses at other gateways counts here too.

Decided here: tags, and how many keys are remembered. Not here: what a tag is compared with (`control.gateway.turns`).
Keys are the digests of `control.gateway.http`, never the keys themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from control.gateway.usage import most_used

MAX_KEYS: Final = 4096
#: Under this name the file of weights gives the weight of all keys that it does not name.
DEFAULT: Final = "default"


class FairShare:
    """All keys that one gateway knows; those that owe nothing are forgotten."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.used_s: dict[str, float] = {}  # device-seconds here, since the others were told
        self._weights = dict(weights or {})
        self._now = 0.0
        self._finish: dict[str, float] = {}

    def weight(self, key: str) -> float:
        return self._weights.get(key, self._weights.get(DEFAULT, 1.0))

    def tag(self, key: str) -> float:
        """Where a request of this key would start now."""
        return max(self._now, self._finish.get(key, 0.0))

    def charge(self, key: str, device_s: float) -> None:
        """A request of this key has come in, or used more (or, negative, less) than was charged for it."""
        if device_s:
            self._finish[key] = self.tag(key) + device_s / self.weight(key)
            self._forget()

    def serve(self, tag: float) -> None:
        """A request with this tag goes to the workers."""
        self._now = max(self._now, tag)

    def settle(self, key: str, charged_s: float, used_s: float) -> None:
        """A request of this key has ended."""
        self.charge(key, used_s - charged_s)
        if used_s:
            self.used_s[key] = self.used_s.get(key, 0.0) + used_s
            if len(self.used_s) > MAX_KEYS:
                del self.used_s[min(self.used_s, key=lambda each: self.used_s[each])]

    def learn_elsewhere(self, used_s: Mapping[str, float]) -> None:
        """Device-seconds per key at the other gateways, since the last time."""
        for key, device_s in used_s.items():
            self.charge(key, device_s)

    def take_used(self) -> dict[str, float]:
        """What the other gateways should know, once."""
        used_s, self.used_s = self.used_s, {}
        return most_used(used_s)

    def _forget(self) -> None:
        if len(self._finish) > MAX_KEYS:
            self._finish = {key: finish for key, finish in self._finish.items() if finish > self._now}
        while len(self._finish) > MAX_KEYS:
            del self._finish[min(self._finish, key=lambda each: self._finish[each])]
