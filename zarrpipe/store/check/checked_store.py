"""A store as a check opens it: every array that can be opened, and a finding for every other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.fields import CORE_FIELDS, REQUIRED_FIELDS, FieldSpec, Level, level_of
from zarrpipe.errors import FieldError, StoreFormatError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.check.pointers import Committed, committed
from zarrpipe.store.check.report import Finding, Severity
from zarrpipe.store.check.rows import Rows, Tell
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_MASK,
    EDGES_PTR,
    IDS,
    KINDS,
    SAMPLES_MASK,
    SUMS,
    find_array,
    meta_specs,
    present_path,
)
from zarrpipe.store.format.metadata import Attributes

LEVELS = {
    ATOMS_PTR: Level.SYSTEM,
    EDGES_PTR: Level.SYSTEM,
    SAMPLES_MASK: Level.SYSTEM,
    IDS: Level.SYSTEM,
    ATOMS_MASK: Level.ATOM,
    EDGES_MASK: Level.EDGE,
}


@dataclass
class CheckedStore:
    """What of a store could be opened.

    Parameters
    ----------
    root, group, attributes
        The store, its root group and what that says.
    arrays
        Arrays that are sound enough to be read, by place.
    paths
        Place of each field of these, by name.
    levels
        Level of what is in `arrays`, by place.
    known
        Places that are asked for, whether or not there is a sound array.
    committed
        What the pointers to atoms committed before any other array was opened.
    """

    root: Root
    group: zarr.Group
    attributes: Attributes
    arrays: dict[str, Rows] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    levels: dict[str, Level] = field(default_factory=lambda: dict(LEVELS))
    known: set[str] = field(default_factory=set)
    committed: Committed = field(default_factory=Committed)

    @property
    def ours(self) -> bool:
        """Whether zarrpipe wrote the store."""
        return self.attributes.ours

    @property
    def appended_by_another(self) -> bool:
        """Whether ids, which no other library writes, are none or fewer than the pointers."""
        if not self.ours or IDS not in self.arrays or ATOMS_PTR not in self.arrays:
            return True
        return len(self.arrays[IDS]) < len(self.arrays[ATOMS_PTR]) - 1

    def open(self, *places: str, tell: Tell, required: bool = True) -> Rows | None:
        """Open the array at the first of some places that has one; None and a finding if none."""
        for path in places:
            try:
                array = find_array(self.group, path)
            except (StoreFormatError, OSError) as error:
                self.known.add(path)
                message = f"{error}; put its zarr.json back from a copy of the store"
                tell(Finding("metadata", Severity.ERROR, path, message))
                return None
            if array is not None:
                self.known.add(path)
                directory = None if self.root.directory is None else self.root.directory / path
                rows = self.arrays[path] = Rows(path, array, directory)
                return rows
        if required:
            message = "there is no such array, and the store needs it: put it back from a copy"
            tell(Finding("missing", Severity.ERROR, places[0], message))
        return None


def open_subject(root: Root, group: zarr.Group, attributes: Attributes, tell: Tell) -> CheckedStore:
    """Open the arrays that a store should have."""
    subject = CheckedStore(root, group, attributes, known={SUMS})
    for spec in meta_specs():
        required = attributes.ours or spec.path in (ATOMS_PTR, EDGES_PTR, SAMPLES_MASK)
        subject.open(spec.path, tell=tell, required=required)
        if spec.path == ATOMS_PTR and spec.path in subject.arrays:  # before a writer adds more
            pointers = subject.arrays[ATOMS_PTR]
            subject.committed = committed(pointers, attributes.num_samples)
    for name, level in attributes.levels.items():
        _open_field(subject, name, level, tell)
    for name in sorted(attributes.nullable):
        _open_presence(subject, name, tell)
    for name in REQUIRED_FIELDS:
        if ATOMS_PTR in subject.arrays and attributes.levels and name not in attributes.levels:
            message = f"the attributes name no field {name!r}, which every store has"
            tell(Finding("missing", Severity.ERROR, "zarr.json", message))
    _check_units(subject, tell)
    return subject


def _open_field(subject: CheckedStore, name: str, level: Any, tell: Tell) -> None:
    usual, other = ("core", "custom") if name in CORE_FIELDS else ("custom", "core")
    try:
        known = level_of(name, level)
    except FieldError as error:
        message = f"{error}; correct it in zarr.json"
        tell(Finding("level", Severity.ERROR, f"{usual}/{name}", message))
        return
    rows = subject.open(f"{usual}/{name}", f"{other}/{name}", tell=tell)
    if rows is None:
        return
    subject.levels[rows.path] = known
    wrong = _unlike(CORE_FIELDS.get(name), rows)
    if wrong:
        tell(Finding("dtype", Severity.ERROR, rows.path, wrong))
        del subject.arrays[rows.path]
    else:
        subject.paths[name] = rows.path


def _unlike(spec: FieldSpec | None, rows: Rows) -> str:
    """How an array differs from what the registry has; "" if it does not."""
    dtype, shape = np.dtype(rows.array.dtype), rows.array.shape[1:]
    if spec is None:
        return ""
    if dtype.kind not in KINDS[spec.kind]:
        return f"has dtype {dtype}, the registry has {spec.kind.value}"
    if spec.shape is not None and shape != spec.shape:
        return f"has rows of shape {shape}, the registry has {spec.shape}"
    return ""


def _open_presence(subject: CheckedStore, name: str, tell: Tell) -> None:
    path = present_path(name)
    if name not in subject.attributes.levels:
        message = f"says which samples have {name!r}, which is no field of the store"
        tell(Finding("presence", Severity.WARNING, path, message))
        return
    subject.levels[path] = Level.SYSTEM
    subject.open(path, tell=tell)


def units_of(subject: CheckedStore) -> Mapping[str, Any]:
    """Units as the attributes have them."""
    own = subject.group.attrs.asdict().get("zarrpipe", {})
    units = own.get("units", {}) if isinstance(own, dict) else {}
    return units if isinstance(units, dict) else {}


def _check_units(subject: CheckedStore, tell: Tell) -> None:
    """Compare units with those of the registry; own fields may have any."""
    units = units_of(subject)
    for name in subject.attributes.levels:
        spec, unit = CORE_FIELDS.get(name), units.get(name)
        if unit is not None and not isinstance(unit, str):
            message = f"the unit of {name!r} is {unit!r}, expected a string"
            tell(Finding("unit", Severity.ERROR, "zarr.json", message))
        elif spec is not None and unit is not None and unit != spec.unit:
            message = (
                f"{name!r} is in {unit!r}, the registry has {spec.unit!r}: convert the values and "
                "write the store anew, since readers take them to be in the registry's unit"
            )
            tell(Finding("unit", Severity.ERROR, "zarr.json", message))
        elif spec is not None and spec.unit and unit is None and subject.ours:
            message = f"no unit is stored for {name!r}, which is read as {spec.unit!r}"
            tell(Finding("unit", Severity.WARNING, "zarr.json", message))
    for name in units.keys() - subject.attributes.levels.keys():
        message = f"a unit is stored for {name!r}, which is no field of the store"
        tell(Finding("unit", Severity.NOTE, "zarr.json", message))
