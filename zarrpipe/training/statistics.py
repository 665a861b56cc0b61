"""Statistics of a training set, from sums that can be extended and merged."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array, pointers
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.store.statistics.label_rows import (
    BUCKETS,
    NUM_ELEMENTS,
    SUMMED_LABELS,
    Label,
    LabelRows,
)
from zarrpipe.store.statistics.sums import LabelSums
from zarrpipe.training.statistics_facts import Statistics
from zarrpipe.transforms.neighbors import NeighborList, find

__all__ = ["NUM_ELEMENTS", "Statistics", "StatisticsSums", "mean_neighbors", "measure"]

_BLOCK_SAMPLES, _BLOCK_ATOMS = 8192, 1 << 20
_NEIGHBOR_SAMPLES = 64
_NO_SHARE = 1e-9


@dataclass
class StatisticsSums:
    """Sums, of one bucket, from which `Statistics` follow."""

    sums: LabelSums = field(default_factory=LabelSums)

    def add(self, batch: Batch) -> Self:
        """Count the samples of a batch and the labels that they have."""
        return self._add(batch, np.diff(batch.edge_ptr.numpy()))

    def _add(self, batch: Batch, edges: Int64Array) -> Self:
        added = self.sums.copy().add(_rows_of(batch, edges))
        check_labels(added)
        self.sums = added
        return self

    def merge(self, other: "StatisticsSums") -> Self:
        """Add the sums of other samples."""
        self.sums.merge(other.sums)
        return self

    def statistics(self) -> Statistics:
        """Statistics that follow from the sums."""
        return statistics_of(self.sums)


class SplitStatistics:
    """Statistics of a split that grows at its end; only new samples are counted."""

    def __init__(self) -> None:
        self._sums, self._counted = StatisticsSums(), 0

    @property
    def sums(self) -> LabelSums:
        """Sums of the samples that were counted."""
        return self._sums.sums

    def of(
        self, dataset: ZarrDataset, rows: npt.NDArray[np.integer], share: float | None
    ) -> Statistics:
        """Statistics of rows [K] of a dataset, ascending.

        `share` is that of the first split by the hash of the id, and None for any other rows, which
        cannot use the sums that stores keep.
        """
        if len(rows) > self._counted:
            if self._counted == 0 and share is not None:
                new = measure_split(dataset, rows, share)
            else:
                new = measure(dataset.index_select(rows[self._counted :]))
            self._sums.merge(new)
            self._counted = len(rows)
        return self._sums.statistics()


def statistics_of(sums: LabelSums) -> Statistics:
    """Statistics that follow from sums of one bucket."""
    check_labels(sums)
    elements, counts = sums.elements, sums.counts[0].astype(np.int64)
    fitted, atoms = sums.fitted_energies(), int(counts.sum())
    labelled = sums.gram[0, 0, _diagonal(len(elements))] > 0
    mean = spread = float("nan")
    if energies := sums.total("energies"):
        change = fitted - sums.origin
        mean = (sums.total("per_atom") - float(sums.fraction[0] @ change)) / energies
        spread = max(sums.left() / energies - mean**2, 0.0) ** 0.5
    components, edges = sums.total("force_components"), sums.total("edges")
    squares = sums.total("force_square")
    return Statistics(
        num_samples=int(sums.total("samples")),
        num_atoms=atoms,
        element_counts=_table(elements[counts > 0], counts[counts > 0]),
        reference_energies=_table(elements[labelled], fitted[labelled]),
        energy_per_atom_mean=mean,
        energy_per_atom_std=spread,
        forces_rms=(squares / components) ** 0.5 if components else float("nan"),
        size_histogram=_table(sums.sizes, sums.size_counts),
        edges_per_atom=edges / atoms if atoms else float("nan"),
    )


def check_labels(sums: LabelSums) -> None:
    """Refuse sums from which invalid atomic numbers or labels were left out."""
    wrong = int(sums.total("without_element"))
    if wrong:
        raise FieldError(
            f"field 'atomic_numbers' of {wrong} samples has numbers that are not 0 to "
            f"{NUM_ELEMENTS - 1}: statistics by element need atomic numbers"
        )
    for name, column in (("energy", "energies_not_finite"), ("forces", "forces_not_finite")):
        bad = int(sums.total(column))
        if bad:
            raise FieldError(
                f"field {name!r} has {bad} values that are NaN or infinite in samples that are "
                "said to have it: leave the field out of what is not labelled"
            )


def measure(dataset: ZarrDataset) -> StatisticsSums:
    """Sums over all samples of a dataset, from stored sums unless it is a selection."""
    return measure_split(dataset, np.arange(len(dataset)))


def measure_split(
    dataset: ZarrDataset, rows: npt.NDArray[np.integer], share: float = 1.0
) -> StatisticsSums:
    """Sums over the first split by the hash of the id: rows [K] of a dataset, ascending.

    Stores keep sums for shares of whole per cents; for other shares all samples are read.
    """
    sums, rest = known_sums(dataset, rows, share)
    if len(rest):
        sums.merge(count(dataset.index_select(rest)))
    if len(rest) < len(rows) and not sums.sums.exact:
        return count(dataset.index_select(rows))
    return sums


def known_sums(
    dataset: ZarrDataset, rows: npt.NDArray[np.integer], share: float = 1.0
) -> tuple[StatisticsSums, npt.NDArray[np.integer]]:
    """Stored sums for `measure_split`, and the positions that they do not cover."""
    stop = round(share * BUCKETS)
    if abs(stop - share * BUCKETS) > _NO_SHARE:
        return StatisticsSums(), rows
    kept, unknown = dataset.kept_sums()
    sums = LabelSums()
    for one in kept:
        sums.merge(one.of_buckets(0, stop))
    rest = rows[np.isin(rows, unknown, assume_unique=True)] if len(unknown) else rows[:0]
    if sums.total("samples") + len(rest) != len(rows):
        return StatisticsSums(), rows
    return StatisticsSums(sums), rest


def count(dataset: ZarrDataset) -> StatisticsSums:
    """Sums over all samples of a dataset, which are read block by block."""
    fields = [name for name in SUMMED_LABELS if name in dataset.schema]
    sums, edges = StatisticsSums(), dataset.num_edges
    for block in sample_blocks(dataset.num_atoms):
        sums._add(dataset.gather(block, fields), edges[block])
    return sums


def mean_neighbors(
    dataset: ZarrDataset, cutoff: float, *, samples: int = 1024, seed: int = 0
) -> float:
    """Mean number of neighbours of an atom, estimated from some of the structures.

    Parameters
    ----------
    dataset
        The training samples, for example.
    cutoff
        How near an atom is a neighbour, Angstrom. Periodic images count.
    samples
        How many structures are looked at, at most.
    seed
        Of the choice of these.

    Returns
    -------
    float
        Neighbours per atom; NaN without any sample.

    Raises
    ------
    ValueError
        If `cutoff` is not a positive finite number, or `samples` is not positive.
    MissingLibraryError
        If vesin is not installed.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> store = {}
    >>> with zp.ZarrData(store) as sink:
    ...     sink.write(zp.AtomicData([[0.0] * 3, [0.0, 0.0, 1.1], [0.0, 0.0, 5.0]], [6, 8, 2]))
    >>> round(mean_neighbors(zp.ZarrDataset(store), cutoff=2.0), 3)
    0.667
    """
    NeighborList(cutoff)  # refuses what it cannot search for
    if samples < 1:
        raise ArgumentError(f"samples is {samples}, expected a positive number")
    number, rng = min(samples, len(dataset)), np.random.default_rng(seed)
    chosen = dataset.index_select(np.sort(rng.choice(len(dataset), number, replace=False)))
    box = [name for name in NeighborList.reads if name in dataset.schema]
    edges = atoms = 0
    for start in range(0, number, _NEIGHBOR_SAMPLES):
        batch = chosen.gather(np.arange(start, min(start + _NEIGHBOR_SAMPLES, number)), box)
        edges += int(find(batch, cutoff).counts.sum())
        atoms += batch.num_nodes
    return edges / atoms if atoms else float("nan")


def sample_blocks(num_atoms: Int64Array) -> Iterator[Int64Array]:
    """Ranges of samples within limits of samples and atoms; a larger sample has its own range."""
    ptr, start = pointers(num_atoms), 0
    while start < len(num_atoms):
        fits = int(np.searchsorted(ptr, ptr[start] + _BLOCK_ATOMS, side="right")) - 1
        stop = max(start + 1, min(fits, start + _BLOCK_SAMPLES))
        yield np.arange(start, stop)
        start = stop


def _rows_of(batch: Batch, edges: Int64Array) -> LabelRows:
    """Labels of a batch, all in one bucket."""
    return LabelRows(
        batch["atomic_numbers"].numpy(),
        batch.batch_ptr.numpy(),
        np.zeros(batch.num_graphs, dtype=np.int64),
        edges,
        {
            name: Label(batch[name].numpy(), batch.present(name).numpy())
            for name in SUMMED_LABELS
            if name in batch
        },
    )


def _diagonal(size: int) -> Int64Array:
    """Positions of the diagonal in a packed upper triangle."""
    rows = np.arange(size)
    places: Int64Array = rows * size - rows * (rows - 1) // 2
    return places


def _table(keys: Int64Array, values: npt.NDArray[Any]) -> Mapping[int, Any]:
    return MappingProxyType(dict(zip(keys.tolist(), values.tolist(), strict=True)))
