"""Columns that follow from the fields of a sample, such as its largest force."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.store.query.elements import MASSES, as_elements, composition_codes

BoolArray = npt.NDArray[np.bool_]
Values = tuple[AnyArray, BoolArray | None]
"""Value of each sample, [K], and which samples have one, [K]; None for all."""

_FLOAT64 = np.dtype("float64")
GRAMS_PER_CUBIC_CENTIMETRE = 1.66053906892
"""One amu in a cubic Angstrom."""


class SampleRows(Protocol):
    """What K samples of a store have."""

    @property
    def num_atoms(self) -> Int64Array:
        """Number of atoms of each sample, [K]."""
        ...

    def field(self, name: str) -> AnyArray:
        """Rows [K, ...] of a field at system level that the store has."""
        ...

    def batches(self, *optional: str) -> Iterator[tuple[slice, Batch]]:
        """Batches of bounded size, with the places of their samples among the K.

        They have atomic numbers, positions, and what the store has of the optional fields.
        """
        ...


@dataclass(frozen=True)
class DerivedColumn:
    """A column that is computed; a sample that lacks one of the fields `needs` has no value."""

    needs: tuple[str, ...]
    compute: Callable[[SampleRows], Values]
    dtype: np.dtype[Any] = _FLOAT64
    unit: str = ""
    is_text: bool = False


def has_element(rows: SampleRows, number: int) -> BoolArray:
    """Which samples [K] have an atom of an element."""
    found = np.zeros(len(rows.num_atoms), dtype=bool)
    for here, batch in rows.batches():
        found[here] = np.logical_or.reduceat(_numbers(batch) == number, _starts(batch))
    return found


def _max_force(rows: SampleRows) -> Values:
    largest = np.zeros(len(rows.num_atoms))
    for here, batch in rows.batches("forces"):
        forces = batch.fields["forces"].numpy().astype(np.float64, copy=False)
        squares = np.einsum("ij,ij->i", forces, forces)
        largest[here] = np.sqrt(np.maximum.reduceat(squares, _starts(batch)))
    return largest, None


def _energy_per_atom(rows: SampleRows) -> Values:
    energy = rows.field("energy").reshape(-1).astype(np.float64, copy=False)
    return energy / rows.num_atoms, None


def _volume(rows: SampleRows) -> Values:
    volume = np.abs(np.linalg.det(rows.field("cell").astype(np.float64, copy=False)))
    return volume, volume > 0


def _density(rows: SampleRows) -> Values:
    volume, _ = _volume(rows)
    masses = np.zeros(len(volume))
    for here, batch in rows.batches("atomic_masses"):
        mass = MASSES[as_elements(_numbers(batch))]
        if "atomic_masses" in batch:
            has = batch.present("atomic_masses")[batch.batch_idx].numpy()
            mass = np.where(has, batch.fields["atomic_masses"].numpy(), mass)
        masses[here] = np.add.reduceat(mass, _starts(batch))
    known = (volume > 0) & ~np.isnan(masses)
    density = np.zeros(len(volume))
    np.divide(masses, volume, out=density, where=known)
    return density * GRAMS_PER_CUBIC_CENTIMETRE, known


def _formula(rows: SampleRows) -> Values:
    codes = np.zeros(len(rows.num_atoms), dtype=np.uint64)
    for here, batch in rows.batches():
        codes[here] = composition_codes(_numbers(batch), batch.batch_ptr.numpy())
    return codes, None


def _numbers(batch: Batch) -> AnyArray:
    numbers: AnyArray = batch.fields["atomic_numbers"].numpy()
    return numbers


def _starts(batch: Batch) -> Int64Array:
    """First atom of each sample; none is empty."""
    starts: Int64Array = batch.batch_ptr.numpy()[:-1]
    return starts


DERIVED: Mapping[str, DerivedColumn] = MappingProxyType(
    {
        "max_force": DerivedColumn(("forces",), _max_force, unit="eV/Angstrom"),
        "energy_per_atom": DerivedColumn(("energy",), _energy_per_atom, unit="eV"),
        "volume": DerivedColumn(("cell",), _volume, unit="Angstrom^3"),
        "density": DerivedColumn(("cell",), _density, unit="g/cm^3"),
        "formula": DerivedColumn((), _formula, np.dtype("uint64"), is_text=True),
    }
)
"""Derived columns by name; the values of a column of texts are codes of them."""
