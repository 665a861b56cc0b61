"""MACE: a `Batch` as the one that its own loader makes, without a loop over systems."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from mace.tools.torch_geometric.batch import Batch as MaceBatch


class _Place(NamedTuple):
    """Our field of a property of MACE, its level, the shape of a row, and MACE's default."""

    field: str
    level: Level = Level.SYSTEM
    shape: tuple[int, ...] = ()
    default: float = 0.0


_LABELS: Mapping[str, _Place] = {
    "energy": _Place("energy"),
    "forces": _Place("forces", Level.ATOM, (3,)),
    "stress": _Place("stress", shape=(3, 3)),
    "virials": _Place("virial", shape=(3, 3)),
    "dipole": _Place("dipole", shape=(3,)),
    "charges": _Place("charges", Level.ATOM),
    "polarizability": _Place("polarizability", shape=(3, 3)),
}
"""Properties with a weight for each system."""

_WIDE = ("dipole", "polarizability")
"""Labels whose weight has the shape of a row."""

_CONDITIONS: Mapping[str, _Place] = {
    "elec_temp": _Place("elec_temp"),
    "total_charge": _Place("charge"),
    "total_spin": _Place("spin", default=1.0),
    "fermi_level": _Place("fermi_level"),
    "external_field": _Place("external_field", shape=(3,)),
}
"""Properties that are no labels."""


def to_mace(
    batch: Batch,
    z_table: Sequence[int],
    r_max: float,
    *,
    heads: Sequence[str] = ("Default",),
    config_type_weights: Mapping[str, float] | None = None,
    fields: Iterable[str] = (),
    dtype: torch.dtype | None = None,
) -> "MaceBatch":
    """Batch of MACE's own type, as its models, losses and ``mace.tools.train`` take it.

    It holds what ``AtomicData.from_config`` and MACE's loader make of the same ASE atoms, by
    value, on the device of `batch`. Where a system lacks a label the value is 0 and its weight
    is 0. Units and signs are those of the fields: eV, eV/Angstrom, ``stress`` in eV/Angstrom^3
    with tension positive, ``virials`` = -volume * stress in eV; MACE's dipole models want Debye.
    Lattice vectors without periodicity are replaced as MACE does, by long ones along the axes, so
    that MACE's stress of a slab is that of this cell.

    Fields of the user's own with MACE's names are used as MACE does: ``config_weight`` and
    ``config_energy_weight`` (``forces``, ``stress``, ...) are weights of the loss, strings
    ``config_type`` choose from `config_type_weights`, and strings ``head`` from `heads`.

    Parameters
    ----------
    batch
        With its neighbour list, as `zarrpipe.transforms.NeighborList` finds it; edges beyond
        `r_max` do no harm.
    z_table
        Atomic numbers of the model, in its order; also MACE's ``AtomicNumberTable``.
    r_max
        Cutoff of the model in Angstrom.
    heads
        Names of the heads of the model. A system with another head, or with none, has the last.
    config_type_weights
        Weight of a system by its ``config_type``, and that of systems without one by "Default"; 1
        for a type that is not named.
    fields
        Further fields to hand over, which the ``embedding_specs`` of a model name: ``[V, ...]`` by
        atom, ``[B]`` or ``[B, ...]`` by system.
    dtype
        Of all floating-point tensors; by default torch's, which MACE's models are built in.

    Returns
    -------
    mace.tools.torch_geometric.batch.Batch
        ``positions [V, 3]``, ``node_attrs [V, elements]``, ``edge_index [2, E]``, ``shifts`` and
        ``unit_shifts [E, 3]``, ``cell`` and ``rcell [3 B, 3]``, ``pbc [B, 3]``, ``energy [B]``,
        ``forces [V, 3]``, ``stress`` and ``virials [B, 3, 3]``, weights ``[B]``, ``batch [V]``,
        ``ptr [B+1]`` and the rest. It cannot be cut into single systems again.

    Raises
    ------
    FieldError
        If the batch has no neighbour list, an element is not in `z_table`, or a field does not have
        the level and shape that MACE wants.
    MissingLibraryError
        If mace-torch is not installed.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> from zarrpipe.transforms import NeighborList
    >>> hydrogen = zp.AtomicData([[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]], [1, 1], energy=-31.7)
    >>> batch = NeighborList(4.0)(zp.Batch.from_data_list([hydrogen]))
    >>> made = to_mace(batch, [1, 8], 4.0)  # doctest: +SKIP
    >>> made.node_attrs.tolist(), made.forces_weight.tolist()  # doctest: +SKIP
    ([[1.0, 0.0], [1.0, 0.0]], [0.0])
    """
    library = require("mace.tools.torch_geometric.batch", "mace")
    if "neighbor_list" not in batch:
        raise FieldError(
            f"MACE needs the edges of each system, and the batch has no 'neighbor_list': use "
            f"transform=zarrpipe.transforms.NeighborList({r_max}), or call that with the batch"
        )
    dtype = dtype or torch.get_default_dtype()
    cell, pbc = _boxes(batch, r_max)
    values = {
        "positions": batch.positions.detach().to(dtype),
        "node_attrs": _one_hot(batch, getattr(z_table, "zs", z_table), dtype),
        "pbc": pbc,
        "head": _head(batch, heads),
        "weight": _weight(batch, config_type_weights or {}, dtype),
        "density_coefficients": batch.positions.new_zeros(batch.num_nodes, 1, dtype=dtype),
        **_edges(batch, cell, dtype),
        **_reciprocal(cell.to(dtype)),
        **_labels(batch, dtype),
        **{name: _filled(batch, place, dtype) for name, place in _CONDITIONS.items()},
        **{name: _further(batch, name, dtype) for name in fields},
    }
    made: MaceBatch = library.Batch(
        batch=batch.batch_idx, ptr=batch.batch_ptr, num_nodes=batch.num_nodes, **values
    )
    made.__num_graphs__ = batch.num_graphs
    return made


def _one_hot(batch: Batch, z_table: Iterable[int], dtype: torch.dtype) -> torch.Tensor:
    """Which element of the table each atom is, [V, elements]."""
    elements = torch.tensor([int(z) for z in z_table], device=batch.device)
    found = batch.atomic_numbers[:, None] == elements
    if not bool(found.any(1).all()):
        unknown = sorted(set(batch.atomic_numbers.tolist()) - set(elements.tolist()))
        raise FieldError(
            f"elements {unknown} are not in z_table={elements.tolist()}: give a table with them, "
            "to a model that was built with it"
        )
    return found.to(dtype)


def _boxes(batch: Batch, r_max: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells [B, 3, 3] and pbc [B, 3] as MACE's ``get_neighborhood`` leaves them."""
    positions = batch.positions.detach()
    dtype = positions.dtype
    if "cell" in batch:
        dtype = torch.promote_types(dtype, batch.cell.dtype)
    cell = _filled(batch, _Place("cell", shape=(3, 3)), dtype)
    pbc = batch.pbc if "pbc" in batch else positions.new_zeros(len(cell), 3, dtype=torch.bool)
    extent = positions.abs().amax(1).to(dtype)
    extent = cell.new_zeros(len(cell)).scatter_reduce(0, batch.batch_idx, extent, "amax")
    axes = torch.eye(3, dtype=dtype, device=cell.device)
    long = ((extent + 1) * 5 * r_max)[:, None, None] * axes
    return torch.where(pbc[:, :, None], cell, long), pbc


def _edges(batch: Batch, cell: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Sender and receiver of each edge, and the lattice vector to the receiver's image."""
    index = batch.neighbor_list.t().to(torch.int64).contiguous()
    if "neighbor_list_shifts" in batch:
        images = batch.neighbor_list_shifts.detach().to(cell.dtype)
    else:
        images = cell.new_zeros(index.shape[1], 3)
    shifts = torch.einsum("ek,ekl->el", images, cell[batch.batch_idx[index[0]]])
    return {"edge_index": index, "unit_shifts": images.to(dtype), "shifts": shifts.to(dtype)}


def _reciprocal(cell: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cells, reciprocal lattice vectors [3 B, 3] and volumes [B], signed as the determinant is."""
    volume = torch.linalg.det(cell)
    rows, _ = torch.linalg.inv_ex(cell.mT)
    rows = torch.where(volume[:, None, None] == 0, 0.0, 2 * torch.pi * rows)
    return {"cell": cell.reshape(-1, 3), "rcell": rows.reshape(-1, 3), "volume": volume}


def _labels(batch: Batch, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Labels and their weights, both 0 where they are missing."""
    made = {}
    for label, place in _LABELS.items():
        made[label] = _filled(batch, place, dtype)
        weight = _filled(batch, _Place(f"config_{label}_weight", default=1.0), dtype)
        weight = torch.where(batch.has(place.field), weight, 0.0)
        if label in _WIDE:
            weight = _beside(weight, place.shape).expand(-1, *place.shape).contiguous()
        made[f"{label}_weight"] = weight
    return made


def _filled(batch: Batch, place: _Place, dtype: torch.dtype) -> torch.Tensor:
    """Values [rows, *shape] of a field, the default where a system lacks it."""
    name, level, shape, default = place
    rows = batch.num_nodes if level is Level.ATOM else batch.num_graphs
    if name not in batch:
        return batch.positions.new_full((rows, *shape), default, dtype=dtype)
    value = batch.fields[name].detach()
    if batch.levels[name] is not level or value.numel() != rows * math.prod(shape):
        raise FieldError(
            f"field {name!r} has shape {tuple(value.shape)} at level {batch.levels[name]!r}, and "
            f"MACE wants {(rows, *shape)} at level {level!r} under this name: rename one that "
            "means something else"
        )
    value = value.reshape(rows, *shape).to(dtype)
    if name not in batch.partly_present:
        return value
    there = batch.has(name)
    there = there[batch.batch_idx] if level is Level.ATOM else there
    return torch.where(_beside(there, shape), value, default)


def _beside(rows: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """One number a row [n], to go with rows of a shape."""
    return rows.reshape(-1, *(1 for _ in shape))


def _further(batch: Batch, name: str, dtype: torch.dtype) -> torch.Tensor:
    """A field in the shape that MACE's loader gives a property that it does not know."""
    if name in batch.partly_present:
        raise FieldError(
            f"some systems of the batch lack field {name!r}, and MACE has no value in its place: "
            f"choose samples with where='has({name})'"
        )
    value = batch.fields[name].detach()
    value = value.to(dtype) if value.is_floating_point() else value
    if batch.levels[name] is Level.ATOM:
        return value.unsqueeze(1) if value.ndim == 1 else value
    return value.squeeze(1) if value.shape[1:] == (1,) else value


def _head(batch: Batch, heads: Sequence[str]) -> torch.Tensor:
    """Place of each system's head, [B]."""
    places = {head: place for place, head in enumerate(heads)}
    last = len(heads) - 1
    if "head" not in batch:
        default = places.get("Default", last)
        return torch.full((batch.num_graphs,), default, device=batch.device)
    return _of_strings(batch, "head", lambda one: places.get(one, last), last)


def _weight(batch: Batch, by_type: Mapping[str, float], dtype: torch.dtype) -> torch.Tensor:
    """Weight of each system in the loss, [B]."""
    weight = _filled(batch, _Place("config_weight", default=1.0), dtype)
    usual = by_type.get("Default", 1.0)
    if "config_type" not in batch:
        return weight * usual
    of_type = _of_strings(batch, "config_type", lambda one: by_type.get(one, 1.0), usual)
    return weight * of_type.to(dtype)


def _of_strings(
    batch: Batch, name: str, value_of: Callable[[str], float], missing: float
) -> torch.Tensor:
    """A number [B] for the string of each system."""
    table = torch.tensor([value_of(one) for one in batch.categories(name)], device=batch.device)
    return torch.where(batch.has(name), table[batch.fields[name].long()], missing)
