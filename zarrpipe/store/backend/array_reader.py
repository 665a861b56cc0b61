"""What every reader of an array's rows offers, whether they are mapped, loaded or cached."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError

AbsentChunks = Literal["any", "leading", "none"]
OpenArray = Callable[[], zarr.Array[Any]]


class ArrayReader(Protocol):
    """Rows of one array as one NumPy array."""

    @property
    def data(self) -> AnyArray:
        """Read-only array of the rows that are at hand."""
        ...

    def ensure(self, rows: int) -> None:
        """Bring at least the first `rows` to hand; they are committed."""
        ...

    def grow(self) -> None:
        """Bring to hand what is allocated, committed or not, as it is now."""
        ...


def check_rows(place: object, have: int, rows: int) -> None:
    """Refuse an array with fewer rows than are committed."""
    if rows > have:
        raise StoreFormatError(
            f"{place} has {have} rows, the pointers say {rows}: "
            "the array was cut or belongs to another store"
        )
