"""The decoded rows of one array in a sparse file, and what is known of each of its units.

A unit is what is fetched, and evicted, as a whole. Beside the file of rows stands a mapped table
with a line for each unit. Rows are written first and their line last, so that a line never
promises what is not there. Nothing is ever written through the map of the rows: a full disk is
an error of a write and not a signal.
"""

import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.files import write_at
from zarrpipe.store.cache.files import (
    SharedRows,
    UnitLocks,
    memory_file,
    punch,
)

ROWS, GENERATION, STAMP, SYNCED = range(4)
"""Columns of the table: rows that a unit holds (0 none, negative while they are being written),
how often it was evicted, when it was used last, and whether its rows survive a power cut."""

KEPT = int(np.iinfo(np.int64).max)
"""Stamp of units that are not evicted as long as a process has the cache open."""

_LINE = 32
_PAGE = 4096
_RESERVE_FACTOR = 4
_LEAST_RESERVE = 1 << 26


@dataclass(frozen=True)
class Folder:
    """Where the files of a cache are; without a directory they have no name."""

    directory: Path | None

    def path(self, name: str) -> Path | None:
        """Path of a file."""
        return None if self.directory is None else self.directory / name

    def open(self, name: str) -> int:
        """Descriptor of a file, which is made if it is not there."""
        path = self.path(name)
        if path is None:
            return memory_file(name)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


class UnitFile:
    """Rows of one array by unit.

    Parameters
    ----------
    folder
        Where its two files are.
    name
        Their name without ending.
    unit_rows, row_bytes
        Rows of a unit and bytes of a row; None takes those that the files were made with.

    Raises
    ------
    StoreFormatError
        If the files were made for units or rows of another size.
    """

    def __init__(
        self, folder: Folder, name: str, unit_rows: int | None = None, row_bytes: int | None = None
    ) -> None:
        self.name = name
        self.pinned: dict[int, int] = {}
        self._pinning = threading.Lock()
        self._rows_file = folder.open(f"{name}.rows")
        self._table_file = folder.open(f"{name}.units")
        self.locks = UnitLocks(folder.path(f"{name}.units"))
        self._map: mmap.mmap
        self._lines: Int64Array
        self._extend(0)
        made = self._lines[0, :2].tolist()
        if made == [0, 0] and unit_rows is not None:
            self._lines[1:] = 0
            self._lines[0, :2] = made = [unit_rows, row_bytes]
        if unit_rows is not None and made != [unit_rows, row_bytes]:
            raise StoreFormatError(
                f"{folder.path(name)} was made for units of {made[0]} rows of {made[1]} bytes, the "
                f"array has {unit_rows} rows of {row_bytes}: delete the cache directory"
            )
        self.unit_rows, self.row_bytes = made
        self._shared: SharedRows | None = None

    @property
    def table(self) -> Int64Array:
        """Line of each unit, [units, 4] int64, shared by all processes."""
        return self._lines[1:]

    @property
    def unit_bytes(self) -> int:
        """Bytes of a whole unit."""
        return int(self.unit_rows * self.row_bytes)

    @property
    def held_bytes(self) -> Int64Array:
        """Bytes that each unit holds, [units] int64."""
        held: Int64Array = np.abs(self.table[:, ROWS]) * self.row_bytes
        return held

    def allocate(self, rows: int) -> None:
        """Make room for `rows`; the caller holds the lock of the cache."""
        self._extend(-(-rows // self.unit_rows))
        if os.fstat(self._rows_file).st_size < rows * self.row_bytes:
            os.ftruncate(self._rows_file, rows * self.row_bytes)

    def follow(self) -> None:
        """See the lines that other processes have added."""
        if os.fstat(self._table_file).st_size > len(self._map):
            self._extend(0)

    def view(self, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
        """First `rows`, read only, whether they are there or not; room was made for them."""
        size = rows * self.row_bytes
        if self._shared is None or self._shared.size < size:
            self._shared = SharedRows(self._rows_file, max(_RESERVE_FACTOR * size, _LEAST_RESERVE))
        return self._shared.rows(rows, shape, dtype)

    def write(self, unit: int, first: int, values: AnyArray) -> None:
        """Write rows of a unit from its `first` on; its line is the caller's to write."""
        data = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        write_at(self._rows_file, data, unit * self.unit_bytes + first * self.row_bytes)

    def use(self, units: Int64Array, stamp: int) -> None:
        """Say that units are used now, or until a later moment."""
        self.table[units, STAMP] = np.maximum(self.table[units, STAMP], stamp)

    def clear(self, unit: int) -> None:
        """Take a unit out of the table.

        A reader looks at the generation first and at the rows second. So the rows go first: who
        sees the new generation does not see the old rows.
        """
        line = self.table[unit]
        line[ROWS] = 0
        line[GENERATION] += 1
        line[STAMP] = 0
        line[SYNCED] = 0

    def punch(self, unit: int) -> bool:
        """Give the storage of a unit back; False if the file system cannot."""
        return punch(self._rows_file, unit * self.unit_bytes, self.unit_bytes)

    def sync_rows(self) -> None:
        """Wait until every row that was written is on disk."""
        getattr(os, "fdatasync", os.fsync)(self._rows_file)

    def sync_table(self) -> None:
        """Wait until the table is on disk."""
        self._map.flush()
        os.fsync(self._table_file)

    def pin(self, units: Int64Array, by: int) -> None:
        """Count users of units: those with any are not evicted by this process."""
        with self._pinning:
            for unit in units.tolist():
                count = self.pinned.get(unit, 0) + by
                if count:
                    self.pinned[unit] = count
                else:
                    del self.pinned[unit]

    def evictable(self, now: int) -> npt.NDArray[np.bool_]:
        """Which units hold rows that nobody asked to be left, [units] bool."""
        self.follow()
        may: npt.NDArray[np.bool_] = (self.table[:, ROWS] != 0) & (self.table[:, STAMP] <= now)
        may[[unit for unit in list(self.pinned) if unit < len(may)]] = False
        return may

    def close(self) -> None:
        """Let go of the files; arrays that were taken from `view` stay valid."""
        self.locks.close()
        rows, table, self._rows_file, self._table_file = self._rows_file, self._table_file, -1, -1
        for descriptor in (rows, table):
            if descriptor >= 0:
                os.close(descriptor)

    def _extend(self, units: int) -> None:
        """Map a table of at least `units`, every page of which is there."""
        have = os.fstat(self._table_file).st_size
        want = -(-(units + 1) * _LINE // _PAGE) * _PAGE
        if have < want:
            write_at(self._table_file, memoryview(bytes(want - have)), have)
        self._map = mmap.mmap(self._table_file, max(have, want))
        self._lines = np.frombuffer(self._map, dtype=np.int64).reshape(-1, _LINE // 8)
