"""Arrays that are written row by row, each to a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from zarrpipe.data.csr import AnyArray


class RowFiles:
    """Files of plain bytes in a directory, in which the rows of arrays follow each other."""

    def __init__(self, folder: Path, suffix: str = ".bin") -> None:
        self._folder, self._suffix = folder, suffix
        self._files: dict[str, IO[bytes]] = {}
        self._rows: dict[str, int] = {}
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def append(self, name: str, rows: AnyArray) -> None:
        """Write further rows [K, ...] of an array."""
        if name not in self._files:
            self._files[name] = self.path(name).open("wb")
            self._kinds[name] = rows.dtype, rows.shape[1:]
        self._files[name].write(np.ascontiguousarray(rows).data)
        self._rows[name] = self._rows.get(name, 0) + len(rows)

    def path(self, name: str) -> Path:
        """File of an array."""
        return self._folder / f"{name}{self._suffix}"

    def shapes(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Dtype and shape of each array."""
        return {
            name: (dtype, (self._rows[name], *row)) for name, (dtype, row) in self._kinds.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
