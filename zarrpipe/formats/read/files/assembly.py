"""Frames that a library read one by one, put together as the columns of a block."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from zarrpipe.errors import ZarrPipeError
from zarrpipe.formats.read.frames import (
    ATOM,
    EDGE,
    SYSTEM,
    AnyArray,
    Column,
    Entry,
    Failure,
    FrameBlock,
    Int64Array,
    Kind,
    Part,
    Scan,
    column,
    joined_kind,
    kind_of,
)

PART_FRAMES = 500
"""Frames that are read at once."""

SAMPLED_FRAMES = 500
"""Most frames that a scan looks at where each costs time."""

NOT_A_VALUE = Kind("none")
"""Kind of a value that no field can have."""

T = TypeVar("T")


@dataclass(frozen=True)
class Frame:
    """One structure and its values, which have a row for each atom or edge at these levels.

    `left_out` says why an entry that the source has for it is not among the values.
    """

    number: int
    atomic_numbers: AnyArray  # [n]
    positions: AnyArray  # [n, 3]
    cell: Any  # [3, 3], or None
    pbc: Any  # [3], or None for no periodicity
    values: Mapping[Entry, Any] = field(default_factory=dict)
    num_edges: int | None = None
    left_out: Mapping[Entry, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.atomic_numbers)
        if count == 0:
            raise ValueError("has no atoms")
        _check("positions", self.positions, (count, 3))
        _check("the cell", np.zeros((3, 3)) if self.cell is None else self.cell, (3, 3))
        _check("pbc", np.zeros(3) if self.pbc is None else self.pbc, (3,))
        rows = {ATOM: count, EDGE: self.num_edges or 0}
        for entry, value in self.values.items():
            if entry.level in rows and np.shape(value)[:1] != (rows[entry.level],):
                raise ValueError(
                    f"{entry} has shape {np.shape(value)}, expected a row for each of "
                    f"{rows[entry.level]} {entry.level}s"
                )


def _check(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError if an array of a frame does not have its shape."""
    if np.shape(value) != shape:
        raise ValueError(f"{name} has shape {np.shape(value)}, expected {shape}")


def block_from(frames: Iterable[Frame], failures: Iterable[Failure] = ()) -> FrameBlock:
    """Block of frames in order, and of those that could not be read."""
    found = list(frames)
    num_atoms = np.array([len(frame.atomic_numbers) for frame in found], dtype=np.int64)
    with_edges = any(frame.num_edges is not None for frame in found)
    num_edges = np.array([frame.num_edges or 0 for frame in found], dtype=np.int64)
    cells = [np.zeros((3, 3)) if frame.cell is None else frame.cell for frame in found]
    periodic = [np.zeros(3) if frame.pbc is None else frame.pbc for frame in found]
    rows = {SYSTEM: np.ones_like(num_atoms), ATOM: num_atoms, EDGE: num_edges}
    columns, left_out = _columns([frame.values for frame in found], rows)
    for frame in found:
        left_out |= frame.left_out
    return FrameBlock(
        frames=np.array([frame.number for frame in found], dtype=np.int64),
        num_atoms=num_atoms,
        atomic_numbers=_joined([frame.atomic_numbers for frame in found], (), np.int64),
        positions=_joined([frame.positions for frame in found], (3,), np.float64),
        cell=np.array(cells, dtype=np.float64).reshape(-1, 3, 3),
        pbc=np.array(periodic, dtype=np.bool_).reshape(-1, 3),
        columns=columns,
        num_edges=num_edges if with_edges else None,
        left_out=left_out,
        failures=tuple(failures),
    )


def _joined(parts: list[AnyArray], row: tuple[int, ...], dtype: Any) -> Any:
    """Rows of all frames, one after the other."""
    return np.concatenate([np.empty((0, *row), dtype), *parts]).astype(dtype, copy=False)


def _columns(
    found: list[Mapping[Entry, Any]], rows: Mapping[str, Int64Array]
) -> tuple[dict[Entry, Column], dict[Entry, str]]:
    """Columns of all entries, and why there is none of some."""
    values: dict[Entry, list[Any]] = {}
    for place, one in enumerate(found):
        for entry, value in one.items():
            if value is not None:
                values.setdefault(entry, [None] * len(found))[place] = value
    columns, left_out = dict[Entry, Column](), dict[Entry, str]()
    for entry, given in values.items():
        kind = _kind_of_all(entry, given)
        if isinstance(kind, str):
            left_out[entry] = kind
        else:
            columns[entry] = column(kind, given, rows[entry.level])
    return columns, left_out


def _kind_of_all(entry: Entry, given: list[Any]) -> Kind | str:
    """Kind of an entry's values, or why no field can have them."""
    kinds = {row_kind(entry, value) for value in given if value is not None}
    if NOT_A_VALUE in kinds:
        return "is neither numbers nor a string"
    return joined_kind(kinds, entry.level)


def row_kind(entry: Entry, value: Any) -> Kind:
    """Type of an entry's value and shape of its rows."""
    kind = kind_of(value)
    if kind is None:
        return NOT_A_VALUE
    return kind if entry.level == SYSTEM else Kind(kind.type, kind.shape[1:])


class ScanFindings:
    """What a scan has seen of a source, frame by frame."""

    def __init__(self) -> None:
        self.count, self.num_single_atoms = 0, 0
        self.kinds: dict[Entry, set[Kind]] = {}
        self.left_out: dict[Entry, str] = {}

    def add(self, frame: Frame) -> None:
        """Add the kinds of a frame's values."""
        self.count += 1
        self.num_single_atoms += len(frame.atomic_numbers) == 1
        self.left_out |= frame.left_out
        for entry, value in frame.values.items():
            if value is not None:
                self.kinds.setdefault(entry, set()).add(row_kind(entry, value))

    def scan(self, parts: Iterable[Part], failures: Iterable[Failure] = ()) -> Scan:
        """Scan of a source with these parts."""
        found = tuple(parts)
        return Scan(
            found,
            {entry: frozenset(kinds) for entry, kinds in self.kinds.items()},
            tuple(failures),
            exhaustive=self.count == sum(part.num_frames for part in found),
            num_single_atoms=self.num_single_atoms,
            left_out=self.left_out,
        )


def read_each(
    path: str, numbers: Iterable[int], load: Callable[[int], T]
) -> tuple[list[T], tuple[Failure, ...]]:
    """What `load` reads for each number of a frame, and why it could not read others."""
    frames: list[T] = []
    failures: list[Failure] = []
    for number in numbers:
        try:
            frames.append(load(number))
        except (ZarrPipeError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  a library may fail in any way at a damaged frame
            failures.append(Failure(path, number, None, reason_of(error)))
    return frames, tuple(failures)


def scan_or_failure(path: str, scan: Callable[[str], Scan]) -> Scan:
    """Scan of a source; one failure and no frames if it cannot be opened at all."""
    try:
        return scan(path)
    except (ZarrPipeError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  a library may fail in any way at a damaged file
        return Scan((), {}, (Failure(path, 0, None, reason_of(error)),))


def reason_of(error: Exception) -> str:
    """One line about an error of a library."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.300}" if text else type(error).__name__


def read_range(part: Part, load: Callable[[int], Frame]) -> FrameBlock:
    """Block of the frames of a part."""
    numbers = range(part.first, part.first + part.num_frames)
    return block_from(*read_each(part.path, numbers, load))


def scan_of(parts: Iterable[Part], frames: Iterable[Frame]) -> Scan:
    """Scan with the entries of some frames, or of all.

    A frame that cannot be read is told when its part is read.
    """
    seen = ScanFindings()
    for frame in frames:
        seen.add(frame)
    return seen.scan(parts)


def parts_of(
    path: str, count: int, span: tuple[Any, ...] = (), size: int = PART_FRAMES
) -> Iterator[Part]:
    """Parts of up to `size` frames that follow each other."""
    for first in range(0, count, max(1, size)):
        yield Part(path, first, min(size, count - first), span)


def sampled(count: int) -> list[int]:
    """Numbers of frames to look at, evenly spaced, with the first and the last one."""
    if count <= SAMPLED_FRAMES:
        return list(range(count))
    return [int(number) for number in np.linspace(0, count - 1, SAMPLED_FRAMES)]
