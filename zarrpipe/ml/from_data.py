"""What a force field takes from the data that it is trained on, and what it asks of them."""

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zarrpipe.dataset.zarr_dataset import ZarrDataset, check_reads
from zarrpipe.errors import ArgumentError, ArgumentTypeError, FieldError
from zarrpipe.ml.labels import LABELS, gives
from zarrpipe.ml.non_finite import not_finite
from zarrpipe.ml.potentials import Potential, as_symbols
from zarrpipe.store.query.elements import SYMBOLS
from zarrpipe.training.data_module import ZarrDataModule
from zarrpipe.training.statistics import Statistics, mean_neighbors, sample_blocks
from zarrpipe.transforms.compose import Compose
from zarrpipe.transforms.neighbors import NeighborList
from zarrpipe.transforms.units import ConvertUnits

CUTOFFS = (5.0, 4.5, 4.0, 3.5, 3.0)
"""Angstrom; the first that leaves an atom few neighbours is the default."""

_MOST_NEIGHBORS = 60.0
_FEW = 10
FROM_DATA = ("elements", "cutoff", "mean_neighbors")
"""Arguments of a potential that are taken from the training data unless they are given."""


def missing_options(kind: type[Potential], options: Mapping[str, Any]) -> list[str]:
    """Arguments of a potential that are still to be taken from data; refuses unknown ones."""
    known = inspect.signature(kind).parameters
    unknown = [name for name in options if name not in known]
    if unknown and not any(one.kind is one.VAR_KEYWORD for one in known.values()):
        raise ArgumentError(
            f"options has {', '.join(unknown)}, which {kind.__name__} does not take: expected some "
            f"of {', '.join(known)}"
        )
    return [name for name in FROM_DATA if name in known and options.get(name) is None]


def complete_options(
    kind: type[Potential], options: Mapping[str, Any], train: ZarrDataset, facts: Statistics
) -> dict[str, Any]:
    """Options of a potential with those that were not given taken from training samples."""
    found, missing = dict(options), missing_options(kind, options)
    if "elements" in missing:
        found["elements"] = sorted(facts.element_counts)
    if "cutoff" in missing:
        found["cutoff"] = default_cutoff(train)
    if "mean_neighbors" in missing:
        number = mean_neighbors(train, found["cutoff"])
        if not number > 0:
            raise ArgumentError(
                f"no atom of the training samples has a neighbour within {found['cutoff']} "
                "Angstrom: give the potential a longer cutoff, or samples of several atoms"
            )
        found["mean_neighbors"] = round(number, 3)
    return found


def finds_edges(transform: object, cutoff: float) -> bool:
    """Whether the last thing that a transform does is to search for neighbours in this cutoff."""
    last = _steps(transform)[-1]
    return isinstance(last, NeighborList) and last.cutoff == cutoff


def _steps(transform: object) -> Sequence[object]:
    """The transforms that a transform is made of."""
    return transform.transforms if isinstance(transform, Compose) else [transform]


def default_cutoff(train: ZarrDataset) -> float:
    """The longest of `CUTOFFS` within which an atom has sixty neighbours at most on average."""
    for cutoff in CUTOFFS:
        if not mean_neighbors(train, cutoff, samples=256) > _MOST_NEIGHBORS:
            return cutoff
    return CUTOFFS[-1]


def check_data(data: Any, weights: Mapping[str, float]) -> Statistics:
    """Statistics of the training samples; refuses data that cannot be trained on.

    `weights` are those of the labels in the loss.
    """
    if not isinstance(data, ZarrDataModule):
        raise ArgumentTypeError(
            "a ForceField is trained on a ZarrDataModule, of which it takes reference energies and "
            f"more, and got {type(data).__name__}: give datamodule=zarrpipe.ZarrDataModule(...)"
        )
    check_reads(NeighborList, data.fields, data.dataset.schema)
    if any(isinstance(one, ConvertUnits) for one in _steps(data.transform)):
        raise ArgumentError(
            "data.transform converts units, and a ForceField takes energies in eV from the store's "
            "statistics: leave ConvertUnits out"
        )
    facts = _statistics(data)
    read = set(data.dataset.schema if data.fields is None else data.fields)
    there = {
        "energy": "energy" in read and bool(facts.reference_energies),
        "forces": "forces" in read and not math.isnan(facts.forces_rms),
        "stress": gives(read & data.dataset.schema.keys(), "stress"),
    }
    if not any(there[label] and weights[label] > 0 for label in there):
        lacking = ", ".join(label for label, weight in weights.items() if weight > 0)
        raise ArgumentError(
            f"no training sample of {data} has a label that the loss counts ({lacking}): label "
            "some first, or change fields, where or the weights"
        )
    return facts


def _statistics(data: ZarrDataModule) -> Statistics:
    """Statistics of the training samples; names the samples whose labels are not finite."""
    try:
        return data.statistics
    except FieldError as error:
        bad = _samples_not_finite(data.dataset)
        if bad:
            error.add_note(f"samples of the dataset with such labels: {_listed(bad)}")
        raise


def _listed(samples: Sequence[int]) -> str:
    shown = ", ".join(map(str, samples[:_FEW])) + (", ..." if len(samples) > _FEW else "")
    return f"{shown} ({len(samples)} in all)"


def _samples_not_finite(dataset: ZarrDataset) -> list[int]:
    """Places of the samples with a label that is NaN or infinite, ascending."""
    labels = [name for name in (*LABELS, "virial") if name in dataset.schema]
    bad: list[int] = []
    for rows in sample_blocks(dataset.num_atoms):
        batch = dataset.gather(rows, labels)
        for label in labels:
            found = not_finite(batch, batch[label], batch.levels[label]) & batch.has(label)
            bad += rows[found.numpy()].tolist()
    return sorted({*bad})


def check_validation(validation: ZarrDataset, known: Sequence[int]) -> None:
    """Refuse elements that are not among the known ones, and labels that are not finite.

    Warns of very few validation samples.
    """
    count = len(validation)
    if 0 < count < _FEW:
        warnings.warn(
            f"validation has {count} sample{'s' if count > 1 else ''}, so that its errors, and "
            "which checkpoint is the best, depend on the choice: expected ten or more, by a larger "
            "share in data.split or by a data.val_store",
            stacklevel=2,
        )
    unknown, samples = _samples_with_others(validation, np.array(known))
    if len(unknown):
        condition = " or ".join(f"has_element('{SYMBOLS[number]}')" for number in unknown)
        raise ArgumentError(
            f"{samples} of {count} validation samples have {as_symbols(unknown)}, and the elements "
            f"of training are {as_symbols(known)}, so that a potential knows nothing of them: "
            f'leave them out with data.where="not ({condition})", or train on samples with them'
        )
    bad = _samples_not_finite(validation)
    if bad:
        raise FieldError(
            "validation samples have energy, forces, stress or virial with NaN or infinite values, "
            f"which make every error NaN: leave these labels or samples out; places in the "
            f"validation samples: {_listed(bad)}"
        )


def _samples_with_others(
    dataset: ZarrDataset, known: "np.ndarray[Any, np.dtype[np.int64]]"
) -> tuple[list[int], int]:
    """Elements that are not among the known ones, ascending, and how many samples have one."""
    unknown: set[int] = set()
    samples = 0
    for rows in sample_blocks(dataset.num_atoms):
        batch = dataset.gather(rows, ["atomic_numbers"])
        numbers = batch["atomic_numbers"].numpy()
        other = ~np.isin(numbers, known)
        unknown.update(numbers[other].tolist())
        samples += len(np.unique(batch.batch_idx.numpy()[other]))
    return sorted(unknown), samples
