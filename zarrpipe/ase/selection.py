"""What of ASE's atoms and of their calculator becomes a field, and where it goes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from zarrpipe.adapters.ase import RESULTS, Names, from_atoms, names_of_keys
from zarrpipe.data.levels import Level
from zarrpipe.data.system import AtomicData
from zarrpipe.errors import ArgumentError

if TYPE_CHECKING:
    from ase import Atoms


class Sink(Protocol):
    """What takes batches, such as `zarrpipe.ZarrData`."""

    def write(self, batch: Any) -> object:
        """Append the systems of a batch."""
        ...


@dataclass(frozen=True)
class Selection:
    """What becomes a field: results, entries of info and arrays, and other fields by name."""

    results: Names
    info: Names
    arrays: Names
    dtype: torch.dtype
    others: Names

    def system(self, atoms: "Atoms", results: Mapping[str, tuple[Level, Any]]) -> AtomicData:
        """System of the atoms, with results by field."""
        return from_atoms(atoms, results, self.info, self.arrays, dtype=self.dtype)


def selection_of(
    fields: Iterable[str] | Names | None,
    calculator: Any,
    others: Iterable[str],
    *,
    info: Iterable[str] | Names,
    arrays: Iterable[str] | Names,
    dtype: torch.dtype,
) -> Selection:
    """What is asked for; refuses results that the calculator cannot give."""
    asked = names_of_keys("fields", RESULTS if fields is None else fields)
    results = {key: name for key, name in asked.items() if key not in others}
    able = list(getattr(calculator, "implemented_properties", results))
    unable = [key for key in results if key not in able]
    if unable and fields is not None:
        expected = ", ".join([*able, *others])
        raise ArgumentError(
            f"fields has {unable}, which {type(calculator).__name__} does not calculate, expected "
            f"some of {expected}: leave the others out"
        )
    return Selection(
        {key: name for key, name in results.items() if key not in unable},
        names_of_keys("info", info),
        names_of_keys("arrays", arrays),
        dtype,
        {key: name for key, name in asked.items() if key not in results},
    )
