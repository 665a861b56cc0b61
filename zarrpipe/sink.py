"""`ZarrData`: the sink that a simulation writes into, on any Zarr store."""

import os
import warnings
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.adapters import as_batch
from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import check_new_names
from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeferredWriteError,
    FieldError,
    SchemaError,
    StoreEmptyError,
    StoreFormatError,
    StoreFullError,
    StoreNotFoundError,
)
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.check.report import Report
from zarrpipe.store.check.run import check
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.write.append_plan import masked
from zarrpipe.store.write.exclusive_calls import WriterOwner, synchronized
from zarrpipe.store.write.write_buffer import WriteBuffer, make_buffer

_MOST_SAMPLES = 1 << 40


class ZarrData(WriterOwner):
    """Sink for batches of atomic systems, in one Zarr store.

    A sink on a store that exists continues it. What was written can be read at once, by this
    object, by other processes and by any Zarr tool, whether or not the sink is ever closed.
    From its first write until `close`, a sink on a local store is its only writer. Other stores
    have no lock: there a write raises if it finds that another writer has written meanwhile.
    Threads may share a sink; their calls wait for each other. A call from inside another one of the
    same thread, as of a signal handler, raises `StoreBusyError`; there `defer` and `close` are the
    way.

    A call that raised, or was interrupted, has lost nothing, and the next one goes on with what is
    stored. A batch whose `write` raised is there whole or not at all: `len` tells which.

    Parameters
    ----------
    store : StoreLike
        Path, URL, zarr Store or StorePath, or a dict; it is created by the first write.
    capacity : int
        Most samples that the sink may hold.
    config : ZarrWriteConfig or mapping, optional
        Chunks and codecs of the arrays that are created. By default arrays are uncompressed,
        which is what can be appended to in place and mapped.
    durable : bool
        Whether what `write` stored outlasts a loss of power once it returns, for which each write
        waits for the disk. Without it, what was written outlasts the process, whatever ends it. A
        store that is not local is as durable as it says itself; one in memory is not.
    buffer : int, optional
        Number of samples that wait in memory, on their device, before a thread appends them
        together. `write` then copies a batch and returns in microseconds, so that a simulation on
        a device hands over every step. What waits is written when there are so many samples, when
        the first has waited for `buffer_seconds`, and by `flush`, `read`, `drain`, `zero`, `close`
        and the end of the interpreter. **A kill loses what waits**: what was handed over in the
        last `buffer_seconds` and one write, and at most twice `buffer` samples, for which `write`
        waits. `len` counts what waits; other readers see it when it is written. A batch of other
        fields than the last one is written at once, after what waits. An error of the thread is
        raised by the next `write` as `DeferredWriteError`, and its batch stays queued.
    buffer_seconds : float
        Longest time that a sample waits.

    Raises
    ------
    ValueError
        If the capacity is not positive, or the store has more samples.
    SchemaError
        If the config gives a field another unit than the store.
    StoreFormatError
        If what stands there is damaged, or of a newer format.

    Examples
    --------
    >>> import torch
    >>> from zarrpipe import AtomicData, Batch, ZarrData
    >>> batch = Batch.from_data_list(
    ...     [AtomicData([[0.0, 0.0, 0.0]], [z], energy=-float(z)) for z in (1, 2, 3)]
    ... )
    >>> with ZarrData({}, capacity=100) as sink:
    ...     sink.write(batch, mask=torch.tensor([True, False, True]))
    ...     len(sink), sink.read().atomic_numbers.tolist()
    (2, [1, 3])
    """

    def __init__(
        self,
        store: StoreLike,
        capacity: int = 1_000_000,
        config: ZarrWriteConfig | Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
        buffer: int | None = None,
        buffer_seconds: float = 1.0,
    ) -> None:
        capacity = _checked_capacity(capacity)
        self._store = store
        super().__init__(Root.of(store), ZarrWriteConfig.of(config), capacity, durable=durable)
        self._deferred: deque[Batch] = deque()
        self._buffer: WriteBuffer | None = None
        if buffer is not None:
            self._buffer = make_buffer(buffer, buffer_seconds, self._write_waiting)
        self._view: StoreView | None = None
        self._removed: frozenset[str] = frozenset()  # fields of what was drained or removed
        view = self._reader()
        if view is not None:
            view.schema.with_units(self._config.units)  # refuses what the first write would
        if self._count() > capacity:
            raise ArgumentError(
                f"{self._root} has {self._count()} samples, more than capacity={capacity}: open it "
                "with a larger capacity"
            )

    @property
    def store(self) -> StoreLike:
        """The store as it was given."""
        return self._store

    @property
    def capacity(self) -> int:
        """Most samples that the sink may hold."""
        return self._capacity

    def resize(self, capacity: int) -> None:
        """Let the sink hold at least so many samples; a smaller capacity changes nothing.

        Sizes of chunks stay what the first capacity made them.

        Raises
        ------
        ArgumentError
            If it is not a positive integer.
        """
        self._capacity = max(self._capacity, _checked_capacity(capacity))

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another sample."""
        return len(self) >= self._capacity

    @property
    def global_rank(self) -> int:
        """Rank among all processes: of torch.distributed, else of torchrun, else 0."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank()
        return int(os.environ.get("RANK", "0"))

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this machine, as torchrun gives it, else 0."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    def write(self, batch: Any, mask: npt.ArrayLike | torch.Tensor | None = None) -> None:
        """Append the systems of a batch for which the mask is True, in order.

        Parameters
        ----------
        batch
            What `zarrpipe.adapters.as_batch` takes: a `Batch` or `AtomicData` on any device, a
            list of them, or the batches of other libraries (nvalchemi, PyG, torch-sim, ASE).
        mask : torch.Tensor [B] bool, optional
            Which systems to write; all by default. It may be on any device, or be an array or a
            list of bools.

        Raises
        ------
        RuntimeError
            If there is not room for all of them (StoreFullError), another writer has the store
            (StoreLockedError), or the sink was closed (StoreClosedError); nothing was written.
        ValueError
            If the mask has another length or dtype, a new field has a name that conditions on
            samples read otherwise (FieldError), or a field does not fit what the store has fixed
            (SchemaError); nothing was written. A field that this sink has drained is not new.
        TypeError
            If the batch is of no known kind (ArgumentTypeError).
        """
        self._check_open()
        chosen = as_batch(batch) if mask is None else masked(as_batch(batch), mask)
        if self._buffer is not None and self._buffer.takes(chosen) and not self._mutex.mine:
            self._buffer.put(chosen)
        else:
            self._write(chosen)

    @synchronized
    def _write(self, batch: Batch) -> None:
        self._check_open()
        self._write_deferred(done=False)
        self._append(batch)
        if self._buffer is not None and batch.num_graphs:
            self._buffer.accept(batch, self._capacity - self._count())
        self._write_deferred(done=True)

    @synchronized
    def _write_waiting(self) -> None:
        """Write what waits in the buffer, from its thread."""
        self._write_deferred(done=False)

    def defer(self, batch: Any, mask: npt.ArrayLike | torch.Tensor | None = None) -> None:
        """Queue a batch from a place where `write` cannot be called, as in a signal handler.

        It is copied, and written by the `write`, `zero` or `flush` under way when that ends, or by
        the next of them, `drain` or `close`. If the call under way raises, it stays queued. What is
        queued is not counted by `len`, and ends with the process: end it with `close`.

        Parameters
        ----------
        batch, mask
            See `write`.

        Raises
        ------
        StoreClosedError
            If the sink was closed.
        FieldError, ArgumentTypeError
            As `write`. Where the batch does not fit the store or its capacity, the call that would
            write it raises `DeferredWriteError`.
        """
        self._check_open()
        chosen = as_batch(batch) if mask is None else masked(as_batch(batch), mask)
        if chosen.num_graphs:
            self._deferred.append(chosen.detach().clone().cpu())

    def _write_deferred(self, *, done: bool) -> None:
        """Write deferred and buffered batches, before or after (`done`) the work of a call."""
        while self._deferred or self._queue_buffered():
            batch, before = self._deferred[0], self._count()
            try:
                self._append(batch)
                self._deferred.popleft()
            except BaseException as error:
                self._end_failed()
                refused = isinstance(error, SchemaError | FieldError | StoreFullError)
                first = self._deferred and self._deferred[0] is batch
                if first and (refused or self._holds_more(before)):
                    self._deferred.popleft()
                if not isinstance(error, Exception):
                    raise
                raised = DeferredWriteError(
                    f"a deferred batch of {batch.num_graphs} samples could not be written "
                    f"({error}), and {'is given up' if refused else 'stays queued'}; the call that "
                    f"was to write it {'was carried out' if done else 'did nothing else'}"
                )
                raised.batch = batch if refused else None
                raise raised from error

    def _queue_buffered(self) -> bool:
        """Queue what waits in the buffer; whether there was something."""
        buffer = self._buffer
        if buffer is None or not buffer.count:
            return False
        self._mutex.run_uninterrupted(lambda: self._deferred.extend(buffer.take()))
        return bool(self._deferred)

    def _append(self, batch: Batch) -> None:
        """Append a batch if there is room for it."""
        if batch.num_graphs == 0:
            return
        check_new_names(batch.fields, self._stored_fields)
        stored = self._count()
        if stored + batch.num_graphs > self._capacity:
            raise StoreFullError(
                f"the sink is full: {stored} of {self._capacity} samples are stored and "
                f"{batch.num_graphs} more were given, none of which was written; drain it or "
                "give it a larger capacity"
            )
        self._open_writer().append(batch)

    @synchronized
    def read(self) -> Batch:
        """Every sample, in the order of writing, on the CPU.

        Raises
        ------
        StoreEmptyError
            If there is none.
        StoreNotFoundError
            If the store was removed.
        """
        if self._buffer is not None:
            self._write_deferred(done=False)
        return self._read()

    def drain(self) -> Batch:
        """Every sample, after which the sink is empty.

        If it raises, every sample is still stored. Where the samples are gone and only their
        files could not be cleared away, they are returned and the next writer clears the rest.

        Raises
        ------
        StoreEmptyError
            If there is none.
        """
        drained: list[Batch] = []
        try:
            self._drain(drained)
            return drained[0]
        except BaseException:  # as an interrupt right after the store was emptied
            if drained:
                self._put_back(drained[0])
            raise

    @synchronized
    def _drain(self, drained: list[Batch]) -> None:
        """Read all samples into a list of the caller, then empty the sink.

        The list has them even if emptying is interrupted.
        """
        self._check_open()
        self._write_deferred(done=False)
        if self._count():
            self._open_writer()
        drained.append(self._read())
        self._empty(stacklevel=5)

    @synchronized
    def _put_back(self, batch: Batch) -> None:
        """Store drained samples again if they are gone."""
        if not self._holds_more(0):
            self._open_writer().append(batch)

    @synchronized
    def zero(self) -> None:
        """Remove every sample and what zarrpipe made for them, and nothing else."""
        self._check_open()
        self._write_deferred(done=False)
        self._empty()
        self._write_deferred(done=True)

    def _empty(self, stacklevel: int = 4) -> None:
        """Remove every sample; what fails once they are gone is a warning."""
        if self._writer is None and self._root.open_group() is None:
            return
        writer = self._open_writer()
        self._removed |= frozenset(writer.schema)
        if self._buffer is not None:
            self._buffer.accept(None)
        try:
            writer.zero()
        except Exception as error:
            if not writer.closed or self._holds_more(0):
                raise
            warnings.warn(
                f"{self._root} was emptied, but not all that it held could be removed ({error}): "
                "the next write removes it",
                RuntimeWarning,
                stacklevel=stacklevel,
            )

    def _holds_more(self, count: int) -> bool:
        """Whether a fresh look finds more samples than `count`; False for an unreadable store."""
        self._view = None
        try:
            view = self._reader()
        except (OSError, StoreFormatError):
            return False
        return view is not None and view.num_samples > count

    @synchronized
    def flush(self) -> None:
        """Make array shapes exact and write the number of samples, for plain Zarr tools.

        What was written is readable without it, but for what waits in a buffer.
        """
        self._check_open()
        self._write_deferred(done=False)
        if self._writer is not None:
            self._open_writer().flush()
        self._write_deferred(done=True)

    def _close_writer(self) -> None:
        self._write_deferred(done=False)
        super()._close_writer()

    def _end_failed(self) -> None:
        self._view = None  # it may have been interrupted, or have seen what was half cleared
        super()._end_failed()

    def check(self) -> Report:
        """Look the store through for damage; see `zarrpipe.check`."""
        return check(self._store)

    def __len__(self) -> int:
        if self._mutex.mine:  # from inside another call, which may be half done
            try:
                return StoreView(self._root.path).num_samples
            except StoreNotFoundError:
                return 0
        return self._length()

    @synchronized
    def _length(self) -> int:
        if self._buffer is None:
            return self._count()
        queued = sum(batch.num_graphs for batch in self._deferred)
        return self._count() + queued + self._buffer.count

    def _count(self) -> int:
        if self._writer is not None and not self._writer.closed:
            return self._writer.num_samples
        view = self._reader()
        if view is None:
            return 0
        view.refresh()
        return view.num_samples

    def _read(self) -> Batch:
        count = self._count()
        view = self._reader()
        if count and view is None:
            raise StoreNotFoundError(
                f"there is no Zarr store at {self._root} any more: it was removed while this sink "
                f"had it open, and the {count} samples in it are gone"
            )
        if count == 0 or view is None:
            raise StoreEmptyError(f"the sink is empty: nothing was written to {self._root}")
        view.refresh()
        return view.gather(np.arange(view.num_samples))

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(
            f"the sink of {self._root} can be neither pickled nor copied: it is the one writer of "
            "its store and stays in its process; hand the store's path over and open a sink, or a "
            "ZarrDataset for reading, there"
        )

    def __repr__(self) -> str:
        return f"ZarrData({str(self._root)!r}, {len(self)} of {self._capacity} samples)"

    def _stored_fields(self) -> Collection[str]:
        """Names of the fields that the store has, or had before this sink emptied it."""
        if self._writer is not None and not self._writer.closed:
            return self._removed.union(self._writer.schema)
        view = self._reader()
        if view is None:
            return self._removed
        view.refresh()
        return self._removed.union(view.schema)

    def _reader(self) -> StoreView | None:
        """View of the store; None while there is no store."""
        if self._view is None:
            try:
                self._view = StoreView(self._root.path)
            except StoreNotFoundError:
                return None
        return self._view


def _checked_capacity(capacity: int) -> int:
    """Capacity as an integer; raises ArgumentError for one that a sink cannot have."""
    whole = isinstance(capacity, int | np.integer) and not isinstance(capacity, bool)
    if not whole or not 0 < capacity <= _MOST_SAMPLES:
        raise ArgumentError(
            f"capacity={capacity!r}, expected a positive integer of samples, at most "
            f"{_MOST_SAMPLES}"
        )
    return int(capacity)
