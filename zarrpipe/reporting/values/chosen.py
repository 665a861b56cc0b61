"""Which structures a report shows: the worst by each measure, and some at random."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array
from zarrpipe.reporting.contents import Finding, FloatArray, Structures
from zarrpipe.reporting.values.measured import Measured, first_of
from zarrpipe.reporting.values.scan import spread_rows
from zarrpipe.reporting.values.structure_map import StructureMap
from zarrpipe.store.query.elements import as_elements, formulas
from zarrpipe.training.splits.assignment import SPLITS

MOST_STRUCTURES, MOST_ATOMS = 200, 30_000
_WORST, _OF_A_FINDING = 20, 6
_FIELDS = ("cell", "pbc", "energy", "forces")
_LONGEST = 40

UNITS = {
    "energy_per_atom": "eV",
    "energy_off": "eV",
    "max_force": "eV/Angstrom",
    "max_stress": "eV/Angstrom^3",
    "nearest_distance": "Angstrom",
    "density": "g/cm^3",
}


def structures_of(
    sides: Sequence[Measured],
    findings: Sequence[Finding],
    mapped: StructureMap | None,
    seed: int,
) -> Structures | None:
    """The structures to show, the worst first; None if there is none."""
    chosen = [
        _chosen(one, [own for own in findings if own.store == store], seed, len(sides))
        for store, one in enumerate(sides)
    ]
    parts = [(one, places) for one, places in zip(sides, chosen, strict=True) if len(places)]
    if not parts:
        return None
    batches = [_read(one, places) for one, places in parts]
    batch = batches[0] if len(batches) == 1 else Batch.concatenate(batches)
    tables = [_properties(one, places, mapped) for one, places in parts]
    properties = {name: [one for table in tables for one in table[name]] for name in _names(tables)}
    if len(sides) > 1:
        letters = [letter for letter, one in zip("AB", sides, strict=True)]
        counts = [len(places) for places in chosen]
        properties["store"] = np.repeat(letters, counts).tolist()
    totals = [sum(view.num_samples for view in one.dataset._stores.views) for one in sides]
    starts = np.cumsum([0, *totals])[:-1]
    samples = np.concatenate(
        [
            start + one.numbers[one.values.rows[places]]
            for start, one, places in zip(starts, sides, chosen, strict=True)
        ]
    )
    return Structures(batch, samples, properties, UNITS, _orders(sides, chosen))


def _measures(one: Measured) -> Mapping[str, FloatArray]:
    """What structures are ordered by [K], the largest first."""
    return {
        "largest force": one.values.max_force,
        "most unusual energy": np.abs(one.energies.deviation),
        "shortest distance": -one.ratio,
        "largest stress": one.values.stress,
        "largest density": one.values.atoms_per_volume,
    }


def _chosen(one: Measured, findings: Iterable[Finding], seed: int, share: int) -> Int64Array:
    """Places of the structures to show among the scanned ones, within limits."""
    values = one.values
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    named = [own for found in findings for own in found.samples[:_OF_A_FINDING]]
    wanted = np.searchsorted(one.numbers[values.rows], named).tolist()  # both ascend
    tops = [first_of(measure, _WORST).tolist() for measure in _measures(one).values()]
    wanted += [top[rank] for rank in range(_WORST) for top in tops if rank < len(top)]
    wanted += spread_rows(len(values), MOST_STRUCTURES, np.random.default_rng([seed, 2])).tolist()
    kept, atoms = [], 0
    for place in dict.fromkeys(wanted):
        size = int(values.atoms[place])
        if values.not_finite["positions"][place] or atoms + size > MOST_ATOMS // share:
            continue
        kept.append(place)
        atoms += size
        if len(kept) == MOST_STRUCTURES // share:
            break
    return np.array(kept, dtype=np.int64)


def _read(one: Measured, places: Int64Array) -> Batch:
    """Structures with their boxes, energies and forces, in float64."""
    fields = [name for name in _FIELDS if name in one.dataset.schema]
    batch = one.dataset.gather(one.values.rows[places], fields)
    wide = {name: own.double() for name, own in batch.fields.items() if own.is_floating_point()}
    if "cell" in wide:  # viewers do not take NaN
        wide["cell"] = wide["cell"].nan_to_num(0.0, 0.0, 0.0)
    return batch._replace(wide)


def _properties(
    one: Measured, places: Int64Array, mapped: StructureMap | None
) -> dict[str, Sequence[Any]]:
    """Numbers and strings of structures at places among the scanned ones."""
    values, energies, dataset = one.values, one.energies, one.dataset
    rows = values.rows[places]
    batch = dataset.gather(rows, ())
    numbers, ptr = as_elements(batch.atomic_numbers.numpy()), batch.batch_ptr.numpy()
    found: dict[str, Any] = {
        "sample": one.numbers[rows],
        "formula": [text[:_LONGEST] for text in formulas(numbers, ptr)],
        "atoms": values.atoms[places],
        "energy_per_atom": values.energy_per_atom[places],
        "energy_off": (energies.residual - energies.median)[places],
        "max_force": values.max_force[places],
        "max_stress": values.stress[places],
        "nearest_distance": _finite(one.shortest[places]),
        "nearest_ratio": _finite(one.ratio[places]),
        "density": values.density[places],
        "split": [(*SPLITS, "none")[split] for split in one.splits[places]],
    }
    for group in one.groups:
        found[group.name] = [(*group.labels, "")[code][:_LONGEST] for code in group.codes[places]]
    if mapped is not None:
        points = mapped.of(one, places)
        found["map_1"], found["map_2"] = points[:, 0], points[:, 1]
    lists = {name: np.asarray(own).tolist() for name, own in found.items()}
    return {name: own for name, own in lists.items() if _says_something(own)}


def _finite(values: FloatArray) -> FloatArray:
    """NaN in place of the infinite distance of a structure without neighbours."""
    return np.where(np.isfinite(values), values, np.nan)


def _says_something(values: Sequence[Any]) -> bool:
    """Whether some value is not NaN."""
    return any(not isinstance(one, float) or one == one for one in values)  # noqa: PLR0124  NaN


def _names(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Properties that all data sets have."""
    return [name for name in tables[0] if all(name in table for table in tables)]


def _orders(sides: Sequence[Measured], chosen: Sequence[Int64Array]) -> Mapping[str, Int64Array]:
    """Orders of the structures that are shown; those of findings come first as they are."""
    found = {}
    for name in _measures(sides[0]):
        keys = np.concatenate(
            [_measures(one)[name][places] for one, places in zip(sides, chosen, strict=True)]
        )
        known = np.flatnonzero(np.isfinite(keys))
        if len(known):
            found[name] = known[np.argsort(-keys[known], kind="stable")]
    return {"named by findings": np.arange(sum(map(len, chosen))), **found}
