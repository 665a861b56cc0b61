"""nvalchemi: its `Batch` and `AtomicData`, whose names and shapes are ours too."""

from typing import TYPE_CHECKING, Any

import torch

from zarrpipe.adapters.assemble import assemble, require, without_presence
from zarrpipe.compat import nvalchemi_levels
from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import CORE_FIELDS, Level
from zarrpipe.errors import FieldError

if TYPE_CHECKING:
    from nvalchemi.data import AtomicData as NvalchemiData
    from nvalchemi.data import Batch as NvalchemiBatch

_LEVELS = {"node": Level.ATOM, "edge": Level.EDGE, "system": Level.SYSTEM}
_EPHEMERAL = frozenset({"neighbor_matrix", "neighbor_matrix_shifts", "num_neighbors"})


def from_nvalchemi(data: "NvalchemiBatch | NvalchemiData") -> Batch:
    """Batch of an nvalchemi ``Batch`` or ``AtomicData``, with fields of the user's own.

    The dense neighbour matrix, which is rebuilt at every step with a width of its own, and the
    ``info`` dictionary are left out.

    Raises
    ------
    FieldError
        If a field of a batch is at a level of the user's own, as nvalchemi 0.3 has them.
    """
    if not hasattr(data, "num_nodes_list"):
        return _from_system(data)
    atoms = torch.tensor(data.num_nodes_list, device=data.device)
    edges = torch.tensor(data.num_edges_list or [0] * len(atoms), device=data.device)
    rows = {Level.ATOM: int(atoms.sum()), Level.EDGE: int(edges.sum()), Level.SYSTEM: len(atoms)}
    declared = nvalchemi_levels(data)
    fields: dict[str, tuple[Level, torch.Tensor]] = {}
    for name, value in data.to_dict().items():
        level = _level(name, value, declared, rows)
        if level is not None:
            fields[name] = (level, value[: rows[level]])
    return assemble(fields, atoms, edges)


def _level(name: str, value: Any, declared: dict[str, str], rows: dict[Level, int]) -> Level | None:
    """Level of a tensor of a batch; None for one that is not stored."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or name in _EPHEMERAL:
        return None
    if name in declared and declared[name] not in _LEVELS:
        raise FieldError(
            f"field {name!r} is at the level {declared[name]!r}, and only fields of nodes, edges "
            f"and systems are stored: remove it with batch.drop_level({declared[name]!r})"
        )
    if name in CORE_FIELDS:
        return CORE_FIELDS[name].level
    if name in declared:
        return _LEVELS[declared[name]]
    fitting = [level for level, count in rows.items() if value.shape[0] == count]
    return fitting[0] if fitting else Level.SYSTEM


def _from_system(data: "NvalchemiData") -> Batch:
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
    """The batch as an nvalchemi ``Batch``, with every field of ours.

    nvalchemi casts floats to the dtype of the positions and adds masses, categories and zero
    velocities where they are missing. A field that some system lacks keeps its fill values.
    """
    library = require("nvalchemi.data", "nvalchemi")
    return library.Batch.from_data_list(
        [
            _to_system(one.fields, one.levels, library)
            for one in without_presence(batch).to_data_list()
        ]
    )


def _to_system(fields: Any, levels: Any, library: Any) -> Any:
    dtype = fields["positions"].dtype
    cast = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in fields.items()
    }
    own = [name for name in cast if name not in CORE_FIELDS]
    data = library.AtomicData(**{name: cast[name] for name in cast if name not in own})
    add = {
        Level.ATOM: data.add_node_property,
        Level.EDGE: data.add_edge_property,
        Level.SYSTEM: data.add_system_property,
    }
    for name in own:
        add[levels[name]](name, cast[name])
    return data
