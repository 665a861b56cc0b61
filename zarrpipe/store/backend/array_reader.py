"""The protocol of readers of an array's rows, whether mapped, loaded or cached."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError

AbsentChunks = Literal["any", "leading", "none"]
"""Which chunks of an array may be absent: any, those before the first one, or none."""

OpenArray = Callable[[], zarr.Array[Any]]


class ArrayReader(Protocol):
    """Rows of one array as one NumPy array."""

    @property
    def data(self) -> AnyArray:
        """Read-only array of the rows that were read so far."""
        ...

    def ensure(self, rows: int) -> None:
        """Read at least the first `rows`, which are committed."""
        ...

    def grow(self) -> None:
        """Follow the array to its present size, rows that are not committed included."""
        ...


def check_rows(place: object, have: int, rows: int) -> None:
    """Refuse an array with fewer rows than are committed."""
    if rows > have:
        raise StoreFormatError(
            f"{place} has {have} rows, the pointers say {rows}: "
            "the array was cut or belongs to another store"
        )
