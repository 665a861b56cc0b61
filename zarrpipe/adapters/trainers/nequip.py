"""NequIP and Allegro: batches as its ``AtomicDataDict``, and back."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from zarrpipe.adapters.assemble import assemble, fit_rows
from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import tensor_pointers
from zarrpipe.data.fields import Role, role_of
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError
from zarrpipe.libraries import require

_KEYS = MappingProxyType(
    {
        "positions": "pos",
        "atomic_numbers": "atomic_numbers",
        "cell": "cell",
        "pbc": "pbc",
        "energy": "total_energy",
        "forces": "forces",
        "stress": "stress",
        "virial": "virial",
        "charges": "charges",
        "charge": "charge",
        "spin": "spin",
        "neighbor_list": "edge_index",
        "neighbor_list_shifts": "edge_cell_shift",
    }
)
_FIELDS = {key: name for name, key in _KEYS.items()}
_LEVELS = {"node": Level.ATOM, "edge": Level.EDGE, "graph": Level.SYSTEM}
_FLAT = ("atomic_numbers", "atom_types")
_PERMUTATION = "edge_transpose_perm"


def to_nequip(
    batch: Batch,
    *,
    key_mapping: Mapping[str, str] = MappingProxyType({}),
    dtype: torch.dtype = torch.float64,
) -> dict[str, torch.Tensor]:
    """NequIP's ``AtomicDataDict`` of a batch, on its device.

    Both have eV, Angstrom, and stress as ASE has it: positive under tension, eV/Angstrom^3, with
    the virial ``-volume * stress``. So no sign changes, and ``StressSignFlipTransform`` is for
    stores that hold pressures. A label that a system lacks is NaN, which NequIP's metrics skip
    with ``ignore_nan``; its cell is zero. ``pbc`` is False where there is none.

    Carried are positions (``pos``), atomic_numbers, cell, pbc, energy (``total_energy``), forces,
    stress, virial, charges, charge, spin, the edges (``edge_index``, ``edge_cell_shift``), fields
    of a user's own that have the name and level of a key that NequIP knows, and those that
    `key_mapping` names.

    Parameters
    ----------
    batch
        The systems.
    key_mapping
        NequIP's key for a field, over the ones above, as its ``ASEDataset`` takes it:
        ``{"pbe_energy": "total_energy"}``. A key of your own is made known by
        ``nequip.data.register_fields``.
    dtype
        Of all floats; NequIP computes its data in float64 whatever ``model_dtype`` is.

    Raises
    ------
    FieldError
        If two fields have one key, NequIP has no such key or has it at another level, an integer
        key has values that are not whole (a charge that some system lacks), or edges of a periodic
        system have no shifts.
    MissingLibraryError
        If nequip is not installed.

    Examples
    --------
    >>> from zarrpipe import AtomicData, Batch
    >>> helium = AtomicData([[0.0, 0.0, 0.0]], [2], energy=-79.0)
    >>> data = to_nequip(Batch.from_data_list([helium, helium]))  # doctest: +SKIP
    >>> data["total_energy"].tolist(), data["batch"].tolist()  # doctest: +SKIP
    ([[-79.0], [-79.0]], [0, 1])
    """
    registry = require("nequip.data", "nequip")
    known = {name: _KEYS[name] for name in batch.fields if name in _KEYS}
    known.update({name: key for name, key in key_mapping.items() if name in batch.fields})
    data: dict[str, torch.Tensor] = {}
    for name, role in batch.roles.items():
        key = known.get(name, name)
        if not _fits(registry, name, key, role, asked=name in key_mapping):
            continue
        if key in data:
            raise FieldError(
                f"field {name!r} and another one both are {key!r} for NequIP: leave one out with "
                f"fields=, or give it another key with key_mapping={{{name!r}: ...}}"
            )
        value = batch[name]
        if key in registry._LONG_FIELDS:
            data[key] = _whole(name, value)
        else:
            data[key] = value.to(dtype) if value.is_floating_point() else value
        if value.ndim == 1 and key not in _FLAT and key != _PERMUTATION:
            data[key] = data[key].unsqueeze(1)
    data["batch"], data["num_atoms"] = batch.batch_idx, batch.num_nodes_per_graph
    _complete_cells(batch, data)
    if "edge_index" in data:
        data["edge_index"] = data["edge_index"].t().contiguous()
        _complete_shifts(data)
    return data


def _fits(registry: Any, name: str, key: str, role: Role, *, asked: bool) -> bool:
    """Whether NequIP knows a key at the level of a field; raises if a user asked for it."""
    if key in ("edge_index", _PERMUTATION):
        return role.level is Level.EDGE
    kind = registry.get_field_type(key, error_on_unregistered=False)
    fits = kind is not None and _LEVELS[kind] is role.level and role.categories is None
    if asked and not fits:
        level = "no such key" if kind is None else f"it for each {_LEVELS[kind]}"
        raise FieldError(
            f"field {name!r} is at level {str(role.level)!r} and to be {key!r}, and NequIP has "
            f"{level}: expected a key of that level; nequip.data.register_fields makes new ones"
        )
    return fits


def _whole(name: str, value: torch.Tensor) -> torch.Tensor:
    """Values as int64; refuses those that are not whole, as NaN."""
    whole = value.to(torch.int64)
    if value.is_floating_point() and not torch.equal(whole.to(value.dtype), value):
        raise FieldError(
            f"field {name!r} has values that are not whole, and NequIP wants integers of it: leave "
            f"it out with fields=, or samples that lack it with where='has({name})'"
        )
    return whole


def _complete_cells(batch: Batch, data: dict[str, torch.Tensor]) -> None:
    """Set the cells and pbc that systems lack to 0 and False, as NequIP does."""
    if "cell" in batch.partly_present and "cell" in data:
        there = batch.present("cell")[:, None, None]
        data["cell"] = torch.where(there, data["cell"], torch.zeros_like(data["cell"]))
    if "pbc" not in data:
        data["pbc"] = torch.zeros(batch.num_graphs, 3, dtype=torch.bool, device=batch.device)


def _complete_shifts(data: dict[str, torch.Tensor]) -> None:
    """Give edges without shifts those of molecules, where NequIP needs them."""
    if "cell" not in data or "edge_cell_shift" in data:
        return
    if bool(data["pbc"].any()):
        raise FieldError(
            "a periodic system has a neighbor_list without neighbor_list_shifts: store both, or "
            "leave both out with fields= and let a transform find the edges"
        )
    data["edge_cell_shift"] = data["pos"].new_zeros(data["edge_index"].shape[1], 3)


def from_nequip(data: Mapping[str, torch.Tensor]) -> Batch:
    """Batch of NequIP's ``AtomicDataDict``, of one system or of several.

    Keys become our names as in `to_nequip`; other keys that NequIP knows are fields of the user's
    own. NequIP cannot say which system lacks a label: NaN stays.

    Parameters
    ----------
    data
        With ``pos`` and ``atomic_numbers``, in Angstrom and eV; edges of a system follow each
        other.

    Raises
    ------
    FieldError
        If positions or numbers are missing, NequIP does not know a key, or a value does not fit.
    MissingLibraryError
        If nequip is not installed.
    """
    return assemble(*_parts(data), index_of=_counted(data))


def from_trusted(data: Mapping[str, torch.Tensor]) -> Batch:
    """`from_nequip` of what was made from a `Batch`, without checks."""
    found, atoms, edges = _parts(data)
    pointers = {Level.ATOM: tensor_pointers(atoms), Level.EDGE: tensor_pointers(edges)}
    rows = {Level.ATOM: len(data["pos"]), Level.EDGE: int(pointers[Level.EDGE][-1])}
    fields, roles = {}, {}
    for name, (level, value) in found.items():
        count = rows.get(level, len(atoms))
        fields[name] = fit_rows(name, value, level, count, data["pos"].dtype)
        roles[name] = role_of(name, level, _counted(data).get(name))
    return Batch._trusted(fields, roles, pointers, {})


def _parts(
    data: Mapping[str, torch.Tensor],
) -> tuple[dict[str, tuple[Level, torch.Tensor]], torch.Tensor, torch.Tensor]:
    """Fields with their levels, and the numbers of atoms and edges [B] of each system."""
    registry = require("nequip.data", "nequip")
    for key in ("pos", "atomic_numbers"):
        if key not in data:
            raise FieldError(f"the AtomicDataDict has no {key!r}; it has {sorted(data)}")
    fields: dict[str, tuple[Level, torch.Tensor]] = {}
    for key, value in data.items():
        if key in ("edge_index", _PERMUTATION):
            fields[_FIELDS.get(key, key)] = Level.EDGE, value.t() if value.ndim > 1 else value
        elif key not in ("batch", "num_atoms"):
            kind = registry.get_field_type(key, error_on_unregistered=False)
            if kind is None:
                raise FieldError(
                    f"NequIP does not know the key {key!r}, so its level is open: expected "
                    "nequip.data.register_fields before"
                )
            fields[_FIELDS.get(key, key)] = _LEVELS[kind], value
    whole = torch.tensor([len(data["pos"])], device=data["pos"].device)
    atoms = data.get("num_atoms", whole)
    edges = torch.zeros_like(atoms)
    if "edge_index" in data:
        system = torch.repeat_interleave(atoms, output_size=len(data["pos"]))
        edges = torch.bincount(system[data["edge_index"][0]], minlength=len(atoms))
    return fields, atoms, edges


def _counted(data: Mapping[str, torch.Tensor]) -> dict[str, Level]:
    """Fields of NequIP's own that are row numbers."""
    return {_PERMUTATION: Level.EDGE} if _PERMUTATION in data else {}
