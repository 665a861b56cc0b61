"""ASE: `Atoms` with the results of their calculator."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.adapters._parts import fit_rows, require
from zarrpipe.data.atomic import AtomicData
from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import CORE_FIELDS, Level
from zarrpipe.errors import FieldError

if TYPE_CHECKING:
    from ase import Atoms

AnyArray = npt.NDArray[Any]

_ARRAY_NAMES = {"masses": "atomic_masses", "initial_charges": "charges"}
_RESULTS = ("energy", "forces", "stress", "dipole", "charges")
_STRUCTURE = frozenset({"positions", "numbers", "atomic_numbers", "cell", "pbc"})
_VOIGT = ((0, 5, 4), (5, 1, 3), (4, 3, 2))
"""Position in ASE's order xx, yy, zz, yz, xz, xy of each entry of the matrix."""
_VOIGT_INDEX = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Row and column in the matrix of each entry in ASE's order."""


def from_ase(
    atoms: "Atoms | Sequence[Atoms]",
    *,
    info: Iterable[str] = (),
    arrays: Iterable[str] = (),
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Batch of one or several ASE ``Atoms``.

    Energy, forces, stress, dipole and charges are taken from an attached calculator if it holds
    them for the present positions, numbers and cell: nothing is ever calculated here, and results
    that a later change has made stale are left out. Forces are those of the calculator, without
    constraints applied. What only some of the systems have is marked absent for the others.

    Parameters
    ----------
    atoms
        One ``Atoms`` or a sequence of them. Cell and pbc are always taken.
    info
        Keys of ``atoms.info`` to take as fields at system level, numbers or arrays of numbers.
    arrays
        Keys of ``atoms.arrays`` to take as fields at atom level; ``masses`` and
        ``initial_charges`` become ``atomic_masses`` and ``charges``.
    dtype
        Of every floating-point field. ASE calculates with float64, and total energies lose
        meV in float32.

    Raises
    ------
    FieldError
        If something asked for in `info` or `arrays` is on none of the systems, is not numeric or
        does not fit.
    """
    systems: list[Any] = [atoms] if hasattr(atoms, "get_positions") else list(atoms)
    info, arrays = tuple(info), tuple(arrays)
    _check_asked("info", info, [one.info for one in systems])
    _check_asked("arrays", arrays, [one.arrays for one in systems])
    return Batch.from_data_list([_from_atoms(one, info, arrays, dtype) for one in systems])


def _check_asked(where: str, keys: tuple[str, ...], found: list[dict[str, Any]]) -> None:
    for key in keys:
        if key in _STRUCTURE:
            raise FieldError(f"{key!r} is always taken from the Atoms: leave it out of {where}")
        if not any(key in one for one in found):
            have = sorted({name for one in found for name in one})
            raise FieldError(f"none of {len(found)} Atoms has {key!r} in .{where}; there is {have}")


def _from_atoms(
    atoms: "Atoms", info: tuple[str, ...], arrays: tuple[str, ...], dtype: torch.dtype
) -> AtomicData:
    data = AtomicData(
        positions=_tensor("positions", atoms.get_positions(), dtype),
        atomic_numbers=_tensor("atomic_numbers", atoms.numbers, dtype),
        cell=_tensor("cell", np.asarray(atoms.cell), dtype),
        pbc=_tensor("pbc", atoms.pbc, dtype),
    )
    for name, result in _results(atoms).items():
        _add(data, name, _tensor(name, result, dtype), CORE_FIELDS[name].level)
    for key in arrays:
        if key in atoms.arrays:
            own = _tensor(key, atoms.arrays[key], dtype)
            _add(data, _ARRAY_NAMES.get(key, key), own, Level.ATOM)
    for key in info:
        if atoms.info.get(key) is not None:
            own = _tensor(key, atoms.info[key], dtype)
            _add(data, key, own if own.ndim == 0 else own.unsqueeze(0), Level.SYSTEM)
    return data


def _add(data: AtomicData, name: str, value: torch.Tensor, level: Level) -> None:
    """Add a field, brought to the shape that the registry has for it."""
    if name == "stress" and value.numel() == 6:
        value = value.reshape(-1)[torch.tensor(_VOIGT)]
    data.add_field(name, fit_rows(name, value, level, data.rows(level)), level)


def _results(atoms: "Atoms") -> dict[str, AnyArray]:
    """Results of the attached calculator that belong to the atoms as they are now."""
    calc = atoms.calc
    results = getattr(calc, "results", None) or {}
    remembers = getattr(calc, "atoms", None) is not None and hasattr(calc, "check_state")
    if remembers and calc.check_state(atoms):
        return {}
    return {name: np.asarray(results[name]) for name in _RESULTS if results.get(name) is not None}


def _tensor(name: str, value: Any, dtype: torch.dtype) -> torch.Tensor:
    """Copy of a NumPy array or number as a tensor, floats in `dtype`."""
    array = np.array(value)
    if array.dtype.kind not in "biuf":
        raise FieldError(
            f"{name!r} has dtype {array.dtype}, expected numbers: only numeric info and arrays "
            "can become fields"
        )
    tensor = torch.from_numpy(array)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def to_ase(batch: Batch | AtomicData) -> "list[Atoms]":
    """List of ASE ``Atoms``, one per system.

    Energy, forces, stress, dipole and charges are attached with a ``SinglePointCalculator``;
    momenta (or velocities) and masses are set; other fields at atom level go to ``atoms.arrays``
    and at system level to ``atoms.info``. Fields at edge level have no place in ``Atoms``.
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
        elif data.levels[name] is Level.SYSTEM:
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
