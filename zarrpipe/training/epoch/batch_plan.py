"""The batches of an epoch as data: an order of samples, cut into steps of one batch a rank."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import Int64Array, pointers
from zarrpipe.errors import ArgumentError

_MOST_OF_32_BITS = 1 << 31

IndexArray = npt.NDArray[np.signedinteger[Any]]
"""Indices, in 32 bits where they fit."""


class BatchIndices(NamedTuple):
    """The samples of a batch, and the seeds of its random numbers.

    Parameters
    ----------
    samples : array [K] int64
        Indices of the samples.
    copies : array [K] int64, optional
        Which copy of its sample each is, where an epoch may have a sample several times.
    draw : tuple of int
        Epoch and seed that random transforms draw by.
    seed : int
        Seed of the global random generators while a worker process makes the batch.
    """

    samples: Int64Array
    copies: Int64Array | None = None
    draw: tuple[int, int] = (0, 0)
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """The batches of an epoch, or of the rest of one, for all ranks.

    Parameters
    ----------
    order : array [n] int32 or int64
        Indices of the samples, in the order in which they are consumed.
    bounds : array [steps * world_size + 1] int64
        Batch b is ``order[bounds[b]:bounds[b + 1]]``; rank r has every world_size-th from r on.
    world_size : int
        Number of ranks.
    ahead : int
        Samples, over all ranks, to announce before they are read.
    copies : array [n] int32 or int64, optional
        Which copy of its sample each is, if an epoch may have several.
    """

    order: IndexArray
    bounds: Int64Array
    world_size: int
    ahead: int = 0
    copies: IndexArray | None = None

    def __len__(self) -> int:
        """Number of steps, which is the number of batches of each rank."""
        return (len(self.bounds) - 1) // self.world_size

    def batches(self, rank: int) -> Iterator[Int64Array]:
        """Indices [K] int64 of the samples of each batch of one rank."""
        return self._cut(self.order, rank)

    def items(self, rank: int, draw: tuple[int, int], seed: int) -> Iterator[BatchIndices]:
        """Batches of one rank; the first has `seed`, the next `seed` + 1, and so on."""
        copies = repeat(None) if self.copies is None else self._cut(self.copies, rank)
        parts = zip(self.batches(rank), copies, repeat(draw), count(seed), strict=False)
        return map(partial(tuple.__new__, BatchIndices), parts)  # all of it compiled

    def _cut(self, values: IndexArray, rank: int) -> Iterator[Int64Array]:
        """Values [K] int64 of the samples of each batch of one rank."""
        starts = self.bounds[rank : -1 : self.world_size].tolist()
        stops = self.bounds[rank + 1 :: self.world_size].tolist()
        return (
            values[start:stop].astype(np.int64) for start, stop in zip(starts, stops, strict=True)
        )

    def with_tail(self, start: int, places: Int64Array, bounds: Int64Array) -> "Plan":
        """Plan with another order and other bounds of the samples from `start` on."""

        def moved(values: IndexArray) -> IndexArray:
            return np.concatenate([values[:start], values[start:][places]])

        before = self.bounds[: len(self.bounds) - len(bounds)]
        return replace(
            self,
            order=moved(self.order),
            bounds=np.append(before, bounds + start),
            copies=None if self.copies is None else moved(self.copies),
        )

    def consumed(self, steps: int) -> int:
        """Number of samples in the first `steps` steps, over all ranks."""
        return int(self.bounds[steps * self.world_size])


def cut(count: int, batch_size: int, world_size: int) -> Int64Array:
    """Bounds [steps * world_size + 1] of batches that hold each of `count` samples once.

    Every rank gets the same number of batches and none is empty. All hold `batch_size` samples
    but those of the last step, or of the last two if the last has fewer samples than ranks: these
    share their samples evenly. With a batch size of 1, batches of the last step may hold two.

    Examples
    --------
    >>> cut(10, batch_size=2, world_size=2).tolist()
    [0, 2, 4, 6, 8, 9, 10]
    >>> cut(3, batch_size=8, world_size=1).tolist()
    [0, 3]
    """
    whole, tail, tail_steps = steps_of(count, batch_size, world_size)
    sizes = np.full((whole + tail_steps) * world_size, batch_size, dtype=np.int64)
    shares = tail_steps * world_size
    if shares:
        sizes[-shares:] = tail // shares
        sizes[-shares:][: tail % shares] += 1
    return pointers(sizes)


def steps_of(count: int, batch_size: int, world_size: int) -> tuple[int, int, int]:
    """Number of whole steps, of samples after them, and of steps that share these evenly."""
    whole, tail = divmod(count, batch_size * world_size)
    if tail == 0:
        return whole, 0, 0
    if tail >= world_size:
        return whole, tail, 1
    if whole == 0:
        raise ArgumentError(
            f"{count} samples cannot give each of {world_size} ranks a batch without repeats: "
            "use at most as many ranks as samples, or add samples"
        )
    return whole - 1, tail + batch_size * world_size, 2 if batch_size > 1 else 1


def epoch_order(seed: int, epoch: int, index: int | IndexArray) -> IndexArray:
    """Shuffle indices [n], or the first n integers, by seed and epoch.

    Examples
    --------
    >>> epoch_order(0, 0, 5).tolist(), epoch_order(0, 0, np.array([7, 8, 9, 5, 6])).tolist()
    ([2, 4, 3, 0, 1], [9, 6, 5, 7, 8])
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = first_indices(index) if isinstance(index, int) else index.copy()
    generator.shuffle(order)
    return order


def first_indices(count: int) -> IndexArray:
    """Integers from 0 to count - 1, in 32 bits if they fit."""
    return np.arange(count, dtype=index_dtype(count))


def index_dtype(count: int) -> np.dtype[Any]:
    """int32 if it holds integers from 0 to count - 1, else int64."""
    return np.dtype(np.int32 if count <= _MOST_OF_32_BITS else np.int64)


def compact_index(index: npt.NDArray[Any]) -> IndexArray:
    """The same indices in 32 bits if they fit."""
    count = int(index.max()) + 1 if len(index) else 0
    compact: IndexArray = index.astype(index_dtype(count), copy=False)
    return compact
