"""The lines of a CSV file that is being written, each read once."""

import csv
import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

_BLOCK = 1 << 22
_MARK = 128


@dataclass(frozen=True)
class Rows:
    """Complete rows that came; `anew` if they replace all before, `more` if others wait."""

    rows: tuple[dict[str, str], ...] = ()
    anew: bool = False
    more: bool = False


class CsvTail:
    """Reads what was appended to a CSV file, and all of it where it was rewritten.

    Lightning rewrites the file when new columns come, and a run that is resumed replaces it. A file
    that has become shorter may be half written, so it is read at the second look.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.modified: float | None = None
        """Time of the last change, in seconds since 1970; None while there is no file."""
        self._begin()
        self._seen: tuple[int, ...] = ()
        self._doubted = False

    def _begin(self) -> None:
        self._offset, self._file = 0, 0
        self._header: list[str] = []
        self._head = self._mark = b""

    def read(self) -> Rows:
        """The complete rows that were not read yet.

        Raises
        ------
        OSError
            If the file cannot be read.
        csv.Error
            If it is no CSV.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            anew = self._offset > 0
            self._begin()
            self._seen, self.modified = (), None
            return Rows(anew=anew)
        with file:
            found = os.fstat(file.fileno())
            self.modified = found.st_mtime
            seen = (found.st_ino, found.st_size, found.st_mtime_ns)
            if seen == self._seen:
                return Rows()
            anew = self._offset > 0 and not self._continues(file, found)
            if anew and found.st_size < self._offset and not self._doubted:
                self._doubted = True
                return Rows()
            if anew:
                self._begin()
            self._doubted = False
            rows, more = self._complete(file)
            self._file = found.st_ino
            self._seen = () if more else seen
            return Rows(rows, anew, more)

    def _continues(self, file: BufferedReader, found: os.stat_result) -> bool:
        """Whether the file begins with what was read of it."""
        if found.st_ino != self._file or found.st_size < self._offset:
            return False
        if file.read(len(self._head)) != self._head:
            return False
        file.seek(self._offset - len(self._mark))
        return file.read(len(self._mark)) == self._mark

    def _complete(self, file: BufferedReader) -> tuple[tuple[dict[str, str], ...], bool]:
        """Rows that end within the next block, and whether the block was full."""
        file.seek(self._offset)
        block = file.read(_BLOCK)
        whole = block[: block.rfind(b"\n") + 1]
        lines = whole.decode("utf-8", "replace").splitlines()
        if lines and not self._head:
            self._header = next(csv.reader(lines[:1]), [])
            self._head = whole[: whole.find(b"\n") + 1]
            lines = lines[1:]
        self._offset += len(whole)
        self._mark = whole[-_MARK:] if whole else self._mark
        width = len(self._header)
        rows = tuple(
            dict(zip(self._header, row, strict=True))
            for row in csv.reader(lines)
            if len(row) == width
        )
        return rows, len(block) == _BLOCK and bool(whole)
