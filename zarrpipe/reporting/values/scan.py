"""One number for each sample and quantity, from one pass over the rows of all samples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array
from zarrpipe.data.fields import REQUIRED_FIELDS
from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.reporting.contents import FloatArray
from zarrpipe.store.query.derived import GRAMS_PER_CUBIC_CENTIMETRE, BoolArray
from zarrpipe.store.query.elements import MASSES, SYMBOLS, as_elements, composition_codes
from zarrpipe.training.statistics import sample_blocks

MOST_ATOMS, MOST_SAMPLES = 1 << 26, 2_000_000
"""Atoms and samples that are read; of stores with more, evenly spread runs of samples."""
_RUNS, _KEPT_BLOCKS = 256, 16

FORCE_EDGES = np.logspace(-4, 5, 91)
"""Norms between which forces are counted, eV/Angstrom; smaller ones are in the first bin."""

_FIELDS = ("forces", "energy", "stress", "cell", "pbc")
WIDE = 16
"""Numbers for each atom, from which a field is not searched for NaN."""


def floats_to_check(schema: Mapping[str, Field], *, wide: bool = False) -> list[str]:
    """Fields of floats whose only check is that they are finite; `wide`: those left out of it."""
    return [
        name
        for name, item in schema.items()
        if name not in (*REQUIRED_FIELDS, *_FIELDS)
        and item.level in (Level.SYSTEM, Level.ATOM)
        and item.categories is None
        and item.dtype.kind not in "iub"
        and (item.level is Level.ATOM and int(np.prod(item.shape)) >= WIDE) is wide
    ]


@dataclass(frozen=True)
class SampleValues:
    """Quantities of K samples, [K] each; NaN where a sample lacks one.

    `rms_norm` is the root mean square of the norms of the forces, eV/Angstrom, `stress` its largest
    component and `principal` [K, 3] its eigenvalues, eV/Angstrom^3. `mass` is in amu, `span` the
    largest extent of the positions along an axis, Angstrom. `rows` are places in the dataset,
    `present` which samples have a field, and `not_finite` which have it with NaN or infinity in it.
    `force_counts` [119, bins] counts force norms by element between `FORCE_EDGES`, `with_element`
    [119] samples and `of_element` [119] atoms.
    """

    rows: Int64Array
    atoms: Int64Array
    codes: UInt64Array
    ids: UInt64Array
    energy: FloatArray
    max_force: FloatArray
    rms_norm: FloatArray
    stress: FloatArray
    pressure: FloatArray
    principal: FloatArray
    mass: FloatArray
    volume: FloatArray
    span: FloatArray
    periodic: BoolArray
    present: Mapping[str, BoolArray]
    not_finite: Mapping[str, BoolArray]
    force_counts: Int64Array
    of_element: Int64Array
    with_element: Int64Array
    samples: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def complete(self) -> bool:
        """Whether all samples of the dataset were read."""
        return len(self) == self.samples

    @property
    def energy_per_atom(self) -> FloatArray:
        """Energy of each sample by its number of atoms, eV."""
        return self.energy / self.atoms

    @property
    def rms_force(self) -> FloatArray:
        """Root mean square of the components of the forces [K], eV/Angstrom."""
        size: FloatArray = self.rms_norm / np.sqrt(3.0)
        return size

    @property
    def atoms_per_volume(self) -> FloatArray:
        """Number density [K] of periodic samples, atoms for each Angstrom^3."""
        volume = np.where(self.periodic & (self.volume > 0), self.volume, np.nan)
        density: FloatArray = self.atoms / volume
        return density

    @property
    def density(self) -> FloatArray:
        """Mass density [K] of periodic samples, g/cm^3."""
        return self.mass / self.atoms * self.atoms_per_volume * GRAMS_PER_CUBIC_CENTIMETRE


def scan(
    dataset: ZarrDataset, seed: int, most_atoms: int = MOST_ATOMS, most: int = MOST_SAMPLES
) -> SampleValues:
    """Read the samples block by block, or evenly spread runs of them if there are too many."""
    num_atoms = dataset.num_atoms
    rows = scanned_rows(num_atoms, most_atoms, seed, most)
    reader = _Scan(dataset, rows, num_atoms[rows])
    for place, here in enumerate(sample_blocks(reader.atoms)):
        reader.add(slice(int(here[0]), int(here[-1]) + 1))
        if place % _KEPT_BLOCKS == 0:
            _drop_pages(dataset)
    _drop_pages(dataset)
    return reader.values()


def _drop_pages(dataset: ZarrDataset) -> None:
    """Release the memory of mapped rows, each of which is read once."""
    for view in dataset._stores.views:
        own = floats_to_check(view.schema)
        view.drop_pages([n for n in (*REQUIRED_FIELDS, *_FIELDS, *own) if n in view.schema])


def scanned_rows(
    num_atoms: Int64Array, most_atoms: int, seed: int, most: int = MOST_SAMPLES
) -> Int64Array:
    """All samples, or equally long runs of them at random places in equal parts of the store."""
    count, total = len(num_atoms), int(num_atoms.sum())
    if total <= most_atoms and count <= most:
        return np.arange(count)
    wanted = max(1, min(most, int(most_atoms / total * count)))
    runs = min(_RUNS, wanted)
    bounds = np.linspace(0, count, runs + 1).astype(np.int64)
    length = wanted // runs
    rooms = np.maximum(np.diff(bounds) - length, 0)
    starts = bounds[:-1] + np.random.default_rng(seed).integers(0, rooms + 1)
    rows = (starts[:, None] + np.arange(length)).reshape(-1)
    return np.unique(rows[rows < count])


def spread_rows(count: int, most: int, rng: np.random.Generator) -> Int64Array:
    """All of `count` places, or one at random in each of `most` equal parts."""
    if count <= most:
        return np.arange(count)
    bounds = np.linspace(0, count, most + 1)
    places = (bounds[:-1] + rng.random(most) * np.diff(bounds)).astype(np.int64)
    return np.unique(np.minimum(places, count - 1))


def _finite(batch: Batch, name: str, *, at_atoms: bool) -> BoolArray:
    """Which systems [B] have only finite values of a field."""
    values = batch.fields[name]
    finite: BoolArray = values.isfinite().reshape(len(values), -1).all(dim=1).numpy()
    return np.logical_and.reduceat(finite, batch.batch_ptr.numpy()[:-1]) if at_atoms else finite


class _Scan:
    """Arrays of samples that are filled block by block."""

    def __init__(self, dataset: ZarrDataset, rows: Int64Array, atoms: Int64Array) -> None:
        self._dataset, self.rows, self.atoms = dataset, rows, atoms
        schema = dataset.schema
        self._fields = [name for name in _FIELDS if name in schema]
        self._present = {name: dataset.present(name, rows) for name in schema}
        labels = [name for name in self._fields if name not in ("cell", "pbc")]
        self._others = floats_to_check(schema)
        checked = ("positions", *labels, *self._others)
        self._bad = {name: np.zeros(len(rows), dtype=bool) for name in checked}
        names = ("energy", "max_force", "rms_norm", "stress", "pressure", "mass", "volume", "span")
        self._numbers = {name: np.full(len(rows), np.nan) for name in names}
        self._principal = np.full((len(rows), 3 if "stress" in self._fields else 0), np.nan)
        self._codes = np.zeros(len(rows), dtype=np.uint64)
        self._periodic = np.zeros(len(rows), dtype=bool)
        kinds = len(SYMBOLS)
        self._forces = np.zeros((kinds, len(FORCE_EDGES) + 1), dtype=np.int64)
        self._of_element, self._with_element = np.zeros((2, kinds), dtype=np.int64)

    def values(self) -> SampleValues:
        """What was found."""
        return SampleValues(
            rows=self.rows,
            atoms=self.atoms,
            codes=self._codes,
            ids=self._dataset.ids_of(self.rows),
            **self._numbers,
            principal=self._principal,
            periodic=self._periodic,
            present=self._present,
            not_finite=self._bad,
            force_counts=self._forces,
            of_element=self._of_element,
            with_element=self._with_element,
            samples=len(self._dataset),
        )

    def add(self, here: slice) -> None:
        """Read a range of the samples."""
        batch = self._dataset.gather(self.rows[here], [*self._fields, *self._others])
        with np.errstate(all="ignore"):  # of labels that are NaN or overflow
            self._add_atoms(here, batch)
            for name, add in (
                ("forces", self._add_forces),
                ("energy", self._add_energies),
                ("stress", self._add_stresses),
                ("cell", self._add_cells),
            ):
                if name in batch:
                    add(here, batch, self._present[name][here])
        for name in self._others:
            at_atoms = self._dataset.schema[name].level is Level.ATOM
            finite = _finite(batch, name, at_atoms=at_atoms)
            self._bad[name][here] = self._present[name][here] & ~finite

    def _add_atoms(self, here: slice, batch: Batch) -> None:
        starts, kinds = batch.batch_ptr.numpy(), len(SYMBOLS)
        numbers = as_elements(batch.atomic_numbers.numpy())
        self._codes[here] = composition_codes(numbers, starts)
        self._of_element += np.bincount(numbers, minlength=kinds)
        cells = np.repeat(np.arange(len(starts) - 1) * kinds, np.diff(starts)) + numbers
        found = np.zeros((len(starts) - 1) * kinds, dtype=bool)
        found[cells] = True
        self._with_element += found.reshape(-1, kinds).sum(axis=0)
        self._numbers["mass"][here] = np.add.reduceat(MASSES[numbers], starts[:-1])
        positions = batch.positions.numpy()
        low = np.minimum.reduceat(positions, starts[:-1]).astype(np.float64)
        high = np.maximum.reduceat(positions, starts[:-1]).astype(np.float64)
        span = (high - low).max(axis=1)
        self._numbers["span"][here] = span
        self._bad["positions"][here] = ~np.isfinite(span)

    def _add_forces(self, here: slice, batch: Batch, has: BoolArray) -> None:
        forces, starts = batch.forces.numpy(), batch.batch_ptr.numpy()
        norms = np.sqrt(np.einsum("ij,ij->i", forces, forces, dtype=np.float64))
        largest = np.maximum.reduceat(norms, starts[:-1])
        self._numbers["max_force"][here] = np.where(has, largest, np.nan)
        squares = np.add.reduceat(norms**2, starts[:-1]) / np.diff(starts)
        self._numbers["rms_norm"][here] = np.where(has, np.sqrt(squares), np.nan)
        self._bad["forces"][here] = has & ~np.isfinite(largest)
        kept = np.repeat(has, np.diff(starts)) & np.isfinite(norms)
        numbers = as_elements(batch.atomic_numbers.numpy())[kept]
        bins = len(FORCE_EDGES) + 1
        cells = numbers * bins + np.searchsorted(FORCE_EDGES, norms[kept], side="right")
        self._forces += np.bincount(cells, minlength=self._forces.size).reshape(-1, bins)

    def _add_energies(self, here: slice, batch: Batch, has: BoolArray) -> None:
        energies = batch.energy.numpy().reshape(-1).astype(np.float64)
        self._numbers["energy"][here] = np.where(has, energies, np.nan)
        self._bad["energy"][here] = has & ~np.isfinite(energies)

    def _add_stresses(self, here: slice, batch: Batch, has: BoolArray) -> None:
        stress = batch.stress.numpy().astype(np.float64)
        sizes = np.abs(stress).max(axis=(1, 2))
        self._numbers["stress"][here] = np.where(has, sizes, np.nan)
        pressure = -np.trace(stress, axis1=1, axis2=2) / 3
        self._numbers["pressure"][here] = np.where(has, pressure, np.nan)
        self._bad["stress"][here] = has & ~np.isfinite(sizes)
        kept = has & np.isfinite(sizes)
        even = (stress[kept] + stress[kept].transpose(0, 2, 1)) / 2
        self._principal[np.flatnonzero(kept) + here.start] = np.linalg.eigvalsh(even)

    def _add_cells(self, here: slice, batch: Batch, has: BoolArray) -> None:
        volumes = np.abs(np.linalg.det(batch.cell.numpy().astype(np.float64)))
        self._numbers["volume"][here] = np.where(has & (volumes > 0), volumes, np.nan)
        if "pbc" in batch:
            self._periodic[here] = batch.pbc.numpy().any(axis=1) & self._present["pbc"][here]
