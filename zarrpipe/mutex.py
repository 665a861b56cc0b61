"""One thread at a time in the methods of an object."""

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class ForkSafeLock:
    """A lock for each process: one that was forked has not the thread that holds it.

    A copy, or one that is pickled, begins anew.
    """

    def __init__(self) -> None:
        self._locks: dict[int, AbstractContextManager[bool]] = {}

    def here(self) -> AbstractContextManager[bool]:
        """Lock of this process, which the thread that holds it may take again."""
        process = os.getpid()
        return self._locks.get(process) or self._locks.setdefault(process, threading.RLock())

    def __reduce__(self) -> tuple[type["ForkSafeLock"], tuple[()]]:
        return ForkSafeLock, ()


class Guarded(Protocol):
    """What has a mutex."""

    _mutex: ForkSafeLock


_Self = TypeVar("_Self", bound=Guarded)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def synchronized(
    method: Callable[Concatenate[_Self, _Arguments], _Result],
) -> Callable[Concatenate[_Self, _Arguments], _Result]:
    """Let a method wait while another thread is in one of the same object."""

    @wraps(method)
    def waiting(self: _Self, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with self._mutex.here():
            return method(self, *args, **kwargs)

    return waiting
