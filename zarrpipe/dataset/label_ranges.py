"""Ranges of the labels of a store, of all samples or of evenly spread runs of them."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.dataset.store_info import Spread
from zarrpipe.store.cache.array import CachedArray
from zarrpipe.store.format.layout import ATOMS_PTR, find_array
from zarrpipe.store.format.validate import translate_zarr_errors
from zarrpipe.store.read.snapshot import detect_changes
from zarrpipe.store.read.view import StoreView

_MOST_NUMBERS, _RUNS = 1 << 23, 64
"""Numbers of a label that are read whole; of more, so many evenly spread runs are read."""

_MOST_ENCODED, _ENCODED_RUNS = 1 << 21, 16
"""The same of arrays that are compressed or not local."""

_BLOCK = 1 << 16

ValueOf = Callable[[AnyArray, Int64Array], AnyArray]
"""From the rows of B samples and pointers [B+1] to their atoms, one number for each, [B]."""


def spread_of(values: AnyArray, unit: str, looked_at: int, samples: int) -> Spread:
    """Spread of the finite ones of some values."""
    finite = values[np.isfinite(values)]
    ends = finite if len(finite) else np.array([np.nan])
    smallest, median, largest = float(ends.min()), float(np.median(ends)), float(ends.max())
    missing = len(values) - len(finite)
    return Spread(unit, smallest, median, largest, len(finite), missing, looked_at, samples)


def label_ranges(view: StoreView) -> dict[str, Spread]:
    """Range of each label that a store has, by the names of `StoreInfo.labels`."""
    found = {}
    for label, (name, value_of) in _LABELS.items():
        item = view.schema.get(name)
        if item is not None:
            values, looked_at = _Label(view, item).values(value_of)
            found[label] = spread_of(values, item.unit, looked_at, view.num_samples)
    return found


class _Label:
    """A field of a store whose rows are read in runs of samples."""

    def __init__(self, view: StoreView, item: Field) -> None:
        self._view, self._snapshot, self._item = view, view.snapshot, item
        extent = self._snapshot.extent
        self._samples = extent.samples
        self._num_rows = extent.samples if item.level is Level.SYSTEM else extent.atoms
        self._reader = self._snapshot.array(item.path, self._num_rows)

    def values(self, value_of: ValueOf) -> tuple[AnyArray, int]:
        """Value of each sample that is read and has the field, and how many samples are read."""
        found, looked_at = [np.zeros(0)], 0
        for start, stop in self._runs():
            stored = self._active(start, stop)
            looked_at += len(stored)
            if len(stored):
                values = value_of(*self._rows(start, stop))
                found.append(values[stored - start][self._has(stored)])
        self._view.drop_pages([self._item.name])
        return np.concatenate(found), looked_at

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Ranges of all stored samples, or evenly spread ones if they have too many numbers."""
        encoded = isinstance(self._reader, CachedArray)
        most, runs = (_MOST_ENCODED, _ENCODED_RUNS) if encoded else (_MOST_NUMBERS, _RUNS)
        numbers = self._num_rows * int(np.prod(self._item.shape, dtype=np.int64))
        count = self._samples
        if numbers <= most:
            starts, length = np.arange(0, count, _BLOCK), _BLOCK
        else:
            length = max(1, count * most // numbers // runs)
            starts = np.linspace(0, count - length, min(runs, count)).astype(np.int64)
        for start in starts.tolist():
            yield start, min(start + length, count)

    def _active(self, start: int, stop: int) -> Int64Array:
        """Those of a range of stored samples that are not deleted."""
        active = self._snapshot.active
        if active is None:
            return np.arange(start, stop)
        return active[np.searchsorted(active, start) : np.searchsorted(active, stop)]

    def _has(self, stored: Int64Array) -> AnyArray:
        """Which of some stored samples have the field."""
        active = self._snapshot.active
        samples = stored if active is None else np.searchsorted(active, stored)
        return self._view.present(self._item.name, samples)

    def _rows(self, start: int, stop: int) -> tuple[AnyArray, Int64Array]:
        """Rows of a range of stored samples, and pointers to the atoms of each.

        Of an array that is not mapped only the chunks with these rows are decoded.
        """
        atoms = self._snapshot.pointers(ATOMS_PTR)[start : stop + 1]
        ptr = atoms - atoms[0]
        if self._item.level is not Level.SYSTEM:
            start, stop = int(atoms[0]), int(atoms[-1])
        if not isinstance(self._reader, CachedArray):
            return self._reader.data[start:stop], ptr
        place = f"{self._snapshot.root}/{self._item.path}"
        with detect_changes(self._snapshot), translate_zarr_errors(place):
            array = find_array(self._snapshot.group, self._item.path)
            return np.asarray(array[start:stop]), ptr  # type: ignore[index]


def _energy_per_atom(rows: AnyArray, ptr: Int64Array) -> AnyArray:
    energies: AnyArray = rows.reshape(-1).astype(np.float64) / np.diff(ptr)
    return energies


def _max_force(rows: AnyArray, ptr: Int64Array) -> AnyArray:
    forces = rows.astype(np.float64, copy=False)
    with np.errstate(all="ignore"):  # of rows that are NaN
        squares: AnyArray = np.maximum.reduceat(np.einsum("ij,ij->i", forces, forces), ptr[:-1])
        return np.sqrt(squares)


def _max_stress(rows: AnyArray, ptr: Int64Array) -> AnyArray:
    largest: AnyArray = np.abs(rows).reshape(len(ptr) - 1, -1).max(axis=1)
    return largest


_LABELS: Mapping[str, tuple[str, ValueOf]] = MappingProxyType(
    {
        "energy_per_atom": ("energy", _energy_per_atom),
        "max_force": ("forces", _max_force),
        "max_stress": ("stress", _max_stress),
    }
)
"""Field from which the range of a label follows, and how."""
