"""A store, or several as one, with the numbers of its samples that the report is made of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.levels import Level
from zarrpipe.dataset.info import info
from zarrpipe.dataset.store_info import StoreInfo
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.reporting.contents import FloatArray
from zarrpipe.reporting.values.distances import Distances, distances_of
from zarrpipe.reporting.values.energies import Energies, energies_of
from zarrpipe.reporting.values.scan import SampleValues, scan, spread_rows
from zarrpipe.store.query.elements import as_elements
from zarrpipe.training.splits.assignment import SPLITS, SplitAssignment, SplitRule
from zarrpipe.training.statistics import sample_blocks

_SUSPECTS, _LONGEST = 200, 60
_MOST_SEARCHED = 1_000_000
"""Atoms whose neighbours are searched, at most."""


@dataclass(frozen=True)
class Settings:
    """What `report` was asked for."""

    seed: int = 0
    max_samples: int = 20_000
    where: str | None = None
    split: Any = (0.9, 0.05, 0.05)
    split_by: str = "id"


@dataclass(frozen=True)
class Group:
    """Samples by a string or by round: code [K] of each of the K scanned ones, -1 for none."""

    name: str
    codes: Int64Array
    labels: tuple[str, ...]

    def text(self, code: int) -> str:
        """A label, cut if it is long."""
        label = self.labels[code]
        return label if len(label) <= _LONGEST else f"{label[: _LONGEST - 1]}…"


@dataclass(frozen=True)
class Measured:
    """The samples of a dataset [N], of which K were scanned and J had their neighbours searched.

    `numbers` [N] are those of the samples in the stores, `splits` [K] the place of each sample's
    split in `SPLITS`, -1 for none.
    """

    place: str
    dataset: ZarrDataset
    numbers: Int64Array
    infos: tuple[StoreInfo, ...]
    values: SampleValues
    energies: Energies
    distances: Distances
    groups: tuple[Group, ...]
    splits: Int64Array

    def __len__(self) -> int:
        return len(self.dataset)

    def samples(self, places: Sequence[int] | Int64Array) -> tuple[int, ...]:
        """Numbers in the stores of samples at places among the scanned."""
        return tuple(self.numbers[self.values.rows[np.asarray(places, dtype=np.int64)]].tolist())

    def elements_of(self, places: Int64Array) -> set[int]:
        """Elements of samples at places among the scanned, by one sample of each composition."""
        _, first = np.unique(self.values.codes[places], return_index=True)
        found = set[int]()
        for _, numbers, _ in self._numbers_of(places[first]):
            found.update(np.unique(numbers).tolist())
        return found

    def with_elements(self, elements: Int64Array) -> list[Int64Array]:
        """Places of the samples with each of some elements."""
        _, first, inverse = np.unique(self.values.codes, return_index=True, return_inverse=True)
        has = np.zeros((len(elements), len(first)), dtype=bool)
        for here, numbers, starts in self._numbers_of(first):
            for row, element in enumerate(elements):
                has[row, here] = np.logical_or.reduceat(numbers == element, starts)
        return [np.flatnonzero(row[inverse.reshape(-1)]) for row in has]

    def _numbers_of(
        self, places: Int64Array
    ) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
        """Blocks of places [P]: where in the P, atomic numbers, and first atom of each sample."""
        for here in sample_blocks(self.values.atoms[places]):
            batch = self.dataset.gather(self.values.rows[places[here]], ())
            numbers = as_elements(batch.atomic_numbers.numpy())
            yield here, numbers, batch.batch_ptr.numpy()[:-1]

    @cached_property
    def ratio(self) -> FloatArray:
        """Nearest distance by covalent radii [K], NaN where no neighbours were searched."""
        found = np.full(len(self.values), np.nan)
        found[self.distances.chosen] = self.distances.ratio
        return found

    @cached_property
    def shortest(self) -> FloatArray:
        """Nearest distance [K], Angstrom, NaN where no neighbours were searched."""
        found = np.full(len(self.values), np.nan)
        found[self.distances.chosen] = self.distances.shortest
        return found


def measured(stores: Any, place: str, settings: Settings) -> Measured:
    """Open stores and find the numbers of their samples."""
    every = ZarrDataset(stores)
    numbers = np.arange(len(every)) if settings.where is None else every.where(settings.where)
    splits = _splits(every, settings)[numbers]
    dataset = every if settings.where is None else every.index_select(numbers)
    values = scan(dataset, settings.seed)
    energies = energies_of(dataset, values, settings.seed)
    chosen = _searched(values, energies, settings)
    good = np.flatnonzero(~values.not_finite["positions"][chosen])
    return Measured(
        place=place,
        dataset=dataset,
        numbers=numbers,
        infos=tuple(info(view.store) for view in every._stores.views),
        values=values,
        energies=energies,
        distances=distances_of(dataset, values.rows[chosen], chosen, good),
        groups=tuple(_groups(dataset, values.rows)),
        splits=splits[values.rows],
    )


def _splits(dataset: ZarrDataset, settings: Settings) -> Int64Array:
    """Split of each sample [N], -1 for none."""
    rule = SplitRule.of(settings.split, settings.split_by)
    assignment = SplitAssignment(rule, settings.where, lambda: dataset.schema)
    assignment.check(dataset)
    found = np.full(len(dataset), -1)
    for place, name in enumerate(SPLITS):
        found[assignment.rows(dataset)[name]] = place
    return found


def _searched(values: SampleValues, energies: Energies, settings: Settings) -> Int64Array:
    """Evenly spread samples, and those that are most likely broken."""
    most = settings.max_samples
    mean = max(1.0, float(values.atoms.mean())) if len(values) else 1.0
    most = min(most, max(1, int(_MOST_SEARCHED / mean)))
    spread = spread_rows(len(values), most, np.random.default_rng(settings.seed))
    suspects = [
        first_of(measure, _SUSPECTS)
        for measure in (
            values.max_force,
            np.abs(energies.deviation),
            values.atoms_per_volume,
            values.stress,
            np.where(values.periodic, np.nan, values.span),
        )
    ]
    return np.unique(np.concatenate([spread, *suspects]))


def first_of(measure: FloatArray, most: int) -> Int64Array:
    """Places of the largest finite values, the largest first."""
    known = np.flatnonzero(np.isfinite(measure))
    if len(known) > most:
        known = known[np.argpartition(-measure[known], most)[:most]]
    return known[np.argsort(-measure[known], kind="stable")]


def _groups(dataset: ZarrDataset, rows: Int64Array) -> Sequence[Group]:
    """Groups by each field of strings, and by round."""
    found: list[Group] = []
    for name, item in dataset.schema.items():
        has = dataset.present(name, rows)
        if item.categories is not None:
            codes = np.full(len(rows), -1)
            codes[has] = dataset.system_field(name, rows[has]).reshape(-1)
            found.append(Group(name, codes, tuple(item.categories)))
        elif name == "round" and item.level is Level.SYSTEM and item.dtype.kind in "iu":
            values = dataset.system_field(name, rows[has]).reshape(int(has.sum()), -1)
            if values.shape[1] != 1:
                continue
            rounds, places = np.unique(values, return_inverse=True)
            codes = np.full(len(rows), -1)
            codes[has] = places.reshape(-1)
            found.append(Group(name, codes, tuple(map(str, rounds.tolist()))))
    return found


def counts_of(group: Group) -> Mapping[str, int]:
    """Samples by label, in the order of the labels."""
    counts = np.bincount(group.codes[group.codes >= 0], minlength=len(group.labels))
    return dict(zip(group.labels, counts.tolist(), strict=True))
