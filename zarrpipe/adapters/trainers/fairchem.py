"""fairchem: the batches that its models train on."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from fairchem.core.datasets.atomic_data import AtomicData

_LABELS = ("energy", "forces", "stress")
_LEVELS = {
    **dict.fromkeys(("pos", "atomic_numbers", "fixed", "tags", "batch", "forces"), Level.ATOM),
    **dict.fromkeys(("edge_index", "cell_offsets"), Level.EDGE),
}
"""Levels of fairchem's names; all others are at system level."""
_SMALLEST = 0.1
"""Angstrom^3; fairchem refuses smaller periodic cells."""


def to_fairchem(
    batch: Batch,
    *,
    dataset: str | None = None,
    dataset_name: str | None = None,
    key_mapping: Mapping[str, str | Sequence[str]] = MappingProxyType({}),
    molecule_cell_size: float | None = None,
    flat_stress: bool = False,
    dtype: torch.dtype = torch.float32,
) -> "AtomicData":
    """``AtomicData`` of fairchem-core 2.24 with all systems, on the device of the batch.

    The values are those of its ``atomicdata_list_to_batch`` of what its ``AseDBDataset`` makes of
    ASE's atoms with ``r_data_keys=["charge", "spin"]``: positions are wrapped into periodic cells
    in float64 and then cast to `dtype`, missing lattice vectors are completed, energy is ``[B]``,
    forces ``[V, 3]``, stress ``[B, 3, 3]`` in eV/Angstrom^3 with tension positive, ``charge`` and
    ``spin`` ``[B]`` int64 (rounded; 0 where the batch has none), ``tags`` and ``fixed`` those of
    the user's own atom fields of these names (tags of a system that has none but zeros are 1),
    ``sid`` the strings of a field of that name. There are no edges: its models find them
    themselves, with ``otf_graph``.

    A label that a system lacks is infinite, which its loss leaves out.

    Parameters
    ----------
    batch
        In Angstrom and eV.
    dataset
        Name of the task that the systems belong to, ``"omat"`` for example.
    dataset_name
        What its ``ConcatDataset`` calls the data set and the split, by which its unit reports
        metrics, ``"omat.train"`` for example.
    key_mapping
        New names of labels, one or several of each, as in its configuration:
        ``{"energy": "omat_energy"}``.
    molecule_cell_size
        Where systems without a cell and periodicity get a periodic one: the vacuum around them,
        Angstrom.
    flat_stress
        Whether stress is ``[B, 9]``, as ``stress_reshape_transform`` makes it for the loss.
    dtype
        Of positions, cells and labels.

    Raises
    ------
    FieldError
        If a periodic system has a cell of no volume.
    MissingLibraryError
        If fairchem-core is not installed.

    Examples
    --------
    The batch of three samples of a store, as a model of one data set takes it::

        data = to_fairchem(dataset.read([0, 1, 2]), dataset="omat")
        energies = model(data)["energy"]["energy"]
    """
    library = require("fairchem.core.datasets.atomic_data", "fairchem")
    rename = require("fairchem.core.datasets._utils", "fairchem").rename_data_object_keys
    count, none = batch.num_graphs, batch.batch_ptr.new_zeros(batch.num_graphs)
    positions, cell, pbc = _geometry(batch, molecule_cell_size)
    labels = {name: _label(batch, name, dtype) for name in _LABELS if name in batch}
    if flat_stress and "stress" in labels:
        labels["stress"] = labels["stress"].reshape(count, 9)
    data = library.AtomicData(
        pos=positions.to(dtype),
        atomic_numbers=batch.atomic_numbers,
        cell=cell.to(dtype),
        pbc=pbc,
        natoms=batch.num_nodes_per_graph,
        edge_index=none.new_zeros(2, 0),
        cell_offsets=positions.new_zeros((0, 3), dtype=dtype),
        nedges=none,
        charge=_whole(batch, "charge", none),
        spin=_whole(batch, "spin", none),
        fixed=_whole(batch, "fixed", torch.zeros_like(batch.atomic_numbers)),
        tags=_tags(batch),
        batch=batch.batch_idx,
        sid=batch.strings("sid") if _is_strings(batch, "sid") else [""] * count,
        dataset=None if dataset is None else [dataset] * count,
        **labels,
    )
    if dataset_name is not None:
        data.dataset_name = [dataset_name] * count
    rename(data, dict(key_mapping))
    _assign_slices(data, batch, _levels(key_mapping))
    return data


def _levels(key_mapping: Mapping[str, str | Sequence[str]]) -> dict[str, Level]:
    """Levels of fairchem's names and of the new names of labels."""
    levels = dict(_LEVELS)
    for name, new in key_mapping.items():
        level = _LEVELS.get(name, Level.SYSTEM)
        levels |= dict.fromkeys([new] if isinstance(new, str) else new, level)
    return levels


def _assign_slices(data: Any, batch: Batch, levels: Mapping[str, Level]) -> None:
    """Say which rows each system has, as fairchem's collation does, so that it can be split."""
    ptr, count = batch.batch_ptr.tolist(), batch.num_graphs
    rows = {Level.ATOM: ptr, Level.EDGE: [0] * (count + 1), Level.SYSTEM: list(range(count + 1))}
    keys = sorted(data.keys())
    data.assign_batch_stats(
        {key: rows[levels.get(key, Level.SYSTEM)] for key in keys},
        {key: ptr if "index" in key else [0] * (count + 1) for key in keys},
        {key: -1 if "index" in key else 0 for key in keys},
        batch.num_nodes_list,
    )


def _label(batch: Batch, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Values of a label, infinite where a system lacks it."""
    value: torch.Tensor = batch[name].to(dtype)
    if name in batch.partly_present:
        present = batch.present(name)
        rows = present[batch.batch_idx] if name == "forces" else present
        value = torch.where(rows.reshape(-1, *[1] * (value.ndim - 1)), value, torch.inf)
    return value.reshape(-1) if name == "energy" else value


def _whole(batch: Batch, name: str, absent: torch.Tensor) -> torch.Tensor:
    """Whole numbers of a field, `absent` where it is not there."""
    if name not in batch:
        return absent
    value: torch.Tensor = batch[name].reshape(-1)
    return torch.nan_to_num(value).round().long() if value.is_floating_point() else value.long()


def _tags(batch: Batch) -> torch.Tensor:
    """Tags [V], 1 in systems without any, as fairchem's data sets set them."""
    tags = _whole(batch, "tags", torch.zeros_like(batch.atomic_numbers))
    tagged = torch.zeros_like(batch.num_nodes_per_graph).index_add(
        0, batch.batch_idx, (tags != 0).long()
    )
    return torch.where((tagged == 0)[batch.batch_idx], 1, tags)


def _is_strings(batch: Batch, name: str) -> bool:
    return name in batch and batch.roles[name].categories is not None


def _geometry(
    batch: Batch, molecule_cell_size: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Wrapped positions, complete cells, both float64, and pbc, as fairchem's ``from_ase``."""
    count, positions = batch.num_graphs, batch.positions.double()
    pbc = batch.pbc if "pbc" in batch else batch.batch_ptr.new_zeros((count, 3), dtype=torch.bool)
    cell = batch.cell.double() if "cell" in batch else positions.new_zeros(count, 3, 3)
    periodic, volume = pbc.any(1), torch.linalg.det(cell).abs()
    if bool((flat := periodic & (volume < _SMALLEST)).any()):
        system = int(flat.nonzero()[0, 0])
        raise FieldError(
            f"system {system} of the batch has pbc={pbc[system].tolist()} and a cell of "
            f"{float(volume[system]):.3g} Angstrom^3, expected a cell with a volume: add 'cell' to "
            "fields=, or leave the sample out with where="
        )
    boxed = torch.zeros_like(periodic)
    if molecule_cell_size is not None:
        boxed = ~periodic & ~cell.any(-1).any(-1)
        positions, cell = _in_vacuum(batch, boxed, positions, cell, molecule_cell_size)
        pbc = pbc | boxed[:, None]
    cell = _complete(cell)
    wrapped = periodic | boxed
    eye = torch.eye(3, dtype=cell.dtype, device=cell.device)
    frame = torch.where(wrapped[:, None, None], cell, eye)[batch.batch_idx]
    fractional = torch.linalg.solve(frame.mT, positions)
    fractional = torch.where(pbc[batch.batch_idx], fractional % 1.0, fractional)
    inside = torch.einsum("vi,vij->vj", fractional, frame)
    return torch.where(wrapped[batch.batch_idx, None], inside, positions), cell, pbc


def _in_vacuum(
    batch: Batch, boxed: torch.Tensor, positions: torch.Tensor, cell: torch.Tensor, vacuum: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and cells, of systems that are `boxed` [B] in the middle of a rectangular box."""
    owner = batch.batch_idx[:, None].expand(-1, 3)
    low, high = (
        positions.new_zeros(batch.num_graphs, 3).scatter_reduce(
            0, owner, positions, how, include_self=False
        )
        for how in ("amin", "amax")
    )
    box = torch.diag_embed(high - low + 2 * vacuum)
    moved = positions + (vacuum - low)[batch.batch_idx]
    chosen = boxed[batch.batch_idx, None]
    return torch.where(chosen, moved, positions), torch.where(boxed[:, None, None], box, cell)


def _complete(cell: torch.Tensor) -> torch.Tensor:
    """Cells [B, 3, 3] whose zero vectors are replaced as ASE does."""
    missing = (cell == 0).all(-1).sum(-1)
    eye = torch.eye(3, dtype=cell.dtype, device=cell.device)
    cell = torch.where((missing == 3)[:, None, None], eye, cell)
    for system in ((missing > 0) & (missing < 3)).nonzero().flatten().tolist():
        complete = require("ase.geometry.cell", "ase").complete_cell(cell[system].cpu().numpy())
        cell[system] = torch.from_numpy(complete).to(cell)
    return cell
