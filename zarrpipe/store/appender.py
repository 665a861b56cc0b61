"""The one writer of a store: opens or creates it, appends, and leaves it exact when closed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.schema import Field, Schema, make_of
from zarrpipe.errors import StoreClosedError, StoreLockedError, StoreNotFoundError
from zarrpipe.store.admission import NewArray, plan_admission
from zarrpipe.store.arrays import Arrays
from zarrpipe.store.columns import Column
from zarrpipe.store.config import ZarrWriteConfig
from zarrpipe.store.exchange import is_vacant, remove_leftovers
from zarrpipe.store.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_MASK,
    SAMPLES_MASK,
    Attributes,
    field_path,
    field_spec,
    find_array,
    meta_specs,
    new_generation,
    present_spec,
    read_schema,
)
from zarrpipe.store.local import for_writing
from zarrpipe.store.lock import WriterLock
from zarrpipe.store.opening import check_writable, open_root
from zarrpipe.store.plan import RowWrite, on_host, plan_append
from zarrpipe.store.root import Root


class StoreAppender:
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

    Raises
    ------
    StoreLockedError
        If another writer has the store open.
    StoreReadOnlyError
        If the zarr store was opened for reading alone.
    StoreFormatError
        If a Zarr group that zarrpipe did not write stands there.
    """

    def __init__(
        self,
        root: Root,
        config: ZarrWriteConfig,
        capacity: int,
        lock: WriterLock | None = None,
        *,
        durable: bool = False,
    ) -> None:
        self.root = root = for_writing(root, durable=durable)
        self.config, self.capacity, self.durable = config, capacity, durable
        self._closed = False
        self._arrays = Arrays(root, config, capacity, durable=durable)
        self._admitted: tuple[object, ...] | None = None
        check_writable(root)
        if lock is None and root.directory is not None:
            if is_vacant(root.directory):
                remove_leftovers(root.directory.resolve())  # puts back what a kill left aside
            lock = WriterLock(root.directory)
        self._lock = lock
        try:
            self._open()
        except BaseException:
            self.abandon()
            raise

    def _open(self) -> None:
        self._admitted = None
        self.group, self.attributes = group, attributes = open_root(self.root)
        self.schema = read_schema(group, attributes)
        specs = [*meta_specs(), *map(field_spec, self.schema.values())]
        specs += [present_spec(self.schema[name]) for name in attributes.partly]
        self._arrays.open_all(group, specs)
        self.extent = self._arrays.committed(group[ATOMS_PTR].shape[0])  # type: ignore[union-attr]
        self.column(ATOMS_PTR).clear_from(self.extent.samples + 1)
        self.column(SAMPLES_MASK).clear_from(self.extent.samples)
        self.count_deleted()
        if self.extent.samples == 0:  # the store is new, or a writer was killed while it cleared it
            self.column(ATOMS_MASK).clear_all()
            self.column(EDGES_MASK).clear_all()

    def column(self, path: str) -> Column:
        """Column of an array of the store; see `check_usable` for the errors."""
        self.check_usable()
        return self._arrays[path]

    def check_usable(self) -> None:
        """Refuse to go on where nothing must be written any more.

        Raises
        ------
        StoreClosedError
            If the writer was closed, or belongs to the process that this one was forked from.
        StoreNotFoundError
            If the store is no longer where it was opened.
        """
        if self._closed:
            raise StoreClosedError(f"the writer of {self.root} was closed: open a new one")
        if self._lost:
            raise StoreClosedError(
                f"the writer of {self.root} belongs to the process that this one was forked from: "
                "open another store here"
            )
        directory = self.root.directory
        if self._lock is not None and directory and not self._lock.guards(directory):
            raise StoreNotFoundError(
                f"{self.root} was removed or replaced while this writer had it open, and what it "
                "wrote is gone with it: open a new one"
            )

    @property
    def closed(self) -> bool:
        """Whether the writer was closed, or gave up in the middle of a clearing."""
        return self._closed

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
        if self._lock is None:
            self._check_alone()
        batch = on_host(batch)
        self._admit(batch)
        after = self.extent.after(batch)
        self._arrays[ATOMS_MASK].reserve(after.atoms)
        self._arrays[EDGES_MASK].reserve(after.edges)
        try:
            self._arrays.carry_out(
                plan_append(self.schema, self.attributes.partly, self.extent, batch)
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

    def _check_alone(self) -> None:
        """Refuse to write over what another writer of a store without a lock has written."""
        stored = find_array(self.group, ATOMS_PTR)
        samples = self.extent.samples
        ends = [] if stored is None else np.asarray(stored[samples : samples + 2]).tolist()
        if (samples and not (ends and ends[0] == self.extent.atoms)) or any(ends[1:]):
            raise StoreLockedError(
                f"{self.root} was changed by another writer since this one opened it: one writer "
                "at a time; close both and open a new one"
            )

    def _admit(self, batch: Batch) -> None:
        """Check a batch, and make room for fields that are new or lacking.

        A batch of the make of the last one fits as that one did.
        """
        make = make_of(batch)
        if make == self._admitted:
            return
        self.schema.check(batch)
        plan = plan_admission(self.schema, self.attributes.partly, self.extent, batch)
        if plan is not None:
            specs = [new.spec for new in plan.arrays]
            columns = self._arrays.open_all(self.group, specs, fresh=True)
            fills = map(NewArray.fill, plan.arrays, (column.chunk_rows for column in columns))
            self.run([fill for fill in fills if fill is not None])
            self._publish(plan.schema, partly=plan.partly)
        self._admitted = make

    def run(self, writes: Sequence[RowWrite]) -> None:
        """Carry out writes in order."""
        self.check_usable()
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
        self._arrays.open(self.group, field_spec(item), fresh=True)
        self.run([RowWrite(field_path(item), 0, values)])
        self._publish(self.schema.extended((item,)))

    def _publish(self, schema: Schema, **changes: Any) -> None:
        """Make a schema and attributes known, at once, beside those that others have set."""
        self._admitted = None
        self.attributes = dataclasses.replace(self.attributes, **changes)
        now = self.root.open_group()
        group = self.group if now is None else now
        self.group = group.update_attributes(self.attributes.to_dict(schema))
        self.schema = schema

    @property
    def num_samples(self) -> int:
        """Number of samples, without the deleted."""
        return self.extent.samples - self.attributes.deleted

    def count_deleted(self) -> None:
        """Tell readers how many masks of samples are False, where they do not know it yet.

        Called when a store is opened too: a writer that was killed may have deleted unannounced.
        """
        kept = self.column(SAMPLES_MASK).read(0, self.extent.samples)
        deleted = self.extent.samples - int(np.count_nonzero(kept))
        if deleted != self.attributes.deleted:
            self._publish(self.schema, deleted=deleted)

    def zero(self) -> None:
        """Remove every sample and field, and nothing that zarrpipe did not make.

        The first step, the removal of the first chunk of pointers, already empties the store.
        """
        pointers = self.column(ATOMS_PTR)
        paths = self.paths - {ATOMS_PTR}
        try:
            pointers.clear_all()
            self.attributes = Attributes(0, generation=new_generation())
            self._publish(Schema({}))
            self._arrays.release()
            for path in paths:
                if path in self.group:
                    del self.group[path]
            self._open()
        except BaseException:
            self.abandon()
            raise

    def close(self) -> None:
        """Do what `flush` does and give the lock up; a second call does nothing."""
        if self._closed or self._lost:
            self.abandon()
            return
        try:
            self.flush()
        finally:
            self.abandon()

    def flush(self) -> None:
        """Make every shape exact and write the number of samples."""
        self.check_usable()
        self._arrays.trim(self.schema, self.extent)
        if self.attributes.num_samples != self.extent.samples:
            self._publish(self.schema, num_samples=self.extent.samples)

    @property
    def _lost(self) -> bool:
        """Whether the lock stayed with the process that this one was forked from."""
        return self._lock is not None and not self._lock.held

    def abandon(self) -> None:
        """Let go of files and lock without touching the store."""
        self._closed = True
        try:
            self._arrays.release()
        finally:
            if self._lock is not None:
                self._lock.release()
