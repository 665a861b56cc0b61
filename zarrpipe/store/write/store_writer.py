"""The one writer of a store: opens or creates it, appends, and leaves it exact when closed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.batch import Batch
from zarrpipe.data.schema import Field, Schema, batch_signature
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_MASK,
    SAMPLES_MASK,
    ArraySpec,
    field_path,
    field_spec,
)
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.statistics.label_rows import SUMMED_LABELS
from zarrpipe.store.statistics.stored_sums import remove_sums
from zarrpipe.store.statistics.updater import StatisticsUpdater
from zarrpipe.store.write.array_writer import ArrayWriter
from zarrpipe.store.write.foreign_files import check_free
from zarrpipe.store.write.open_arrays import OpenArrays
from zarrpipe.store.write.open_for_writing import check_durable, check_writable
from zarrpipe.store.write.plan import RowWrite, on_host, plan_append
from zarrpipe.store.write.recovery import (
    check_whole,
    clear_uncommitted,
    complete_deletion,
    emptying,
    remove_unfinished,
)
from zarrpipe.store.write.root_metadata import RootMetadata
from zarrpipe.store.write.schema_change import NewArray, plan_schema_change
from zarrpipe.store.write.session import WriterSession


class StoreWriter:
    """The writer of a store, from opening to `close`.

    Parameters
    ----------
    root
        Place of the store, which is created if it is not there.
    config
        Chunks and codecs of the arrays that are created.
    capacity
        Samples that are expected at most, for the size of chunks.
    lock
        The lock of a store that the caller has locked already.
    durable
        Whether what was written outlasts a loss of power once a call has returned.
    damaged
        Whether to open a store too that has lost chunks, which a repair is about.

    Raises
    ------
    StoreLockedError
        If another writer has the store open.
    StoreReadOnlyError
        If the zarr store was opened for reading alone.
    StoreExistsError
        If it is a directory of other things.
    StoreFormatError
        If a Zarr group that zarrpipe did not write stands there.
    SchemaError
        If the config gives a field another unit than the store.
    """

    def __init__(
        self,
        root: Root,
        config: ZarrWriteConfig,
        capacity: int,
        lock: WriterLock | None = None,
        *,
        durable: bool = False,
        damaged: bool = False,
    ) -> None:
        check_durable(root, durable=durable)
        self.root = root = root.for_writing(durable=durable)
        self.config, self.capacity, self.durable = config, capacity, durable
        self._arrays = OpenArrays(root, config, capacity, durable=durable)
        unfinished = check_writable(root)
        self._tenure = WriterSession.of(root, lock)
        try:
            remove_unfinished(unfinished)
            self._open(damaged=damaged)
        except BaseException:
            self.abandon()
            raise

    def _open(self, *, damaged: bool = False) -> None:
        self._accepted: tuple[object, ...] | None = None
        self._statistics = StatisticsUpdater()
        self._header = header = RootMetadata(self.root)
        stated = self.schema.with_units(self.config.units)
        self.extent = self._arrays.open_stored(header.group, self.schema, self.attributes.nullable)
        check_whole(self.root, self.attributes, self.extent)
        if self.extent.samples and self.attributes.ours and not damaged:
            self._arrays.check_ends(self.schema, self.extent)
        self.check_usable()  # or what another has put here would be cleared
        if stated is not self.schema:
            header.publish(stated)
        clear_uncommitted(self._arrays, self.extent)
        if self.extent.samples == 0 and self.schema:  # a writer was killed while it emptied it
            self._remove_all()
            return
        if self._deleted() != self.attributes.deleted:
            complete_deletion(self.column, self.run, self.extent)
            self.count_deleted()
        self._statistics.open(self)
        if self.durable and self.root.directory is not None:
            files.sync_tree(self.root.directory)  # what others wrote before, who were not durable

    def column(self, path: str) -> ArrayWriter:
        """Column of an array of the store; see `check_usable` for the errors."""
        self.check_usable()
        return self._arrays[path]

    def check_usable(self) -> None:
        """Refuse to go on where nothing must be written any more; see `WriterSession.check`."""
        self._tenure.check()

    @property
    def closed(self) -> bool:
        """Whether the writer was closed, or gave up in the middle of a clearing."""
        return self._tenure.ended

    @property
    def group(self) -> zarr.Group:
        """Root group."""
        return self._header.group

    @property
    def attributes(self) -> Attributes:
        """What the root's attributes say."""
        return self._header.attributes

    @property
    def schema(self) -> Schema:
        """Fields of the store."""
        return self._header.schema

    @property
    def paths(self) -> frozenset[str]:
        """Places of the arrays that zarrpipe made."""
        return self._arrays.paths

    def append(self, batch: Batch) -> None:
        """Append systems; they exist once their pointers are written, which is the last step.

        Parameters
        ----------
        batch
            At least one system.

        Raises
        ------
        SchemaError
            If a field does not fit the store; nothing was written.
        """
        self.check_usable()
        self._tenure.check_no_other_writer(self.group, self.extent)
        if self._statistics.is_due(self.extent):  # before anything is written that it could fail
            self._statistics.update(self)
        batch = on_host(batch)
        self._accept(batch)
        after = self.extent.after(batch)
        self._arrays[ATOMS_MASK].reserve(after.atoms)
        self._arrays[EDGES_MASK].reserve(after.edges)
        try:
            self._arrays.carry_out(
                plan_append(self.schema, self.attributes.nullable, self.extent, batch)
            )
        except BaseException:
            self._roll_back()
            raise
        self.extent = after

    def _roll_back(self) -> None:
        """Take back pointers of an append that failed."""
        try:
            self._arrays[ATOMS_PTR].clear_from(self.extent.samples + 1)
        except BaseException:
            self.abandon()
            raise

    def _accept(self, batch: Batch) -> None:
        """Check a batch, and make room for fields that are new or lacking.

        A batch of the make of the last one fits as that one did.
        """
        make = batch_signature(batch)
        if make == self._accepted:
            return
        self.schema.check(batch)
        nullable, units = self.attributes.nullable, self.config.units
        plan = plan_schema_change(self.schema, nullable, self.extent, batch, units)
        if plan is not None:
            with self._new_arrays([new.spec for new in plan.arrays]) as columns:
                fills = map(NewArray.fill, plan.arrays, (column.chunk_rows for column in columns))
                self.run([fill for fill in fills if fill is not None])
                self._publish(plan.schema, nullable=plan.nullable)
        self._accepted = make

    @contextmanager
    def _new_arrays(self, specs: Sequence[ArraySpec]) -> Iterator[list[ArrayWriter]]:
        """Arrays that are made, and forgotten again where that fails.

        If they were announced all the same, this writer gives up: the next one finds them.
        """
        paths = [spec.path for spec in specs]
        check_free(self.group, self.root.directory, paths)
        try:
            yield self._arrays.open_all(self.group, specs, fresh=True)
        except BaseException:
            self._arrays.forget(paths)
            if self._header.announces(paths):
                self.abandon()
            raise

    def run(self, writes: Sequence[RowWrite]) -> None:
        """Carry out writes in order."""
        self.check_usable()
        self._tenure.check_no_other_writer(self.group, self.extent)
        self._arrays.carry_out(writes)

    def add_field(self, item: Field, values: Any) -> None:
        """Add a field with a row for everything that is stored.

        Parameters
        ----------
        item
            A field that the store has not.
        values : array
            One row for each atom, edge or sample that is stored.
        """
        with self._new_arrays([field_spec(item)]):
            self.run([RowWrite(field_path(item), 0, values)])
            if item.name in SUMMED_LABELS:
                self._statistics.forget(self.group)
            self._publish(self.schema.extended((item,)))

    def _publish(self, schema: Schema, **changes: Any) -> None:
        """Make a schema and attributes known, at once, beside those that others have set."""
        self._accepted = None
        try:
            self._header.publish(schema, **changes)
        except BaseException:
            if not self._header.certain:
                self.abandon()
            raise

    @property
    def num_samples(self) -> int:
        """Number of samples, without the deleted."""
        return self.extent.samples - self.attributes.deleted

    def count_deleted(self) -> None:
        """Tell readers how many masks of samples are False, where they do not know it yet."""
        deleted = self._deleted()
        if deleted != self.attributes.deleted:
            self._publish(self.schema, deleted=deleted)

    def _deleted(self) -> int:
        return int(np.count_nonzero(~self.column(SAMPLES_MASK).read(0, self.extent.samples)))

    def zero(self) -> None:
        """Remove every sample and field, and nothing that zarrpipe did not make.

        The removal of the first chunk of pointers empties the store. What fails later is told by a
        warning, and done by the next writer. A disk without room for that much raises, unchanged.
        """
        pointers = self.column(ATOMS_PTR)
        with emptying(self.root, pointers, self.abandon):
            self._tenure.check_no_other_writer(self.group, self.extent)
            if self.attributes.num_samples:  # that pointers are missing is meant, and no damage
                self._publish(self.schema, num_samples=0)
            pointers.clear_all()
            self._remove_all()

    def _remove_all(self) -> None:
        """Remove all arrays of a store without samples, and open it as of a new generation."""
        paths = self.paths - {ATOMS_PTR}
        self._header.empty()
        self._arrays.release()
        for path in paths:
            if path in self.group:
                del self.group[path]
        remove_sums(self.group)
        self._open()

    def close(self) -> None:
        """Do what `flush` does and give the lock up; a second call does nothing."""
        if self._tenure.ended or self._tenure.lost:
            self.abandon()
            return
        try:
            self.flush(every=True)
        finally:
            self.abandon()

    def flush(self, *, every: bool = False) -> None:
        """Make every shape exact, and write the number of samples and the sums of statistics.

        These may leave some of the last samples to readers, unless `every` one is to be counted.
        """
        self.check_usable()
        self._tenure.check_no_other_writer(
            self.group, self.extent
        )  # or what others wrote would be cut off
        self._arrays.trim(self.schema, self.extent)
        if self.attributes.num_samples != self.extent.samples:
            self._publish(self.schema, num_samples=self.extent.samples)
        self._statistics.update(self, every=every)

    def abandon(self) -> None:
        """Let go of files and lock without touching the store."""
        try:
            self._arrays.release()
        finally:
            self._tenure.end()
