"""Directories of flat arrays that metatrain maps into memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zarrpipe.formats.read.files.assembly import scan_or_failure
from zarrpipe.formats.read.files.levels import LevelledReader, named_level, unclear_level
from zarrpipe.formats.read.frames import (
    ATOM,
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
)

_PART_ATOMS, _PART_FRAMES = 50_000, 10_000
_STRUCTURE = ("x", "a", "c")
_FLOAT = np.dtype("<f4")


def recognises(path: Path) -> bool:
    """Whether a directory has the arrays of a structure."""
    return all((path / name).is_file() for name in ("ns.npy", "na.npy", "x.bin", "a.bin"))


class MetatrainMemmap(LevelledReader):
    """Reads metatrain's directories of ``ns.npy``, ``na.npy``, ``x.bin``, ``a.bin``, ``c.bin``.

    Every other ``<key>.bin`` is an entry. The directory does not say whether it has rows of atoms
    or of systems: `levels` says it, or the key's name (``energy_forces``, as metatrain writes), or
    the size of the file where only one is possible; else the key is left out. A label that is NaN
    throughout a structure is missing.

    Parameters
    ----------
    levels
        Level, ``"atom"`` or ``"system"``, by key.
    """

    name = "metatrain"
    in_processes = True

    def scan(self, path: str) -> Scan:
        """Find the arrays by their sizes; a frame with missing rows is a failure."""
        return scan_or_failure(path, self._scan)

    def _scan(self, path: str) -> Scan:
        arrays, left_out = self._arrays(path)
        ends, count = arrays.ends, arrays.num_whole
        reason = "the files of the structure end before it: they were cut off"
        return Scan(
            tuple(_parts(path, ends[: count + 1])),
            {entry: frozenset({Kind("float", a.shape[1:])}) for entry, a in arrays.labels.items()},
            tuple(Failure(path, number, None, reason) for number in range(count, len(ends) - 1)),
            exhaustive=True,
            num_single_atoms=int((np.diff(ends[: count + 1]) == 1).sum()),
            left_out=left_out,
        )

    def read(self, part: Part) -> FrameBlock:
        """Map the arrays, and copy the rows of a part."""
        arrays, left_out = self._arrays(part.path)
        first, last = part.first, part.first + part.num_frames
        begin, end = arrays.ends[first], arrays.ends[last]
        num_atoms = np.diff(arrays.ends[first : last + 1])
        cell = np.zeros((part.num_frames, 3, 3))
        if arrays.cell is not None:
            cell = arrays.cell[first:last].astype(np.float64)
        columns = {}
        for entry, values in arrays.labels.items():
            rows = values[begin:end] if entry.level == ATOM else values[first:last]
            column = _column(rows, num_atoms if entry.level == ATOM else np.ones_like(num_atoms))
            if column.present.any():
                columns[entry] = column
        return FrameBlock(
            frames=np.arange(first, last),
            num_atoms=num_atoms,
            atomic_numbers=arrays.numbers[begin:end].astype(np.int64),
            positions=arrays.positions[begin:end].astype(np.float64),
            cell=cell,
            pbc=np.asarray(cell.any(axis=2)),
            columns=columns,
            left_out=left_out,
        )

    def _arrays(self, path: str) -> "tuple[_Arrays, dict[Entry, str]]":
        """All arrays of a directory, and why some files are none."""
        folder = Path(path)
        ends = np.load(folder / "na.npy").astype(np.int64)
        count = int(np.load(folder / "ns.npy"))
        if ends.shape != (count + 1,) or ends[0] != 0 or (np.diff(ends) < 1).any():
            raise ValueError(
                f"na.npy has shape {ends.shape}, expected {count + 1} growing numbers from 0 on, "
                "as ns.npy says"
            )
        labels: dict[Entry, AnyArray] = {}
        left_out: dict[Entry, str] = {}
        files = sorted(folder.glob("*.bin")) if count else []
        for file in [file for file in files if file.stem not in _STRUCTURE]:
            level, reason = self._level(file, int(ends[-1]), count)
            if reason is None:
                rows = int(ends[-1]) if level == ATOM else count
                labels[Entry(level, file.stem)] = _labels(file, rows)
            else:
                left_out[Entry(level, file.stem)] = reason
        cell = folder / "c.bin"
        arrays = _Arrays(
            ends,
            _mapped(folder / "x.bin", (3,)),
            _mapped(folder / "a.bin", (), np.dtype("<i4")),
            _mapped(cell, (3, 3)) if cell.exists() else None,
            labels,
        )
        return arrays, left_out

    def _level(self, file: Path, num_atoms: int, num_systems: int) -> tuple[str, str | None]:
        """Level of the rows of a file, or why it is not known."""
        key, size = file.stem, file.stat().st_size
        rows = {ATOM: num_atoms, SYSTEM: num_systems}
        possible = [level for level in rows if size % (_FLOAT.itemsize * rows[level]) == 0]
        told = self.levels.get(key)
        if not size or not possible or (told is not None and told not in possible):
            asked = "" if told is None else f", and {told} was asked for"
            return told or SYSTEM, (
                f"has {size} bytes, expected rows of float32 for each of {num_atoms} atoms or "
                f"{num_systems} structures{asked}"
            )
        named = told or named_level(key)
        if len(possible) == 1 or named is None:
            return possible[-1], None if len(possible) == 1 else unclear_level(key)
        return named, None


@dataclass(frozen=True)
class _Arrays:
    """Arrays of a directory; those of the structure may end before the last atom."""

    ends: Int64Array  # [ns + 1]
    positions: AnyArray  # [V, 3]
    numbers: AnyArray  # [V]
    cell: AnyArray | None  # [ns, 3, 3]
    labels: Mapping[Entry, AnyArray]

    @property
    def num_whole(self) -> int:
        """Number of structures of which all files have all rows."""
        num_atoms = min(len(self.positions), len(self.numbers))
        whole = int(np.searchsorted(self.ends, num_atoms, side="right")) - 1
        return whole if self.cell is None else min(whole, len(self.cell))


def _mapped(file: Path, row: tuple[int, ...], dtype: np.dtype[Any] = _FLOAT) -> AnyArray:
    """All whole rows of a file."""
    rows = file.stat().st_size // (dtype.itemsize * int(np.prod(row)))
    if rows == 0:
        return np.empty((0, *row), dtype)
    return np.memmap(file, dtype, "r", shape=(rows, *row))


def _labels(file: Path, rows: int) -> AnyArray:
    """Values of a file as one row for each atom or system."""
    width = file.stat().st_size // (_FLOAT.itemsize * rows)
    return _mapped(file, () if width == 1 else (width,))


def _column(rows: AnyArray, counts: Int64Array) -> Column:
    """Column of labels, missing in the structures, of `counts` rows each, where all are NaN."""
    values = rows.astype(np.float64)
    known = ~np.isnan(values.reshape(len(values), -1)).all(axis=1)
    return Column(values, np.logical_or.reduceat(known, np.cumsum(counts) - counts))


def _parts(path: str, ends: Int64Array) -> Iterator[Part]:
    """Parts of up to some number of atoms or structures."""
    first, count = 0, len(ends) - 1
    while first < count:
        last = int(np.searchsorted(ends, ends[first] + _PART_ATOMS, side="right")) - 1
        last = min(max(last, first + 1), first + _PART_FRAMES, count)
        yield Part(path, first, last - first)
        first = last
