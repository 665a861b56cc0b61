"""Facts of one store, polled while others write it."""

import os
import shutil
import sys
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

import numpy as np
from zarr.storage import LocalStore

from zarrpipe.data.levels import Level
from zarrpipe.errors import StoreNotFoundError, ZarrPipeError
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.store.backend.lock import holder_of
from zarrpipe.store.check.stray_files import holder_lives
from zarrpipe.store.format.layout import ATOMS_PTR
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.summary import bytes_on_disk
from zarrpipe.watch.facts import StoreFacts, Writer, thinned
from zarrpipe.watch.throttled import Throttled

_LEAST_BETWEEN_SIZES = 10.0


class StoreWatch:
    """A store at a path or URL, which may be made, emptied or replaced while it is watched.

    A look finds N by a search of the pointers from the last N, and reads the rounds of new samples.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        local = "://" not in place and sys.platform != "win32"
        self._directory = Path(place) if local else None
        self._view: StoreView | None = None
        self._facts = StoreFacts(place)
        self._size = Throttled(self._bytes, _LEAST_BETWEEN_SIZES)
        self._growth: list[tuple[float, float]] = []
        self._looks: deque[tuple[float, int]] = deque(maxlen=2)
        self._began = 0.0
        self._generation, self._known = "", 0
        self._rounds: Counter[int] = Counter()

    def look(self, now: float) -> StoreFacts:
        """The facts at a time, in seconds since 1970."""
        first = not self._looks
        if first:
            self._began = now
        try:
            facts = self._read(self._facts, now, first=first)
        except StoreNotFoundError as error:
            self.close()
            facts = replace(self._facts, samples=0, atoms=0, problem=str(error))
        except (ZarrPipeError, OSError) as error:  # half made, or exchanged at this moment
            self.close()
            facts = replace(self._facts, problem=str(error))
        self._looks.append((now, facts.arrived))
        self._growth.append((now, facts.samples))
        thinned(self._growth)
        self._facts = replace(self._with_rates(facts, now), growth=tuple(self._growth))
        return self._facts

    def close(self) -> None:
        """Close the store; the next look opens it again."""
        if self._view is not None:
            self._view.close()
        self._view, self._known, self._generation = None, 0, ""

    def _read(self, before: StoreFacts, now: float, *, first: bool) -> StoreFacts:
        """Facts that the store says itself."""
        if self._view is None:
            self._view = StoreView(self._store())
        else:
            self._view.refresh()
        view = self._view
        if anew := view.generation != self._generation:
            self._known, self._generation = 0, view.generation
            self._rounds.clear()
        came, atoms = view.num_samples - self._known, before.atoms
        if came or anew:
            self._count_rounds(view)
            self._known = view.num_samples
            deleted = view.snapshot.active is not None
            atoms = int(view.num_atoms.sum()) if deleted else view.snapshot.extent.atoms
        if anew:
            came = _arrivals(before.samples, view)
        last = max(self._rounds, default=None)
        return replace(
            before,
            problem="",
            samples=view.num_samples,
            atoms=atoms,
            arrived=0 if first else before.arrived + came,
            rounds=len(self._rounds),
            last_round=last,
            last_round_samples=None if last is None else self._rounds[last],
            bytes_stored=self._size.get(now),
            bytes_free=self._free(),
            writer=self._writer(),
            last_append=self._last_change() if first else now if came else before.last_append,
        )

    def _store(self) -> StoreLike:
        """The store, so that nothing can be written to it."""
        if self._directory is None:
            return self._place
        return LocalStore(self._directory, read_only=True)

    def _count_rounds(self, view: StoreView) -> None:
        """Count the rounds of samples that were not known."""
        item = view.schema.get("round")
        if item is None or item.level is not Level.SYSTEM or item.dtype.kind not in "iu":
            return
        if item.categories is not None or np.prod(item.shape, dtype=int) != 1:
            return
        new = np.arange(self._known, view.num_samples)
        if not len(new):
            return
        values = view.system_field("round", new).reshape(-1)[view.present("round", new)]
        found, counts = np.unique(values, return_counts=True)
        self._rounds.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def _with_rates(self, facts: StoreFacts, now: float) -> StoreFacts:
        """Facts with samples a second: of the last interval, and since the first look."""
        (then, before), began = self._looks[0], self._began
        return replace(
            facts,
            samples_per_s=(facts.arrived - before) / (now - then) if now > then else None,
            samples_per_s_mean=facts.arrived / (now - began) if now > began else None,
        )

    def _writer(self) -> Writer | None:
        """The process that the lock names; one that closes the store at this moment is none."""
        if self._directory is None or (holder := holder_of(self._directory)) is None:
            return None
        alive = holder_lives(holder)
        if not alive and holder_of(self._directory) != holder:
            return None
        return Writer(holder.host, holder.pid, holder.since, alive)

    def _last_change(self) -> float | None:
        """When a file of the pointers was written last."""
        if self._directory is None:
            return None
        times = [
            os.lstat(os.path.join(folder, name)).st_mtime  # noqa: PTH118
            for folder, _, names in os.walk(self._directory / ATOMS_PTR / "c")
            for name in names
        ]
        return max(times, default=None)

    def _free(self) -> int | None:
        return None if self._directory is None else shutil.disk_usage(self._directory).free

    def _bytes(self) -> int | None:
        return None if self._directory is None else bytes_on_disk(self._directory)


def _arrivals(before: int, view: StoreView) -> int:
    """Samples that came to a store of `before`, which was emptied, rewritten or opened again."""
    emptied = view.num_samples < before and view.snapshot.active is None
    return view.num_samples if emptied else max(0, view.num_samples - before)
