"""torch-sim: `SimState` and the states that its integrators and optimizers derive from it."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zarrpipe.adapters.assemble import assemble
from zarrpipe.compat import torch_sim_extras, torch_sim_pbc_is_bool
from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from torch_sim import SimState

_NAMES = {"masses": "atomic_masses"}
_SKIPPED = frozenset({"system_idx"})
_COLUMN_VECTORS = frozenset({"cell", "reference_cell"})
_STRUCTURE = frozenset({"positions", "atomic_numbers", "cell", "pbc"})


def from_torch_sim(state: "SimState", *, fields: Collection[str] | None = None) -> Batch:
    """Batch of a torch-sim state, with every field that its class declares.

    The cells, whose columns are the lattice vectors in torch-sim, are transposed to rows;
    ``masses`` become ``atomic_masses``, and positions, momenta, velocities, forces, energy and
    stress keep their names. Other per-atom and per-system fields are fields of the user's own,
    scalars per system as ``[B, 1]``. A global number or tensor is repeated for each system.

    Not carried: anything without a number (such as the chain of a thermostat), constraints and the
    random generator. A state has the forces as constraints have left them.

    Parameters
    ----------
    state
        Any state derived from ``SimState``, in torch-sim's metal units: Angstrom, eV, amu.
    fields, optional
        Our names of the fields to take besides positions, atomic numbers, cell and pbc.

    Raises
    ------
    FieldError
        If the state does not have one of `fields`.
    """
    order, num_atoms = _grouped(state.system_idx)
    atom_extras, system_extras = torch_sim_extras(state)
    found: dict[str, tuple[Level, torch.Tensor]] = {}
    taken = _STRUCTURE if fields is None else _STRUCTURE.union(fields)
    named = (state._atom_attributes | atom_extras.keys()) - _SKIPPED
    if fields is not None and "velocities" in taken and "momenta" in named:
        named |= {"velocities"}  # a property, as momenta and masses are declared
    for key in sorted(named):
        value, name = getattr(state, key, None), _NAMES.get(key, key)
        if isinstance(value, torch.Tensor) and (fields is None or name in taken):
            found[name] = (Level.ATOM, value if order is None else value[order])
    for key in sorted(state._system_attributes | system_extras.keys()):
        value = getattr(state, key, None)
        if isinstance(value, torch.Tensor) and (fields is None or key in taken):
            found[key] = (Level.SYSTEM, value.mT if key in _COLUMN_VECTORS else value)
    for key in sorted(state._global_attributes):
        if key.startswith("_") or (fields is not None and key not in taken):
            continue  # the random generator of torch-sim 0.6
        repeated = _repeat(key, getattr(state, key, None), num_atoms)
        if repeated is not None:
            found[key] = (Level.SYSTEM, repeated)
    lacks = sorted(taken - found.keys()) if fields is not None else []
    if lacks:
        raise FieldError(
            f"{type(state).__name__} has no {lacks}; it has {_numeric(state)}: leave the others out"
        )
    return assemble(found, num_atoms)


def _numeric(state: "SimState") -> list[str]:
    """Our names of the fields that a state has."""
    return sorted(from_torch_sim(state).fields)


def _grouped(system_idx: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Permutation that groups the atoms by system (None if they are grouped), and counts."""
    num_atoms = torch.bincount(system_idx)
    if bool((system_idx.diff() < 0).any()):
        return torch.argsort(system_idx, stable=True), num_atoms
    return None, num_atoms


def _repeat(name: str, value: Any, num_atoms: torch.Tensor) -> torch.Tensor | None:
    """A global value once for each system, or None if it is not numeric."""
    if not isinstance(value, torch.Tensor | bool | int | float):
        return None
    dtype = torch.float64 if isinstance(value, float) else None
    tensor = torch.as_tensor(value, dtype=dtype, device=num_atoms.device)
    if name == "pbc":
        tensor = tensor.expand(3)
    return tensor.expand(num_atoms.shape[0], *tensor.shape).clone()


def to_torch_sim(batch: Batch) -> "SimState":
    """Torch-sim ``SimState`` of the positions, masses, cells, pbc and numbers of a batch.

    Cells become column vectors, and zeros where the batch has none; missing masses are taken
    from ASE's table.

    Not carried: all other fields, labels and velocities among them, which have no place in a plain
    ``SimState``.

    Raises
    ------
    FieldError
        If the systems differ in pbc, of which a state has one for all. Before torch-sim 0.4.1 also
        if they are periodic in some directions only.
    """
    torch_sim = require("torch_sim", "torch-sim")
    return torch_sim.SimState(
        positions=batch.positions,
        masses=_masses(batch),
        cell=_cells(batch).mT.contiguous(),
        pbc=_one_pbc(batch, per_direction=not torch_sim_pbc_is_bool(torch_sim.SimState)),
        atomic_numbers=batch.atomic_numbers,
        system_idx=batch.batch_idx,
    )


def _cells(batch: Batch) -> torch.Tensor:
    """Cells [B, 3, 3] with lattice vectors as rows, zeros for systems without one."""
    if "cell" not in batch:
        return batch.positions.new_zeros(batch.num_graphs, 3, 3)
    has = batch.present("cell")[:, None, None]
    return torch.where(has, batch.cell, 0.0).to(batch.dtype)


def _masses(batch: Batch) -> torch.Tensor:
    """Masses [V], from ASE's table for systems that have none."""
    has = batch.present("atomic_masses") if "atomic_masses" in batch else None
    if has is not None and bool(has.all()):
        return batch.atomic_masses.to(batch.dtype)
    table = np.asarray(require("ase.data", "ase").atomic_masses)
    usual = torch.as_tensor(table, dtype=batch.dtype, device=batch.device)[batch.atomic_numbers]
    if has is None:
        return usual
    return torch.where(has[batch.batch_idx], batch.atomic_masses.to(batch.dtype), usual)


def _one_pbc(batch: Batch, *, per_direction: bool) -> bool | list[bool]:
    """The pbc that all systems share, as one bool if it is the same in all directions."""
    if "pbc" not in batch:
        return False
    pbc = batch.pbc
    if bool((pbc == pbc[0, 0]).all()):
        return bool(pbc[0, 0])
    if per_direction and bool((pbc == pbc[0]).all()):
        return [bool(periodic) for periodic in pbc[0]]
    one = "pbc" if per_direction else "bool"
    raise FieldError(
        f"the systems have pbc {torch.unique(pbc, dim=0).tolist()}, and a state of this release "
        f"of torch-sim has one {one} for all of them: convert systems of one kind at a time with "
        "batch.index_select"
    )
