"""SchNetPack: the dictionary of tensors that its models and its trainer take."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from zarrpipe.adapters.assemble import stresses
from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError

KEYS: Mapping[str, str] = MappingProxyType(
    {
        "atomic_masses": "masses",
        "dipole": "dipole_moment",
        "charge": "total_charge",
        "charges": "partial_charges",
        "spin": "spin_multiplicity",
    }
)
"""SchNetPack's key of a field that has another name there."""

_STRUCTURE = ("positions", "atomic_numbers", "cell", "pbc", "stress", "virial")


def to_schnetpack(
    batch: Batch,
    *,
    dtype: torch.dtype = torch.float32,
    atomrefs: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """What SchNetPack's ``AtomsLoader`` makes of the same structures, on the device of the batch.

    Labels are in the units of the store, eV and Angstrom, as a dataset of SchNetPack with
    ``distance_unit="Ang"``. ``stress`` is in eV/Angstrom^3 and has ASE's sign, as the derivative
    that SchNetPack's ``Forces(calc_stress=True)`` computes where the lattice vectors are
    right-handed; where a system has no stress, its virial gives it. The row of a label that a
    system lacks is NaN; see `zarrpipe.schnetpack.OnlyLabelled`.

    dipole, charges, charge, spin and atomic_masses become ``dipole_moment``, ``partial_charges``,
    ``total_charge``, ``spin_multiplicity`` and ``masses``; other numbers by atom and by system
    keep their names. ``_idx`` counts the systems of the batch.

    Parameters
    ----------
    batch
        The systems, with the edges that `zarrpipe.transforms.NeighborList` finds.
    dtype
        Of all floats; SchNetPack's models are in float32.
    atomrefs : torch.Tensor [Z], optional
        Energies by atomic number, eV, that are taken from ``energy`` before it is cast, as
        SchNetPack's ``RemoveOffsets`` does.

    Returns
    -------
    dict of str to torch.Tensor
        ``_positions`` [V, 3], ``_atomic_numbers`` [V], ``_cell`` [B, 3, 3] (zeros without),
        ``_pbc`` [3 B], ``_n_atoms`` [B], ``_idx_m`` [V], ``_idx_i`` and ``_idx_j`` [E] and the
        same with ``_local``, ``_offsets`` [E, 3] in Angstrom, ``_idx`` [B], and the labels:
        numbers of a system as ``[B]``, ``stress`` [B, 3, 3], ``forces`` [V, 3].

    Raises
    ------
    FieldError
        If there are no edges, or an element is not in `atomrefs`.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> from zarrpipe.transforms import NeighborList
    >>> water = zp.AtomicData([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [8, 1], energy=-3.0)
    >>> inputs = to_schnetpack(NeighborList(5.0)(zp.Batch.from_data_list([water])))
    >>> inputs["_idx_j"].tolist(), inputs["energy"].tolist()
    ([1, 0], [-3.0])
    """
    system, number = batch.batch_idx, batch.num_graphs
    inputs = {
        "_idx": torch.arange(number, device=batch.device),
        "_n_atoms": batch.num_nodes_per_graph,
        "_atomic_numbers": batch.atomic_numbers,
        "_positions": batch.positions,
        "_cell": _cells(batch),
        "_pbc": _periodic(batch).reshape(-1),
        "_idx_m": system,
    }
    inputs |= _edges(batch, inputs["_cell"])
    for name, role in batch.roles.items():
        if role.level not in (Level.ATOM, Level.SYSTEM) or name in _STRUCTURE:
            continue
        if role.categories is None and role.index_of is None:
            value = batch[name]
            flat = value.ndim == 2 and value.shape[1] == 1 and role.level is Level.SYSTEM
            inputs[KEYS.get(name, name)] = value.reshape(-1) if flat else value
    if "stress" in batch or "virial" in batch:
        inputs["stress"] = stresses(batch)
    if atomrefs is not None and "energy" in inputs:
        inputs["energy"] = inputs["energy"] - _offsets(batch, atomrefs)
    return {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in inputs.items()
    }


def _cells(batch: Batch) -> torch.Tensor:
    """Cells [B, 3, 3], zeros where a system has none."""
    if "cell" not in batch:
        return batch.positions.new_zeros(batch.num_graphs, 3, 3)
    return torch.where(batch.present("cell")[:, None, None], batch.cell, 0.0)


def _periodic(batch: Batch) -> torch.Tensor:
    """In which directions each system is periodic, [B, 3] bool."""
    if "pbc" not in batch:
        return torch.zeros(batch.num_graphs, 3, dtype=torch.bool, device=batch.device)
    return batch.pbc


def _edges(batch: Batch, cells: torch.Tensor) -> dict[str, torch.Tensor]:
    """Atoms of each edge, counted in the batch and in their system, and its offset [E, 3]."""
    if "neighbor_list" not in batch:
        raise FieldError(
            "the batch has no 'neighbor_list', which SchNetPack's models need: call "
            "zarrpipe.transforms.NeighborList(cutoff) before, with the cutoff of the model"
        )
    first, second = batch.neighbor_list.t().contiguous()
    system = batch.batch_idx[first]
    begin = batch.batch_ptr[system]
    if "neighbor_list_shifts" in batch:
        shifts = batch.neighbor_list_shifts.to(cells.dtype)
        offsets = torch.einsum("ei,eij->ej", shifts, cells[system])
    else:
        offsets = cells.new_zeros(len(first), 3)
    return {
        "_idx_i": first,
        "_idx_j": second,
        "_idx_i_local": first - begin,
        "_idx_j_local": second - begin,
        "_offsets": offsets,
    }


def _offsets(batch: Batch, atomrefs: torch.Tensor) -> torch.Tensor:
    """Sum of the energies of the atoms of each system, [B] float64."""
    table = atomrefs.to(batch.device, torch.float64)
    highest = int(batch.atomic_numbers.max())
    if highest >= len(table):
        raise FieldError(
            f"the batch has the atomic number {highest}, and atomrefs has {len(table)} entries: "
            "expected one for each number from 0 on"
        )
    sums = torch.zeros(batch.num_graphs, dtype=torch.float64, device=batch.device)
    return sums.index_add(0, batch.batch_idx, table[batch.atomic_numbers])
