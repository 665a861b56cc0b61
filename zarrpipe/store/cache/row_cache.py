"""A cache of decoded rows: any Zarr array as one NumPy array that is fetched unit by unit.

Rows of compressed, sharded or remote arrays are fetched and decoded once, all fields and units
concurrently, into a sparse file that is mapped like a local array. A reader caches the rows that it
needs, copies them, and repeats both if any were evicted meanwhile.
"""

import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.errors import StoreClosedError
from zarrpipe.store.backend.array_reader import AbsentChunks, OpenArray
from zarrpipe.store.cache.array import CachedArray
from zarrpipe.store.cache.fetch import Fetcher, Task, in_order
from zarrpipe.store.cache.shared_cache import SharedCache
from zarrpipe.store.cache.unit_file import GENERATION, KEPT, UnitFile

Wanted = Sequence[tuple[CachedArray, Int64Array, Int64Array]]
"""Rows of several arrays: an array, and the starts [K] and stops [K] of its segments."""

THREADS = 16
"""Concurrent reads, each of up to four units; more gained nothing at 20 ms a request."""

_MOST_PREFETCHED = 512
_GRACE = 10_000_000
_LONGEST_GRACE = 10_000_000_000

Result = TypeVar("Result")


@dataclass(frozen=True)
class Lease:
    """Rows that were all cached, and the counts by which their eviction is detected."""

    cache: SharedCache
    evictions: int
    units: Sequence[tuple[UnitFile, Int64Array, Int64Array]] | None = None

    def valid(self) -> bool:
        """Whether none of the rows was evicted since."""
        if self.cache.evictions == self.evictions:
            return True
        return self.units is not None and all(
            bool((file.table[units, GENERATION] == generations).all())
            for file, units, generations in self.units
        )


class RowCache:
    """The cached arrays of one open store.

    `identity` is the name of the cache (see `cache_identity`), `directory` that of all caches,
    shared by processes; None for the memory of this process. A call that needs more than `limit`
    bytes gets more. `check` is called in any thread before fetched rows are committed, and raises
    if the store has changed. `threads` read concurrently, up to four consecutive units each.
    """

    def __init__(
        self,
        identity: str,
        directory: Path | None = None,
        limit: int | None = None,
        *,
        check: Callable[[], object] | None = None,
        threads: int = THREADS,
    ) -> None:
        self._place = (identity, directory, limit)
        self._check, self._threads = check, threads
        self._arrays: dict[str, CachedArray] = {}
        self._closed = self._warned = False
        self._begin()
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _begin_again(this))

    def array(
        self, path: str, open_array: OpenArray, absent_chunks: AbsentChunks = "any"
    ) -> CachedArray:
        """Array at `path`, which is opened on first use."""
        if path not in self._arrays:
            self._arrays[path] = CachedArray(self, path, open_array, absent_chunks)
        return self._arrays[path]

    @property
    def cache(self) -> SharedCache:
        """The shared cache, which a forked child opens anew."""
        if self._closed:
            raise StoreClosedError("the cache was closed: open the store again")
        if self._cache is None:
            self._begin()
        return self._cache  # type: ignore[return-value]

    def open(self, arrays: Sequence[CachedArray]) -> None:
        """Open arrays that are not open yet or have grown, concurrently."""
        tasks = [_opening(array) for array in arrays if array.outdated]
        for task in tasks[1:]:
            self._fetcher.pool.submit(task, urgent=True)
        for task in tasks[:1]:
            task.work(task)
        for task in tasks:
            task.result()

    def read_settled(self, arrays: Sequence[CachedArray], copy: Callable[[], object]) -> bool:
        """Call `copy` if all rows of the arrays are known to be cached.

        Returns False if they are not or if rows were evicted meanwhile; then discard the copy and
        call `read`.
        """
        cache = self.cache
        evictions = cache.evictions
        if not all(array.settled(evictions) for array in arrays):
            return False
        copy()
        return cache.evictions == evictions

    def read(self, wanted: Wanted, copy: Callable[[], Result]) -> Result:
        """Cache rows and return the result of `copy`, again if rows were evicted meanwhile."""
        attempt = 0
        while True:
            lease = self.ensure_cached(wanted, attempt)
            result = copy()
            if lease.valid():
                return result
            attempt += 1

    def ensure_cached(self, wanted: Wanted, attempt: int = 0, *, keep: bool = False) -> Lease:
        """Fetch the rows that are not cached, and return a lease of all rows.

        `attempt` counts earlier leases of the same rows that became invalid; each further one
        protects them for longer. With `keep`, they are protected while the cache is open.
        """
        cache = self.cache
        evictions = cache.evictions
        if not keep and all(array.settled(evictions) for array, _, _ in wanted):
            return Lease(cache, evictions)
        self.open([array for array, _, _ in wanted])
        needed = _units(wanted)
        with self._pinned(needed):
            cache.trim()
            lease = self._fetch(cache, needed, attempt, keep=keep)
        self._warn(cache)
        return lease

    def keep(self, array: CachedArray, rows: int) -> None:
        """Cache the first rows of an array, and protect them from eviction."""
        every = np.array([0], dtype=np.int64), np.array([rows], dtype=np.int64)
        self.ensure_cached([(array, *every)], keep=True)

    def prefetch(self, wanted: Wanted) -> None:
        """Fetch rows in the background, as far as they fit the queue."""
        evictions = self.cache.evictions
        rest = [item for item in wanted if not item[0].settled(evictions)]
        if rest and self._fetcher.pool.waiting < _MOST_PREFETCHED:
            self._fetcher.pool.submit(
                Task(lambda task: self._prefetch(rest, task), 0), urgent=False
            )

    def close(self) -> None:
        """Stop fetching and close the files; returned arrays stay valid."""
        if not self._closed:
            self._closed = True
            self._end.detach()
            if self._cache is not None:
                self._fetcher.end(None)

    def _begin(self) -> None:
        self._cache: SharedCache | None = SharedCache(*self._place)
        self._fetcher = Fetcher(self._cache, self._check, self._threads)
        self._end = weakref.finalize(self, self._fetcher.end, 1.0)

    def _fetch(
        self,
        cache: SharedCache,
        needed: Sequence[tuple[CachedArray, Int64Array]],
        attempt: int,
        *,
        keep: bool,
    ) -> Lease:
        again = False
        while True:
            evictions = cache.evictions
            last_used = KEPT if keep else _last_used(attempt)
            leased, tasks = [], []
            for array, units in needed:
                generations, absent = array.look(units)
                leased.append((array.file, units, generations))
                if len(absent):
                    tasks += self._fetcher.tasks(array, absent, last_used, wait=again)
            if not tasks and (not keep or cache.keep(leased)):
                break
            self._fetcher.pool.make_urgent(tasks)
            for task in in_order(tasks, self._threads):
                task.result()
            attempt, again = attempt + again, True
        for array, units in needed:
            if evictions or cache.limit is not None:
                array.file.use(units, last_used)
            array.settle(evictions, cache.commits)
        return Lease(cache, evictions, leased)

    @contextmanager
    def _pinned(self, needed: Sequence[tuple[CachedArray, Int64Array]]) -> Iterator[None]:
        if self._place[2] is None:
            yield
            return
        for array, units in needed:
            array.file.pin(units, 1)
        try:
            yield
        finally:
            for array, units in needed:
                array.file.pin(units, -1)

    def _prefetch(self, wanted: Wanted, task: Task) -> None:
        for array, starts, stops in wanted:
            array.follow()
            _, units = array.look(array.units(starts, stops))
            most = max(0, _MOST_PREFETCHED - self._fetcher.pool.waiting)
            self._fetcher.tasks(array, units[:most], _last_used(0), urgent=False)
        task.finish()

    def _warn(self, cache: SharedCache) -> None:
        if cache.excess_reason and not self._warned:
            self._warned = True
            warnings.warn(
                f"the cache {cache.name} holds more than its limit of {self._place[2]} bytes: "
                f"{cache.excess_reason}; give a larger cache_bytes or smaller batches",
                stacklevel=3,
            )


def _units(wanted: Wanted) -> list[tuple[CachedArray, Int64Array]]:
    """Units of each array with wanted rows; arrays with the same rows share one computation."""
    known: dict[tuple[int, ...], Int64Array] = {}
    needed = []
    for array, starts, stops in wanted:
        key = (id(starts), id(stops), *array.division)
        if key not in known:
            known[key] = array.units(starts, stops)
        needed.append((array, known[key]))
    return needed


def _last_used(attempt: int) -> int:
    """`LAST_USED` of units that are used now; later attempts protect them for a while.

    If two readers need more than the limit, they evict each other's units at first. Since each
    attempt is protected for twice as long as the one before, both finish.
    """
    now = time.monotonic_ns()
    return now if attempt == 0 else now + min(_GRACE << min(attempt, 20), _LONGEST_GRACE)


def _opening(array: CachedArray) -> Task:
    def work(task: Task) -> None:
        array.follow()
        task.finish()

    return Task(work, 0)


def _begin_again(this: "weakref.ref[RowCache]") -> None:
    """Let a forked child open the cache anew, since it inherits neither threads nor locks."""
    cache = this()
    if cache is not None and not cache._closed and cache._cache is not None:
        cache._end.detach()
        cache._cache.forget()
        cache._cache = None
        for array in cache._arrays.values():
            array.forget()
