"""Batches that wait in memory, to be appended to a store together."""

import concurrent.futures.thread  # noqa: F401  registers its end before a buffer, which runs first
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from typing import Any

import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.schema import batch_signature
from zarrpipe.data.validate import check_count
from zarrpipe.errors import ArgumentError, DeferredWriteError

_MOST_SAMPLES, _MOST_SECONDS = 1 << 31, 86_400
END_POLL = 0.5
"""Seconds until the end of the interpreter is noticed."""


class WriteBuffer:
    """A bounded queue of copies of batches, and a thread that has it flushed.

    The thread lives while something waits. It calls `flush` when `samples` wait, or when the first
    of them has waited for `seconds`; whoever holds the right to write calls `take`. Up to twice as
    many samples wait while a flush is under way; then `put` waits as well. `Stage` keeps them on
    disk instead.
    """

    def __init__(self, samples: int, seconds: float, flush: Callable[[], object]) -> None:
        self.samples, self.seconds = samples, seconds
        self._flush = flush
        self._reset()
        with suppress(RuntimeError):  # the interpreter is ending, and the thread alone flushes
            threading._register_atexit(_end, weakref.ref(self))  # type: ignore[attr-defined]

    def _reset(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._waiting: list[tuple[Batch, torch.cuda.Event | None]] = []
        self._count, self._since = 0, 0.0
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._accepted: tuple[object, ...] | None = None
        self._room = 0

    @property
    def count(self) -> int:
        """Samples that wait."""
        self._forget_parent()
        return self._count

    def accept(self, batch: Batch | None, room: int = 0) -> None:
        """Let batches like one that the store has taken wait, up to `room` samples of them."""
        self._accepted = None if batch is None else _signature(batch)
        with self._changed:
            self._room = room - self.count

    def takes(self, batch: Batch) -> bool:
        """Whether the store will take a batch, as far as can be known without it."""
        self._forget_parent()
        fits = 0 < batch.num_graphs <= self._room
        return fits and _signature(batch) == self._accepted

    def put(self, batch: Batch) -> bool:
        """Queue a copy of a batch, or raise the error of the last flush of the thread.

        False, and the batch is not queued, if another thread has taken the room for it.
        """
        count, kept = batch.num_graphs, self._copy(batch)
        with self._changed:
            while 0 < self.count > 2 * self.samples - count and not self._failure:
                self._changed.wait()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if count > self._room:
                return False
            if not self.count:
                self._since = time.monotonic()
            self._keep(kept)
            self._room -= count
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="zarrpipe-buffer")
                self._thread.start()
            elif self.count >= self.samples:
                self._changed.notify_all()
        return True

    def _copy(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """Copy of a batch on its device, and the event by which it is complete."""
        copy = batch.detach().clone()
        if copy.device.type != "cuda":
            return copy, None
        return copy, torch.cuda.current_stream(copy.device).record_event()

    def _keep(self, kept: tuple[Batch, torch.cuda.Event | None]) -> None:
        """Let a copy wait."""
        self._waiting.append(kept)
        self._count += kept[0].num_graphs

    def take(self) -> list[Batch]:
        """Remove all that waits, as at most one batch on the CPU."""
        self._forget_parent()
        with self._changed:
            waiting, self._waiting, self._count = self._waiting, [], 0
            self._changed.notify_all()
        for _, copied in waiting:
            if copied is not None:
                copied.synchronize()
        parts = [
            Batch.concatenate([batch for batch, _ in run]).cpu()
            for _, run in groupby(waiting, key=lambda item: item[0].device)
        ]
        return [Batch.concatenate(parts)] if len(parts) > 1 else parts

    def end(self) -> None:
        """Flush what waits or has failed, at the end of the interpreter.

        The thread waits for the end of the main thread. Then executors, which Zarr and durable
        writers use, have been shut down, so this comes before.
        """
        self._forget_parent()
        try:
            if self.count or self._failure is not None:
                self._flush()
            self.raise_lost()
        except Exception as error:  # noqa: BLE001  others are flushed, and the executors ended
            sys.excepthook(type(error), error, error.__traceback__)

    def raise_lost(self) -> None:
        """Raise the error of a flush of the thread that gave a batch up, unless `put` has."""
        with self._changed:
            failure, self._failure = self._failure, None
        if isinstance(failure, DeferredWriteError) and failure.batch is not None:
            raise failure

    def _run(self) -> None:
        """Flush as long as something waits."""
        while self._is_due():
            try:
                self._flush()
            except BaseException as error:  # noqa: BLE001  the next `put` raises it
                if self._tries_again(error):
                    continue
                with self._changed:
                    self._failure, self._thread = error, None
                    self._changed.notify_all()
                return

    def _tries_again(self, error: BaseException) -> bool:
        """Whether the thread flushes again after an error, for which this waits."""
        del error
        return False

    def _is_due(self) -> bool:
        """Wait until a flush is due; False, and the thread ends, if nothing waits."""
        with self._changed:
            while 0 < self.count < self.samples:
                left = self._since + self.seconds - time.monotonic()
                if left <= 0 or not threading.main_thread().is_alive():
                    break
                self._changed.wait(min(left, END_POLL))
            if not self.count:
                self._thread = None
            return self.count > 0

    def _forget_parent(self) -> None:
        """Drop in a forked child what its parent is going to write."""
        if self._process != os.getpid():
            self._reset()


def _end(reference: weakref.ref[WriteBuffer]) -> None:
    """End a buffer, if anything still has it."""
    buffer = reference()
    if buffer is not None:
        buffer.end()


def _signature(batch: Batch) -> tuple[object, ...]:
    """Key of batches that may wait together: strings that are new can be added later."""
    return batch_signature(batch, batch.fields, any_strings=True)


def make_buffer(samples: Any, seconds: Any, flush: Callable[[], object]) -> WriteBuffer:
    """Buffer of valid sizes; raises ArgumentError for others."""
    count = check_count("buffer", samples, 1, _MOST_SAMPLES, unit="samples", error=ArgumentError)
    return WriteBuffer(count, check_seconds("buffer_seconds", seconds), flush)


def check_seconds(name: str, seconds: Any) -> float:
    """A positive number of seconds; raises ArgumentError for anything else."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not 0 < seconds <= _MOST_SECONDS:
        raise ArgumentError(
            f"{name}={seconds!r}, expected a positive number of seconds, at most {_MOST_SECONDS}"
        )
    return float(seconds)
