"""The right of a writer to its store, looked at before each change."""

import numpy as np
import zarr

from zarrpipe.errors import StoreClosedError, StoreLockedError, StoreNotFoundError
from zarrpipe.store.backend.location import Root, StoreLock
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import ATOMS_PTR, find_array


class WriterSession:
    """A writer's hold on a store, from `begin` until it ends.

    Parameters
    ----------
    root
        Place of the store.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._lock: StoreLock | None = None
        self.ended = False

    def begin(self, lock: StoreLock | None = None) -> None:
        """Take the lock of the store where there is one, unless the caller holds it already.

        Raises
        ------
        StoreLockedError
            If another writer has the store open.
        """
        self._lock = self._root.acquire_lock() if lock is None else lock

    @property
    def exclusive(self) -> bool:
        """Whether a lock keeps other writers out."""
        return self._lock is not None and self._lock.enforced

    @property
    def lost(self) -> bool:
        """Whether the lock stayed with the process that this one was forked from."""
        return self._lock is not None and not self._lock.held

    def check(self) -> None:
        """Refuse to go on where nothing must be written any more.

        Raises
        ------
        StoreClosedError
            If the writer was closed, or belongs to the process that this one was forked from.
        StoreNotFoundError
            If the store is no longer where it was opened.
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
        """Refuse to write over what another writer has written, where no lock keeps it out.

        Parameters
        ----------
        group
            Root of the store.
        counts
            What this writer knows to be committed.

        Raises
        ------
        StoreLockedError
            If another has taken the store or written to it.
        """
        if self._lock is not None:
            if self._lock.enforced:
                return
            other = self._lock.stolen_by()
            if other is not None:
                raise StoreLockedError(f"{self._root} was taken by {other}: one writer at a time")
        stored, samples = find_array(group, ATOMS_PTR), counts.samples
        ends = [] if stored is None else np.asarray(stored[samples : samples + 2]).tolist()
        if (samples and not (ends and ends[0] == counts.atoms)) or any(ends[1:]):
            raise StoreLockedError(
                f"{self._root} was changed by another writer since this one opened it: one writer "
                "at a time; close both and open a new one"
            )

    def end(self) -> None:
        """Give the lock up; a second call does nothing, or what an interrupt left undone."""
        self.ended = True
        if self._lock is not None:
            self._lock.release()
