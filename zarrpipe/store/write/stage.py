"""Batches that wait on the local disk, until they are uploaded to an object store.

A stage is a directory of plain local stores, its segments. Batches are appended to the newest one;
an upload takes the others, the oldest first, and removes what is uploaded. Each segment has a
writer, whose lock dies with its process: the next sink of the same place adopts a segment that no
process has locked. Before a part of a segment is uploaded, its note records where it is going to
stand, so that after a kill the ids there tell whether it arrived.
"""

import hashlib
import json
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.validate import check_count
from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    StoreLockedError,
    StoreReadOnlyError,
)
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import IDS
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.write.store_writer import StoreWriter
from zarrpipe.store.write.write_buffer import END_POLL, WriteBuffer, check_seconds

FLUSH_SAMPLES, FLUSH_SECONDS = 1 << 16, 10.0
"""Samples, and seconds since the oldest was written, after which a stage is uploaded."""

_PIECE = 32 << 20  # bytes of an append to the object store
_MOST_SAMPLES = 1 << 31
_PATIENCE, _PATIENCE_LOCKED = 300.0, 60.0  # seconds for which a failed upload is repeated
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 20.0
_GONE = ".gone"
_SERVICES = ("S3Store", "GCSStore", "AzureStore")
_IDENTITY = ("bucket", "container_name", "account_name", "endpoint")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


@dataclass(frozen=True)
class Note:
    """What a segment's process wrote down beside it, in a file of JSON.

    Rows from `start` to `stop` of the segment were about to be appended as the samples from `first`
    on of the store at `place`, which was in this generation. `boot` is the start of the machine.
    """

    place: str
    boot: str
    start: int = 0
    stop: int = 0
    first: int = 0
    generation: str = ""


class Segment:
    """A local store with samples that wait, and the samples of it that are uploaded."""

    def __init__(self, directory: Path, note: Note, config: ZarrWriteConfig, capacity: int) -> None:
        self.directory, self.note = directory, note
        self._config, self._capacity = config, capacity
        self._open()
        self.sent = note.start
        self.settled = note.start == note.stop
        """Whether it is known how much was uploaded."""

    def _open(self) -> None:
        self._writer = StoreWriter(Root.of(self.directory), self._config, self._capacity)

    @property
    def samples(self) -> int:
        """Samples in it, uploaded or not."""
        if self._writer.closed:  # an append was interrupted
            self._writer.abandon()
            self._open()
        return self._writer.num_samples

    def append(self, batch: Batch) -> None:
        """Append a batch."""
        if self._writer.closed:
            self._open()
        self._writer.append(batch)

    def write_note(self, stop: int, first: int, generation: str) -> None:
        """Record that samples up to `stop` are about to be appended to a store."""
        self.settled = False
        note = Note(self.note.place, self.note.boot, self.sent, stop, first, generation)
        files.write_json(_note_of(self.directory), asdict(note))
        self.note = note

    def confirm(self, sent: int) -> None:
        """Record that samples up to `sent` are uploaded."""
        self.sent, self.settled = sent, True

    def settle(self, other: StoreWriter) -> None:
        """Find out from the writer of the object store how much of it was uploaded.

        Where the store was emptied or rewritten since, samples that are there at any place count.
        """
        note, stored = self.note, other.counts.samples
        own: UInt64Array = self._writer.array(IDS).read(note.start, note.stop)
        ids = other.array(IDS)
        if other.attributes.generation != note.generation:
            arrived = len(own) * bool(np.isin(own, ids.read(0, stored)).all())
        else:
            stop = min(stored, note.first + len(own))
            there = ids.read(note.first, max(note.first, stop))
            arrived = int(np.argmin(np.append(there == own[: len(there)], False)))
        self.confirm(note.start + arrived)

    def view(self) -> StoreView:
        """View of its samples."""
        return StoreView(self.directory)

    def release(self) -> None:
        """Leave it to another writer."""
        self._writer.abandon()

    def remove(self) -> None:
        """Remove it from the disk; a kill in between leaves what `adopt` clears away."""
        gone = self.directory.with_suffix(_GONE)
        files.rename(self.directory, gone)
        files.unlink(_note_of(self.directory))
        self.release()
        files.remove_tree(gone)


class Stage(WriteBuffer):
    """A buffer on disk; see `WriteBuffer` for `samples`, `seconds` and `flush`.

    `place` is the object store that the samples are for, in words, and `config` has the units of
    fields. Where a flush fails, as without network, it is repeated for five minutes, in which
    batches are still taken, up to twice `samples`.
    """

    def __init__(
        self,
        directory: Path,
        place: str,
        config: ZarrWriteConfig,
        *,
        samples: int,
        seconds: float,
        flush: Callable[[], object],
    ) -> None:
        self.directory, self._place = directory, place
        self._config = ZarrWriteConfig(units=config.units)
        super().__init__(samples, seconds, flush)

    def _reset(self) -> None:
        super()._reset()
        self._segments: list[Segment] = []
        self._filling = False  # whether the last segment still takes batches
        self._held: int | None = None
        self._failing_since: float | None = None
        self._pause = _FIRST_PAUSE

    @property
    def count(self) -> int:
        """Samples that wait."""
        self._forget_parent()
        with self._changed:
            return sum(segment.samples - segment.sent for segment in self._segments)

    @property
    def held(self) -> int | None:
        """Samples that wait or are uploaded, known without a look at the store; or None."""
        self._forget_parent()
        return self._held

    @property
    def unsettled(self) -> list[Segment]:
        """Segments of which it is not known how much was uploaded."""
        self._forget_parent()
        with self._changed:
            return [segment for segment in self._segments if not segment.settled]

    def _copy(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        return batch, None

    def _keep(self, kept: tuple[Batch, torch.cuda.Event | None]) -> None:
        try:
            if not self._filling:
                self._segments.append(self._new())
                self._filling = True
            self._segments[-1].append(kept[0])
            if self._held is not None:
                self._held += kept[0].num_graphs
        except BaseException:
            self._accepted = self._held = None  # the next write counts anew
            raise

    def _new(self) -> Segment:
        """A new segment, locked by this process."""
        directory = self.directory / f"{time.time_ns():020}-{uuid4().hex[:8]}.zarr"
        note = Note(self._place, _boot())
        try:
            files.write_json(_note_of(directory), asdict(note))
        except PermissionError as error:
            raise StoreReadOnlyError(
                f"{self.directory}, where samples wait for their upload to {self._place}, must not "
                f"be written to ({error.strerror}): give another directory as stage=, or "
                "stage=False to upload each batch at once"
            ) from error
        return Segment(directory, note, self._config, 2 * self.samples)

    def sealed(self) -> list[Segment]:
        """Segments to upload, the oldest first, which take no batches any more."""
        self._forget_parent()
        with self._changed:
            self._filling, self._since = False, time.monotonic()
            return [*self._segments]

    def uploaded(self, segment: Segment, sent: int) -> None:
        """Record that a segment is uploaded up to a sample, and wake a write that waits for it."""
        with self._changed:
            segment.confirm(sent)
            self._changed.notify_all()

    def drop(self, segment: Segment) -> None:
        """Remove a segment of which nothing waits."""
        with self._changed:
            self._segments.remove(segment)
        segment.remove()

    def adopt(self) -> None:
        """Take the segments of sinks of the same place that are gone, before those of this one."""
        self._forget_parent()
        if not self.directory.is_dir():
            return
        with self._changed:
            own = {segment.directory for segment in self._segments}
            others = sorted({*self.directory.glob("*.zarr")} - own)
            found = [segment for path in others if (segment := self._adopted(path)) is not None]
            self._segments[:0] = found
        for path in self.directory.glob(f"*{_GONE}"):
            shutil.rmtree(path, ignore_errors=True)  # another sink may be removing it

    def _adopted(self, path: Path) -> Segment | None:
        """The segment of a sink that is gone; None, with a warning where it may be damaged."""
        try:
            note = Note(**json.loads(_note_of(path).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            note = Note(self._place, boot="")
        if note.boot != _boot():
            warnings.warn(
                f"{path} has samples that were not uploaded to {note.place} when its machine "
                "stopped. Samples of the last seconds before that may be damaged, so they are not "
                f"uploaded: look at it with `zarrpipe check {path}`, write what is good with "
                "sink.write(ZarrDataset(path)), then remove it",
                stacklevel=6,
            )
            return None
        try:
            return Segment(path, note, self._config, 2 * self.samples)
        except StoreLockedError:  # of a sink that is alive
            return None

    def _tries_again(self, error: BaseException) -> bool:
        cause = error.__cause__
        patience = _PATIENCE_LOCKED if isinstance(cause, StoreLockedError) else _PATIENCE
        passes = isinstance(cause, OSError | StoreLockedError) or _is_of_service(cause)
        with self._changed:
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if not passes or now - self._failing_since > patience:
                self._end_patience()
                return False
            end = now + self._pause
            while (left := end - time.monotonic()) > 0:
                if not threading.main_thread().is_alive():  # what waits is left to the next sink
                    return False
                self._changed.wait(min(left, END_POLL))
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return True

    def _end_patience(self) -> None:
        self._failing_since, self._pause = None, _FIRST_PAUSE

    def forget_held(self) -> None:
        """Let `held` be None, as before samples are stored or removed past the stage."""
        with self._changed:
            self._held = None

    def succeeded(self, stored: int) -> None:
        """Record that an upload has ended well, after which the store has so many samples."""
        with self._changed:
            self._held = stored + self.count
            self._end_patience()

    def release(self) -> None:
        """Leave what waits to the next sink, and remove the directory if it is empty."""
        self._forget_parent()
        with self._changed:
            while self._segments:
                self._segments[-1].release()
                self._segments.pop()
            self._filling, self._accepted, self._held = False, None, None
        with suppress(OSError):  # not empty
            files.remove_folder(self.directory)

    @classmethod
    def of(
        cls,
        root: Root,
        config: ZarrWriteConfig,
        *,
        stage: Any,
        samples: Any,
        seconds: Any,
        flush: Callable[[], object],
    ) -> Self | None:
        """Stage of a place, or None for one that needs none; see `ZarrData` for `stage`.

        Raises ArgumentError for a size that is not positive, or for a directory that is given for a
        store that is in no object store, and ArgumentTypeError for a stage that is no path.
        """
        count = check_count(
            "flush_samples", samples, 1, _MOST_SAMPLES, unit="samples", error=ArgumentError
        )
        interval = check_seconds("flush_seconds", seconds)
        if stage is not None and not isinstance(stage, bool | str | Path):
            raise ArgumentTypeError(f"stage={stage!r}, expected a directory, or False for none")
        service = _service_of(root)
        if service is None and isinstance(stage, str | Path):
            raise ArgumentError(
                f"stage={str(stage)!r}, but {root} is in no object store, and is written directly: "
                "leave stage away"
            )
        if stage is False or service is None or sys.platform == "win32":
            return None
        top = _default_directory() if stage is None or stage is True else Path(stage)
        name = root.path.path or str(service[1].get("prefix"))
        digest = hashlib.blake2b(json.dumps(service).encode(), digest_size=8).hexdigest()
        return cls(
            top.expanduser().absolute() / f"{Path(name).name}-{digest}",
            str(root),
            config,
            samples=count,
            seconds=interval,
            flush=flush,
        )


def piece_samples(view: StoreView) -> int:
    """Samples of a store that are about `_PIECE` bytes."""
    some = view.gather(np.arange(min(view.num_samples, 256)))
    size = sum(some[name].nbytes for name in some.fields)
    return int(max(1, _PIECE * some.num_graphs // max(size, 1)))


def _service_of(root: Root) -> tuple[str, dict[str, str]] | None:
    """What tells the place of a store apart from others; None if it is in no object store."""
    store: Any = getattr(root.path.store, "store", None)
    if type(store).__name__ not in _SERVICES:
        return None
    known = {name: str(store.config[name]) for name in _IDENTITY if name in store.config}
    endpoint = next((os.environ[name] for name in _ENDPOINTS if name in os.environ), "")
    facts = {"endpoint": endpoint, **known, "prefix": str(store.prefix), "path": root.path.path}
    return type(store).__name__, facts


def _default_directory() -> Path:
    """Directory of stages in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "zarrpipe" / "stages"


def _note_of(directory: Path) -> Path:
    return directory.with_suffix(".json")


def _boot() -> str:
    """What changes when this machine is started, or another one is asked; empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_of_service(error: BaseException | None) -> bool:
    """Whether an error is one of obstore's, as after a request that timed out."""
    return type(error).__module__.partition(".")[0] == "obstore"
