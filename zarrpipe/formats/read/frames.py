"""What readers of files return: the frames of a part, in columns by the source's own keys.

Nothing here imports torch, so that a process which only parses files starts in a third of a second.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from zarrpipe.data.batch import Batch

AnyArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

SYSTEM, ATOM, EDGE = "system", "atom", "edge"
"""Levels of entries, named as those of `zarrpipe.Level`."""


class Entry(NamedTuple):
    """A key of a source: its level, and where ASE has it, as ``info``, ``arrays`` or ``results``.

    `place` is "" where the source has only one.
    """

    level: str
    key: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.place}[{self.key!r}]" if self.place else repr(self.key)


POSITIONS = Entry(ATOM, "positions")
"""Key of the unit of lengths among the units of a scan."""


class Kind(NamedTuple):
    """Type of an entry's values: bool, int, float or str, and the shape of a row."""

    type: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Column:
    """Values of an entry for all frames of a block.

    `values` is [N, ...], [V, ...] or [E, ...] by level, with 0, NaN, False or "" in the rows of
    frames that lack it, and [N] of Python strings for text. `present` is [N].
    """

    values: AnyArray
    present: BoolArray


class Failure(NamedTuple):
    """A frame that could not be read: its file, number, first line if there is one, and why."""

    path: str
    frame: int
    line: int | None
    reason: str

    def __str__(self) -> str:
        line = "" if self.line is None else f", line {self.line}"
        return f"{self.path}, frame {self.frame}{line}: {self.reason}"


@dataclass(frozen=True)
class FrameBlock:
    """N frames of one source in order, with V atoms and E edges in all.

    Lengths are in the source's unit, and labels in the source's units and signs. The numbers of a
    ``neighbor_list`` count the atoms of their frame. `left_out` says why an entry has no column.
    """

    frames: Int64Array  # [N], numbers in the source
    num_atoms: Int64Array  # [N]
    atomic_numbers: Int64Array  # [V]
    positions: FloatArray  # [V, 3]
    cell: FloatArray  # [N, 3, 3], rows are lattice vectors, 0 for none
    pbc: BoolArray  # [N, 3]
    columns: Mapping[Entry, Column] = field(default_factory=dict)
    num_edges: Int64Array | None = None  # [N]
    left_out: Mapping[Entry, str] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        return len(self.frames)


class Part(NamedTuple):
    """Consecutive frames of a source that are read at once; `span` is the reader's own."""

    path: str
    first: int
    num_frames: int
    span: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What a look through a source found, before anything is written.

    `entries` has every kind of value that was seen for a key. `exhaustive` says whether all frames
    were looked at for that, or only some. `failures` are frames that no part has. `units` has the
    unit of an entry where the source says it, with lengths under `POSITIONS`; `left_out` says why
    an entry that was seen gets no column.
    """

    parts: tuple[Part, ...]
    entries: Mapping[Entry, frozenset[Kind]]
    failures: tuple[Failure, ...] = ()
    exhaustive: bool = False
    num_single_atoms: int = 0
    units: Mapping[Entry, str] = field(default_factory=dict)
    left_out: Mapping[Entry, str] = field(default_factory=dict)

    @property
    def num_frames(self) -> int:
        """Number of frames in the parts."""
        return sum(part.num_frames for part in self.parts)


class Reader(Protocol):
    """Reads one format of files.

    `read` may be called in another process if `in_processes` is True; its module then imports no
    torch. A frame that cannot be read is one of `FrameBlock.failures`, and no reason to raise.
    """

    name: str
    in_processes: bool

    def scan(self, path: str) -> Scan:
        """Look a source through."""
        ...

    def read(self, part: Part) -> "FrameBlock | Batch":
        """Read the frames of a part; a store has a batch with the registry's names and units."""
        ...


def kind_of(value: Any) -> Kind | None:
    """Type and shape of a value; None if no field can have it."""
    if isinstance(value, str):
        return Kind("str")
    if not isinstance(value, bool | int | float | np.generic | np.ndarray | list | tuple):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # a list of lists of different lengths
        return None
    if array.dtype.kind in "U":
        return Kind("str", array.shape)
    names = {"b": "bool", "i": "int", "u": "int", "f": "float"}
    name = names.get(array.dtype.kind)
    return None if name is None else Kind(name, array.shape)


def joined_kind(kinds: Iterable[Kind], level: str = SYSTEM) -> Kind | str:
    """Kind that takes values of all these kinds at a level, or the reason why there is none."""
    found = set(kinds)
    types, shapes = {kind.type for kind in found}, {kind.shape for kind in found}
    if "str" in types and level != SYSTEM:
        return f"has a string for each {level}, and fields of strings have one a system"
    if "str" in types:
        plain = shapes == {()}
        return Kind("str") if plain else "has strings in rows of several, expected one a structure"
    if len(shapes) > 1:
        shown = ", ".join(map(str, sorted(shapes)))
        return f"has rows of different shapes: {shown}"
    (shape,) = shapes
    for name in ("float", "int", "bool"):
        if name in types:
            return Kind(name, shape)
    return "is neither numbers nor a string"


_DTYPES: Mapping[str, Any] = {"float": np.float64, "int": np.int64, "bool": np.bool_, "str": object}
_FILL: Mapping[str, Any] = {"float": np.nan, "int": 0, "bool": False, "str": ""}


def column(kind: Kind, values: list[Any], rows: Int64Array) -> Column:
    """Column of the values of N frames, None where a frame lacks it, with `rows` [N] rows each.

    At system level `rows` are ones and the values have the shape of a row; at others they have a
    row for each atom or edge.
    """
    present = np.array([value is not None for value in values], dtype=bool)
    ends = np.concatenate(([0], np.cumsum(rows)))
    filled = np.full((int(ends[-1]), *kind.shape), _FILL[kind.type], dtype=_DTYPES[kind.type])
    for value, first, last in zip(values, ends, ends[1:], strict=False):
        if value is not None:
            filled[first:last] = str(value) if kind.type == "str" else value
    return Column(filled, present)
