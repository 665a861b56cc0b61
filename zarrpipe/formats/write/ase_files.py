"""Files of ASE, written by ASE itself: extended XYZ, trajectories, and its databases."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from zarrpipe.adapters.ase import to_ase
from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.formats.write.left_out import empty_rows, reserved, units_of, without_place
from zarrpipe.formats.write.samples import Samples
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from ase import Atoms

LeftOut = dict[str, str]
_RESULTS = {"magmoms": "arrays", "energies": "arrays", "magmom": "info", "free_energy": "info"}
"""Own fields that ASE has as results of a calculator, and where `to_ase` puts them."""

_KEPT_ARRAYS = frozenset(
    {"numbers", "positions", "tags", "momenta", "masses", "initial_charges", "initial_magmoms"}
)
"""Arrays of atoms that a row of a database has places for."""

_IN_TRAJECTORY = frozenset(
    {"positions", "atomic_numbers", "atomic_masses", "momenta", "forces", "charges", "magmoms"}
    | {"energies", "tags", "initial_charges", "initial_magmoms"}
)
"""Fields of atoms that a trajectory has places for."""

_TAKEN = ("numbers", "positions", "momenta", "masses", "cell", "pbc", "info", "arrays")
_XYZ_WORDS = ("symbols", "species", "pos", "Z", "move_mask", "Lattice", "Properties", "uid")
"""Names that mean something else to `Atoms`, and in a file of extended XYZ."""

_ROUNDED = 1e-6
"""Largest difference of two components of a symmetric stress, beside its largest component."""


def write_extxyz(path: Path, samples: Samples) -> LeftOut:
    """Write extended XYZ, in which columns have 8 decimals and all else has every digit."""
    extxyz = require("ase.io.extxyz", "import")
    some, left_out = _fitting(samples, (*_TAKEN, *_XYZ_WORDS))
    for name, item in some.schema.items():
        if item.level is Level.ATOM and len(item.shape) > 1:
            columns = int(np.prod(item.shape))
            left_out[f"shape of {name}"] = f"{item.shape}: rows are written as {columns} columns"
    with path.open("w", encoding="utf-8") as file:
        images = _images(some, left_out)
        extxyz.write_xyz(file, (_for_extxyz(atoms, extxyz) for atoms in images))
    return left_out


def write_traj(path: Path, samples: Samples) -> LeftOut:
    """Write a trajectory of ASE."""
    trajectory = require("ase.io.trajectory", "import")
    some, left_out = _fitting(samples, _TAKEN)
    derived = set() if "momenta" in some.schema else {"velocities"}  # momenta follow from them
    lost = [
        name
        for name, item in some.schema.items()
        if item.level is Level.ATOM and name not in _IN_TRAJECTORY | derived
    ]
    left_out |= dict.fromkeys(lost, "a trajectory has no place for arrays of this name")
    with trajectory.TrajectoryWriter(str(path)) as writer:
        for atoms in _images(some.without(*lost), left_out):
            writer.write(atoms)
    return left_out


def write_db(path: Path, samples: Samples) -> LeftOut:
    """Write an SQLite database of ASE.

    Numbers and strings of a system are key-value pairs, so that they can be selected by, and what
    ASE does not take as such is in the row's `data`, as arrays are.
    """
    rows = require("ase.db", "import").connect(str(path), type="db")
    nan = {"energies that are NaN": "SQLite has no NaN: the rows have no energy"}
    return _write_rows(rows, samples, _pairs(), nan)


def write_aselmdb(path: Path, samples: Samples) -> LeftOut:
    """Write an LMDB of rows of ASE, with own fields in `data`, where fairchem looks for them."""
    rows = require("ase_db_backends.aselmdb", "import").LMDBDatabase(str(path))
    rows.ids = _NewIds()
    return _write_rows(rows, samples, lambda key, value: False)


def _write_rows(
    rows: Any,
    samples: Samples,
    is_pair: Callable[[str, Any], bool],
    nan: Mapping[str, str] = MappingProxyType({}),
) -> LeftOut:
    """Write a row for each sample; `nan` is left out where an energy is NaN."""
    some, left_out = _fitting(samples, _TAKEN)
    rows.metadata = _described(some.schema)
    left_out = {key: why for key, why in left_out.items() if key not in units_of(some.schema)}
    with rows:
        for atoms in _images(some, left_out):
            pairs = {key: own for key, own in atoms.info.items() if is_pair(key, own)}
            data = {key: own for key, own in atoms.info.items() if key not in pairs}
            data |= {key: own for key, own in atoms.arrays.items() if key not in _KEPT_ARRAYS}
            rows.write(atoms, key_value_pairs=pairs, data=data)
            if np.isnan(_energy(atoms)):
                left_out |= nan
    return left_out


def _described(schema: Mapping[str, Field]) -> dict[str, dict[str, str]]:
    """Metadata of a database: units and levels of the fields, by name."""
    units = {name: item.unit for name, item in schema.items() if item.unit}
    return {"units": units, "levels": {name: str(item.level) for name, item in schema.items()}}


def _energy(atoms: Atoms) -> float:
    """Energy of a sample, 0 if it has none."""
    return 0.0 if atoms.calc is None else float(atoms.calc.results.get("energy", 0.0))


class _NewIds(list[int]):
    """Ids of a new database, which count from 1: without a search through all for each row."""

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 1 <= number <= len(self)


def _fitting(samples: Samples, taken: tuple[str, ...]) -> tuple[Samples, LeftOut]:
    """Samples with the fields that `Atoms` can have, and the reasons why others are left out."""
    schema = samples.schema
    left_out = without_place(schema) | empty_rows(schema) | reserved(schema, taken)
    some = samples.without(*left_out)
    if "velocities" in some.schema and "momenta" not in some.schema:
        left_out["velocities"] = "written as momenta, masses times velocities"
    return some, left_out | units_of(some.schema)


def _images(samples: Samples, left_out: LeftOut) -> Iterator[Atoms]:
    """Each sample as `Atoms`, with every label that ASE knows as a result of its calculator."""
    singlepoint = require("ase.calculators.singlepoint", "import")
    for batch in samples.batches():
        if "stress" in batch and _is_asymmetric(batch):
            left_out["antisymmetric part of stress"] = "ASE has six numbers of a stress"
        for index in range(batch.num_graphs):
            (atoms,) = to_ase(batch.get_data(index))
            found = {name: getattr(atoms, where) for name, where in _RESULTS.items()}
            results = {name: own.pop(name) for name, own in found.items() if name in own}
            if results and atoms.calc is None:
                atoms.calc = singlepoint.SinglePointCalculator(atoms)
            if results:
                atoms.calc.results.update(results)
            yield atoms


def _is_asymmetric(batch: Batch) -> bool:
    """Whether a stress is not symmetric, beyond rounding."""
    stress = batch.stress[batch.present("stress")].numpy()
    difference = np.abs(stress - stress.swapaxes(1, 2))
    return bool((difference > _ROUNDED * np.abs(stress).max(initial=0.0)).any())


def _for_extxyz(atoms: Atoms, extxyz: Any) -> Atoms:
    """Change what ASE would write so that it could not be read, or not as the same value."""
    for key, value in atoms.arrays.items():
        rows = value.reshape(len(atoms), -1) if value.ndim > 2 else value
        atoms.arrays[key] = _wide(rows)
    for key, value in atoms.info.items():
        if isinstance(value, str):
            atoms.info[key] = _written(value, extxyz)
        elif isinstance(value, np.ndarray):
            atoms.info[key] = _wide(value)
    return atoms


def _wide(values: AnyArray) -> AnyArray:
    """Numbers as int64 or float64, whose kinds ASE can write with all digits."""
    kinds = {"u": np.int64, "i": np.int64, "f": np.float64}
    return values.astype(kinds.get(values.dtype.kind, values.dtype), copy=False)


@lru_cache(maxsize=1 << 16)
def _written(text: str, extxyz: Any) -> str:
    """What ASE has to write so that it reads the same string: ``"12"`` would become a number.

    JSON, which ASE reads too, takes the place of such a string. ASE escapes neither the backslashes
    nor the quotes in it.
    """
    between = {"before": 1, "key": text, "after": 1}
    line = extxyz.key_val_dict_to_str(between)
    if len(line.splitlines()) == 1:
        found = extxyz.key_val_str_to_dict(line)
        if isinstance(found.get("key"), str) and found == between:
            return text
    inner = json.dumps(text)[1:-1].replace('\\"', "\\u0022").replace("\\", "\\\\")
    return f'_JSON "{inner}"'


def _pairs() -> Callable[[str, Any], bool]:
    """Whether ASE takes a key and a value as a key-value pair, and gives the same value back."""
    core, row = require("ase.db.core", "import"), require("ase.db.row", "import")

    @lru_cache(maxsize=1 << 16)
    def is_taken(key: str, value: str | float) -> bool:
        if hasattr(row.AtomsRow, key):
            return False  # a property of every row, which hides a pair of its name
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of names that are formulas
            try:
                core.check({key: value})
            except (ValueError, UserWarning):
                return False
        return True

    def is_pair(key: str, value: Any) -> bool:
        if isinstance(value, str):
            return is_taken(key, value)
        return isinstance(value, bool | int | float) and np.isfinite(value) and is_taken(key, 0)

    return is_pair
