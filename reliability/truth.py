"""Samples whose number says everything about them, and what of a store is not as it must be.

What a sample has besides the fields of `numbered_batch` is told by its number too, so that stores
with fields that are new, lacking or partly there are checked by value like any other. Every sample
has bonds, a level of the user's own whose rows count atoms, and a string.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array, pointers
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import numbered_batch

_BLOCK = 20  # of numbers with the same fields: all sizes of atoms and edges are in it
BASE, STRESSED, UNLABELLED, WEIGHED = 0, 5, 6, 7
_VARIANTS = 8

Marks = Mapping[str, frozenset[int]]
"""Names of fields that were added to samples that were stored, and the numbers of these."""


def variant_of(numbers: AnyArray) -> AnyArray:
    """Which fields samples have: up to 4 those of `numbered_batch`, then others."""
    return np.asarray(numbers) // _BLOCK % _VARIANTS


def numbers_of(start: int, count: int, variant: int | None = BASE) -> Int64Array:
    """First `count` numbers from `start` on with the fields of a variant; None for all of them."""
    if variant is None:
        return np.arange(start, start + count)
    numbers = np.arange(start, start + (count // _BLOCK + 2) * _BLOCK * _VARIANTS)
    kinds = variant_of(numbers)
    chosen = kinds < STRESSED if variant == BASE else kinds == variant
    return numbers[chosen][:count]


def samples(numbers: Sequence[int] | Int64Array) -> Batch:
    """Batch of the samples with these numbers."""
    numbers = np.asarray(numbers, dtype=np.int64)
    base, kinds = numbered_batch(numbers), variant_of(numbers)
    values, present = dict(base.fields), {}
    for name, (rows, has) in _own(base, numbers, kinds).items():
        values.pop(name, None)
        if has.any():
            values[name] = torch.from_numpy(rows)
            present[name] = torch.from_numpy(has)
    ptr, values["bond_atoms"] = _bonds(base, numbers)
    values["kind"] = kinds_of(numbers)  # type: ignore[assignment]
    levels = {"serial": "system", "weight": "atom", "kind": "system", "bond_atoms": "bond"}
    return Batch(
        values,
        base.batch_ptr,
        base.edge_ptr,
        levels={name: level for name, level in levels.items() if name in values},
        level_ptrs={"bond": ptr},
        index_of={"bond_atoms": "atom"},
        present=present,
    )


def _bonds(base: Batch, numbers: Int64Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Pointers [B+1] to the bonds of each sample, and the two atoms [n, 2] of each bond."""
    counts = numbers % 3
    ptr = pointers(counts)
    atoms, first = np.diff(base.batch_ptr.numpy()), base.batch_ptr.numpy()[:-1]
    place = np.arange(ptr[-1]) - np.repeat(ptr[:-1], counts)
    ends = np.stack([place, place + numbers.repeat(counts)], axis=1)
    ends = ends % np.repeat(atoms, counts)[:, None] + np.repeat(first, counts)[:, None]
    return torch.from_numpy(ptr), torch.from_numpy(ends)


def kinds_of(numbers: Int64Array) -> list[str]:
    """String of each sample; each one with a stress brings another, so that more are to come."""
    stressed = variant_of(numbers) == STRESSED
    return [
        f"stressed-{number}" if own else f"kind-{number % 5}"
        for number, own in zip(numbers.tolist(), stressed.tolist(), strict=True)
    ]


def _own(base: Batch, numbers: Int64Array, kinds: AnyArray) -> dict[str, tuple[AnyArray, AnyArray]]:
    """Rows of the fields that not every sample has, with fill where it lacks them, and who has."""
    per_atom = np.repeat(np.arange(len(numbers)), np.diff(base.batch_ptr.numpy()))
    stress = (numbers[:, None] + np.arange(9) / 16).reshape(-1, 3, 3)
    weight = numbers[per_atom] * 3 + base["atomic_numbers"].numpy()
    stressed, weighed, labelled = kinds == STRESSED, kinds == WEIGHED, kinds != UNLABELLED
    energy = base["energy"].numpy()
    return {
        "stress": (np.where(stressed[:, None, None], stress, np.nan), stressed),
        "weight": (np.where(weighed[per_atom], weight, 0), weighed),
        "energy": (np.where(labelled[:, None], energy, np.nan), labelled),
    }


def mark_values(name: str, numbers: Sequence[int] | Int64Array) -> AnyArray:
    """Rows [N] float64 of a field that is added to samples that are stored."""
    return np.asarray(numbers, dtype=np.float64) * 5 + len(name)


def everything(store: StoreLike) -> Batch | None:
    """All samples of a store as a new reader sees them; None where there are none."""
    view = StoreView(store)
    try:
        return view.gather(np.arange(view.num_samples)) if view.num_samples else None
    finally:
        view.close()


def serials(found: Batch | None) -> list[int]:
    """Numbers of the samples of a batch."""
    if found is None:
        return []
    named: list[int] = found["serial"].tolist()
    return named


def wrong_values(found: Batch | None, marks: Marks | None = None) -> str | None:
    """What the samples of a batch have that is not theirs, by the numbers they say; None if right.

    A field that none of them has may be there. Without `marks` it may have been added to any.
    """
    if found is None:
        return None
    numbers = np.asarray(serials(found), dtype=np.int64)
    base = numbered_batch(numbers)
    bond_ptr, bond_atoms = _bonds(base, numbers)
    pointers_of = {"atom": base.batch_ptr, "edge": base.edge_ptr, "bond": bond_ptr}
    for level, ptr in pointers_of.items():
        if not torch.equal(found.level_ptr(level), ptr):
            return f"the pointers of {level}s differ"
    if "kind" not in found or found.strings("kind") != kinds_of(numbers):
        return "the strings differ"
    full = np.ones(len(numbers), dtype=bool)
    expected = {name: (value.numpy(), full) for name, value in base.fields.items()}
    expected |= _own(base, numbers, variant_of(numbers))
    for name, marked in (marks or {}).items():
        has = np.isin(numbers, list(marked))
        expected[name] = np.where(has, mark_values(name, numbers), np.nan), has
    expected["bond_atoms"] = bond_atoms.numpy(), full
    for name in sorted(found.fields.keys() - expected.keys() - {"kind"}):
        if marks is None and name.startswith("mark"):
            has = found.present(name).numpy()
            expected[name] = np.where(has, mark_values(name, numbers), np.nan), has
        elif bool(found.present(name).any()):
            return f"the field {name!r}, which nobody wrote"
    found_wrong = (_wrong_field(found, name, *wanted) for name, wanted in expected.items())
    return next((wrong for wrong in found_wrong if wrong), None)


def _wrong_field(found: Batch, name: str, rows: AnyArray, has: AnyArray) -> str | None:
    if name not in found:
        return f"the field {name!r} is not there" if has.any() else None
    if not np.array_equal(found.present(name).numpy(), has):
        return f"presence of {name!r} differs"
    values = found[name].numpy()
    if values.shape != rows.shape or values.dtype != rows.dtype:
        return f"{name!r} is {values.dtype} {values.shape}, expected {rows.dtype} {rows.shape}"
    if not np.array_equal(values, rows, equal_nan=values.dtype.kind == "f"):
        place = np.argwhere(~np.isclose(values, rows, rtol=0, atol=0, equal_nan=True))[0].tolist()
        return f"{name!r} differs first at row {place[0]}"
    return None
