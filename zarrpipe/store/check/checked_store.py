"""A store as a check opens it, and its samples in blocks whose pointers are sound.

An array that cannot be opened is a finding and does not end the check.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import CORE_FIELDS, REQUIRED_FIELDS, FieldSpec
from zarrpipe.data.levels import Level, pointer_levels
from zarrpipe.errors import FieldError, StoreFormatError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.check.damaged_rows import (
    BLOCK_SAMPLES,
    AddFinding,
    BoolArray,
    CheckedRows,
    runs,
)
from zarrpipe.store.check.report import Finding, Severity
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_MASK,
    IDS,
    KINDS,
    SAMPLES_MASK,
    SUMS,
    find_array,
    meta_specs,
    present_path,
)
from zarrpipe.store.format.metadata import Attributes

MASKS = {ATOMS_MASK: Level.ATOM, EDGES_MASK: Level.EDGE}
"""Level whose rows a mask is for, by path."""

_BYTES = 1 << 23


@dataclass
class CheckedStore:
    """A store and those of its arrays that can be read, by path.

    `paths` has the path of each field by name, `index_of` the level whose rows the values of a
    field count, `known` every path that was requested. `samples` were committed before any other
    array was opened; `uncommitted` counts non-zero pointers after them.
    """

    root: Root
    group: zarr.Group
    attributes: Attributes
    arrays: dict[str, CheckedRows] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    levels: dict[str, Level] = field(
        default_factory=lambda: {spec.path: spec.level for spec in meta_specs()}
    )
    index_of: dict[str, Level] = field(default_factory=dict)
    known: set[str] = field(default_factory=lambda: {SUMS})
    samples: int = 0
    uncommitted: int = 0

    @cached_property
    def pointers(self) -> dict[str, Level]:
        """Level whose rows an array of pointers points to, by path."""
        used = {*self.attributes.levels.values(), *self.attributes.index_of.values()}
        own = [level for name, level in self.attributes.own_levels.items() if name in used]
        return {level.pointers: level for level in pointer_levels(own)}

    @property
    def ours(self) -> bool:
        """Whether zarrpipe wrote the store."""
        return self.attributes.ours

    @property
    def appended_by_another(self) -> bool:
        """Whether the store has fewer ids, which only zarrpipe writes, than pointers."""
        if not self.ours or IDS not in self.arrays or ATOMS_PTR not in self.arrays:
            return True
        return len(self.arrays[IDS]) < len(self.arrays[ATOMS_PTR]) - 1

    @property
    def units(self) -> Mapping[str, Any]:
        """Units in the attributes by field name, which may not be strings."""
        own = self.group.attrs.asdict().get("zarrpipe", {})
        units = own.get("units", {}) if isinstance(own, dict) else {}
        return units if isinstance(units, dict) else {}

    def open(self, *paths: str, add: AddFinding, required: bool = True) -> CheckedRows | None:
        """Open the first array that exists; report a finding if none can be opened."""
        for path in paths:
            try:
                array = find_array(self.group, path)
            except (StoreFormatError, OSError) as error:
                self.known.add(path)
                message = f"{error}; put its zarr.json back from a copy of the store"
                add(Finding("metadata", Severity.ERROR, path, message))
                return None
            if array is not None:
                self.known.add(path)
                directory = None if self.root.directory is None else self.root.directory / path
                rows = self.arrays[path] = CheckedRows(path, array, directory)
                return rows
        if required:
            message = "there is no such array, and every store needs it: put it back from a copy"
            add(Finding("missing", Severity.ERROR, paths[0], message))
        return None


def open_fields(store: CheckedStore, add: AddFinding) -> None:
    """Open every array except the pointers to atoms, which a check reads first."""
    for spec in meta_specs():
        if spec.path != ATOMS_PTR:
            required = store.ours or spec.path in (*store.pointers, SAMPLES_MASK)
            store.open(spec.path, add=add, required=required)
    for path in store.pointers:
        if path not in store.levels:
            store.levels[path] = Level.SYSTEM
            store.open(path, add=add)
    for name in store.attributes.levels:
        _open_field(store, name, add)
    for name in sorted(store.attributes.nullable):
        _open_presence(store, name, add)
    for name in REQUIRED_FIELDS:
        levels = store.attributes.levels
        if ATOMS_PTR in store.arrays and levels and name not in levels:
            message = f"the attributes name no field {name!r}, which every store has"
            add(Finding("missing", Severity.ERROR, "zarr.json", message))
    _check_units(store, add)


def _open_field(store: CheckedStore, name: str, add: AddFinding) -> None:
    paths = store.attributes.paths_of(name)
    try:
        known, counted = store.attributes.level_of(name), store.attributes.counted_by(name)
    except FieldError as error:
        message = f"{error}; correct it in zarr.json"
        add(Finding("level", Severity.ERROR, paths[0], message))
        return
    rows = store.open(*paths, add=add)
    if rows is None:
        return
    store.levels[rows.path] = known
    core = CORE_FIELDS.get(name)
    counted = counted if core is None else core.index_of
    wrong = _unlike(CORE_FIELDS.get(name), rows)
    if wrong:
        add(Finding("dtype", Severity.ERROR, rows.path, wrong))
        del store.arrays[rows.path]
    else:
        store.paths[name] = rows.path
        if counted is not None:
            store.index_of[name] = counted


def _unlike(spec: FieldSpec | None, rows: CheckedRows) -> str:
    """Difference of an array from its entry in the registry, or an empty string."""
    dtype, shape = np.dtype(rows.array.dtype), rows.array.shape[1:]
    if spec is None:
        return ""
    if dtype.kind not in KINDS[spec.kind]:
        return f"has dtype {dtype}, the registry has {spec.kind.value}"
    if spec.shape is not None and shape != spec.shape:
        return f"has rows of shape {shape}, the registry has {spec.shape}"
    return ""


def _open_presence(store: CheckedStore, name: str, add: AddFinding) -> None:
    path = present_path(name)
    if name not in store.attributes.levels:
        message = f"records which samples have {name!r}, which is not a field of the store"
        add(Finding("presence", Severity.WARNING, path, message))
        return
    store.levels[path] = Level.SYSTEM
    store.open(path, add=add)


def _check_units(store: CheckedStore, add: AddFinding) -> None:
    """Compare units with those of the registry; custom fields may have any unit."""
    units = store.units
    for name in store.attributes.levels:
        spec, unit = CORE_FIELDS.get(name), units.get(name)
        if unit is not None and not isinstance(unit, str):
            message = f"the unit of {name!r} is {unit!r}, expected a string"
            add(Finding("unit", Severity.ERROR, "zarr.json", message))
        elif spec is not None and unit is not None and unit != spec.unit:
            message = (
                f"{name!r} is in {unit!r}, the registry has {spec.unit!r}, which readers assume: "
                "convert the values and rewrite the store"
            )
            add(Finding("unit", Severity.ERROR, "zarr.json", message))
        elif spec is not None and spec.unit and unit is None and store.ours:
            message = f"no unit is stored for {name!r}, which is read as {spec.unit!r}"
            add(Finding("unit", Severity.WARNING, "zarr.json", message))
    for name in units.keys() - store.attributes.levels.keys():
        message = f"a unit is stored for {name!r}, which is not a field of the store"
        add(Finding("unit", Severity.NOTE, "zarr.json", message))


@dataclass
class SampleBlock:
    """Consecutive samples from number `first` on, whose `pointers` [n+1] are sound."""

    store: CheckedStore
    first: int
    pointers: dict[Level, Int64Array]
    _read: dict[str, tuple[AnyArray, BoolArray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pointers[Level.ATOM]) - 1

    @property
    def numbers(self) -> Int64Array:
        """Numbers [n] of the samples."""
        return np.arange(self.first, self.first + len(self))

    def ptr(self, level: Level) -> Int64Array:
        """Pointers [n+1] to the rows of a level."""
        if not level.has_pointers:
            return np.arange(self.first, self.first + len(self) + 1)
        return self.pointers[level]

    def none(self) -> BoolArray:
        """False [n] for each sample."""
        return np.zeros(len(self), dtype=bool)

    def rows(self, path: str) -> tuple[AnyArray, BoolArray]:
        """Rows of an array, and whether those of each sample [n] could all be read."""
        if path not in self._read:
            ptr = self.ptr(self.store.levels[path])
            values, good = self.store.arrays[path].read(int(ptr[0]), int(ptr[-1]))
            self._read[path] = values, ~any_of(~good, ptr)
        return self._read[path]

    def missing(self, path: str) -> BoolArray:
        """Which samples [n] have rows in a missing chunk."""
        ptr = self.ptr(self.store.levels[path])
        return any_of(self.store.arrays[path].missing(int(ptr[0]), int(ptr[-1])), ptr)

    @property
    def active(self) -> BoolArray:
        """Which samples [n] are not deleted."""
        return self._flags(SAMPLES_MASK)

    def present(self, name: str) -> BoolArray:
        """Which samples [n] have a field."""
        return self._flags(present_path(name))

    def _flags(self, path: str) -> BoolArray:
        """Flags [n] of samples; True where the array is missing or cannot be read."""
        if path not in self.store.arrays:
            return ~self.none()
        values, good = self.rows(path)
        return values.astype(bool) | ~good


def sample_blocks(
    store: CheckedStore, broken: dict[str, Int64Array], limits: dict[str, int]
) -> Iterator[SampleBlock]:
    """Samples without a broken pointer, in blocks of up to 8 MiB of each field."""
    levels = {Level.SYSTEM, *store.pointers.values()}
    most = {level: _most_rows(store, level) for level in levels}
    for start in range(0, store.samples, BLOCK_SAMPLES):
        stop = min(start + BLOCK_SAMPLES, store.samples)
        sound = np.ones(stop - start + 1, dtype=bool)
        ptr = {}
        for path, level in store.pointers.items():
            ptr[level], _ = store.arrays[path].read(start, stop + 1)
            entries = broken[path]
            sound[entries[(entries >= start) & (entries <= stop)] - start] = False
            sound &= ptr[level] <= limits[path]
        for begin, end in runs(sound[:-1] & sound[1:]):
            at = begin
            while at < end:
                fits = [
                    at - 1 + np.searchsorted(v[at : end + 1], v[at] + most[level], "right")
                    for level, v in ptr.items()
                ]
                to = int(min(max(at + 1, min(at + most[Level.SYSTEM], *fits)), end))
                here = {level: values[at : to + 1] for level, values in ptr.items()}
                yield SampleBlock(store, start + at, here)
                at = to


def any_of(flags: BoolArray, ptr: Int64Array) -> BoolArray:
    """Whether any row of each segment is flagged.

    >>> any_of(np.array([False, True, False]), np.array([4, 4, 6, 7])).tolist()
    [False, True, False]
    """
    if not flags.any():
        return np.zeros(len(ptr) - 1, dtype=bool)
    sums = np.concatenate([[0], np.cumsum(flags)])
    inside: BoolArray = sums[ptr[1:] - ptr[0]] > sums[ptr[:-1] - ptr[0]]
    return inside


def _most_rows(store: CheckedStore, level: Level) -> int:
    """Number of rows of the widest array of a level that fit in a block."""
    sizes = [rows.row_bytes for path, rows in store.arrays.items() if store.levels[path] == level]
    return max(1, _BYTES // max([8, *sizes]))
