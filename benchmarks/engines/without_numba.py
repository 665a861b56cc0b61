"""zarrpipe as it is where numba is not installed, in a process where it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from zarrpipe.store import gather


@contextmanager
def without_numba() -> Iterator[None]:
    """Stores that are first read in here are read without compiled kernels from then on."""
    with mock.patch.object(gather, "compiled_kernels", return_value=None):
        yield
