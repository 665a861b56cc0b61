"""How many candidates of each value are chosen, as whole numbers near to given shares."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.errors import ArgumentError

OTHER = "other"
"""Key of the share of all values without a share of their own, and of samples without the field."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Room:
    """Group [B] of each candidate, -1 for those that cannot be chosen, and quotas by group."""

    groups: Integers
    quotas: Integers

    def first(self, order: Integers) -> Integers:
        """The first of an order [B] that the quotas have room for."""
        sorted_groups = self.groups[order]
        keep = np.zeros(len(order), dtype=bool)
        for group, quota in enumerate(self.quotas):
            keep[np.flatnonzero(sorted_groups == group)[:quota]] = True
        found: Integers = order[keep]
        return found


def apportioned(count: int, shares: Floats) -> Integers:
    """Whole numbers that sum to `count`, as near to the shares as they can be.

    The largest remainders are rounded up, the first of equal ones.
    """
    exact = count * shares / shares.sum()
    whole: Integers = np.floor(exact + 1e-9).astype(np.int64)
    whole[np.argsort(-(exact - whole), kind="stable")[: count - whole.sum()]] += 1
    return whole


def capped(count: int, shares: Floats, there: Integers) -> Integers:
    """As `apportioned`, with at most `there` of each; what one lacks goes to the others."""
    found = np.zeros(len(shares), dtype=np.int64)
    rest = min(count, int(there.sum()))
    while rest:
        free = there > found
        more = shares * free
        if not more.sum():  # only values without a share have candidates left
            more = free.astype(np.float64)
        found = np.minimum(found + apportioned(rest, more), there)
        rest = min(count, int(there.sum())) - int(found.sum())
    return found


def check_quotas(quotas: Any) -> None:
    """Refuse what is no mapping of values to shares that sum to 1."""
    if not isinstance(quotas, Mapping) or not quotas:
        raise ArgumentError(f"quotas={quotas!r}, expected shares by value, such as {{'md': 1.0}}")
    if any(not np.isfinite(share) or share < 0 for share in quotas.values()):
        raise ArgumentError(f"quotas={dict(quotas)}, expected shares of 0 or more")
    total = float(sum(quotas.values()))
    if abs(total - 1) > 1e-6:
        way = "" if OTHER in quotas or total > 1 else f", or give {OTHER!r} the rest"
        raise ArgumentError(f"quotas sum to {total:g}, expected 1: change the shares{way}")
