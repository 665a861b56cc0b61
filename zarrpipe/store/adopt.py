"""`adopt`: make a store that nvalchemi wrote one that zarrpipe continues, in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zarrpipe.errors import StoreFormatError, StoreNotFoundError, StoreReadOnlyError
from zarrpipe.progress import progress_bar
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.backend.swap import (
    discard,
    remove_leftovers,
    swap_into_place,
    temp_sibling,
)
from zarrpipe.store.check.report import Severity
from zarrpipe.store.check.run import check
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import store_specs
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.read.snapshot import Snapshot
from zarrpipe.store.rewrite.delete_defragment import scratch_of
from zarrpipe.store.rewrite.merge_plan import MergePlan
from zarrpipe.store.rewrite.merge_source import MergeSource
from zarrpipe.store.rewrite.write_store import field_bytes, write_store


def adopt(
    store: StoreLike,
    *,
    config: ZarrWriteConfig | Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> int:
    """Rewrite a local store that nvalchemi wrote as one of zarrpipe, which a sink continues.

    Neighbour lists that count from their batch are repaired first (see `zarrpipe.check`). The new
    store is written beside the old one and swapped with it when it is complete, so that a kill at
    any moment leaves one of the two, and the call can be repeated. Samples that were deleted are
    left out. nvalchemi reads the store as before; other files, arrays and attributes stay. No
    writer may have the store open.

    Parameters
    ----------
    store : StoreLike
        A directory. A store at any other place is copied by `zarrpipe.merge`.
    config : ZarrWriteConfig or mapping, optional
        Chunks and codecs; see `zarrpipe.merge`.
    progress : bool, optional
        Whether to show a progress bar; see `zarrpipe.merge`.

    Returns
    -------
    int
        Number of samples of the store. A store of zarrpipe is left as it is.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    StoreFormatError
        If it is not local, damaged, or was written to meanwhile.
    StoreReadOnlyError
        If the zarr store was opened read-only.
    """
    chosen, root = ZarrWriteConfig.of(config), Root.of(store)
    if root.directory is None:
        raise StoreFormatError(
            f"{root} is not a directory: zarrpipe.merge writes its samples to another place"
        )
    if root.read_only:
        raise StoreReadOnlyError(f"{root} was opened read-only: open it for writing")
    place = root.directory.resolve()
    remove_leftovers(place)
    before = _attributes(root)
    if before.ours:
        return Snapshot(root).count
    report = check(root.path, repair=True, progress=progress)
    if not report.ok:
        first = report.of(Severity.ERROR)[0]
        raise StoreFormatError(f"{root} is damaged and is left as it is: {first}")
    source = MergeSource(root, scratch_of(root))
    plan = MergePlan([source])
    replaced = {spec.path for spec in store_specs(source.schema)}
    with (
        progress_bar(progress, f"adopt {root}", field_bytes(plan)) as done,
        temp_sibling(place) as (sibling, lock),
    ):
        write_store(plan, Root.of(sibling), chosen, others=plan.others, done=done)
        if _attributes(root) != before:
            raise StoreFormatError(f"{root} was written to while it was adopted: try again")
        swap_into_place(sibling, place, frozenset(replaced))
        lock.release()
        discard(sibling)
    return plan.counts.samples


def _attributes(root: Root) -> Attributes:
    group = root.open_group()
    if group is None:
        raise StoreNotFoundError.at(root)
    return Attributes.read(group)
