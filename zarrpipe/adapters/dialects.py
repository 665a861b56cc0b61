"""How files and codes name labels: one table for imports and for the warnings of a sink.

A key names a label if it has one word of `LABELS`, and otherwise only words of `ORIGINS`, which say
who calculated a reference: ``REF_energy``, ``dft_forces``, ``energy_xtb``, ``Virial``. Any other
word makes it another quantity (``energy_cutoff``, ``kinetic_energy``), or the prediction of a
model (``mace_energy``), which is never taken for a label.
"""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType

from zarrpipe.data.container import check_not_taken
from zarrpipe.data.fields import CORE_FIELDS, check_name, check_new_names, level_of
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError

STRUCTURE = frozenset({"positions", "numbers", "atomic_numbers", "cell", "pbc"})
"""Names of the structure itself, which is always taken."""

LABELS: Mapping[str, str] = MappingProxyType(
    {
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
)
"""Field by the word for it in a key."""

ORIGINS = frozenset(
    {"ref", "reference", "target", "true", "label", "total", "potential", "tot", "qm"}
    | {"dft", "hf", "mp2", "ccsd", "rpa", "lda", "gga", "pbe", "pbesol", "pbe0", "scan", "r2scan"}
    | {"hse", "hse06", "b3lyp", "wb97x", "wb97m", "d3", "d4", "xtb", "gfn1", "gfn2", "dftb"}
    | {"vasp", "qe", "espresso", "cp2k", "aims", "castep", "gpaw", "orca", "psi4", "gaussian"}
    | {"mulliken", "hirshfeld", "bader", "ddec6", "resp"}
)
"""Words before or behind a label that say how a reference was calculated."""

_DERIVATIVES = frozenset({"force", "forces", "stress", "virial", "virials"})
"""Labels that follow from an energy, which may be named before them."""

_UNITS = frozenset({"unit", "units"})
_LONGEST = 60
"""Letters of a proposed name: it becomes the name of a directory."""


def label_of(level: Level | str, key: str) -> str | None:
    """Field of the registry that a key at a level names, if it names a label.

    Examples
    --------
    >>> label_of("system", "REF_energy"), label_of("atom", "forces_xtb")
    ('energy', 'forces')
    >>> label_of("system", "energy_cutoff"), label_of("system", "forces")
    (None, None)
    >>> label_of("atom", "energy_forces")  # of metatrain: the forces that go with that energy
    'forces'
    """
    name, others = _words(key)
    if name is None or not ORIGINS.issuperset(others):
        return None
    return name if CORE_FIELDS[name].level == level else None


def unit_of(key: str) -> str | None:
    """Label whose unit a key names, as ``stress_unit`` does.

    Examples
    --------
    >>> unit_of("forces_unit"), unit_of("energy")
    ('forces', None)
    """
    name, others = _words(key)
    return name if name is not None and len(others) == 1 and _UNITS.issuperset(others) else None


def _words(key: str) -> tuple[str | None, list[str]]:
    """The one label that a key has a word for, and its other words; None for none or several."""
    words = [word for word in re.split(r"[\W_]+", key.lower()) if word]
    names = [word for word in words if word in LABELS]
    if len(names) == 2 and names[0] == "energy" and names[1] in _DERIVATIVES:
        words.remove("energy")
        names = names[1:]
    others = [word for word in words if word not in LABELS and not word.isdigit()]
    if len(names) != 1 or (len(words) > 1 and not others):
        return None, others
    return LABELS[names[0]], others


def clean_name(key: str) -> str:
    """Identifier that resembles a key."""
    name = re.sub(r"\W+", "_", key).strip("_")[:_LONGEST]
    return name if name.isidentifier() else f"field_{name}"


def own_name(key: str, level: Level | str, taken: Collection[str] = ()) -> str:
    """Name of a user's own field for a key: a valid one that resembles it and is not `taken`.

    A name of the registry, or one that conditions and batches use otherwise, gets an underscore.

    Examples
    --------
    >>> own_name("1 - x", "system"), own_name("num_atoms", "system"), own_name("energy", "atom")
    ('field_1_x', 'num_atoms_', 'energy_')
    """
    name = clean_name(key)
    while name in taken or name in CORE_FIELDS or not is_accepted(name, level):
        name = f"{name}_"
    return name


def is_accepted(name: str, level: Level | str) -> bool:
    """Whether adapters and sinks accept the name of a field at a level."""
    try:
        check_name(name)
        check_not_taken(name)
        check_new_names([name])
        level_of(name, level)
    except FieldError:
        return False
    return name not in STRUCTURE
