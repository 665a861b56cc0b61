"""Write a plan to the place that a user names: one rename, or pointers last."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from zarrpipe.compat import sync
from zarrpipe.errors import StoreExistsError, StoreReadOnlyError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.backend.swap import move_into_place, remove_leftovers, temp_sibling
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import GROUPS, SUMS, is_empty
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.read.snapshot import Snapshot
from zarrpipe.store.rewrite.delete_defragment import rewrite_in_place
from zarrpipe.store.rewrite.merge_plan import MergePlan
from zarrpipe.store.rewrite.write_store import array_specs, write_store
from zarrpipe.store.write.store_writer import StoreWriter

CAPACITY = 1_000_000
"""Expected samples of a writer that only replaces a store."""


def write_plan(
    plan: MergePlan,
    root: Root,
    config: ZarrWriteConfig,
    done: Callable[[int], object],
    *,
    overwrite: bool = False,
) -> None:
    """Write a plan to an empty place or over a store, which has no samples unless `overwrite`."""
    lock: WriterLock | None = None
    if check_vacant(root, overwrite=overwrite):  # again, since opening the sources takes time
        writer = StoreWriter(root, config, CAPACITY)
        try:
            if writer.num_samples and not overwrite:
                raise _holds(root, f"{writer.num_samples} samples")
            if root.directory is None and not overwrite:
                writer.zero()
                writer.close()
                _write_far(plan, root, config, done)
            else:
                lock = rewrite_in_place(writer, plan, config, done=done)
        finally:
            writer.abandon()
    elif root.directory is None:
        _write_far(plan, root, config, done)
    else:
        place = root.directory.resolve()
        with temp_sibling(place) as (sibling, lock):
            write_store(plan, Root.of(sibling), config, others=plan.others, done=done)
            move_into_place(sibling, place)
    if lock is not None:
        lock.release()


def _write_far(
    plan: MergePlan, root: Root, config: ZarrWriteConfig, done: Callable[[int], object]
) -> None:
    """Write a plan to an empty place that is not local, with its lease if it has one."""
    root = root.for_writing()
    lock = root.acquire_lock()
    try:
        if check_vacant(root):  # what an empty store has is left as it is
            write_store(plan, root, config, others=plan.others, done=done)
        else:
            with _removed_on_error(root, plan):
                write_store(plan, root, config, others=plan.others, done=done)
    finally:
        if lock is not None:
            lock.release()


@contextmanager
def _removed_on_error(root: Root, plan: MergePlan) -> Iterator[None]:
    """Remove the arrays and groups of a new store that is not local if it cannot be completed."""
    try:
        yield
    except BaseException:
        paths = [spec.path for spec in array_specs(plan)] + [SUMS]
        for path in paths:  # those of pointers come first
            sync((root.path / path).delete_dir())
        folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
        for folder in sorted({*folders, *GROUPS}, reverse=True):  # "." is the root, and comes last
            sync((root.path / f"{folder}/zarr.json".removeprefix("./")).delete())
        raise


def tidied(root: Root) -> Root:
    """Remove leftovers of killed writers beside a place, and return it."""
    if root.directory is not None:
        remove_leftovers(root.directory.resolve())
    return root


def check_vacant(root: Root, *, overwrite: bool = False) -> bool:
    """Refuse a target that is not empty, and return whether there is a store.

    It has no samples unless `overwrite`.
    """
    if root.read_only:
        raise StoreReadOnlyError(f"{root} was opened read-only: open it for writing")
    group = root.open_group()
    if group is None:
        if root.directory is not None and root.directory.is_dir() and any(root.directory.iterdir()):
            raise StoreExistsError(
                f"{root} is a directory that is not empty: give a path that does not exist"
            )
        return False
    if not is_empty(group):
        samples = Snapshot(root).count if Attributes.read(group).ours else None
        if samples is None or (samples and not overwrite):
            found = (
                "a group that zarrpipe did not write" if samples is None else f"{samples} samples"
            )
            raise _holds(root, found)
    return True


def _holds(root: Root, found: str) -> StoreExistsError:
    return StoreExistsError(
        f"{root} holds {found}: give an empty place; to rewrite a store in its place use compact, "
        "to replace it by another one use copy(..., overwrite=True)"
    )
