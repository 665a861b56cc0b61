"""zarrpipe as it is where numba is not installed, in a process where it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from zarrpipe.data import ids
from zarrpipe.store.read import gather


@contextmanager
def without_numba() -> Iterator[None]:
    """Stores that are first read in here are read without compiled kernels from then on."""
    with mock.patch.object(gather, "compiled_kernels", return_value=None):
        yield


def find_ids_without_numba(write: Callable[[Any], None], request: Any) -> None:
    """Call ``write(request)`` with ids found by NumPy; it takes no time worth mentioning."""
    known = ids._kernel
    ids._kernel = _no_kernel  # type: ignore[assignment]
    try:
        write(request)
    finally:
        ids._kernel = known


def _no_kernel() -> None:
    return None
