"""`copy`: a second store with the same samples, of one that may be written meanwhile."""

from __future__ import annotations

from zarrpipe.data.validate import check_flag
from zarrpipe.errors import ArgumentError
from zarrpipe.progress import progress_bar
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.rewrite.delete_defragment import (
    StoredConfig,
    as_stored,
    check_rewritable,
    scratch_of,
)
from zarrpipe.store.rewrite.merge_plan import MergePlan
from zarrpipe.store.rewrite.merge_source import MergeSource
from zarrpipe.store.rewrite.target import check_vacant, tidied, write_plan
from zarrpipe.store.rewrite.write_store import array_specs, field_bytes


def copy(
    source: StoreLike,
    target: StoreLike,
    *,
    overwrite: bool = False,
    verify: bool = True,
    progress: bool | None = None,
) -> int:
    """Copy a store as it is at this moment, to or from any place, even while it is written.

    The copy has the samples that the source has when the call begins, in their order and with
    their ids, and the fields, levels, strings, units and further attributes of the source. Its
    arrays have the same chunks, shards and codecs. Deleted samples are left out. A copy of a store
    of nvalchemi is one of zarrpipe, with chunks of as many whole rows.

    Pointers are read first and rows after them, so that the copy is a prefix of what a writer goes
    on to write. In the end the source is asked whether it was emptied or rewritten meanwhile, which
    raises. A local target appears complete, by one rename; any other has no samples until its
    pointers are written, which is the last step. So a call that is killed leaves no incomplete
    copy, and can be repeated. Memory and disk are needed as for `merge`, which also changes chunks
    and codecs, and takes some fields, some samples or several stores.

    Parameters
    ----------
    source : StoreLike
        The store: a path, a URL, a zarr Store or a dict.
    target : StoreLike
        Place without samples.
    overwrite : bool
        Whether to replace a store of zarrpipe at the target, which has to be local or in memory.
        The new copy is written beside it and swapped with it when it is complete. Files, arrays and
        attributes in it that zarrpipe did not write stay.
    verify : bool
        Whether to read the structures back from the target before it is completed, and to compute
        their ids anew: a structure that differs from its id raises. The labels are not verified.
    progress : bool, optional
        Whether to show a progress bar; see `merge`.

    Returns
    -------
    int
        Number of samples of the copy.

    Raises
    ------
    StoreNotFoundError
        If there is no store at the source.
    StoreExistsError
        If there is something at the target that `overwrite` does not replace.
    StoreLockedError
        If a writer has the store at the target open.
    StoreFormatError
        If the source is damaged, was emptied or rewritten during the call, or the target is
        neither local nor in memory with `overwrite`. Nothing is left at a target that was empty.
    ValueError
        If the target is the source.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> running, backup = {}, {}
    >>> with zp.ZarrData(running) as sink:
    ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [8], energy=-1.5))
    ...     copied = zp.copy(running, backup)
    ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [1], energy=-0.5))
    >>> copied, len(zp.ZarrDataset(backup)), len(zp.ZarrDataset(running))
    (1, 1, 2)
    """
    here, root = Root.of(source), Root.of(target)
    check_flag("overwrite", overwrite)
    check_flag("verify", verify)
    if _same_place(here, root):
        raise ArgumentError(f"{root} is the source and the target: give another place")
    if overwrite and root.open_group() is not None:
        check_rewritable(root)
    check_vacant(tidied(root), overwrite=overwrite)
    origin = MergeSource(here, scratch_of(root))
    plan = MergePlan([origin], verify=verify)
    with progress_bar(progress, f"copy to {root}", field_bytes(plan)) as done:
        write_plan(plan, root, _config_of(origin, plan), done, overwrite=overwrite)
    return plan.counts.samples


def _same_place(one: Root, other: Root) -> bool:
    """Whether two places are the same."""
    if one.directory is not None and other.directory is not None:
        return one.directory.resolve() == other.directory.resolve()
    return one.path == other.path


def _config_of(source: MergeSource, plan: MergePlan) -> StoredConfig:
    """Chunks and codecs of the source, by the paths of the arrays of the copy."""
    stored = {plan.schema[name].path: source.schema[name].path for name in plan.schema}
    paths = {spec.path: stored.get(spec.path, spec.path) for spec in array_specs(plan)}
    return as_stored(source.group, paths)
