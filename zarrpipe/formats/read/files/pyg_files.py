"""Graphs of PyTorch Geometric that ``torch.save`` wrote, as data sets in memory or as lists."""

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zarrpipe.errors import SourceError
from zarrpipe.formats.read.files.assembly import Frame, scan_or_failure
from zarrpipe.formats.read.files.levels import LevelledReader, LooseFrame, read_loose, scan_loose
from zarrpipe.formats.read.frames import ATOM, EDGE, SYSTEM, Entry, FrameBlock, Part, Scan
from zarrpipe.libraries import require

_SUFFIXES = (".pt", ".pth")
_MARK = b"torch_geometric.data"
_PEEKED = 1 << 20
_NUMBERS = ("z", "atomic_numbers")
_EDGES = {
    "cell_offsets": "neighbor_list_shifts",
    "unit_shifts": "neighbor_list_shifts",
}
"""Names of ours for what belongs to the edges."""

_COUNTS = frozenset({"num_nodes", "natoms", "num_atoms", "nedges", "num_edges", "batch", "ptr"})
_LEVELS = {"x": ATOM, "neg_dy": ATOM, "dy": ATOM}


def recognises(path: Path) -> bool:
    """Whether a file that torch wrote names a class of PyG's data."""
    if path.suffix.lower() not in _SUFFIXES or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as file:
            name = next((name for name in file.namelist() if name.endswith("data.pkl")), None)
            if name is None:
                return False
            with file.open(name) as content:
                return _MARK in content.read(_PEEKED)
    except zipfile.BadZipFile:  # as torch wrote before 1.6
        with path.open("rb") as content:
            return _MARK in content.read(_PEEKED)


class PygFiles(LevelledReader):
    """Reads files of ``InMemoryDataset``, of a list of ``Data``, of a ``Data`` or of a ``Batch``.

    ``pos`` and ``z`` are the structure, ``cell`` and ``pbc`` too if they are there; ``edge_index``
    becomes a neighbour list. Other attributes keep their names. One of unclear level is left out.
    Nothing in a file is executed, so that one with classes other than PyG's own is refused.

    Parameters
    ----------
    levels
        Level, ``"atom"`` or ``"system"``, by attribute.
    """

    name = "pyg"
    in_processes = False
    trusts = False

    def __init__(self, levels: Mapping[str, str] | None = None) -> None:
        super().__init__(levels)
        self._loaded: tuple[str, _Graphs] | None = None

    def scan(self, path: str) -> Scan:
        """Load the file, and look at some graphs."""
        return scan_or_failure(path, self._scan)

    def _scan(self, path: str) -> Scan:
        graphs = self._graphs(path)
        given = {**_LEVELS, **self.levels}
        return scan_loose(path, range(len(graphs)), lambda i: _frame(i, graphs[i]), given)

    def read(self, part: Part) -> FrameBlock:
        """Read the graphs of a part."""
        graphs = self._graphs(part.path)
        return read_loose(part, lambda number, _: _frame(number, graphs[number]))

    def _graphs(self, path: str) -> "_Graphs":
        """Graphs of a file; those of the last one are kept."""
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = (path, _Graphs(_load(path, trusts=self.trusts)))
        return self._loaded[1]


class TrustedPygFiles(PygFiles):
    """As `PygFiles`, and executes what a file says: only for files of those whom you trust."""

    name = "pyg-trusted"
    trusts = True


def _load(path: str, *, trusts: bool) -> Any:
    """Content of a file, with tensors mapped where torch can."""
    data = require("torch_geometric.data", "import")
    parts = require("torch_geometric.data.data", "import")
    safe = [
        data.Data,
        require("torch_geometric.data.storage", "import").GlobalStorage,
        parts.DataEdgeAttr,
        parts.DataTensorAttr,
    ]
    mapped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(safe):
            return torch.load(path, "cpu", weights_only=not trusts, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error):
            raise
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = named.group(1) if named else "objects that are not PyG's own"
        raise SourceError(
            f"{path} holds {what}, and to load that executes what the file says: if you trust "
            "whoever wrote it, name the format 'pyg-trusted' (TrustedPygFiles)"
        ) from error


class _Graphs(Sequence[Any]):
    """Graphs of what a file holds, taken out one by one."""

    def __init__(self, content: Any) -> None:
        library = require("torch_geometric.data", "import")
        self._slices: Any = None
        if isinstance(content, tuple) and len(content) in (2, 3):
            collated, self._slices, *cls = content
            if isinstance(collated, dict):
                collated = (cls[0] if cls else library.Data).from_dict(collated)
            content = [collated]
        elif isinstance(content, library.Batch):
            content = content.to_data_list()
        elif not isinstance(content, list):
            content = [content]
        self._content: list[Any] = content

    def __len__(self) -> int:
        if self._slices is None:
            return len(self._content)
        return len(next(iter(self._slices.values()))) - 1

    def __getitem__(self, index: Any) -> Any:
        library = require("torch_geometric.data", "import")
        graph = self._content[0 if self._slices is not None else index]
        if self._slices is not None:
            separate = require("torch_geometric.data.separate", "import").separate
            graph = separate(type(graph), graph, index, self._slices, decrement=False)
        graph = library.Data.from_dict(graph) if isinstance(graph, dict) else graph
        if not isinstance(graph, library.Data):
            raise TypeError(f"is {type(graph).__name__}, expected Data of torch_geometric")
        return graph


def _frame(number: int, graph: Any) -> LooseFrame:
    """Graph as a frame."""
    given = {key: value for key, value in graph.to_dict().items() if not key.startswith("_")}
    found = {key: _plain(value) for key, value in given.items() if value is not None}
    numbers = next((found.pop(key) for key in _NUMBERS if key in found), None)
    positions = found.pop("pos", None)
    if numbers is None or positions is None:
        raise ValueError(f"has no pos, or no z or atomic_numbers, among {sorted(found)}")
    cell, pbc = found.pop("cell", None), found.pop("pbc", None)
    edges = found.pop("edge_index", None)
    values: dict[Entry, Any] = {}
    left_out: dict[Entry, str] = {}
    num_edges = None
    if edges is not None:
        num_edges = edges.shape[1]
        values[Entry(EDGE, "neighbor_list")] = edges.T
    for key, value in list(found.items()):
        if key in _COUNTS:
            del found[key]
        elif key in _EDGES or (key.startswith("edge_") and _has_rows(value, num_edges)):
            values[Entry(EDGE, _EDGES.get(key, key))] = found.pop(key)
        elif _counts_nodes(graph, key):
            left_out[Entry(SYSTEM, key)] = "holds numbers of nodes, which a store cannot keep so"
            del found[key]
    structure = Frame(
        number,
        numbers.reshape(-1),
        positions,
        None if cell is None else cell.reshape(3, 3),
        None if pbc is None else pbc.reshape(3),
        values,
        num_edges,
        left_out,
    )
    return LooseFrame(structure, found, stacked=True)


def _plain(value: Any) -> Any:
    """Tensor as an array; anything else as it is."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return value
    value = value.detach()
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()


def _has_rows(value: Any, count: int | None) -> bool:
    """Whether a value is an array of so many rows."""
    return bool(getattr(value, "shape", ())[:1] == (count,))


def _counts_nodes(graph: Any, key: str) -> bool:
    """Whether PyG adds the number of nodes before them to values when it joins graphs."""
    shift = graph.__inc__(key, graph[key])
    return bool(shift) if isinstance(shift, int) else True
