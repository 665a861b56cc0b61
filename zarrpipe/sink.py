"""`ZarrData`: the sink that a simulation writes into, on any Zarr store."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.adapters import as_batch
from zarrpipe.adapters.streams import is_stream, stream_batches, stream_length
from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import check_new_names
from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.schema import Field
from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    StoreEmptyError,
    StoreExistsError,
    StoreFormatError,
    StoreFullError,
    StoreNotFoundError,
)
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.backend.parts import checked_part_name
from zarrpipe.store.check.report import Report
from zarrpipe.store.check.run import check
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.metadata import Mark, check_mark_name
from zarrpipe.store.parts.batch_ids import (
    StoredBatchIds,
    checked_batch_id,
    of_piece,
    with_batch_id,
)
from zarrpipe.store.parts.siblings import Siblings
from zarrpipe.store.parts.sink_recipe import SinkRecipe
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.summary import facts_text, schema_table
from zarrpipe.store.write.append_plan import masked
from zarrpipe.store.write.exclusive_calls import synchronized
from zarrpipe.store.write.open_for_writing import check_durable
from zarrpipe.store.write.repetition import Repetitions, are_stored
from zarrpipe.store.write.stage import FLUSH_SAMPLES, FLUSH_SECONDS
from zarrpipe.store.write.staged_writes import StagedWrites

_MOST_SAMPLES = 1 << 40
_IF_EXISTS = ("append", "error", "replace")
_NO_IDS = np.zeros(0, dtype=np.uint64)


class ZarrData(StagedWrites):
    """Sink for batches of atomic systems, in one Zarr store.

    A sink continues a store that exists. Samples can be read as soon as `write` returns, by this
    object, by other processes and by any Zarr tool, whether or not the sink is ever closed; those
    of a store in an object store once they are uploaded, see `stage`.
    From its first write until `close`, a sink on a local store or in an object store is its only
    writer. Other stores have no lock; there, a write raises if another writer has written in
    between. Threads may share a sink; their calls run one after the other. A call from inside
    another call of the same thread, such as in a signal handler, raises `StoreBusyError`; use
    `defer` or `close` there.

    A call that raises or is interrupted loses nothing, and the next call continues from what is
    stored. The batch of a `write` that raised is stored whole or not at all; `len` shows which.

    Parameters
    ----------
    store : StoreLike
        Path, URL, zarr Store or StorePath, or a dict. The first write creates it.
    capacity : int
        Most samples that the sink may hold; with `part`, those of the part.
    config : ZarrWriteConfig or mapping, optional
        Chunks and codecs of new arrays. The default is uncompressed, so that arrays can be
        appended to in place and mapped.
    durable : bool
        Whether `write` waits for the disk, so that stored samples survive a power cut. Without it,
        they survive the process, however it ends. Stores that are not local are as durable as
        their service; a store in memory is not durable.
    buffer : int, optional
        Number of samples to collect in memory, on their device, before a thread appends them
        together. `write` then copies the batch and returns in microseconds, so that a simulation
        can hand over every step. The thread writes when `buffer` samples have been collected or
        the oldest has waited for `buffer_seconds`; `flush`, `read`, `drain`, `zero`, `close` and
        the end of the interpreter write too. **A kill loses the samples that are still in
        memory**: those of the last `buffer_seconds` and of one write, never more than twice
        `buffer`, because `write` blocks there. `len` counts them; other readers see them once they
        are written. A batch with other fields than the last one empties the buffer and is then
        written at once. If the thread fails, the next `write` raises `DeferredWriteError`, and the
        batch stays queued.
    buffer_seconds : float
        Longest time that a sample stays in the buffer.
    if_exists : {"append", "error", "replace"}
        What to do with a store that has samples: continue it, raise, or remove its samples first,
        as `zero` does. Only files that zarrpipe made are removed. A warning says what is removed,
        and the sink locks the store from then on.
    part : str, optional
        Name of the part that this sink writes, where several write at the same time: `store` is
        then the parent of the parts, and the sink writes the store ``part-<name>`` in it. It is
        created at once, with nothing in it. `ZarrDataset` of the parent has the samples of all
        parts. A name has letters, digits, ``.``, ``_`` and ``-``. "auto" is the rank under
        torch.distributed, torchrun or SLURM, else a new unique name; `part` tells it.
    stage : str or Path or bool, optional
        Directory on a local disk in which samples wait for their upload, where `store` is in an
        object store (S3, Google, Azure). By default it is ``zarrpipe/stages`` in the user's cache
        (``$XDG_CACHE_HOME`` or ``~/.cache``), unless there is a `buffer`; False writes each batch
        into the object store at once. With a stage, `write` returns when the batch is on the disk,
        at about the speed of a local store. Readers see it once it is uploaded, which happens in
        the background, when `flush_samples` wait or the oldest has waited for `flush_seconds`, and
        in `flush`, `read`, `mark`, `drain`, `zero`, `close` and at the end of the interpreter.
        What a killed process left is uploaded by the next sink of the store on this machine.
        **If the machine or its disk is lost, so are the samples that were not uploaded**: while
        uploads succeed those of the last `flush_seconds` and of one upload, and never more than
        twice `flush_samples` or one larger batch, because `write` blocks there. An upload that
        fails, as without network, is repeated for five minutes; then the next `write` raises
        `DeferredWriteError`, and all that waits stays in the stage. The first batch, those with
        other fields than the one before, and those with a batch id go into the object store at
        once, after what waits. `len` counts what waits.
    flush_seconds : float
        Longest time that a sample waits in the stage before its upload begins.
    flush_samples : int
        Number of samples in the stage at which their upload begins.
    total_capacity : int, optional
        Most samples of all parts together. A write looks at the other parts before it, so that
        sinks which write at the same moment may pass it, each by one write.

    Raises
    ------
    ValueError
        If the capacity is not positive, or the store has more samples, or `if_exists` is none of
        the three, or `part` is no name.
    StoreExistsError
        If the store has samples and `if_exists` is "error", or `part` is given for a store that
        is no parent of parts.
    StorePartsError
        If the store is a parent of parts and `part` is not given.
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
        if_exists: Literal["append", "error", "replace"] = "append",
        part: str | None = None,
        total_capacity: int | None = None,
        stage: str | Path | bool | None = None,
        flush_seconds: float = FLUSH_SECONDS,
        flush_samples: int = FLUSH_SAMPLES,
    ) -> None:
        capacity = _checked_capacity(capacity)
        if if_exists not in _IF_EXISTS:
            raise ArgumentError(f"if_exists={if_exists!r}, expected one of {', '.join(_IF_EXISTS)}")
        self._store, self._siblings = store, None
        self._total = None if total_capacity is None else _checked_capacity(total_capacity)
        self._batch_ids = StoredBatchIds()
        place, chosen = store, ZarrWriteConfig.of(config)
        if part is not None:
            check_durable(Root.of(store), durable=durable)
            self._siblings = Siblings(store, part, durable=durable)
            place = self._siblings.place
        self._place = place
        self._timing: dict[str, Any] = {
            "buffer": buffer,
            "buffer_seconds": buffer_seconds,
            "stage": stage,
            "flush_seconds": flush_seconds,
            "flush_samples": flush_samples,
        }
        super().__init__(Root.of(place), chosen, capacity, durable=durable, **self._timing)
        self._view: StoreView | None = None
        self._removed: frozenset[str] = frozenset()  # fields of what was drained or removed
        self._repetitions = Repetitions()
        if if_exists == "replace":
            self._replace()
            return
        view, count = self._reader(), self._count()
        waiting = 0 if self._buffer is None else self._buffer.count
        if count + waiting and if_exists == "error":
            raise StoreExistsError(
                f"{self._root} has {count + waiting} samples and if_exists='error': give another "
                "place, or if_exists='append' (--if-exists append) to go on with them, or "
                "'replace' to remove them"
            )
        if view is not None:
            view.schema.with_units(self._config.units)  # refuses what the first write would
        if count > capacity:
            raise ArgumentError(
                f"{self._root} has {count} samples, more than capacity={capacity}: open it "
                "with a larger capacity"
            )

    def _replace(self) -> None:
        """Remove the samples of the store, and say so before."""
        count, fields = self._to_be_removed()
        if count:
            try:
                warnings.warn(
                    f"if_exists='replace' removes the {count} samples of {self._root}, with the "
                    f"fields {', '.join(fields)}",
                    stacklevel=3,
                )
            except UserWarning:  # where warnings are errors
                self.close()
                raise
        self.zero()

    @synchronized
    def _to_be_removed(self) -> tuple[int, Collection[str]]:
        """Number of samples and fields of the store, which no other writer can change from now."""
        if self._root.open_group() is None:
            return 0, ()
        writer = self._open_writer()
        return writer.num_samples, writer.schema

    @property
    def store(self) -> StoreLike:
        """The store as it was given: with a part, the parent."""
        return self._store

    @property
    def part(self) -> str | None:
        """Name of the part that the sink writes; None for a store without parts."""
        return None if self._siblings is None else self._siblings.name

    def for_part(self, name: str) -> SinkRecipe[ZarrData]:
        """Recipe of the sink of another part, which pickles and opens in another process.

        The sink has the arguments of this one, but for `if_exists`.

        Parameters
        ----------
        name : str
            Name of the part, or "auto" for one that the process finds when it opens the sink.

        Returns
        -------
        SinkRecipe
            Its ``open()`` gives the `ZarrData`.

        Raises
        ------
        ArgumentError
            If the name is none that a part can have, or this sink has no part.
        """
        if self._siblings is None:
            raise ArgumentError(
                f"the sink of {self._root} has no part, so that other sinks cannot have parts "
                "beside it: open it as ZarrData(store, part='main')"
            )
        options = {
            "capacity": self._capacity,
            "config": self._config,
            "durable": self._durable,
            "total_capacity": self._total,
            **self._timing,
        }
        part = name if name == "auto" else checked_part_name(name)
        return SinkRecipe(ZarrData, self._store, part, options)

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
        stored = len(self)
        return stored >= self._capacity or self._passes_total(stored, 1)

    def _passes_total(self, stored: int, given: int) -> bool:
        """Whether further samples pass the capacity of all parts together."""
        if self._total is None:
            return False
        others = 0 if self._siblings is None else self._siblings.num_samples()
        return others + stored + given > self._total

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

    def write(
        self,
        batch: Any,
        mask: npt.ArrayLike | torch.Tensor | None = None,
        *,
        batch_id: str | None = None,
    ) -> bool | None:
        """Append the systems of a batch for which the mask is True, in order.

        A batch is stored whole or not at all. A dataset or an iterable, such as a generator, is
        written in batches of about 32 MB, so it may be larger than memory. If that fails midway,
        the batches before the failure are stored, and `len` counts their samples.

        A `UserWarning`, once for each sink, says that all structures of a batch were in the store
        already, as happens when a notebook cell is run twice. The sink compares its first batch
        with at most 4,194,304 stored samples (65,536 where ids cannot be mapped), and later batches
        with those that it wrote itself if they begin alike.

        Parameters
        ----------
        batch
            What `zarrpipe.adapters.as_batch` takes: a `Batch` or `AtomicData` on any device, a
            list of them, or the batches of other libraries (nvalchemi, PyG, torch-sim, ASE). Or a
            `ZarrDataset`, which is read with its fields, `where` and transform, another dataset
            that has ``__getitems__``, or an iterable of such objects, which may be lists.
        mask : torch.Tensor [B] bool, optional
            Which systems of one batch to write; all by default. It may be on any device, or be an
            array or a list of bools.
        batch_id : str, optional
            Name of the task that made the batch, by which a retry is recognized: if the store or
            another part of it has samples of the batch id, nothing is written. So a task that was
            killed, before or after its write, can be run again. Each piece of a dataset or an
            iterable has an id of its own, so that a retry with the same pieces completes them. The
            field ``batch_id`` (int64) of the samples has its hash, and replaces a field of that
            name; it is missing in samples without one. The batch is stored when the call returns,
            even with a buffer. Two attempts of one task must not write at the same time.

        Returns
        -------
        bool or None
            With a batch id, whether something was written; else None.

        Raises
        ------
        RuntimeError
            If there is not room for all of them (StoreFullError), another writer has the store
            (StoreLockedError), or the sink was closed (StoreClosedError); nothing was written,
            but of an iterable what came before.
        ValueError
            If the mask has another length or dtype, or is given for a dataset or an iterable, a new
            field has a name that conditions on samples read otherwise (FieldError), or a field does
            not fit what the store has fixed (SchemaError); nothing was written, but of a dataset or
            an iterable what came before. A field that this sink has drained is not new.
        TypeError
            If the batch is of no known kind (ArgumentTypeError).
        """
        self._check_open()
        name = None if batch_id is None else checked_batch_id(batch_id)
        if not isinstance(batch, Batch) and is_stream(batch):
            self._check_stream(batch, mask, repeatable=name is not None)
            written = [
                self._write_one(chosen, None if name is None else of_piece(name, number))
                for number, chosen in enumerate(stream_batches(batch))
            ]
            return None if name is None else any(written)
        chosen = as_batch(batch)
        done = self._write_one(chosen if mask is None else masked(chosen, mask), name)
        return None if name is None else done

    def _write_one(self, batch: Batch, batch_id: str | None) -> bool:
        """Append a batch, and warn, for the caller of `write`, where it was stored already.

        It returns whether the batch had samples, and its batch id was not stored.
        """
        if batch_id is None and self._waits(batch):
            return True
        if batch_id is not None:
            if not batch.num_graphs:
                return False
            batch = with_batch_id(batch, batch_id)
        written = self._write(batch, batch_id)
        if written is None:
            return False
        ids, stored = written
        if self._repetitions.suspects(ids) and self._were_stored(ids, stored):
            self._repetitions.found()
            warnings.warn(
                f"the {len(ids)} structures of a batch were in {self._root} already and are there "
                "twice now: if a cell or a script was run again, open the sink with "
                "if_exists='replace' or 'error'; AtomicDataZarrWriter.delete removes samples",
                stacklevel=3,
            )
        return True

    def _check_stream(self, source: Any, mask: object, *, repeatable: bool) -> None:
        """Refuse a mask of a dataset or iterable, and a dataset for which there is no room."""
        if mask is not None:
            raise ArgumentError(
                f"mask is given for a {type(source).__name__}, expected one for a batch: select "
                "samples before, as by dataset.index_select(mask)"
            )
        stored, count = len(self), stream_length(source)
        if count is not None and not repeatable and stored + count > self._capacity:
            raise self._full(stored, count)

    @synchronized
    def _were_stored(self, ids: UInt64Array, stored: int) -> bool:
        """Whether the ids [B] are all among those of the first samples, as far as can be read."""
        try:
            view = self._reader()
            if view is None or not stored:
                return False
            view.refresh()
            return are_stored(view, ids, stored)
        except (OSError, StoreFormatError):  # the batch is stored: this must not fail its write
            return False

    @synchronized
    def _write(self, batch: Batch, batch_id: str | None = None) -> tuple[UInt64Array, int] | None:
        """Append a batch; its ids [B], and the number of samples that were stored before it.

        None, and nothing is appended, if a batch id is stored already.
        """
        self._check_open()
        self._write_deferred(done=False)
        if batch_id is not None and self._is_stored(batch_id):
            return None
        written = self._append(batch)
        self._let_wait(batch)
        self._write_deferred(done=True)
        return written

    def _is_stored(self, batch_id: str) -> bool:
        """Whether the store or another part has a batch; no other writer changes the store then."""
        self._open_writer()
        view = self._reader()
        if view is not None:
            view.refresh()
            if self._batch_ids.has(view, batch_id):
                return True
        return self._siblings is not None and self._siblings.have(batch_id)

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
        self._defer(chosen)

    def mark(self, name: str, note: str | None = None) -> int:
        """Name the samples that are stored now, so that they can be read by that name later.

        ``ZarrDataset(store, at=name)`` and ``ZarrDataModule(store, at=name)`` have exactly these
        samples, whatever is appended since. What is buffered or deferred is written before.

        Parameters
        ----------
        name : str
            Letters, digits and ``._-``, at most 100 characters, such as "round-3".
        note : str, optional
            Text that is kept with it.

        Returns
        -------
        int
            Number of samples that have the name.

        Raises
        ------
        ArgumentError
            If it is no name, or the store has given it to other samples. A name that these
            samples have already is no error, so that a call can be repeated.
        StoreEmptyError
            If no sample is stored.

        Examples
        --------
        >>> import zarrpipe as zp
        >>> store = {}
        >>> with zp.ZarrData(store) as sink:
        ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [8]))
        ...     marked = sink.mark("round-0")
        ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [1]))
        >>> marked, len(zp.ZarrDataset(store, at="round-0")), len(zp.ZarrDataset(store))
        (1, 1, 2)
        """
        check_mark_name(name)
        if note is not None and not isinstance(note, str):
            raise ArgumentTypeError(f"note={note!r}, expected a text")
        return self._mark(name, note)

    @synchronized
    def _mark(self, name: str, note: str | None) -> int:
        self._check_open()
        self._write_deferred(done=False)
        if not self._count():
            raise StoreEmptyError(
                f"nothing was written to {self._root}, so there is nothing to mark"
            )
        return self._open_writer().mark(name, note).count

    @property
    def marks(self) -> Mapping[str, Mark]:
        """Marks of the store, by name."""
        return self._marks()

    @synchronized
    def _marks(self) -> Mapping[str, Mark]:
        view = self._reader()
        if view is None:
            return {}
        view.refresh()
        return view.marks

    def _append(self, batch: Batch) -> tuple[UInt64Array, int]:
        """Append a batch if there is room for it; see `_write`."""
        if batch.num_graphs == 0:
            return _NO_IDS, 0
        check_new_names(batch.fields, self._stored_fields)
        stored = self._count()
        given = batch.num_graphs
        if stored + given > self._capacity or self._passes_total(stored, given):
            raise self._full(stored, given)
        self._forget_held()
        return self._open_writer().append(batch), stored

    def _full(self, stored: int, given: int) -> StoreFullError:
        of = f"{self._capacity}"
        if stored + given <= self._capacity and self._total is not None:
            of += f" samples, and with the other parts all of total_capacity={self._total},"
        return StoreFullError(
            f"the sink is full: {stored} of {of} samples are stored and {given} more "
            "were given, none of which was written; drain it or give it a larger capacity"
        )

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
        self._let_wait(None)
        self._forget_held()
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

    def _end_failed(self) -> None:
        self._view = None  # it may have been interrupted, or have seen what was half cleared
        super()._end_failed()

    def check(self) -> Report:
        """Look the store through for damage; see `zarrpipe.check`."""
        return check(self._place)

    @synchronized
    def _record_import(self, record: Mapping[str, Any], *, new: bool) -> None:
        """Publish what an import read as what; see `StoreWriter.record_import`."""
        self._check_open()
        self._open_writer().record_import(record, new=new)

    @synchronized
    def _imports(self) -> tuple[Mapping[str, Any], ...]:
        """Records of the imports into this store."""
        return () if self._root.open_group() is None else self._open_writer().attributes.imports

    def __len__(self) -> int:
        held = None if self._stage is None else self._stage.held
        if held is not None:
            return held + self._num_deferred()
        if self._mutex.mine:  # from inside another call, which may be half done
            try:
                return StoreView(self._root.path).num_samples
            except StoreNotFoundError:
                return 0
        return self._length()

    @synchronized
    def _length(self) -> int:
        return self._count() + self._num_waiting()

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
            "ZarrDataset for reading, there; for_part(name) pickles, the recipe of another part's "
            "sink"
        )

    def __repr__(self) -> str:
        return f"ZarrData({str(self._root)!r}, {len(self)} of {self._capacity} samples)"

    def _repr_html_(self) -> str:
        """Facts and fields of what is stored, which notebooks show."""
        return self._html(repr(self))

    @synchronized
    def _html(self, title: str) -> str:
        """Table of the fields of the store."""
        view = self._reader()
        if view is None:
            return schema_table(title, {}, {}, f"nothing is stored in {self._root} yet")
        view.refresh()
        present = {name: int(np.count_nonzero(view.present(name))) for name in view.schema}
        return schema_table(title, view.schema, present, facts_text([view]))

    @synchronized
    def _schema(self) -> Mapping[str, Field]:
        """Fields of the store."""
        view = self._reader()
        if view is None:
            return {}
        view.refresh()
        return view.schema

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
