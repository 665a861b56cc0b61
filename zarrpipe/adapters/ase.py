"""ASE: `Atoms` with the results of their calculator."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.adapters.ase_label_warning import warn_of_uncomputed_labels, warn_of_unused_labels
from zarrpipe.adapters.assemble import as_rows, as_tensor, has_positions, position_blocks
from zarrpipe.adapters.dialects import STRUCTURE
from zarrpipe.adapters.lammps_dump import check_elements, has_no_energy
from zarrpipe.data.batch import Batch
from zarrpipe.data.categories import are_strings
from zarrpipe.data.fields import CORE_FIELDS, level_of
from zarrpipe.data.levels import Level
from zarrpipe.data.system import AtomicData
from zarrpipe.errors import ArgumentTypeError, FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from ase import Atoms

AnyArray = npt.NDArray[Any]
Names = Mapping[str, str]
"""Field by key of ``atoms.info`` or ``atoms.arrays``, or by name of a calculator's result."""

_ARRAY_NAMES = {"masses": "atomic_masses", "initial_charges": "charges"}
_ARRAYS = frozenset({"positions", "numbers"})
RESULTS = ("energy", "forces", "stress", "dipole", "charges")
"""Results of a calculator that are taken unless others are named."""
_ATOM_RESULTS = frozenset({"energies", "magmoms", "node_energy", "stresses"})
"""Other results of calculators that have a row for each atom."""
_LEVELS = {"info": Level.SYSTEM, "arrays": Level.ATOM}
_VOIGT_INDEX = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Row and column in the matrix of each entry in ASE's order."""


def from_ase(
    atoms: "Atoms | Iterable[Atoms]",
    *,
    info: Iterable[str] | Names = (),
    arrays: Iterable[str] | Names = (),
    results: Iterable[str] | Names | None = None,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Batch of one or several ASE ``Atoms``.

    Energy, forces, stress, dipole and charges are taken from an attached calculator if it holds
    them for the present positions, numbers and cell: nothing is ever calculated here, and results
    that a later change has made stale are left out. Forces are those of the calculator, without
    constraints applied. Fields of only some systems are marked absent for the others.

    Not carried: constraints, ``celldisp``, and what is not named of ``info``, ``arrays`` and other
    results. The energy 0 that ASE gives to each frame of a LAMMPS dump is no label and is left out.

    Parameters
    ----------
    atoms
        One ``Atoms`` or an iterable of them, such as a list or ``ase.io.iread(...)``, which is read
        to its end: what is larger than memory goes to a sink by ``sink.write(iterable)``. Cell
        and pbc are always taken.
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
    results
        Results of the calculator to take in place of the five above, or a mapping as for `info`:
        ``["energy", "forces", "magmoms"]``, or ``{"free_energy": "energy", "forces": "forces"}``.
    dtype
        Of every floating-point field, and of integers that the registry has as floats. ASE
        calculates with float64, and total energies lose meV in float32.

    Raises
    ------
    ArgumentTypeError
        If an item is no ``Atoms``.
    FieldError
        If something asked for in `info`, `arrays` or `results` is on none of the systems, is not
        numeric or does not fit, or if a field has two sources: two keys, or a key and the
        calculator; or if the atomic numbers are the types of a LAMMPS dump.

    Examples
    --------
    Labels under the keys that MACE trains with::

        from_ase(
            frames,
            info={"REF_energy": "energy", "REF_stress": "stress"},
            arrays={"REF_forces": "forces"},
        )
    """
    systems = _list_of_atoms(atoms)
    system_names, atom_names = names_of_keys("info", info), names_of_keys("arrays", arrays)
    check_found("info", system_names, [one.info for one in systems])
    check_found("arrays", atom_names, [one.arrays for one in systems])
    result_names = None
    if results is not None:
        result_names = names_of_keys("results", results)
        check_found("results", result_names, [present_results(one) for one in systems])
    twice = set(system_names.values()) & set(atom_names.values())
    if twice:
        raise FieldError(f"{sorted(twice)} are asked for in info and in arrays: leave one out")
    return Batch.from_data_list(
        [
            from_atoms(
                one,
                results_of(one, result_names),
                system_names,
                atom_names,
                dtype=dtype,
                position=position,
            )
            for position, one in enumerate(systems)
        ]
    )


def _list_of_atoms(atoms: Any) -> "list[Atoms]":
    """The atoms as a list; refuses what is none."""
    if hasattr(atoms, "get_positions"):
        return [atoms]
    systems = None if isinstance(atoms, str | bytes) or not hasattr(atoms, "__iter__") else [*atoms]
    for one in [atoms] if systems is None else systems:
        if not hasattr(one, "get_positions"):
            raise ArgumentTypeError(
                f"from_ase was given {one!r:.60}, expected ase.Atoms or an iterable of them: read "
                "a file with ase.io.iread(path) first"
            )
    return systems or []


def from_ase_for_store(atoms: "Sequence[Atoms]", **options: Any) -> Batch:
    """As `from_ase`, with a warning of labels that are not taken if no option says what to take."""
    if not {"info", "arrays"} & set(options):
        warn_of_unused_labels(atoms, results_of)
        warn_of_uncomputed_labels(atoms, results_of)
    return from_ase(atoms, **options)


def names_of_keys(where: str, asked: Iterable[str] | Names) -> Names:
    """Field by key of the entries to take from ``info``, ``arrays`` or ``results``."""
    if isinstance(asked, str):
        raise ArgumentTypeError(f"{where} is {asked!r}, expected a list or a mapping of keys")
    if not isinstance(asked, Mapping):
        usual = _ARRAY_NAMES if where == "arrays" else {}
        asked = {key: usual.get(key, key) for key in asked}
    keys: dict[str, str] = {}
    for key, name in asked.items():
        if name in STRUCTURE or (where == "arrays" and key in _ARRAYS):
            taken = name if name in STRUCTURE else key
            raise FieldError(f"{taken!r} is always taken from the Atoms: leave it out of {where}")
        if keys.setdefault(name, key) != key:
            raise FieldError(
                f"{keys[name]!r} and {key!r} of .{where} are both mapped to field {name!r}: leave "
                "one out"
            )
        level_of(name, _LEVELS.get(where) or _result_level(key, name))
    return dict(asked)


def check_found(where: str, names: Names, found: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a key that none of the systems has."""
    for key in names:
        if not any(key in one for one in found):
            have = sorted({other for one in found for other in one})
            raise FieldError(f"none of {len(found)} Atoms has {key!r} in .{where}; there is {have}")


def _result_level(key: str, name: str) -> Level:
    """Level of the field `name` that holds a calculator's result `key`."""
    if name in CORE_FIELDS:
        return CORE_FIELDS[name].level
    return Level.ATOM if key in _ATOM_RESULTS else Level.SYSTEM


def from_atoms(
    atoms: "Atoms",
    results: Mapping[str, tuple[Level, AnyArray]],
    info: Names,
    arrays: Names,
    *,
    dtype: torch.dtype,
    position: int = 0,
) -> AtomicData:
    """System of one `Atoms` and the results of `results_of`; messages have its position."""
    check_elements(atoms, position)
    data = AtomicData(
        positions=as_tensor("positions", atoms.get_positions(), dtype),
        atomic_numbers=as_tensor("atomic_numbers", atoms.numbers, dtype),
        cell=as_tensor("cell", np.asarray(atoms.cell), dtype),
        pbc=as_tensor("pbc", atoms.pbc, dtype),
    )
    for name, (level, result) in results.items():
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


def present_results(atoms: "Atoms", tol: float = 1e-15) -> dict[str, Any]:
    """Results that the attached calculator holds for the present atoms, to within `tol`."""
    calc = atoms.calc
    results = getattr(calc, "results", None) or {}
    remembers = getattr(calc, "atoms", None) is not None and hasattr(calc, "check_state")
    if not results or (remembers and calc.check_state(atoms, tol=tol)):
        return {}
    found = {name: value for name, value in results.items() if value is not None}
    if has_no_energy(atoms, found):
        del found["energy"]
    return found


def results_of(atoms: "Atoms", names: Names | None = None) -> dict[str, tuple[Level, AnyArray]]:
    """Level and value by field of the results that the calculator holds for the present atoms.

    `names` has the field by name of a result, by default each of `RESULTS` under its own name.
    """
    return named_results(present_results(atoms), names)


def named_results(
    results: Mapping[str, Any], names: Names | None = None
) -> dict[str, tuple[Level, AnyArray]]:
    """The same of results that are known to be those of the atoms."""
    if names is None:
        names = dict(zip(RESULTS, RESULTS, strict=True))
    return {
        name: (_result_level(key, name), np.asarray(results[key]))
        for key, name in names.items()
        if results.get(key) is not None
    }


@overload
def to_ase(data: Batch | AtomicData) -> "list[Atoms]": ...


@overload
def to_ase(data: Any) -> "Iterator[Atoms]": ...


def to_ase(data: Any) -> "list[Atoms] | Iterator[Atoms]":
    """ASE ``Atoms``, one per system.

    Energy, forces, stress, dipole and charges are attached with a ``SinglePointCalculator``;
    momenta (or velocities) and masses are set; other fields at atom level go to ``atoms.arrays``
    and at system level to ``atoms.info``, strings as such.

    Not carried: fields at edge level, and at levels of the user's own with several rows, which
    have no place in ``Atoms``; of a stress that is not symmetric, the antisymmetric part.

    Parameters
    ----------
    data
        A `Batch` or an `AtomicData`, or a `ZarrDataset` (or another that has ``__getitems__`` and
        gives systems).

    Returns
    -------
    list or iterator of Atoms
        A list of the systems of a batch; of a dataset an iterator, which reads about 32 MB at a
        time.

    Raises
    ------
    ArgumentTypeError
        If it is none of these.

    Examples
    --------
    >>> helium = AtomicData([[0.0, 0.0, 0.0]], [2], energy=-78.8)
    >>> atoms = to_ase(helium)[0]
    >>> str(atoms.symbols), atoms.get_potential_energy()
    ('He', -78.8)
    """
    if isinstance(data, AtomicData):
        return _systems_to_ase([data])
    if isinstance(data, Batch):
        return _systems_to_ase(data.to_data_list())
    if not has_positions(data):
        raise ArgumentTypeError(
            f"to_ase was given a {type(data).__name__}, expected a Batch, an AtomicData or a "
            "dataset: zarrpipe.ZarrDataset(path) opens a store, and zarrpipe.adapters.as_batch "
            "makes a batch of a list"
        )
    return chain.from_iterable(map(to_ase, position_blocks(data, Batch.concatenate)))


def _systems_to_ase(systems: Sequence[AtomicData]) -> "list[Atoms]":
    """``Atoms`` of systems on any device."""
    ase = require("ase", "ase")
    singlepoint = require("ase.calculators.singlepoint", "ase")
    return [_to_atoms(one.cpu(), ase, singlepoint) for one in systems]


def _to_atoms(data: AtomicData, ase: Any, singlepoint: Any) -> "Atoms":
    values = {name: value.detach().numpy() for name, value in data.fields.items()}
    atoms: Atoms = ase.Atoms(
        numbers=values.pop("atomic_numbers"),
        positions=values.pop("positions"),
        cell=values.pop("cell")[0] if "cell" in values else None,
        pbc=values.pop("pbc")[0] if "pbc" in values else False,
    )
    results = {name: values.pop(name) for name in RESULTS if name in values}
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
