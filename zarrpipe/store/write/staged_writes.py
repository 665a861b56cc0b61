"""Writes into an object store at the speed of files: by way of a stage on the local disk."""

from pathlib import Path
from typing import Any

import numpy as np

from zarrpipe.errors import ArgumentError, DeferredWriteError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.write.queued_writes import QueuedWrites
from zarrpipe.store.write.stage import Segment, Stage, piece_samples


class StagedWrites(QueuedWrites):
    """Base of `ZarrData`: it uploads what waits in a stage wherever a buffer would be written.

    Other arguments are those of `QueuedWrites`, and those of `Stage.of`.
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
        stage: Any,
        flush_seconds: float,
        flush_samples: int,
    ) -> None:
        if buffer is not None and stage not in (None, False):
            raise ArgumentError(
                f"buffer={buffer!r} and stage={str(stage)!r}: give one of them; a stage keeps on "
                "disk what a buffer keeps in memory"
            )
        super().__init__(
            root, config, capacity, durable=durable, buffer=buffer, buffer_seconds=buffer_seconds
        )
        self._stage = Stage.of(
            root,
            config,
            stage=stage if buffer is None else False,
            samples=flush_samples,
            seconds=flush_seconds,
            flush=self._write_waiting,
        )
        if self._stage is not None:
            self._buffer = self._stage
            self._stage.adopt()

    @property
    def stage(self) -> Path | None:
        """Directory in which samples wait for their upload; None where they are written at once."""
        return None if self._stage is None else self._stage.directory

    def _queue_buffered(self) -> bool:
        return self._stage is None and super()._queue_buffered()

    def _num_waiting(self) -> int:
        if self._stage is not None and self._stage.unsettled:
            self._settle()
        return super()._num_waiting()

    def _write_deferred(self, *, done: bool) -> None:
        stage = self._stage
        if stage is not None and (self._writer is None or self._writer.closed):
            stage.adopt()
        super()._write_deferred(done=done)
        if stage is None:
            return
        try:
            for segment in stage.sealed():
                self._upload(stage, segment)
        except Exception as error:
            count = stage.count
            self._end_failed()
            raise DeferredWriteError(
                f"{count} samples could not be uploaded to {self._root} ({error}): they wait "
                f"in {stage.directory}, from where the next call uploads them, or the next sink of "
                "this place on this machine; the call that was to upload them "
                f"{'was carried out' if done else 'did nothing else'}"
            ) from error
        if self._writer is not None and not self._writer.closed:
            stage.succeeded(self._count())

    def _upload(self, stage: Stage, segment: Segment) -> None:
        """Append what waits in a segment, in pieces, and remove it."""
        if not segment.settled:
            self._settle()
        view, end = segment.view(), segment.samples
        try:
            size = piece_samples(view) if segment.sent < end else 0
            while segment.sent < end:
                stop = min(segment.sent + size, end)
                batch = view.gather(np.arange(segment.sent, stop))
                writer = self._open_writer()
                segment.write_note(stop, writer.counts.samples, writer.attributes.generation)
                writer.append(batch)
                stage.uploaded(segment, stop)
        finally:
            view.close()
        stage.drop(segment)

    def _forget_held(self) -> None:
        """Count anew, since samples are stored or removed past the stage."""
        if self._stage is not None:
            self._stage.forget_held()

    def _settle(self) -> None:
        """Find out how much of each segment was uploaded, after a failure or a kill.

        The writer is opened before, which keeps late requests of an earlier one out.
        """
        assert self._stage is not None
        for segment in self._stage.unsettled:
            segment.settle(self._open_writer())

    def _end_failed(self) -> None:
        super()._end_failed()
        if self._closed and self._stage is not None:
            self._stage.release()

    def _close_writer(self) -> None:
        super()._close_writer()
        if self._stage is not None:
            self._stage.release()
