"""What a writer makes right before it goes on where another was killed."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import ATOMS_MASK, ATOMS_PTR, EDGES_MASK, EDGES_PTR, SAMPLES_MASK
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.write.array_writer import ArrayWriter
from zarrpipe.store.write.open_arrays import OpenArrays
from zarrpipe.store.write.plan import RowWrite


def check_whole(root: Root, attributes: Attributes, extent: RowCounts) -> None:
    """Refuse a store that has lost samples, before what is left of them is cleared.

    Raises
    ------
    StoreFormatError
        If it has fewer samples than when it was last closed. A writer that empties a store says so
        first.
    """
    if extent.samples < attributes.num_samples:
        raise StoreFormatError(
            f"{root} was closed with {attributes.num_samples} samples and has pointers of "
            f"{extent.samples}: it is damaged; see zarrpipe check"
        )


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Remove files that a killed writer had not given their names."""
    for path in paths:
        with suppress(FileNotFoundError):  # its writer lived, and finished it before it closed
            files.unlink(path)


@contextmanager
def emptying(root: Root, pointers: ArrayWriter, give_up: Callable[[], object]) -> Iterator[None]:
    """While a store is emptied: what fails once there are no samples is told by a warning.

    Parameters
    ----------
    root
        Place of the store.
    pointers
        Its pointer array.
    give_up
        Called where anything failed.
    """
    try:
        yield
    except Exception as error:
        emptied = _is_empty(pointers)
        give_up()
        if not emptied:
            raise
        warnings.warn(
            f"{root} was emptied, but not all that it held could be removed ({error}): the next "
            "write removes it",
            RuntimeWarning,
            stacklevel=5,
        )
    except BaseException:
        give_up()
        raise


def _is_empty(pointers: ArrayWriter) -> bool:
    try:
        return not pointers.read(1, 2).any()
    except Exception:  # noqa: BLE001  another error is on its way, and says more
        return False


def clear_uncommitted(arrays: OpenArrays, extent: RowCounts) -> None:
    """Clear the pointers and masks of samples that are not committed.

    Their other rows stay until they are written over. So do chunk files that an append which
    failed has made: a reader may have mapped them, and the next append needs them.
    """
    arrays[ATOMS_PTR].clear_from(extent.samples + 1)
    arrays[SAMPLES_MASK].clear_from(extent.samples)
    if extent.samples == 0:  # the store is new, or a writer was killed while it cleared it
        arrays[ATOMS_MASK].clear_all()
        arrays[EDGES_MASK].clear_all()


def complete_deletion(
    column: Callable[[str], ArrayWriter], run: Callable[[list[RowWrite]], object], extent: RowCounts
) -> None:
    """Give atoms and edges the masks of their samples, where a deletion was not finished.

    Parameters
    ----------
    column
        Gives the column of an array.
    run
        Carries out writes.
    extent
        What is committed.
    """
    kept = column(SAMPLES_MASK).read(0, extent.samples)
    for path, ends in ((ATOMS_MASK, ATOMS_PTR), (EDGES_MASK, EDGES_PTR)):
        wanted = np.repeat(kept, np.diff(column(ends).read(0, extent.samples + 1)))
        mask = column(path)
        for start in range(0, len(wanted), mask.chunk_rows):
            block = wanted[start : start + mask.chunk_rows]
            if not np.array_equal(mask.read(start, start + len(block)), block):
                run([whole_chunk(mask, path, start, block)])


def whole_chunk(column: ArrayWriter, path: str, start: int, mask: AnyArray) -> RowWrite:
    """Write of a whole chunk of a mask that begins with `mask` and goes on with what is True.

    In a chunk file that is new, rows that are not written would read False.
    """
    rows = np.ones(column.chunk_rows, dtype=bool)
    rows[: len(mask)] = mask
    return RowWrite(path, start, rows)
