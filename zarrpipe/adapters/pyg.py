"""PyTorch Geometric: `Data` and the `Batch` that its loaders make of them."""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from zarrpipe.adapters.assemble import assemble, without_presence
from zarrpipe.data.batch import Batch
from zarrpipe.data.categories import are_strings
from zarrpipe.data.fields import CORE_FIELDS, level_of
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from torch_geometric.data import Batch as PygBatch
    from torch_geometric.data import Data

_NAMES = {
    "pos": "positions",
    "z": "atomic_numbers",
    "edge_index": "neighbor_list",
    "cell_offsets": "neighbor_list_shifts",
    "unit_shifts": "neighbor_list_shifts",
    "force": "forces",
    "neg_dy": "forces",
    "y": "energy",
}
_STRUCTURAL = frozenset({"batch", "ptr", "num_nodes", "natoms", "num_atoms", "nedges"})


def from_pyg(
    data: "Data | PygBatch",
    *,
    names: Mapping[str, str] | None = None,
    levels: Mapping[str, Level | str] | None = None,
) -> Batch:
    """Batch of a PyG ``Data`` or ``Batch``.

    ``pos``, ``z``, ``edge_index`` (transposed to ``[E, 2]``), ``cell_offsets`` or
    ``unit_shifts``, ``force`` and TorchMD-NET's ``neg_dy`` become positions, atomic_numbers,
    neighbor_list, neighbor_list_shifts and forces; a ``y`` with one floating-point number per
    graph becomes the energy. Names of the registry stay; cells that PyG has stacked to
    ``[3 B, 3]`` become ``[B, 3, 3]``. Every other tensor or number is a field of the user's own.

    Not carried: objects, strings unless `levels` names them, and gradients. Heterogeneous graphs
    have no adapter.

    Parameters
    ----------
    data
        With ``pos`` and ``z``, in Angstrom and eV.
    names
        Our name for an attribute, over the ones above: ``{"y": "dipole"}``.
    levels
        Level of a field of the user's own, by our name. Without it a tensor that has one row per
        node of each graph is at atom level, one row per edge at edge level (of both, the name
        decides: one with "edge" in it is at edge level), and any other at system level.

    Raises
    ------
    FieldError
        If positions or numbers are missing, two attributes have one name, or a tensor has
        neither rows of the nodes, the edges nor the graphs, or holds node indices
        other than ``edge_index``, which would lose their meaning in a store.
    """
    return Graphs(data, {**_NAMES, **(names or {})}, levels or {}).batch()


class Graphs:
    """The tensors of PyG's ``Data`` or ``Batch``, or of MACE's copies of them.

    `names` has our name by attribute, `levels` the level of a user's own field by our name,
    `skipped` the attributes to leave out, and `extra` the tensors that the object lacks, by
    attribute.
    """

    def __init__(
        self,
        data: Any,
        names: Mapping[str, str],
        levels: Mapping[str, Level | str],
        *,
        skipped: Iterable[str] = (),
        extra: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.data, self.names, self.levels = data, names, levels
        self.strings: dict[str, list[str]] = {}
        self.values = self._read(_STRUCTURAL | set(skipped)) | dict(extra or {})
        self.atoms = self._num_atoms()
        self.edges, self.edge_order = self._num_edges()

    def batch(self) -> Batch:
        """Batch of all attributes."""
        fields: dict[str, tuple[Level, torch.Tensor]] = {}
        for key, value in self.values.items():
            name, level, rows = self.field(key, value)
            if name in fields:
                raise FieldError(
                    f"attribute {key!r} and another one both mean {name!r}: delete one, or name "
                    f"it with names={{{key!r}: 'another_name'}}"
                )
            fields[name] = (level, rows)
        batch = assemble(fields, self.atoms, self.edges)
        for key, strings in self.strings.items():
            name = self.names.get(key, key)
            if name in self.levels:  # such as a SMILES for each graph, which may be too many
                batch.add_field(name, strings, self.levels[name])
        return batch

    def _read(self, skipped: Collection[str]) -> dict[str, torch.Tensor]:
        """Attributes that are tensors or numbers; strings are kept apart."""
        keys = self.data.keys
        found: dict[str, torch.Tensor] = {}
        for key in keys() if callable(keys) else keys:
            value = self.data[key]
            if key in skipped or key.startswith("_") or key.endswith(("_batch", "_ptr")):
                continue
            if isinstance(value, bool | int | float):
                found[key] = torch.tensor(value)
            elif isinstance(value, torch.Tensor):
                found[key] = value
            elif are_strings(value):
                self.strings[key] = [value] if isinstance(value, str) else list(value)
        return found

    def field(self, key: str, value: torch.Tensor) -> tuple[str, Level, torch.Tensor]:
        """Our name, level and rows of one attribute."""
        name = self._name(key, value)
        if key == "edge_index":
            return name, Level.EDGE, self._in_edge_order(value.t())
        if _holds_indices(self.data, key, value):
            raise FieldError(
                f"attribute {key!r} holds indices of nodes, which would lose their meaning in a "
                "store: delete it before, or rename it if it holds something else"
            )
        if name in CORE_FIELDS or name in self.levels:
            level = level_of(name, self.levels.get(name))
        else:
            level = self._guess(key, value)
        if level is Level.EDGE:
            return name, level, self._in_edge_order(value)
        return name, level, self._per_system(name, value) if level is Level.SYSTEM else value

    def _name(self, key: str, value: torch.Tensor) -> str:
        name = self.names.get(key, key)
        if key == "y" and name == "energy":
            scalar = value.is_floating_point() and value.numel() == len(self.atoms)
            return name if scalar and "energy" not in self.values else key
        return name

    def _in_edge_order(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self.edge_order is None else rows[self.edge_order]

    def _per_system(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Rows of a field at system level; rows that a collation stacked are split again."""
        count = len(self.atoms)
        if name in CORE_FIELDS or value.ndim == 0 or value.shape[0] == count:
            return value
        if count == 1:
            return value.unsqueeze(0)
        if value.shape[0] % count == 0:
            return value.reshape(count, -1, *value.shape[1:])
        raise FieldError(
            f"attribute {name!r} has shape {tuple(value.shape)}: its rows are neither those of "
            f"{int(self.atoms.sum())} nodes, {int(self.edges.sum())} edges nor {count} graphs"
        )

    def _guess(self, key: str, value: torch.Tensor) -> Level:
        """Level of a user's own field, from the rows that each graph has of it."""
        if value.ndim == 0:
            return Level.SYSTEM
        brought = self._rows_per_graph(key)
        if brought is None:
            brought, atoms, edges = [value.shape[0]], [self.atoms.sum()], [self.edges.sum()]
        else:
            atoms, edges = self.atoms.tolist(), self.edges.tolist()
        of_atoms = brought == [int(n) for n in atoms]
        of_edges = brought == [int(n) for n in edges]
        if of_edges and ("edge" in key or not of_atoms):
            return Level.EDGE
        return Level.ATOM if of_atoms else Level.SYSTEM

    def _rows_per_graph(self, key: str) -> list[int] | None:
        """Number of rows of each graph in a collated attribute, if that is known."""
        for attribute in ("_slice_dict", "__slices__"):
            slices = getattr(self.data, attribute, None)
            if slices and key in slices:
                return torch.as_tensor(slices[key]).diff().tolist()
        return None

    def _num_atoms(self) -> torch.Tensor:
        """Number of nodes of each graph [B]."""
        named = {self.names.get(key, key): value for key, value in self.values.items()}
        missing = sorted({"positions", "atomic_numbers"} - set(named))
        if missing:
            raise FieldError(
                f"{type(self.data).__name__} lacks {missing} ('pos' and 'z' in PyG); it has "
                f"{sorted(self.values)}: say which is which with names={{'attribute': 'positions'}}"
            )
        if getattr(self.data, "batch", None) is None:
            positions = named["positions"]
            return torch.tensor([positions.shape[0]], device=positions.device)
        node_graph: torch.Tensor = self.data.batch
        if bool((node_graph.diff() < 0).any()):
            raise FieldError("the nodes of a graph do not follow each other: sort them by 'batch'")
        graphs = int(getattr(self.data, "num_graphs", None) or int(node_graph.max()) + 1)
        return torch.bincount(node_graph, minlength=graphs)

    def _num_edges(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Number of edges of each graph [B], and the order that groups them if they are mixed."""
        edges = getattr(self.data, "edge_index", None)
        if edges is None:
            return torch.zeros_like(self.atoms), None
        where = self.atoms.device
        owner = torch.repeat_interleave(torch.arange(len(self.atoms), device=where), self.atoms)
        edge_graph = owner[edges[0]]
        grouped = not bool((edge_graph.diff() < 0).any())
        order = None if grouped else torch.argsort(edge_graph, stable=True)
        return torch.bincount(edge_graph, minlength=len(self.atoms)), order


def _holds_indices(data: Any, key: str, value: torch.Tensor) -> bool:
    """Whether a collation would add the number of nodes before them to the values."""
    shift = data.__inc__(key, value)
    return bool(shift) if isinstance(shift, int) else True


def to_pyg(batch: Batch) -> "PygBatch":
    """PyG ``Batch``, from which ``to_data_list`` gives the single graphs.

    Positions, atomic_numbers and neighbor_list become ``pos``, ``z`` and ``edge_index``
    ``[2, E]``; all other fields keep their names and shapes, so a single graph has
    ``energy [1, 1]`` and ``cell [1, 3, 3]``. Strings stay strings.

    Not carried: which systems lack a field (it keeps its fill values), units, and the pointers of
    levels of the user's own: their rows are stacked, in single graphs too, and `from_pyg` takes
    them back only where they are as many as nodes, edges or graphs. Row numbers other than
    ``edge_index`` count within each graph, since PyG shifts them only in attributes with "index" in
    their name.
    """
    library = require("torch_geometric.data", "pyg")
    graphs = []
    for one in without_presence(batch).to_data_list():
        fields: dict[str, Any] = dict(one.fields)
        strings = [name for name, role in one.roles.items() if role.categories is not None]
        fields |= {name: one.strings(name)[0] for name in strings}
        known = {"pos": fields.pop("positions"), "z": fields.pop("atomic_numbers")}
        if "neighbor_list" in fields:
            known["edge_index"] = fields.pop("neighbor_list").t().contiguous()
        graphs.append(library.Data(**known, **fields))
    return library.Batch.from_data_list(graphs)
