"""Rewrite stores for fast reading: `merge` to another place, `compact` in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.data.validate import check_count
from zarrpipe.errors import (
    ArgumentError,
    FieldError,
    SchemaError,
    StoreEmptyError,
    StoreNotFoundError,
)
from zarrpipe.progress import progress_bar
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.backend.parts import is_parent, parts
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.query.columns import check_fields, field_names
from zarrpipe.store.query.conditions import Condition
from zarrpipe.store.query.evaluation import check as check_condition
from zarrpipe.store.rewrite.delete_defragment import check_rewritable, rewrite_in_place, scratch_of
from zarrpipe.store.rewrite.merge_plan import MergePlan
from zarrpipe.store.rewrite.merge_source import MergeSource
from zarrpipe.store.rewrite.target import CAPACITY, check_vacant, tidied, write_plan
from zarrpipe.store.rewrite.write_store import field_bytes
from zarrpipe.store.write.store_writer import StoreWriter

Config = ZarrWriteConfig | Mapping[str, Any] | None


def merge(
    stores: StoreLike | Sequence[StoreLike],
    target: StoreLike,
    *,
    where: str | None = None,
    fields: Sequence[str] | None = None,
    config: Config = None,
    shuffle: int | None = None,
    progress: bool | None = None,
) -> int:
    """Write the samples of one or many stores into one new store, arranged for fast reading.

    The stores do not change. The call copies the samples that each has when it begins; writers may
    go on appending. Deleted samples are left out, and every structure keeps its id. A field that
    only some stores have is absent in the samples of the others. Attributes of the root groups
    that are the same in all stores are copied.

    A local target appears complete, by one rename. Any other target has no samples until its
    pointers are written, which is the last step. So a killed call leaves no incomplete store, and
    can be repeated. The call needs about 100 bytes of memory a sample, and one block of one field
    (8 MiB, or one stored chunk or shard). Arrays that cannot be mapped are decoded once, one at a
    time, into an unnamed file on the disk of the target.

    Parameters
    ----------
    stores : StoreLike or sequence of StoreLike
        At least one store that exists. A parent of parts stands for the parts that it has when the
        call begins, in natural order of their names.
    target : StoreLike
        Place without samples.
    where : str, optional
        Condition that a sample has to meet to be copied; see `ZarrDataset.where`. Only the fields
        that it needs are read for it, block by block.
    fields : sequence of str, optional
        Fields to copy, beside positions and atomic numbers; by default all. The rows of edges, or
        of a level of your own, go with their last field.
    config : ZarrWriteConfig or mapping, optional
        Chunks and codecs; sizes that it leaves open follow from the number of rows. By default
        arrays are uncompressed, in few chunk files of up to 64 MiB, which are the fastest to read.
        ``ZarrWriteConfig.published()`` is for data sets to archive or to send.
    shuffle : int, optional
        Seed of a random order of the samples; by default store after store.
    progress : bool, optional
        Whether to show a progress bar (which needs tqdm). By default one appears on a terminal
        when the call lasts longer than two seconds and tqdm is installed.

    Returns
    -------
    int
        Number of samples of the new store.

    Raises
    ------
    StoreNotFoundError
        If there is no store at one of the places.
    StoreEmptyError
        If nothing was written to any part of a parent.
    StoreExistsError
        If there are samples at the target, or something other than a store.
    SchemaError
        If two stores have a field at different levels, dtypes or row shapes, or no store has a
        field that `where` or `fields` names.
    ValueError
        If `where` is no condition.
    StoreFormatError
        If a store is damaged, or was emptied or rewritten during the call.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> parts = [{}, {}]
    >>> for part, number in zip(parts, (1, 8)):
    ...     with zp.ZarrData(part) as sink:
    ...         sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [number]))
    >>> whole = {}
    >>> zp.merge(parts, whole)
    2
    >>> zp.ZarrDataset(whole)[1].atomic_numbers.tolist()
    [8]
    >>> zp.merge(whole, {}, where="has_element('O')")
    1
    """
    chosen, root = ZarrWriteConfig.of(config), Root.of(target)
    _check_seed(shuffle)
    condition = None if where is None else Condition.of(where)
    check_vacant(tidied(root))
    scratch = scratch_of(root)
    sources = [MergeSource(one, scratch) for store in _listed(stores) for one in _roots_of(store)]
    _select(sources, condition, fields)
    plan = MergePlan(sources, shuffle)
    plan.warn_of_lost_marks(stacklevel=3)
    with progress_bar(progress, f"merge into {root}", field_bytes(plan)) as done:
        write_plan(plan, root, chosen, done)
    return plan.counts.samples


def compact(
    store: StoreLike,
    *,
    config: Config = None,
    shuffle: int | None = None,
    progress: bool | None = None,
) -> int:
    """Rewrite a store in its place, for fast reading and without its deleted samples.

    The new store is written beside the old one and swapped with it when it is complete, so that a
    kill at any moment leaves one of the two; the next call removes the leftovers. An open reader
    still returns the rows that it has opened, and raises `StoreFormatError` for others until it is
    refreshed. Foreign files and arrays in the store are preserved.

    A store in memory needs memory for both. For every other kind of place, use `merge` to another
    one.

    Parameters
    ----------
    store : StoreLike
        A store that zarrpipe wrote and that no writer has open.
    config, shuffle, progress
        See `merge`.

    Returns
    -------
    int
        Number of samples of the store.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    StoreLockedError
        If a writer has it open.
    StoreFormatError
        If it is neither local nor in memory, or zarrpipe did not write it.
    StoreRenameError
        If its directory cannot be renamed, because it is a mount point or in a layer of a
        container image. Use `merge` to another place.
    """
    chosen, root = ZarrWriteConfig.of(config), Root.of(store)
    _check_seed(shuffle)
    check_rewritable(root)
    if tidied(root).open_group() is None:
        raise StoreNotFoundError.at(root)
    writer = StoreWriter(root, chosen, CAPACITY)
    try:
        writer.flush(every=True)
        plan = MergePlan([MergeSource(root, scratch_of(root))], shuffle)
        if shuffle is not None and writer.attributes.marks:
            raise ArgumentError(
                f"{root} has marks ({', '.join(writer.attributes.marks)}), which name its first "
                "samples, and another order would lose them: leave shuffle out, or merge the "
                "store to another place"
            )
        plan.warn_of_lost_marks(stacklevel=3)
        with progress_bar(progress, f"compact {root}", field_bytes(plan)) as done:
            lock = rewrite_in_place(writer, plan, chosen, done=done)
    finally:
        writer.abandon()
    if lock is not None:
        lock.release()
    return plan.counts.samples


def _listed(stores: StoreLike | Sequence[StoreLike]) -> Sequence[StoreLike]:
    """One or many stores as a list."""
    if not isinstance(stores, Sequence) or isinstance(stores, str):
        return [stores]
    if not stores:
        raise FieldError("an empty list of stores cannot be merged: expected at least one")
    return stores


def _roots_of(store: StoreLike) -> list[Root]:
    """Place of a store, or of each part of a parent in natural order."""
    root = Root.of(store)
    group = root.open_group()
    if group is None or not is_parent(group):
        return [root]
    places = parts(store)
    if not places:
        raise StoreEmptyError(
            f"{root} is a parent of parts, and nothing was written to any of them: merge it later"
        )
    return [Root.of(place) for place in places.values()]


def _select(
    sources: Sequence[MergeSource], condition: Condition | None, fields: Sequence[str] | None
) -> None:
    """Keep what meets a condition, and some fields."""
    schema = {name: item for source in reversed(sources) for name, item in source.schema.items()}
    names = field_names(fields)
    check_fields(names or (), schema)
    _check_levels([schema[name] for name in names or ()])
    if condition is not None:
        check_condition(condition, schema)
        for source in sources:
            source.select_samples(condition, schema)
    if names is not None:
        for source in sources:
            source.select_fields(names)


def _check_levels(fields: Sequence[Field]) -> None:
    """Refuse fields that refer to rows of a level which keeps no field."""
    kept = {Level.ATOM, *(item.level for item in fields)}
    for item in fields:
        for level in (*item.level.parents, *([] if item.index_of is None else [item.index_of])):
            if level not in kept:
                raise SchemaError(
                    f"fields has {item.name!r}, which refers to {level}s: add a field of {level}s, "
                    f"or leave {item.name!r} out"
                )


def _check_seed(shuffle: int | None) -> None:
    if shuffle is not None:
        check_count("shuffle", shuffle, unit="a seed", error=FieldError)
