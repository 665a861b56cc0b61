"""ASE: `Atoms` with the results of their calculator."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.adapters.ase_label_warning import warn_of_uncomputed_labels, warn_of_unused_labels
from zarrpipe.adapters.assemble import as_rows, as_tensor, require
from zarrpipe.adapters.dialects import STRUCTURE
from zarrpipe.data.batch import Batch
from zarrpipe.data.categories import are_strings
from zarrpipe.data.fields import CORE_FIELDS, level_of
from zarrpipe.data.levels import Level
from zarrpipe.data.system import AtomicData
from zarrpipe.errors import ArgumentTypeError, FieldError

if TYPE_CHECKING:
    from ase import Atoms

AnyArray = npt.NDArray[Any]
Names = Mapping[str, str]
"""Field by key of ``atoms.info`` or ``atoms.arrays``."""

_ARRAY_NAMES = {"masses": "atomic_masses", "initial_charges": "charges"}
_ARRAYS = frozenset({"positions", "numbers"})
_RESULTS = ("energy", "forces", "stress", "dipole", "charges")
_LEVELS = {"info": Level.SYSTEM, "arrays": Level.ATOM}
_VOIGT_INDEX = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Row and column in the matrix of each entry in ASE's order."""


def from_ase(
    atoms: "Atoms | Sequence[Atoms]",
    *,
    info: Iterable[str] | Names = (),
    arrays: Iterable[str] | Names = (),
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Batch of one or several ASE ``Atoms``.

    Energy, forces, stress, dipole and charges are taken from an attached calculator if it holds
    them for the present positions, numbers and cell: nothing is ever calculated here, and results
    that a later change has made stale are left out. Forces are those of the calculator, without
    constraints applied. Fields of only some systems are marked absent for the others.

    Parameters
    ----------
    atoms
        One ``Atoms`` or a sequence of them. Cell and pbc are always taken.
    info
        Keys of ``atoms.info`` to take as fields at system level: numbers, arrays of numbers, or
        strings such as a ``config_type``. A
        mapping gives a key the name of its field. Values are in ASE's units, and none is
        converted: eV, eV/Angstrom, stress in eV/Angstrom^3 with tension positive, virial in eV as
        minus the volume times that stress. Stress and virial may be ``[3, 3]``, ``[9]``, or
        ``[6]`` in ASE's order xx, yy, zz, yz, xz, xy.
    arrays
        Keys of ``atoms.arrays`` to take as fields at atom level, or a mapping as for `info`.
        Without one, ``masses`` and ``initial_charges`` become ``atomic_masses`` and ``charges``;
        ``momenta`` keep their name, which the registry has in ASE's unit.
    dtype
        Of every floating-point field, and of integers that the registry has as floats. ASE
        calculates with float64, and total energies lose meV in float32.

    Raises
    ------
    FieldError
        If something asked for in `info` or `arrays` is on none of the systems, is not numeric or
        does not fit, or if a field has two sources: two keys, or a key and the calculator.

    Examples
    --------
    Labels under the keys that MACE trains with::

        from_ase(
            frames,
            info={"REF_energy": "energy", "REF_stress": "stress"},
            arrays={"REF_forces": "forces"},
        )
    """
    systems: list[Any] = [atoms] if hasattr(atoms, "get_positions") else list(atoms)
    system_names = _named("info", info, {}, [one.info for one in systems])
    atom_names = _named("arrays", arrays, _ARRAY_NAMES, [one.arrays for one in systems])
    twice = set(system_names.values()) & set(atom_names.values())
    if twice:
        raise FieldError(f"{sorted(twice)} are asked for in info and in arrays: leave one out")
    return Batch.from_data_list(
        [
            _from_atoms(one, system_names, atom_names, dtype, position)
            for position, one in enumerate(systems)
        ]
    )


def from_ase_for_store(atoms: "Sequence[Atoms]", **options: Any) -> Batch:
    """As `from_ase`, with a warning of labels that are not taken if no option says what to take."""
    if not {"info", "arrays"} & set(options):
        warn_of_unused_labels(atoms, _results)
        warn_of_uncomputed_labels(atoms, _results)
    return from_ase(atoms, **options)


def _named(
    where: str, asked: Iterable[str] | Names, usual: Names, found: list[dict[str, Any]]
) -> Names:
    """Field by key of the entries to take; refuses a key that none of the systems has."""
    if isinstance(asked, str):
        raise ArgumentTypeError(f"{where} is {asked!r}, expected a list or a mapping of keys")
    if not isinstance(asked, Mapping):
        asked = {key: usual.get(key, key) for key in asked}
    keys: dict[str, str] = {}
    for key, name in asked.items():
        if name in STRUCTURE or (where == "arrays" and key in _ARRAYS):
            taken = name if name in STRUCTURE else key
            raise FieldError(f"{taken!r} is always taken from the Atoms: leave it out of {where}")
        if not any(key in one for one in found):
            have = sorted({other for one in found for other in one})
            raise FieldError(f"none of {len(found)} Atoms has {key!r} in .{where}; there is {have}")
        if keys.setdefault(name, key) != key:
            raise FieldError(
                f"{keys[name]!r} and {key!r} of .{where} are both mapped to field {name!r}: leave "
                "one out"
            )
        level_of(name, _LEVELS[where])
    return dict(asked)


def _from_atoms(
    atoms: "Atoms", info: Names, arrays: Names, dtype: torch.dtype, position: int
) -> AtomicData:
    data = AtomicData(
        positions=as_tensor("positions", atoms.get_positions(), dtype),
        atomic_numbers=as_tensor("atomic_numbers", atoms.numbers, dtype),
        cell=as_tensor("cell", np.asarray(atoms.cell), dtype),
        pbc=as_tensor("pbc", atoms.pbc, dtype),
    )
    results = _results(atoms)
    for name, result in results.items():
        level = CORE_FIELDS[name].level
        data.add_field(name, as_rows(name, result, level, len(atoms), dtype=dtype), level)
    for where, key, name, value in _entries(atoms, info, arrays):
        if name in results:
            raise FieldError(
                f"{name!r} of Atoms {position} is in .{where}[{key!r}] and among the results of "
                f"its calculator: leave {key!r} out to take the result, or set atoms.calc to None "
                "to leave the results out"
            )
        level = _LEVELS[where]
        if level is Level.SYSTEM and name not in CORE_FIELDS and are_strings(value):
            data.add_field(name, value, level)
            continue
        rows = as_rows(name, value, level, len(atoms), dtype=dtype, key=key)
        data.add_field(name, rows, level)
    return data


def _entries(atoms: "Atoms", info: Names, arrays: Names) -> Iterator[tuple[str, str, str, Any]]:
    """Place, key, field and value of each entry to take that the atoms have."""
    for where, names, found in (("arrays", arrays, atoms.arrays), ("info", info, atoms.info)):
        for key, name in names.items():
            if found.get(key) is not None:
                yield where, key, name, found[key]


def _results(atoms: "Atoms") -> dict[str, AnyArray]:
    """Results of the attached calculator for the present atoms."""
    calc = atoms.calc
    results = getattr(calc, "results", None) or {}
    remembers = getattr(calc, "atoms", None) is not None and hasattr(calc, "check_state")
    if remembers and calc.check_state(atoms):
        return {}
    return {name: np.asarray(results[name]) for name in _RESULTS if results.get(name) is not None}


def to_ase(batch: Batch | AtomicData) -> "list[Atoms]":
    """List of ASE ``Atoms``, one per system.

    Energy, forces, stress, dipole and charges are attached with a ``SinglePointCalculator``;
    momenta (or velocities) and masses are set; other fields at atom level go to ``atoms.arrays``
    and at system level to ``atoms.info``, strings as such. Fields at edge level, and at levels of
    the user's own with several rows, have no place in ``Atoms``.
    """
    ase = require("ase", "ase")
    singlepoint = require("ase.calculators.singlepoint", "ase")
    systems = [batch] if isinstance(batch, AtomicData) else batch.to_data_list()
    return [_to_atoms(one.cpu(), ase, singlepoint) for one in systems]


def _to_atoms(data: AtomicData, ase: Any, singlepoint: Any) -> "Atoms":
    values = {name: value.detach().numpy() for name, value in data.fields.items()}
    atoms: Atoms = ase.Atoms(
        numbers=values.pop("atomic_numbers"),
        positions=values.pop("positions"),
        cell=values.pop("cell")[0] if "cell" in values else None,
        pbc=values.pop("pbc")[0] if "pbc" in values else False,
    )
    results = {name: values.pop(name) for name in _RESULTS if name in values}
    if "atomic_masses" in values:
        atoms.set_masses(values.pop("atomic_masses"))
    if "momenta" in values:
        atoms.set_momenta(values.pop("momenta"))
    elif "velocities" in values:
        atoms.set_velocities(values.pop("velocities"))
    for name, value in values.items():
        if data.levels[name] is Level.ATOM:
            atoms.set_array(name, value)
        elif data.roles[name].categories is not None:
            atoms.info[name] = data.strings(name)[0]
        elif not data.levels[name].has_pointers:
            atoms.info[name] = value.item() if value.size == 1 else value[0].copy()
    if results:
        atoms.calc = singlepoint.SinglePointCalculator(atoms, **_ase_results(results))
    return atoms


def _ase_results(results: dict[str, AnyArray]) -> dict[str, Any]:
    """Results in ASE's shapes: a float, ``[n, 3]``, Voigt ``[6]``, ``[3]`` and ``[n]``."""
    shaped: dict[str, Any] = dict(results)
    if "energy" in results:
        shaped["energy"] = float(results["energy"].reshape(()))
    if "stress" in results:
        matrix = results["stress"][0]
        symmetric = (matrix + matrix.T) / 2
        shaped["stress"] = symmetric[_VOIGT_INDEX]
    if "dipole" in results:
        shaped["dipole"] = results["dipole"][0]
    return shaped
