"""nvalchemi: its `Batch` and `AtomicData`, whose names and shapes are ours too."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from zarrpipe.adapters.assemble import assemble, without_presence
from zarrpipe.compat import nvalchemi_levels, nvalchemi_schema, nvalchemi_system_levels
from zarrpipe.data.batch import Batch
from zarrpipe.data.collate import shift_rows
from zarrpipe.data.csr import tensor_pointers
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.levels import BUILT_IN, Level, defined, united
from zarrpipe.data.system import AtomicData
from zarrpipe.errors import FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from nvalchemi.data import AtomicData as NvalchemiData
    from nvalchemi.data import Batch as NvalchemiBatch

_LEVELS = {"node": Level.ATOM, "edge": Level.EDGE, "system": Level.SYSTEM}
_EPHEMERAL = frozenset({"neighbor_matrix", "neighbor_matrix_shifts", "num_neighbors"})


def from_nvalchemi(
    data: "NvalchemiBatch | NvalchemiData", *, index_of: Mapping[str, str] = MappingProxyType({})
) -> Batch:
    """Batch of an nvalchemi ``Batch`` or ``AtomicData``, with fields and levels of the user's own.

    The dense neighbour matrix, which is rebuilt at every step with a width of its own, and the
    ``info`` dictionary are left out.

    Parameters
    ----------
    data : nvalchemi.data.Batch or nvalchemi.data.AtomicData
        Of nvalchemi 0.2 or 0.3.
    index_of : mapping of str to str, optional
        For fields of the user's own that are row numbers, the name of the level whose rows they
        count within each system. nvalchemi does not record this: it shifts its ``neighbor_list``
        alone. Other fields are taken as numbers.
    """
    if not hasattr(data, "num_nodes_list"):
        return _from_system(data, index_of)
    atoms = torch.tensor(data.num_nodes_list, device=data.device)
    edges = torch.tensor(data.num_edges_list or [0] * len(atoms), device=data.device)
    rows = {Level.ATOM: int(atoms.sum()), Level.EDGE: int(edges.sum()), Level.SYSTEM: len(atoms)}
    own, declared = nvalchemi_levels(data)
    levels = defined(own)
    level_ptrs = {
        level: data.level_ptr(name).to(torch.int64)
        for name, level in levels.items()
        if level.has_pointers and name in declared.values()
    }
    rows |= {level: int(ptr[-1]) for level, ptr in level_ptrs.items()}
    fields: dict[str, tuple[Level, torch.Tensor]] = {}
    for name, value in data.to_dict().items():
        level = _level(name, value, declared, rows, levels)
        if level is not None:
            fields[name] = (level, value[: rows.get(level, len(atoms))])
    ptr = {Level.ATOM: tensor_pointers(atoms), Level.EDGE: tensor_pointers(edges), **level_ptrs}
    for name, counted in index_of.items():
        level, value = fields[name]
        per_system = ptr[level].diff() if level in ptr else torch.ones_like(atoms)
        shifted = value.to(torch.int64, copy=True)
        shift_rows(shifted, ptr[{**BUILT_IN, **levels}[counted]][:-1], per_system)
        fields[name] = (level, shifted)
    return assemble(fields, atoms, edges, level_ptrs=level_ptrs, index_of=index_of)


def _level(
    name: str,
    value: Any,
    declared: Mapping[str, str],
    rows: Mapping[Level, int],
    levels: Mapping[str, Level],
) -> Level | None:
    """Level of a tensor of a batch; None for what is not stored."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or name in _EPHEMERAL:
        return None
    if name in CORE_FIELDS:
        return CORE_FIELDS[name].level
    if name in declared:
        return _LEVELS.get(declared[name]) or levels[declared[name]]
    fitting = [level for level, count in rows.items() if value.shape[0] == count]
    return fitting[0] if fitting else Level.SYSTEM


def _from_system(data: "NvalchemiData", index_of: Mapping[str, str]) -> Batch:
    if index_of or nvalchemi_system_levels(data):  # a batch tells how many rows each level has
        library = require("nvalchemi.data", "nvalchemi")
        return from_nvalchemi(library.Batch.from_data_list([data]), index_of=index_of)
    groups = (
        (Level.ATOM, data.node_properties),
        (Level.EDGE, data.edge_properties),
        (Level.SYSTEM, data.system_properties),
    )
    fields = {
        name: (CORE_FIELDS[name].level if name in CORE_FIELDS else level, value)
        for level, properties in groups
        for name, value in properties.items()
        if isinstance(value, torch.Tensor) and name not in _EPHEMERAL
    }
    where = data.positions.device
    atoms = torch.tensor([data.num_nodes], device=where)
    return assemble(fields, atoms, torch.tensor([data.num_edges], device=where))


def to_nvalchemi(batch: Batch) -> "NvalchemiBatch":
    """The batch as an nvalchemi ``Batch``, with every field and level of ours.

    nvalchemi casts floats to the dtype of the positions and adds masses, categories and zero
    velocities where they are missing. A field that some system lacks keeps its fill values. Fields
    at levels of the user's own need nvalchemi 0.3, and stay in their dtype.

    Raises
    ------
    FieldError
        If a system lacks the rows of a product level, which nvalchemi takes from its parents, or
        nvalchemi is older than 0.3 and there are levels of the user's own.
    """
    library = require("nvalchemi.data", "nvalchemi")
    levels = united((), batch.levels.values())
    for level in levels:
        if level.parents and bool((batch.rows_per_graph(level) == 0).any()):
            raise FieldError(
                f"some systems have no rows of level {level!r}: nvalchemi needs those of all "
                "systems, so hand over the others with batch.index_select"
            )
    whole = without_presence(batch)
    data = [_to_system(one, library) for one in whole.to_data_list()]
    if not levels:
        return library.Batch.from_data_list(data)
    own = {name: value for name, value in whole.fields.items() if whole.levels[name] in levels}
    schema = nvalchemi_schema(levels, {name: (whole.levels[name], own[name].dtype) for name in own})
    return library.Batch.from_data_list(data, attr_map=schema)


def _to_system(system: AtomicData, library: Any) -> Any:
    fields, levels, dtype = system.fields, system.levels, system.dtype
    built_in = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in fields.items()
        if levels[name].built_in
    }
    own = [name for name in built_in if name not in CORE_FIELDS]
    data = library.AtomicData(**{name: built_in[name] for name in built_in if name not in own})
    add = {
        Level.ATOM: data.add_node_property,
        Level.EDGE: data.add_edge_property,
        Level.SYSTEM: data.add_system_property,
    }
    for name in own:
        add[levels[name]](name, built_in[name])
    for name in fields.keys() - built_in.keys():
        value, parents = fields[name], levels[name].parents
        rows = [system.num_rows(parent) for parent in parents]
        setattr(data, name, value.reshape(*rows, *value.shape[1:]) if parents else value)
    return data
