"""Facts of all stores and runs under some paths."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zarrpipe.watch.facts import Facts, RunFacts
from zarrpipe.watch.find import LOG, Found, check_places, find
from zarrpipe.watch.run_watch import RunWatch
from zarrpipe.watch.store_watch import StoreWatch
from zarrpipe.watch.throttled import Throttled

_LEAST_BETWEEN_FINDS = 5.0


class Watcher:
    """Polls the stores and runs under some paths; what appears there later is added.

    Parameters
    ----------
    places : sequence of str
        Stores (paths or URLs), directories of runs, and folders that hold some.
    clock : callable
        Seconds since 1970.

    Raises
    ------
    ArgumentError
        If there is nothing at one of the paths.

    Examples
    --------
    >>> import tempfile
    >>> import zarrpipe as zp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     watcher = Watcher([folder])
    ...     with zp.ZarrData(f"{folder}/run.zarr") as sink:
    ...         sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [2]))
    ...         facts = watcher.look()
    >>> [(one.samples, one.writer.alive) for one in facts.stores]
    [(1, True)]
    """

    def __init__(self, places: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self._places = [os.fspath(one) for one in places]
        check_places(self._places)
        self._clock, self._began = clock, clock()
        self._processor_began = time.process_time()
        self._find = Throttled(lambda: find(self._places), _LEAST_BETWEEN_FINDS)
        self._stores: dict[str, StoreWatch] = {}
        self._runs: dict[Path, RunWatch] = {}

    def look(self) -> Facts:
        """Poll everything once."""
        now = self._clock()
        found = self._find.get(now) or Found()
        runs = self._look_at_runs(found, now)
        for store in (*found.stores, *(store for run in runs for store in run.stores)):
            place = os.path.realpath(store) if "://" not in store else store
            if place not in self._stores:
                self._stores[place] = StoreWatch(store)
        stores = tuple(watch.look(now) for watch in self._stores.values())
        took = time.process_time() - self._processor_began
        return Facts(
            now,
            self._began,
            took / (now - self._began) if now > self._began else 0.0,
            stores,
            runs,
            self._notes(found),
        )

    def close(self) -> None:
        """Close all stores."""
        for store in self._stores.values():
            store.close()

    def _look_at_runs(self, found: Found, now: float) -> tuple[RunFacts, ...]:
        for log in found.logs:
            if log.resolve() not in self._runs:
                self._runs[log.resolve()] = RunWatch(log)
        facts = [(run, run.look(now)) for run in self._runs.values()]
        return tuple(one for run, one in facts if not run.belongs_elsewhere)

    def _notes(self, found: Found) -> tuple[str, ...]:
        """Remarks for people."""
        if found.cut_short:
            return ("there are too many folders to look at all of them: give one further down",)
        if not self._stores and not self._runs:
            return (f"no store and no {LOG} in {', '.join(self._places)} yet",)
        return ()
