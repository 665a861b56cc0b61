"""`check`: whether a store is sound, and putting it right."""

from dataclasses import replace

from zarrpipe.errors import StoreFormatError, StoreReadOnlyError
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.check.examine import Examination, examine, root_group
from zarrpipe.store.check.repair import repair as carry_out
from zarrpipe.store.check.report import Report
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.format.validate import translate_zarr_errors

_ATTEMPTS = 3


def check(
    store: StoreLike, *, repair: bool = False, drop: bool = False, progress: bool | None = None
) -> Report:
    """Look a store through for damage, and put right what can be.

    Every array is read from its first to its last committed row, a few megabytes at a time, and
    every chunk that is encoded is decoded. Lengths, pointers, masks and attributes have to agree
    with each other, edges with their samples, and structures with the ids that were stored with
    them. A damaged array is a finding and does not end the check. A store may be written meanwhile;
    what it holds when the check begins is looked at.

    Without `repair` nothing is written and nothing is locked.

    Parameters
    ----------
    store : StoreLike
        A store that zarrpipe or nvalchemi wrote.
    repair : bool
        Whether to clear what a killed writer left, write metadata anew, and make neighbour lists
        that count from their batch count from the store. No sample that was committed is lost.
    drop : bool
        With `repair`, whether to give up as well what cannot be put right: samples with lost or
        changed rows are deleted (masked, as by `AtomicDataZarrWriter.delete`).
    progress : bool, optional
        Whether to show a progress bar (which needs tqdm). By default one appears on a terminal
        when the check lasts longer than two seconds and tqdm is installed.

    Returns
    -------
    Report
        What was found, after the repair where one was asked for, and what was done.

    Raises
    ------
    StoreNotFoundError
        If there is no Zarr group.
    StoreFormatError
        If its root cannot be read, or it is no store of atomic systems; in a repair, if it met
        what it cannot write over.
    StoreLockedError
        If it is to be repaired and a writer has it open.
    StoreReadOnlyError
        If it is to be repaired and was opened for reading alone.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> store = {}
    >>> with zp.ZarrData(store) as sink:
    ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [2], energy=-79.0))
    >>> report = check(store)
    >>> report.ok, report.samples, [field.name for field in report.fields]
    (True, 1, ['positions', 'atomic_numbers', 'energy'])
    """
    root = Root.of(store)
    found = _settled(root, progress)
    if not repair or not (found.live or found.report.plan(drop=drop)):
        return found.report
    if root.read_only:
        raise StoreReadOnlyError(f"{root} was opened read-only: open it for writing to repair it")
    done: list[str] = []
    lock = None if root.directory is None else WriterLock.of_place(root.directory)
    try:
        found = examine(root, alone=True, progress=progress)
        with translate_zarr_errors(f"{root}, while it was repaired,"):
            carry_out(found, lock, done.append, drop=drop)
    finally:
        if lock is not None:
            lock.release()
    return replace(examine(root, progress=progress).report, repairs=tuple(done))


def _settled(root: Root, progress: bool | None) -> Examination:
    """An examination during which the store was not emptied, rewritten or given new fields."""
    for _ in range(_ATTEMPTS - 1):
        before = _known(root)
        found = examine(root, progress=progress)
        if found.report.ok or _known(root) == before:
            return found
    return examine(root, progress=progress)


def _known(root: Root) -> Attributes | None:
    group = root_group(root)
    try:
        return Attributes.read(group)
    except StoreFormatError:  # it is a finding
        return None
