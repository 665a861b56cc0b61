"""The right of a writer to its store, checked before each change."""

import numpy as np
import zarr

from zarrpipe.errors import StoreClosedError, StoreLockedError, StoreNotFoundError
from zarrpipe.store.backend.location import Root, StoreLock
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import ATOMS_PTR, find_array


class WriterSession:
    """The hold of a writer on a store, from `begin` to `end`."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._lock: StoreLock | None = None
        self.ended = False

    def begin(self, lock: StoreLock | None = None) -> None:
        """Lock the store if its place supports locks, unless the caller has locked it already.

        Raises StoreLockedError if another writer has the store open.
        """
        self._lock = self._root.acquire_lock() if lock is None else lock

    @property
    def exclusive(self) -> bool:
        """Whether a lock keeps other writers out."""
        return self._lock is not None and self._lock.enforced

    @property
    def fence(self) -> int | None:
        """Number with which to keep out a writer that lost its lock and may still be writing."""
        return None if self._lock is None else self._lock.fence

    @property
    def lapsed(self) -> bool:
        """Whether a lease has expired or was taken, so that the store has to be opened anew."""
        return self._lock is not None and self._lock.lapsed

    @property
    def lost(self) -> bool:
        """Whether the lock belongs to the process from which this one was forked."""
        return self._lock is not None and not self._lock.held

    def check(self) -> None:
        """Refuse further changes if the writer or its store is gone.

        Raises StoreClosedError if the writer was closed or belongs to the parent process, and
        StoreNotFoundError if the store was removed or replaced.
        """
        if self.ended:
            raise StoreClosedError(f"the writer of {self._root} was closed: open a new one")
        if self.lost:
            raise StoreClosedError(
                f"the writer of {self._root} belongs to the process that this one was forked from: "
                "open another store here"
            )
        directory = self._root.directory
        if self._lock is not None and directory and not self._lock.guards(directory):
            raise StoreNotFoundError(
                f"{self._root} was removed or replaced while this writer had it open, and what it "
                "wrote is gone with it: open a new one"
            )

    def check_no_other_writer(self, group: zarr.Group, counts: RowCounts) -> None:
        """Raise StoreLockedError if another writer has taken or changed a store without locks.

        `counts` are the committed rows that this writer knows.
        """
        if self._lock is not None:
            self._lock.check(self._root)
            if self._lock.enforced:
                return
        stored, samples = find_array(group, ATOMS_PTR), counts.samples
        ends = [] if stored is None else np.asarray(stored[samples : samples + 2]).tolist()
        if (samples and not (ends and ends[0] == counts.atoms)) or any(ends[1:]):
            raise StoreLockedError(
                f"{self._root} was changed by another writer since this one opened it: one writer "
                "at a time; close both and open a new one"
            )

    def end(self, *, failed: bool = False) -> None:
        """Release the lock; a second call does nothing, or completes an interrupted one."""
        self.ended = True
        if self._lock is not None:
            self._lock.release(failed=failed)
