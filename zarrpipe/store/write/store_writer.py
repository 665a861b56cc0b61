"""The writer of a store: opens or creates it, appends, and leaves it exact when closed."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.batch import Batch
from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.schema import Field, Schema, batch_signature
from zarrpipe.errors import ArgumentError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root, StoreLock
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_MASK,
    IDS,
    SAMPLES_MASK,
    field_spec,
)
from zarrpipe.store.format.metadata import Attributes, Mark
from zarrpipe.store.statistics.label_rows import SUMMED_LABELS
from zarrpipe.store.statistics.stored_sums import StatisticsUpdater, remove_sums
from zarrpipe.store.write.append_plan import (
    NewArray,
    RowWrite,
    SchemaChange,
    host_arrays,
    plan_append,
    plan_schema_change,
)
from zarrpipe.store.write.array_writer import ArrayWriter
from zarrpipe.store.write.open_arrays import OpenArrays, wait_for_zarr
from zarrpipe.store.write.open_for_writing import (
    RootMetadata,
    check_durable,
    check_free,
    check_writable,
)
from zarrpipe.store.write.recovery import (
    check_whole,
    clear_uncommitted,
    keep_out,
    mask_rows,
    remove_unfinished,
    settle_deletion,
    take_over,
)
from zarrpipe.store.write.session import WriterSession
from zarrpipe.store.write.threads import run_uninterrupted


class StoreWriter:
    """The writer of a store, from opening to `close`, or to the first change that fails.

    It never continues after a failure: any exception during a change, including an interrupt,
    closes its files, releases its lock and leaves it `closed`. The next writer settles the
    unfinished work, and trusts only stored data. An error before the first change, such as that of
    a batch that does not fit, ends nothing.

    The store is created if it does not exist. `capacity` is the expected largest number of samples,
    for the size of chunks. `lock` is that of a store that the caller has locked already. If
    `durable`, changes survive a loss of power once a call has returned. With `damaged`, a store
    that has lost chunks is opened for a repair.

    Raises StoreLockedError if another writer has the store open, StoreReadOnlyError if the Zarr
    store was opened read-only, StoreExistsError for a directory with other content,
    StoreFormatError for a foreign Zarr group, and SchemaError if the config gives a field another
    unit than the store.
    """

    def __init__(
        self,
        root: Root,
        config: ZarrWriteConfig,
        capacity: int,
        lock: StoreLock | None = None,
        *,
        durable: bool = False,
        damaged: bool = False,
    ) -> None:
        check_durable(root, durable=durable)
        self.root = root = root.for_writing(durable=durable)
        self.config, self.capacity, self.durable = config, capacity, durable
        self._changing = False
        self._session = WriterSession(root)
        self._arrays = OpenArrays(root, config, capacity, durable=durable)
        unfinished = check_writable(root)
        with self.changing():
            self._session.begin(lock)
            remove_unfinished(unfinished)
            self._open(damaged=damaged)

    def _open(self, *, damaged: bool = False) -> None:
        """Find the committed rows, and settle the unfinished work of earlier writers."""
        self._accepted: tuple[object, ...] | None = None
        self._statistics = StatisticsUpdater()
        self._metadata = metadata = RootMetadata(self.root)
        stated = self.schema.with_units(self.config.units)
        self.counts = self._arrays.open_stored(
            metadata.group, self.schema, self.attributes.nullable
        )
        check_whole(self.root, self.attributes, self.counts)
        if self.counts.samples and self.attributes.ours and not damaged:
            self._arrays.check_ends(self.schema, self.counts)
        self.check_usable()  # else rows of another writer would be cleared
        if stated is not self.schema:
            metadata.publish(stated)
        if self.counts.samples:
            nullable = self.attributes.nullable
            take_over(self._arrays, self.schema, nullable, self.counts, damaged=damaged)
        clear_uncommitted(self._arrays, self.counts)
        if self._session.fence is not None:
            keep_out(self.root, self._arrays, self.counts, self._session.fence)
        if self.counts.samples == 0 and self.schema:  # a writer was killed while emptying it
            self._remove_all()
            return
        settle_deletion(self._arrays, self.attributes.deleted, self.counts)
        self.publish_deleted()
        self._statistics.open(self)
        if self.durable and self.root.directory is not None:
            files.sync_tree(self.root.directory)  # earlier writers may not have been durable

    @contextmanager
    def changing(self) -> Iterator[None]:
        """End this writer if the block raises anything.

        The mark is set before the change and removed after it. Wherever an interrupt comes, the
        writer is either closed or still marked, which counts as closed.
        """
        before, self._changing = self._changing, True
        try:
            yield
            self._changing = before
        except BaseException:
            run_uninterrupted(self.abandon)
            raise

    def array(self, path: str) -> ArrayWriter:
        """Writer of an array of the store; see `check_usable` for the errors."""
        self.check_usable()
        return self._arrays[path]

    def check_usable(self) -> None:
        """Refuse further changes if the writer or its store is gone; see `WriterSession.check`."""
        self._session.check()

    @property
    def closed(self) -> bool:
        """Whether the writer was closed, a change was interrupted, or the lease is gone."""
        return self._session.ended or self._changing or self._session.lapsed

    @property
    def appends_in_place(self) -> bool:
        """Whether an append that fits only writes into local files."""
        return not self.closed and self._session.exclusive and self._arrays.in_place

    @property
    def group(self) -> zarr.Group:
        """Root group."""
        return self._metadata.group

    @property
    def attributes(self) -> Attributes:
        """Attributes of the root."""
        return self._metadata.attributes

    @property
    def schema(self) -> Schema:
        """Fields of the store."""
        return self._metadata.schema

    @property
    def paths(self) -> frozenset[str]:
        """Paths of the arrays that zarrpipe created."""
        return self._arrays.paths

    @property
    def num_samples(self) -> int:
        """Number of samples, without deleted ones."""
        return self.counts.samples - self.attributes.deleted

    def append(self, batch: Batch) -> UInt64Array:
        """Append systems, which appear all at once when the first of their pointers is written.

        It returns their ids [B]. The batch has at least one system. If a field does not fit the
        store, it raises SchemaError or FieldError before any change.
        """
        self._check_change()
        batch, arrays = host_arrays(batch)
        signature = batch_signature(batch, arrays)
        change = None if signature == self._accepted else self._plan_change(batch)
        with self.changing():
            if change is not None or self._statistics.is_due(self.counts):
                run_uninterrupted(partial(self._prepare, change))
            self._accepted = signature
            writes, after = plan_append(
                self.schema, self.attributes.nullable, self.counts, batch, arrays
            )
            self._arrays[ATOMS_MASK].reserve(after.atoms)
            self._arrays[EDGES_MASK].reserve(after.edges)
            self._arrays.carry_out(writes)
            self.counts = after
        ids: UInt64Array = next(write.values for write in writes if write.path == IDS)
        return ids

    def _prepare(self, change: SchemaChange | None) -> None:
        """Count statistics and create arrays before an append that needs this."""
        if self._statistics.is_due(self.counts):
            self._statistics.update(self)
        if change is not None:
            self._carry_out(change)

    def _check_change(self) -> None:
        """Refuse to change a store that is gone, or that another writer has changed."""
        self.check_usable()
        self._session.check_no_other_writer(self.group, self.counts)

    def _plan_change(self, batch: Batch) -> SchemaChange | None:
        """Check a batch, and plan the arrays that the store lacks."""
        self.schema.check(batch)
        plan = plan_schema_change(
            self.schema, self.attributes.nullable, self.counts, batch, self.config.units
        )
        if plan is not None:
            check_free(self.group, self.root.directory, [new.spec.path for new in plan.arrays])
        return plan

    def _carry_out(self, plan: SchemaChange) -> None:
        """Create the arrays of a plan, fill them, and publish the schema last."""
        specs = [new.spec for new in plan.arrays]
        arrays = self._arrays.open_all(self.group, specs, fresh=True)
        fills = map(NewArray.fill, plan.arrays, (array.chunk_rows for array in arrays))
        self._arrays.carry_out([fill for fill in fills if fill is not None])
        self._metadata.publish(plan.schema, nullable=plan.nullable)

    def run(self, writes: Sequence[RowWrite]) -> None:
        """Carry out writes in order."""
        self._check_change()
        with self.changing():
            self._arrays.carry_out(writes)

    def add_field(self, item: Field, values: Any) -> None:
        """Add a new field, with a row for each stored atom, edge or sample."""
        self._check_change()
        spec = field_spec(item)
        check_free(self.group, self.root.directory, [spec.path])
        with self.changing():
            if item.name in SUMMED_LABELS:
                self._statistics.forget(self.group)
            self._arrays.open_all(self.group, [spec], fresh=True)
            self._arrays.carry_out([RowWrite(item.path, 0, values)])
            self._metadata.publish(self.schema.extended((item,)))
        self._accepted = None

    def record_import(self, record: Mapping[str, Any], *, new: bool) -> None:
        """Publish what an import read as what: a new record, or the last one again."""
        self._check_change()
        before = self.attributes.imports
        with self.changing():
            kept = before if new else before[:-1]
            self._metadata.publish(self.schema, imports=(*kept, record))

    def mark(self, name: str, note: str | None) -> Mark:
        """Publish a name for the samples that are stored now; the same name again is refused.

        A name that these samples have already is no error, so that a call can be repeated.
        """
        self._check_change()
        known, attributes = self.attributes.marks.get(name), self.attributes
        mark = Mark(self.counts.samples, attributes.deleted, time.time(), note)
        if known is not None:
            if (known.samples, known.deleted) != (mark.samples, mark.deleted):
                raise ArgumentError(
                    f"{self.root} has a mark {name!r} of {known.count} samples, and now it has "
                    f"{mark.count}: give another name"
                )
            return known
        with self.changing():
            self._metadata.publish(self.schema, marks={**attributes.marks, name: mark})
        return mark

    def mask_rows(self) -> None:
        """Apply the masks of samples to their atoms and edges."""
        kept = self.array(SAMPLES_MASK).read(0, self.counts.samples)
        with self.changing():
            mask_rows(self._arrays, self.counts, kept)

    def publish_deleted(self) -> None:
        """Publish the number of deleted samples, by which readers notice deletions."""
        kept = self.array(SAMPLES_MASK).read(0, self.counts.samples)
        deleted = len(kept) - int(np.count_nonzero(kept))
        if deleted != self.attributes.deleted:
            with self.changing():
                self._metadata.publish(self.schema, deleted=deleted)

    def zero(self) -> None:
        """Remove all samples and fields, and nothing that zarrpipe did not create.

        Removing the first chunk of pointers empties the store; after a later failure, the next
        writer completes the rest. If the disk has no room to publish the change, the call raises
        and all samples remain.
        """
        self._check_change()
        with self.changing():
            if self.attributes.num_samples:  # else missing pointers would count as damage
                self._metadata.publish(self.schema, num_samples=0)
            self._arrays[ATOMS_PTR].clear_all()
            self._remove_all()

    def _remove_all(self) -> None:
        """Remove all arrays of a store without samples, and open it with a new generation."""
        paths = self.paths - {ATOMS_PTR}
        self._metadata.empty()
        self._arrays.release()
        for path in paths:
            if path in self.group:
                del self.group[path]
        for folder in sorted({path.rpartition("/")[0] for path in paths}):
            if folder.startswith("levels/"):
                self._remove_empty(folder)
        remove_sums(self.group)
        self._open()

    def _remove_empty(self, path: str) -> None:
        """Remove the group of a level, which nvalchemi refuses without a level, if it is empty."""
        group, directory = self.group.get(path), self.root.directory
        here = directory is not None and (directory / path).is_dir()
        others = [] if directory is None or not here else os.listdir(directory / path)  # noqa: PTH208  names
        if (
            isinstance(group, zarr.Group)
            and not {*others} - {"zarr.json"}
            and group.nmembers() == 0
        ):
            del self.group[path]

    def flush(self, *, every: bool = False) -> None:
        """Make all shapes exact, and write the number of samples and the sums of statistics.

        The sums may leave some of the last samples to readers, unless `every` is True.
        """
        self.make_exact()
        with self.changing():
            self._statistics.update(self, every=every)

    def make_exact(self) -> None:
        """Make all shapes exact and publish the number of samples."""
        self._check_change()  # else rows of another writer would be cut off
        with self.changing():
            self._arrays.trim(self.schema, self.counts)
            if self.attributes.num_samples != self.counts.samples:
                self._metadata.publish(self.schema, num_samples=self.counts.samples)

    def close(self) -> None:
        """Flush, and release the lock; a second call does nothing."""
        try:
            if not (self.closed or self._session.lost):
                self.flush(every=True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Release files and lock without changing the store."""
        if self._changing:  # zarr may still be writing for an interrupted call
            wait_for_zarr()
        try:
            self._arrays.release()
        finally:
            self._session.end(failed=self._changing)
