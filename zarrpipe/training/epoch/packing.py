"""Samples put together into batches of nearly equal cost that keep budgets.

An order of samples is cut into windows. In each the samples are dealt out from the costliest to the
cheapest, some at a time and always the costliest of these to the batch that has the least. So the
batches of a window cost nearly the same: budgets are filled, and ranks that take neighbouring
batches wait little for each other.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import Int64Array, pointers
from zarrpipe.errors import ArgumentError

_WINDOW_BATCHES, _LEAST_WINDOW = 256, 1024
_FEW = 4096
_EASE = 0.999  # fewer batches than the last window needed are tried first


@dataclass(frozen=True)
class Costs:
    """What samples take of budgets.

    Parameters
    ----------
    each : array [K, n] int64
        Of each budget, what each sample takes: at most the whole.
    limits : array [K] int64
        The budgets.
    weight : array [n] int64, optional
        What batches of equally many samples are to have as much of; by default they are to take
        as much of their budgets.
    """

    each: Int64Array
    limits: Int64Array
    weight: Int64Array | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.each[0])

    def window(self, start: int, stop: int) -> "Costs":
        """Costs of some of the samples."""
        weight = None if self.weight is None else self.weight[start:stop]
        return Costs(self.each[:, start:stop], self.limits, weight)

    @property
    def takes(self) -> npt.NDArray[Any]:
        """What samples are dealt by, [n]: their weight, or the largest share of a budget."""
        if self.weight is not None:
            return self.weight
        takes: npt.NDArray[Any] = (self.each / self.limits[:, None]).max(axis=0)
        return takes

    @property
    def least_batches(self) -> int:
        """Fewest batches that could do."""
        return max(1, int(np.ceil((self.each.sum(axis=1) / self.limits).max())))


def pack(costs: Costs) -> tuple[Int64Array, Int64Array]:
    """Put samples together within windows of their order.

    Parameters
    ----------
    costs
        What each sample takes.

    Returns
    -------
    order : array [n] int64
        Where the samples of the batches stand among those given; each once.
    bounds : array [batches + 1] int64
        Batch b is ``order[bounds[b]:bounds[b + 1]]``.

    Examples
    --------
    >>> atoms = np.array([7, 6, 5, 4, 3, 2, 1, 2])
    >>> order, bounds = pack(Costs(atoms[None], np.array([11])))
    >>> np.add.reduceat(atoms[order], bounds[:-1])
    array([ 9, 10, 11])
    """
    count = len(costs)
    if count == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    window = max(_LEAST_WINDOW, _WINDOW_BATCHES * count // costs.least_batches)
    cuts = np.linspace(0, count, max(1, round(count / window)) + 1).astype(np.int64).tolist()
    order, sizes, surplus = np.empty(count, dtype=np.int64), [], 1.0
    for start, stop in itertools.pairwise(cuts):
        places, filled, surplus = _pack_window(costs.window(start, stop), surplus)
        order[start:stop] = places + start
        sizes.append(filled)
    return order, pointers(np.concatenate(sizes))


def pack_in_order(costs: Costs) -> Int64Array:
    """Bounds [batches + 1] int64 of batches that hold as many samples as fit, in their order.

    Examples
    --------
    >>> atoms = np.array([4, 5, 6, 1, 1, 9])
    >>> pack_in_order(Costs(atoms[None], np.array([10]))).tolist()
    [0, 2, 5, 6]
    """
    totals = [pointers(cost) for cost in costs.each]
    count, bounds = len(costs), [0]
    while bounds[-1] < count:
        start = bounds[-1]
        ends = (
            int(np.searchsorted(total, total[start] + limit, side="right")) - 1
            for total, limit in zip(totals, costs.limits, strict=True)
        )
        bounds.append(min(count, *ends))
    return np.array(bounds, dtype=np.int64)


def shared(bounds: Int64Array, world_size: int) -> Int64Array:
    """The same batches, some of the last cut in two, so that every rank gets as many.

    Examples
    --------
    >>> shared(np.array([0, 3, 6, 9]), world_size=2).tolist()
    [0, 3, 6, 8, 9]
    """
    sizes = np.diff(bounds)
    missing = -len(sizes) % world_size
    first = len(sizes)
    while missing and int((sizes[first:] - 1).sum()) < missing:
        if first == 0:
            raise ArgumentError(
                f"{bounds[-1] - bounds[0]} samples in {len(sizes)} batches cannot give each of "
                f"{world_size} ranks as many batches without repeats: use fewer ranks, or let a "
                "batch hold more"
            )
        first = max(0, first - 1 if first == len(sizes) else first - world_size)
        first -= first % world_size
    tail = sizes[first:].tolist()
    for _ in range(missing):
        place = int(np.argmax(tail))
        half = tail[place] // 2
        tail[place : place + 1] = [tail[place] - half, half]
    ends = pointers(np.concatenate([sizes[:first], np.array(tail, dtype=np.int64)]))
    moved: Int64Array = ends + bounds[0]
    return moved


def _pack_window(costs: Costs, surplus: float) -> tuple[Int64Array, Int64Array, float]:
    """Places [n] of the samples of batches, sizes of the batches, and how many more than least.

    The batches follow each other by what they take, so that neighbours take as much.
    """
    order = _costliest_first(costs)
    takes = costs.takes[order]
    least = costs.least_batches
    batches = max(least, round(least * surplus * _EASE))
    while True:
        batch = _deal(takes, batches, batches if costs.weight is not None else batches // 2)
        if _kept(costs, order, batch, batches):
            break
        batches += max(1, batches // 100)
    rank = np.empty(batches, dtype=np.int64)
    rank[np.argsort(np.bincount(batch, takes, batches), kind="stable")] = np.arange(batches)
    batch = rank[batch]
    sizes = np.bincount(batch, minlength=batches)
    places = order[np.argsort(batch, kind="stable")]
    return places, sizes[sizes > 0].astype(np.int64), batches / least


def deal_steps(
    costs: Costs, steps: int, ranks: int, least_before_last: int = 0
) -> tuple[Int64Array, Int64Array] | None:
    """Put all samples into steps of a batch for each rank that take as much as each other.

    Parameters
    ----------
    costs
        What each sample takes.
    steps
        One or two; of two each gets a half of the samples, by what they take, in their order.
    ranks
        Number of batches of a step.
    least_before_last : int
        Samples that are not in the last of two steps.

    Returns
    -------
    order : array [n] int64
        Where the samples of the batches stand among those given; each once.
    bounds : array [steps * ranks + 1] int64
        Batch b is ``order[bounds[b]:bounds[b + 1]]``; none is empty.

    None is returned where budgets are not kept so, or a rank gets nothing.

    Examples
    --------
    >>> atoms = np.array([9, 1, 7, 2, 5, 6])
    >>> order, bounds = deal_steps(Costs(atoms[None], np.array([12])), 1, 3)
    >>> np.add.reduceat(atoms[order], bounds[:-1])
    array([10,  9, 11])
    """
    cuts = [0, len(costs)]
    if steps == 2:
        taken = np.cumsum(costs.takes)
        half = int(np.searchsorted(taken, taken[-1] / 2)) + 1
        cuts.insert(1, min(max(half, least_before_last), len(costs)))
    orders, sizes = [], []
    for start, stop in itertools.pairwise(cuts):
        some = costs.window(start, stop)
        if len(some) < ranks:
            return None
        order = _costliest_first(some)
        few = len(some) <= _FEW and some.weight is None
        batch = _deal(some.takes[order], ranks, 1 if few else ranks)
        if not _kept(some, order, batch, ranks):
            return None
        orders.append(order[np.argsort(batch, kind="stable")] + start)
        sizes.append(np.bincount(batch, minlength=ranks))
    return np.concatenate(orders), pointers(np.concatenate(sizes))


def _costliest_first(costs: Costs) -> Int64Array:
    """Places [n] of samples by what they take, which falls."""
    if costs.weight is None and len(costs.each) > 1:
        return np.argsort(-costs.takes, kind="stable")
    key = costs.each[0] if costs.weight is None else costs.weight
    if key.max() <= np.iinfo(np.int16).max:
        key = key.astype(np.int16)  # NumPy sorts short integers faster
    return np.argsort(-key, kind="stable")


def _kept(costs: Costs, order: Int64Array, batch: Int64Array, batches: int) -> bool:
    """Whether batches, given for the samples in an order, keep all budgets."""
    held = (np.bincount(batch, each[order], batches) for each in costs.each)
    return all((one <= limit).all() for one, limit in zip(held, costs.limits, strict=True))


def _deal(takes: npt.NDArray[Any], batches: int, at_a_time: int) -> Int64Array:
    """Batch [n] of each sample; what samples take falls.

    Where fewer are dealt at a time than there are batches, a batch with a costly sample is passed
    over until the others have come up to it.
    """
    batch = np.arange(len(takes), dtype=np.int64)
    load = np.zeros(batches)
    load[: len(takes)] = takes[:batches]
    some = max(1, at_a_time)
    for start in range(batches, len(takes), some):
        here = takes[start : start + some]
        least = load.argsort(kind="stable")[: len(here)]
        batch[start : start + some] = least
        load[least] += here
    return batch
