"""Pack samples into batches of nearly equal cost within budgets.

An order of samples is cut into windows. Each window deals its samples, the costliest first and some
at a time, each to the batch with the lowest load. So its batches cost nearly the same: budgets are
filled, and ranks that take neighbouring batches hardly wait for each other.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import Int64Array, pointers
from zarrpipe.data.validate import check_count
from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.training.epoch.batch_plan import IndexArray

_WINDOW_BATCHES, _LEAST_WINDOW = 256, 1024
_FEW = 4096
_EASE = 0.999  # fewer batches than the last window needed are tried first


@dataclass(frozen=True)
class Costs:
    """Cost of n samples by budget.

    `each` int64 [K, n] is the cost of each sample in each budget, at most its entry of `limits`
    [K]. `weight` int64 [n] is the quantity to balance across equal-sized batches; by default it is
    the largest share of a budget.
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
    def load(self) -> npt.NDArray[Any]:
        """Quantity [n] to balance: the weight, or the largest share of a budget."""
        if self.weight is not None:
            return self.weight
        load: npt.NDArray[Any] = (self.each / self.limits[:, None]).max(axis=0)
        return load

    @property
    def least_batches(self) -> int:
        """Lower bound of the number of batches."""
        return max(1, int(np.ceil((self.each.sum(axis=1) / self.limits).max())))


@dataclass(frozen=True)
class Budgets:
    """Limits of a batch; None is no limit."""

    samples: int | None = None
    atoms: int | None = None
    edges: int | None = None

    @classmethod
    def of(cls, batch_size: Any, max_atoms: Any, max_edges: Any) -> "Budgets":
        """Budgets of a sampler's arguments."""
        given = {"batch_size": batch_size, "max_atoms": max_atoms, "max_edges": max_edges}
        if all(value is None for value in given.values()):
            raise ArgumentError(
                "a batch has no size: expected batch_size, max_atoms or max_edges, or several"
            )
        return cls(
            *(
                None if value is None else check_count(name, value, 1)
                for name, value in given.items()
            )
        )

    def costs(self, data: Any, samples: IndexArray) -> Costs:
        """Costs of samples [n] of data that has ``num_atoms`` and ``num_edges`` [N].

        Without budgets of atoms and edges, batches are balanced by their atoms.
        """
        each, limits = [], []
        if self.samples is not None:
            each.append(np.ones(len(samples), dtype=np.int64))
            limits.append(self.samples)
        for name, limit in (("atoms", self.atoms), ("edges", self.edges)):
            if limit is None:
                continue
            sizes = _sizes(data, name, samples)
            if len(sizes) and sizes.max() > limit:
                place = int(sizes.argmax())
                raise ArgumentError(
                    f"sample {samples[place]} has {sizes[place]} {name}, more than max_{name}="
                    f"{limit}: raise max_{name}, or leave the sample out "
                    f"(where='num_{name} <= {limit}')"
                )
            each.append(sizes)
            limits.append(limit)
        by_count = self.atoms is None and self.edges is None
        weight = _sizes(data, "atoms", samples) if by_count else None
        # An epoch may be long: one budget is not copied.
        stacked = np.stack(each) if len(each) > 1 else each[0][None]
        return Costs(stacked, np.array(limits), weight)


def _sizes(data: Any, name: str, samples: IndexArray) -> Int64Array:
    """Number [n] of atoms or edges of samples."""
    if not len(samples):
        return np.zeros(0, dtype=np.int64)
    if not hasattr(data, f"num_{name}"):
        raise ArgumentTypeError(
            f"batches are limited or balanced by their {name}, and {type(data).__name__} has no "
            f"num_{name} [N]: expected a ZarrDataset, or batch_size alone"
        )
    sizes: Int64Array = np.asarray(getattr(data, f"num_{name}"), dtype=np.int64)[samples]
    return sizes


def pack(costs: Costs) -> tuple[Int64Array, Int64Array]:
    """Pack samples within windows of their order: positions [n], and bounds [batches + 1].

    Batch b has the positions ``order[bounds[b]:bounds[b + 1]]``; each sample is in one batch.

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
    """Bounds [batches + 1] of batches that keep the order and hold as many samples as fit.

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
    """Bounds of the same batches, the last ones halved until all ranks get equally many.

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
    """Positions [n], batch sizes, and the ratio of batches to the lower bound.

    Batches are sorted by load, so that neighbours have nearly the same.
    """
    order = _costliest_first(costs)
    loads = costs.load[order]
    least = costs.least_batches
    batches = max(least, round(least * surplus * _EASE))
    while True:
        batch = _deal(loads, batches, batches if costs.weight is not None else batches // 2)
        if _within(costs, order, batch, batches):
            break
        batches += max(1, batches // 100)
    rank = np.empty(batches, dtype=np.int64)
    rank[np.argsort(np.bincount(batch, loads, batches), kind="stable")] = np.arange(batches)
    batch = rank[batch]
    sizes = np.bincount(batch, minlength=batches)
    places = order[np.argsort(batch, kind="stable")]
    return places, sizes[sizes > 0].astype(np.int64), batches / least


def deal_steps(
    costs: Costs, steps: int, ranks: int, least_before_last: int = 0
) -> tuple[Int64Array, Int64Array] | None:
    """Deal all samples to one or two steps of a batch a rank: positions [n] and bounds, as `pack`.

    With two steps, each gets half of the load, and the first at least `least_before_last` samples.
    None if a budget is exceeded or a rank gets nothing.

    Examples
    --------
    >>> atoms = np.array([9, 1, 7, 2, 5, 6])
    >>> order, bounds = deal_steps(Costs(atoms[None], np.array([12])), 1, 3)
    >>> np.add.reduceat(atoms[order], bounds[:-1])
    array([10,  9, 11])
    """
    cuts = [0, len(costs)]
    if steps == 2:
        taken = np.cumsum(costs.load)
        half = int(np.searchsorted(taken, taken[-1] / 2)) + 1
        cuts.insert(1, min(max(half, least_before_last), len(costs)))
    orders, sizes = [], []
    for start, stop in itertools.pairwise(cuts):
        some = costs.window(start, stop)
        if len(some) < ranks:
            return None
        order = _costliest_first(some)
        few = len(some) <= _FEW and some.weight is None
        batch = _deal(some.load[order], ranks, 1 if few else ranks)
        if not _within(some, order, batch, ranks):
            return None
        orders.append(order[np.argsort(batch, kind="stable")] + start)
        sizes.append(np.bincount(batch, minlength=ranks))
    return np.concatenate(orders), pointers(np.concatenate(sizes))


def _costliest_first(costs: Costs) -> Int64Array:
    """Positions [n] of samples in descending order of load."""
    if costs.weight is None and len(costs.each) > 1:
        return np.argsort(-costs.load, kind="stable")
    key = costs.each[0] if costs.weight is None else costs.weight
    if key.max() <= np.iinfo(np.int16).max:
        key = key.astype(np.int16)  # NumPy sorts short integers faster
    return np.argsort(-key, kind="stable")


def _within(costs: Costs, order: Int64Array, batch: Int64Array, batches: int) -> bool:
    """Whether all budgets hold, given the batch [n] of each sample of an order."""
    held = (np.bincount(batch, each[order], batches) for each in costs.each)
    return all((one <= limit).all() for one, limit in zip(held, costs.limits, strict=True))


def _deal(loads: npt.NDArray[Any], batches: int, at_a_time: int) -> Int64Array:
    """Batch [n] of each sample, given loads in descending order.

    If fewer samples are dealt at a time than there are batches, full batches are passed over.
    """
    batch = np.arange(len(loads), dtype=np.int64)
    load = np.zeros(batches)
    load[: len(loads)] = loads[:batches]
    some = max(1, at_a_time)
    for start in range(batches, len(loads), some):
        here = loads[start : start + some]
        least = load.argsort(kind="stable")[: len(here)]
        batch[start : start + some] = least
        load[least] += here
    return batch
