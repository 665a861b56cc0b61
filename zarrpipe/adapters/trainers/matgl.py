"""MatGL: the tuple that its training of potentials takes, from whole batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from zarrpipe.adapters.assemble import stresses
from zarrpipe.data.batch import Batch
from zarrpipe.errors import FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from torch_geometric.data import Batch as PygBatch

_EXTRA = "matgl"


def to_matgl(
    batch: Batch,
    element_types: Sequence[str],
    *,
    include_stress: bool | None = None,
    include_magmom: bool = False,
    include_charge: bool = False,
    state_attr: str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Any, ...]:
    """What MatGL's ``collate_fn_pes`` makes of the same structures, and its models are trained on.

    MatGL's stress is in GPa and has ASE's sign: positive under tension. Where a system has no
    stress, its virial gives it, ``stress = -virial / volume``. The row of a label that a system
    lacks is NaN, which MatGL leaves out of its loss with ``allow_missing_labels=True``.

    A system that is periodic in no direction has Cartesian coordinates and the unit matrix as its
    lattice, as in MatGL. Lattice vectors that are zero become unit vectors at right angles to the
    others. Edges are sorted by their first atom, which M3GNet and CHGNet rely on.

    Parameters
    ----------
    batch
        The systems, with the edges that `zarrpipe.transforms.NeighborList` finds.
    element_types
        Symbols in the order of the model's ``element_types``: an atom's type is a place in it.
    include_stress
        Whether stresses are handed over; by default where the batch has stress or virial.
    include_magmom, include_charge
        Whether the field ``magmoms`` or ``charges`` follows as a seventh item.
    state_attr
        Field at system level with the state attributes, such as a number of the level of theory;
        by default zeros ``[B, 2]``, as MatGL has for structures.
    dtype
        Of all floats; by default ``matgl.float_th``.

    Returns
    -------
    tuple
        Graph (a ``Batch`` of PyG with ``edge_index`` [2, E], ``pbc_offset`` [E, 3], ``node_type``
        [V], ``frac_coords`` [V, 3]), lattices [B, 3, 3] in Angstrom, state attributes, energies
        [B] in eV, forces [V, 3] in eV/Angstrom, stresses [3 B, 3] in GPa (one zero without), and
        magmoms [V, 1] or charges [V] if asked for.

    Raises
    ------
    FieldError
        If an element is not among `element_types`, there are no edges, or a field that is asked for
        is not in the batch.
    MissingLibraryError
        If MatGL is not installed.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> from zarrpipe.transforms import NeighborList
    >>> water = zp.AtomicData([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [8, 1], energy=-3.0, forces=...)
    ... # doctest: +SKIP
    >>> graph, lattice, state, energies, forces, stresses = to_matgl(
    ...     NeighborList(5.0)(zp.Batch.from_data_list([water])), ("H", "O")
    ... )  # doctest: +SKIP
    """
    library = require("matgl", _EXTRA)
    dtype = library.float_th if dtype is None else dtype
    lattices = _lattices(batch)
    graph = _graph(batch, element_types, lattices, dtype, library.int_th)
    if include_stress is None:
        include_stress = "stress" in batch or "virial" in batch
    values = [
        lattices.to(dtype),
        _state(batch, state_attr, dtype),
        _label(batch, "energy").reshape(-1).to(dtype),
        _label(batch, "forces").to(dtype),
        _stresses(batch).to(dtype) if include_stress else _nothing(batch, dtype),
    ]
    if include_magmom:
        values.append(_label(batch, "magmoms").reshape(-1, 1).to(dtype))
    if include_charge:
        values.append(_label(batch, "charges").reshape(-1).to(dtype))
    return graph, *values


def _graph(
    batch: Batch,
    element_types: Sequence[str],
    lattices: torch.Tensor,
    dtype: torch.dtype,
    index_dtype: torch.dtype,
) -> "PygBatch":
    """Graph of all systems, whose coordinates are relative to lattices [B, 3, 3]."""
    if "neighbor_list" not in batch:
        raise FieldError(
            "the batch has no 'neighbor_list', and MatGL's graphs need edges: call "
            "zarrpipe.transforms.NeighborList(cutoff) before, with the cutoff of the model"
        )
    edges, system = batch.neighbor_list, batch.batch_idx
    if "neighbor_list_shifts" in batch:
        shifts = batch.neighbor_list_shifts.to(dtype)
    else:
        shifts = torch.zeros(len(edges), 3, dtype=dtype, device=edges.device)
    if bool((edges[:, 0].diff() < 0).any()):
        order = torch.argsort(edges[:, 0], stable=True)
        edges, shifts = edges[order], shifts[order]
    positions = batch.positions.to(lattices.dtype)
    relative = torch.einsum("vi,vij->vj", positions, torch.linalg.inv(lattices)[system])
    graph = require("torch_geometric.data", _EXTRA).Batch(
        edge_index=edges.t().contiguous().to(index_dtype),
        pbc_offset=shifts,
        node_type=_types(batch, element_types),
        frac_coords=relative.to(dtype),
        batch=system,
        ptr=batch.batch_ptr,
    )
    graph.num_nodes, graph._num_graphs = batch.num_nodes, batch.num_graphs
    return graph


def _types(batch: Batch, element_types: Sequence[str]) -> torch.Tensor:
    """Place of each atom's element in `element_types`, [V] int64."""
    data = require("ase.data", _EXTRA)
    numbers = [data.atomic_numbers[symbol] for symbol in element_types]
    table = torch.full((len(data.chemical_symbols),), -1)
    table[numbers] = torch.arange(len(numbers))
    types = table.to(batch.device)[batch.atomic_numbers]
    unknown = types < 0
    if bool(unknown.any()):
        found = sorted({data.chemical_symbols[z] for z in batch.atomic_numbers[unknown].tolist()})
        raise FieldError(
            f"atoms of {', '.join(found)} are in the batch and not among the model's element_types "
            f"{tuple(element_types)}: make a model with these elements too, or leave the samples "
            f"""out with where='not has_element("{found[0]}")'"""
        )
    return types


def _lattices(batch: Batch) -> torch.Tensor:
    """Invertible lattices [B, 3, 3] float64, the unit matrix for what is not periodic."""
    unit = torch.eye(3, dtype=torch.float64, device=batch.device)
    if "cell" not in batch or "pbc" not in batch:
        return unit.repeat(batch.num_graphs, 1, 1)
    periodic = batch.pbc.any(1) & batch.present("cell")
    lattices = torch.where(periodic[:, None, None], batch.cell.to(torch.float64), unit)
    empty = ~lattices.any(2)
    if bool(empty.any()):
        _, _, right = torch.linalg.svd(lattices)
        # The last right singular vectors are at right angles to all lattice vectors.
        across = torch.arange(3, device=batch.device) >= 3 - empty.sum(1, keepdim=True)
        lattices[empty] = right[across]
    return lattices


def _stresses(batch: Batch) -> torch.Tensor:
    """Stresses in GPa, [3 B, 3] float64, NaN where a system has none."""
    factor: float = require("matgl.utils.constants", _EXTRA).EV_PER_ANG3_TO_GPA
    if "virial" not in batch:
        _label(batch, "stress")
    return stresses(batch).reshape(-1, 3) * factor


def _state(batch: Batch, name: str | None, dtype: torch.dtype) -> torch.Tensor:
    """State attributes, [B] int64 from integers and [B, K] from floats."""
    if name is None:
        return torch.zeros(batch.num_graphs, 2, dtype=dtype, device=batch.device)
    values = _label(batch, name)
    if values.is_floating_point():
        return values.reshape(batch.num_graphs, -1).to(dtype)
    return values.reshape(batch.num_graphs).to(torch.int64)


def _label(batch: Batch, name: str) -> torch.Tensor:
    """Field that MatGL's loss needs."""
    if name not in batch:
        raise FieldError(
            f"no system of the batch has {name!r}, which MatGL asks for; it has "
            f"{sorted(batch.fields)}: name the field so, or read it too with fields="
        )
    value: torch.Tensor = batch[name]
    return value


def _nothing(batch: Batch, dtype: torch.dtype) -> torch.Tensor:
    """One zero, as MatGL predicts where stresses are not computed."""
    return torch.zeros(1, dtype=dtype, device=batch.device)
