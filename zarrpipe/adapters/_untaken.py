"""What ASE's `Atoms` carry beside a structure and its results, and that nobody has asked for."""

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zarrpipe.data.fields import CORE_FIELDS, Level

_LABELS = {
    "energy": "energy",
    "force": "forces",
    "forces": "forces",
    "stress": "stress",
    "virial": "virial",
    "virials": "virial",
    "dipole": "dipole",
    "charge": "charge",
    "charges": "charges",
    "spin": "spin",
}
"""Field by a word in a key that says that a label stands there."""
_WEIGHTS = frozenset({"weight", "weights"})
_ASES_OWN = frozenset(
    {"positions", "numbers", "tags", "masses", "initial_magmoms", "initial_charges"}
    | {"spacegroup_kinds", "occupancies", "occupancy", "bfactor", "residuenumbers"}
    | {"id", "type", "mol-id", "travel"}
)
"""Arrays that ASE's constructors and readers of files set, whatever the atoms are for."""


def warn_of_untaken(systems: Sequence[Any], results_of: Callable[[Any], Collection[str]]) -> None:
    """Warn where an entry of ``atoms.info`` or ``atoms.arrays`` looks like a label.

    Of atoms without results that is every entry of numbers, but for those that ASE sets by itself;
    of atoms with results what is named like a label, or like a field of the registry for a system.

    Parameters
    ----------
    systems
        Atoms of which no entry was asked for.
    results_of
        Names of the results that an attached calculator gives some of them.
    """
    untaken: dict[str, dict[str, str]] = {"info": {}, "arrays": {}}
    for atoms in systems:
        entries = list(_numeric(atoms))
        results = results_of(atoms) if entries else ()
        for where, key in entries:
            if not results or (_is_label(where, key) and key not in results):
                name = _field(where, key)
                taken = name in results or name in untaken[where].values()
                untaken[where].setdefault(key, _own(key) if taken else name)
    options = ", ".join(f"{where}={names}" for where, names in untaken.items() if names)
    if options:
        warnings.warn(
            f"Atoms have numbers that are not stored unless they are named: convert the Atoms "
            f"with zarrpipe.adapters.from_ase(atoms, {options}), units being those of ASE, or with "
            "zarrpipe.adapters.from_ase(atoms) to leave them out",
            stacklevel=2,
        )


def _numeric(atoms: Any) -> Iterator[tuple[str, str]]:
    """Place and key of each entry of numbers, in order of the keys."""
    places: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("info", atoms.info),
        ("arrays", atoms.arrays),
    )
    for where, found in places:
        for key in sorted(name for name in found if isinstance(name, str)):
            own = where == "arrays" and key in _ASES_OWN
            if not own and _is_numeric(found[key]):
                yield where, key


def _is_numeric(value: Any) -> bool:
    if not isinstance(value, bool | int | float | list | tuple | np.ndarray | np.generic):
        return False
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        return False
    return array.size > 0 and array.dtype.kind in "biuf"


def _words(key: str) -> list[str]:
    return re.split(r"[\W_]+", key.lower())


def _is_label(where: str, key: str) -> bool:
    """Whether a key is named like a label, or is a field of the registry for a system."""
    spec = CORE_FIELDS.get(key)
    if where == "info" and spec is not None and spec.level is Level.SYSTEM:
        return True
    words = set(_words(key))
    return bool(words & set(_LABELS)) and not words & _WEIGHTS


def _field(where: str, key: str) -> str:
    """Field that an entry may become: of the registry, if the key is or ends like one there."""
    level = Level.SYSTEM if where == "info" else Level.ATOM
    for name in (key, _LABELS.get(_words(key)[-1], "")):
        if name in CORE_FIELDS and CORE_FIELDS[name].level is level:
            return name
    return _own(key)


def _own(key: str) -> str:
    """Name of a field of the user's own, as near to the key as it can be."""
    name = re.sub(r"\W+", "_", key).strip("_")
    return name if name.isidentifier() else f"field_{name}"
