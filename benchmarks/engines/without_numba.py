"""zarrpipe as it is where numba is not installed, in a process where it is."""

from contextlib import AbstractContextManager, nullcontext

WITHOUT_NUMBA: AbstractContextManager[None] = nullcontext()
