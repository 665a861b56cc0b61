"""Run the calls on an owner of a store's writer one at a time, and end the writer on a failure.

An exception during a change of the store ends the writer, and the next call opens the store anew. A
call from inside another one (by a signal handler, a hook or a destructor) is refused.
"""

import os
import threading
from collections.abc import Callable
from functools import partial, wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from zarrpipe.errors import StoreBusyError, StoreClosedError, StoreLockedError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.write.open_for_writing import check_durable
from zarrpipe.store.write.store_writer import StoreWriter
from zarrpipe.store.write.threads import run_uninterrupted

_Owner = TypeVar("_Owner", bound="WriterOwner")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_QUICK, _READS = frozenset({"_write", "_append"}), frozenset({"read", "_length"})


class Closing:
    """Base of objects that are closed at the end of a with statement."""

    def close(self) -> None:
        """Release the store; a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class ForkSafeLock:
    """One lock for each process, since a forked child lacks the thread that holds it."""

    def __init__(self) -> None:
        self._locks: dict[int, threading.RLock] = {}
        self._helper: tuple[int, int] | None = None

    def here(self) -> "threading.RLock":
        """Lock of this process."""
        process = os.getpid()
        return self._locks.get(process) or self._locks.setdefault(process, threading.RLock())

    @property
    def mine(self) -> bool:
        """Whether this thread holds the lock, or runs a task for the thread that does."""
        return self.holds(self.here())

    def holds(self, lock: "threading.RLock") -> bool:
        """As `mine`, for the lock of this process.

        The lock itself is asked, as in `threading.Condition`. An interrupt at the border of the
        `with` statement, which CPython makes safe, would leave a flag of our own wrong.
        """
        if self._helper is not None and self._helper == (os.getpid(), threading.get_ident()):
            if not lock.acquire(blocking=False):
                return True  # its holder waits for this thread
            lock.release()  # a task that an error ended at its last line has left its mark
        return bool(lock._is_owned())  # type: ignore[attr-defined]

    def run_uninterrupted(self, task: Callable[[], _Result]) -> _Result:
        """Run a task for the thread that holds the lock; see `threads.run_uninterrupted`."""

        def help_out() -> _Result:
            before, self._helper = self._helper, (os.getpid(), threading.get_ident())
            try:
                return task()
            finally:
                self._helper = before

        return run_uninterrupted(help_out)

    def __reduce__(self) -> tuple[type["ForkSafeLock"], tuple[()]]:
        return ForkSafeLock, ()


def synchronized(
    method: Callable[Concatenate[_Owner, _Arguments], _Result],
) -> Callable[Concatenate[_Owner, _Arguments], _Result]:
    """Serialize calls of threads, refuse nested ones, and end the writer if one fails.

    An exception of a signal handler is raised after the method has ended, except in an append in
    place, which a helper thread would slow down.
    """

    @wraps(method)
    def call(self: _Owner, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        lock = self._mutex.here()
        if self._mutex.holds(lock):
            name = f"{type(self).__name__}.{method.__name__.strip('_')}"
            raise StoreBusyError(
                f"{name} was called from inside another call on {self._root} (by a signal handler, "
                "a hook or a destructor): nothing was changed; set a flag there and call it "
                "afterwards, or hand a batch to ZarrData.defer"
            )
        with lock:
            in_place = self._writer is not None and self._writer.appends_in_place
            if reads or (quick and in_place):
                return self._carry_out(method, *args, **kwargs)
            return self._mutex.run_uninterrupted(partial(self._carry_out, method, *args, **kwargs))

    quick, reads = method.__name__ in _QUICK, method.__name__ in _READS
    return call


class WriterOwner(Closing):
    """Base of `ZarrData` and `AtomicDataZarrWriter`; see `StoreWriter` for the arguments."""

    def __init__(
        self, root: Root, config: ZarrWriteConfig, capacity: int, *, durable: bool
    ) -> None:
        check_durable(root, durable=durable)
        self._root, self._config, self._capacity, self._durable = root, config, capacity, durable
        self._mutex = ForkSafeLock()
        self._writer: StoreWriter | None = None
        self._closed = False

    def _carry_out(
        self,
        method: Callable[Concatenate[Self, _Arguments], _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Result:
        """Run a method under the lock, then close the writer if the owner was closed."""
        try:
            result = method(self, *args, **kwargs)
            if self._closed:
                self._close_writer()
        except BaseException:
            self._end_failed()
            raise
        else:
            return result

    def close(self) -> None:
        """Make array shapes exact and release the lock; a second call does nothing.

        From inside another call of the same thread, such as in a signal handler, it returns at
        once, and the running call closes when it ends. If that call fails, the store is released
        and readable, and another `close` makes the shapes exact.
        """
        self._closed = True
        if not self._mutex.mine:
            self._close()

    @synchronized
    def _close(self) -> None:
        """Do nothing: every call on a closed object ends by closing its writer."""

    def _close_writer(self) -> None:
        """Close the writer, which is opened anew first if a call has failed."""
        if self._writer is None:
            return
        if self._writer.closed and self._root.open_group() is not None:
            try:
                self._open_writer()
            except StoreLockedError:  # another writer has settled it on opening
                self._writer.abandon()
        self._writer.close()
        self._writer = None

    def _end_failed(self) -> None:
        """Release a writer that an exception interrupted during a change."""
        if self._writer is not None and (self._closed or self._writer.closed):
            self._writer.abandon()

    def _check_open(self) -> None:
        if self._closed:
            kind = type(self).__name__
            raise StoreClosedError(f"the {kind} of {self._root} was closed: open a new one")

    def _open_writer(self) -> StoreWriter:
        """Return the writer, opened anew after a failure."""
        if self._writer is None or self._writer.closed:
            if self._writer is not None:
                self._writer.abandon()
            self._writer = StoreWriter(
                self._root, self._config, self._capacity, durable=self._durable
            )
        return self._writer
