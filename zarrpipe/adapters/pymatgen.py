"""pymatgen: ordered `Structure` and `Molecule`, with their properties and site properties."""

import warnings
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zarrpipe.adapters.ase import Names, from_ase, names_of_keys, present_results
from zarrpipe.adapters.ase_label_warning import level_of_caller
from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.data.system import AtomicData
from zarrpipe.errors import ArgumentTypeError, FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from pymatgen import core

_OWN = ("charge", "spin_multiplicity")
"""Attributes of a structure or a molecule that are taken as fields."""
_ELEMENTS = 118
_ROUNDING = 1e-6
"""Angstrom that positions change on their way through fractional coordinates, at most."""


def from_pymatgen(
    structures: "core.IStructure | core.IMolecule | Iterable[core.IStructure | core.IMolecule]",
    *,
    properties: Iterable[str] | Names = (),
    site_properties: Iterable[str] | Names = (),
    results: Iterable[str] | Names | None = None,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Batch of one or several pymatgen structures or molecules.

    The lattice becomes ``cell`` and ``pbc``; a molecule has neither. The total ``charge`` is always
    taken (pymatgen has 0 for neutral ones and for those of which nothing is known), and the
    ``spin_multiplicity`` of molecules. Labels are those of an attached calculator
    (``structure.calc``), as in `from_ase`, and what is named here.

    Not carried: oxidation states (beyond the charge), isotopes, site labels, and properties that
    are not named.

    Parameters
    ----------
    structures
        One ordered structure or molecule, or an iterable of them.
    properties
        Keys of ``structure.properties`` that become fields at system level, or a mapping with the
        name of each field, as ``{"e_dft": "energy"}``. Values are in ASE's units, as for ``info``
        in `from_ase`.
    site_properties
        Keys of ``structure.site_properties`` that become fields at atom level, or a mapping.
    results, dtype
        As in `from_ase`.

    Raises
    ------
    ArgumentTypeError
        If an item is no structure or molecule.
    FieldError
        If a structure is disordered or has sites of no element, or as `from_ase`.
    """
    atoms = [_as_atoms(one, position) for position, one in enumerate(_listed(structures))]
    own = {key: key for key in _OWN if any(key in one.info for one in atoms)}
    return from_ase(
        atoms,
        info=own | dict(names_of_keys("properties", properties)),
        arrays=dict(names_of_keys("site_properties", site_properties)),
        results=results,
        dtype=dtype,
    )


def from_pymatgen_for_store(structures: "list[Any]", **options: Any) -> Batch:
    """As `from_pymatgen`, with a warning of what is not taken if no option says what to take."""
    if not {"properties", "site_properties"} & set(options):
        found = {
            name: sorted({key for one in structures for key in getattr(one, name)})
            for name in ("properties", "site_properties")
        }
        named = ", ".join(f"{name}={keys}" for name, keys in found.items() if keys)
        if named:
            warnings.warn(
                f"structures have properties that are not stored unless they are named: convert "
                f"them with zarrpipe.adapters.from_pymatgen(structures, {named}), units being "
                "those of ASE, or with zarrpipe.adapters.from_pymatgen(structures)",
                stacklevel=level_of_caller(),
            )
    return from_pymatgen(structures, **options)


def _listed(structures: Any) -> list[Any]:
    """The structures as a list; refuses what is none."""
    single = hasattr(structures, "cart_coords") or not hasattr(structures, "__iter__")
    found = [structures] if single else list(structures)
    for one in found:
        if not hasattr(one, "cart_coords") or not hasattr(one, "is_ordered"):
            raise ArgumentTypeError(
                f"from_pymatgen was given {one!r:.60}, expected a pymatgen Structure or Molecule, "
                "or an iterable of them"
            )
    return found


def _as_atoms(structure: Any, position: int) -> Any:
    """ASE's `Atoms` with the properties in info and the site properties in arrays."""
    if not structure.is_ordered:
        raise FieldError(
            f"structure {position} ({structure.formula}) is disordered: make ordered ones of it, "
            "as with pymatgen's OrderDisorderedStructureTransformation"
        )
    numbers = np.array(structure.atomic_numbers)
    if not bool(((numbers > 0) & (numbers <= _ELEMENTS)).all()):
        raise FieldError(
            f"structure {position} ({structure.formula}) has sites of no element: remove them "
            "with remove_species"
        )
    atoms = require("ase", "pymatgen").Atoms(numbers=numbers, positions=structure.cart_coords)
    lattice = getattr(structure, "lattice", None)
    if lattice is not None:
        atoms.cell, atoms.pbc = lattice.matrix, lattice.pbc
    own = {key: getattr(structure, key, None) for key in _OWN}
    atoms.info = {key: value for key, value in own.items() if value is not None}
    atoms.info |= structure.properties
    arrays = {key: np.array(rows) for key, rows in structure.site_properties.items()}
    atoms.arrays |= {key: rows for key, rows in arrays.items() if key not in atoms.arrays}
    atoms.calc = getattr(structure, "calc", None)
    if atoms.calc is not None:
        atoms.calc = SimpleNamespace(results=present_results(atoms, _ROUNDING))
    return atoms


def to_pymatgen(batch: Batch | AtomicData) -> "list[core.Structure | core.Molecule]":
    """List of pymatgen ``Structure`` (of periodic systems) and ``Molecule``, one per system.

    ``charge`` and ``spin_multiplicity`` are set; other fields at atom level go to
    ``site_properties`` and at system level to ``properties``, labels among them, under our names,
    as lists and numbers that ``as_dict`` keeps. `from_pymatgen` takes them back by name.

    Not carried: fields at edge level and at levels of the user's own with several rows, and the
    cell of a system that is periodic in no direction.
    """
    library = require("pymatgen.core", "pymatgen")
    systems = [batch] if isinstance(batch, AtomicData) else batch.to_data_list()
    return [_to_pymatgen(one.cpu(), library) for one in systems]


def _to_pymatgen(data: AtomicData, library: Any) -> Any:
    values = {name: value.detach().numpy() for name, value in data.fields.items()}
    numbers, positions = values.pop("atomic_numbers").tolist(), values.pop("positions")
    cell, pbc = (values.pop(name, None) for name in ("cell", "pbc"))
    own = {name: values.pop(name).item() for name in _OWN if name in values}
    options: dict[str, Any] = {
        "site_properties": {
            name: value.tolist()
            for name, value in values.items()
            if data.levels[name] is Level.ATOM
        },
        "properties": {
            name: _plain(data, name)
            for name in values
            if data.levels[name] is not Level.ATOM and not data.levels[name].has_pointers
        },
    }
    if cell is None or pbc is None or not pbc.any():
        spin = own.pop("spin_multiplicity", None)
        return library.Molecule(numbers, positions, spin_multiplicity=spin, **own, **options)
    options["properties"] |= {name: own[name] for name in own if name != "charge"}
    lattice = library.Lattice(cell[0], pbc=tuple(pbc[0].tolist()))
    return library.Structure(
        lattice,
        numbers,
        positions,
        charge=own.get("charge"),
        coords_are_cartesian=True,
        **options,
    )


def _plain(data: AtomicData, name: str) -> Any:
    """A string, a number or nested lists of the one row of a field."""
    if data.roles[name].categories is not None:
        return data.strings(name)[0]
    value = data[name]
    return value.item() if value.numel() == 1 else value[0].tolist()
