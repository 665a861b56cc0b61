"""Batches that an owner of a writer was handed before it could append them."""

from collections import deque
from typing import Any

from zarrpipe.data.batch import Batch
from zarrpipe.errors import DeferredWriteError, FieldError, SchemaError, StoreFullError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.write.exclusive_calls import WriterOwner, synchronized
from zarrpipe.store.write.write_buffer import WriteBuffer, make_buffer


class QueuedWrites(WriterOwner):
    """Base of `ZarrData`: a queue of deferred batches, and a buffer if one is asked for.

    A call writes what is queued before and after its own work, in the order of arrival.
    """

    def __init__(
        self,
        root: Root,
        config: ZarrWriteConfig,
        capacity: int,
        *,
        durable: bool,
        buffer: int | None,
        buffer_seconds: float,
    ) -> None:
        super().__init__(root, config, capacity, durable=durable)
        self._deferred: deque[Batch] = deque()
        self._buffer: WriteBuffer | None = None
        if buffer is not None:
            self._buffer = make_buffer(buffer, buffer_seconds, self._write_waiting)

    def _append(self, batch: Batch) -> Any:
        """Append a batch."""
        raise NotImplementedError

    def _count(self) -> int:
        """Number of samples that are stored."""
        raise NotImplementedError

    def _holds_more(self, count: int) -> bool:
        """Whether a fresh look finds more samples than `count`; False for an unreadable store."""
        raise NotImplementedError

    def _defer(self, batch: Batch) -> None:
        """Queue a copy of a batch."""
        if batch.num_graphs:
            self._deferred.append(batch.detach().clone().cpu())

    def _waits(self, batch: Batch) -> bool:
        """Let a copy of a batch wait in the buffer; False, and it does not, if none takes it."""
        buffer = self._buffer
        if buffer is None or not buffer.takes(batch) or self._mutex.mine:
            return False
        return buffer.put(batch)

    def _let_wait(self, batch: Batch | None) -> None:
        """Let the buffer take batches like one that was appended; None for no batch."""
        if self._buffer is None:
            return
        if batch is None:
            self._buffer.accept(None)
        elif batch.num_graphs:
            self._buffer.accept(batch, self._capacity - self._count())

    def _num_waiting(self) -> int:
        """Number of samples that wait, if there is a buffer; else deferred ones are not counted."""
        return 0 if self._buffer is None else self._num_deferred() + self._buffer.count

    def _num_deferred(self) -> int:
        """Number of samples in deferred batches."""
        return sum(batch.num_graphs for batch in self._deferred)

    @synchronized
    def _write_waiting(self) -> None:
        """Write what waits in the buffer, from its thread."""
        self._write_deferred(done=False)

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

    def _close_writer(self) -> None:
        self._write_deferred(done=False)
        super()._close_writer()
        if self._buffer is not None:
            self._buffer.raise_lost()
