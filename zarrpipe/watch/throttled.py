"""Costly calls, limited to a small share of the time."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

Found = TypeVar("Found")

_SHARE = 0.002


class Throttled(Generic[Found]):
    """Repeats a call so rarely that it takes at most 0.2 % of the time.

    `every` is the shortest time between two calls, in seconds.
    """

    def __init__(self, call: Callable[[], Found], every: float = 0.0) -> None:
        self._call, self._every = call, every
        self._due = float("-inf")
        self._found: Found | None = None

    def get(self, now: float) -> Found | None:
        """Result of the last call, after a new one if it is due."""
        if now >= self._due:
            began = time.perf_counter()
            self._found = self._call()
            self._due = now + max(self._every, (time.perf_counter() - began) / _SHARE)
        return self._found
