"""A neighbour list rewritten so that its indices count from the store, in one step."""

import uuid
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import LocalStore, MemoryStore

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.swap import swap_directories
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.neighbours import Shifts

_BYTES = 1 << 24


def fix_relative_edges(subject: CheckedStore, shifts: Shifts) -> None:
    """Add to the indices of each sample what makes them count from the store.

    A local array is written anew beside its place and exchanged with the old one, so that a kill
    leaves one of the two whole.

    Raises
    ------
    StoreFormatError
        If the store is neither local nor in memory, where a kill would leave both kinds mixed.
    """
    path = subject.paths["neighbor_list"]
    directory = subject.root.directory
    if directory is not None:
        _exchange(subject, (directory / path).resolve(), path, shifts)
        return
    if not isinstance(subject.root.path.store, MemoryStore):
        raise StoreFormatError(
            f"{subject.root} is not local, and a kill while its edges are rewritten would mix two "
            "ways to count: copy the store to a local disk and repair it there"
        )
    array = subject.group[path]
    if isinstance(array, zarr.Array):
        _write(subject, path, array, shifts)


def _exchange(subject: CheckedStore, place: Path, path: str, shifts: Shifts) -> None:
    room = place.with_name(f".{place.name}.repair-{uuid.uuid4().hex[:8]}")
    files.make_folder(room)
    try:
        files.replace(room / "zarr.json", (place / "zarr.json").read_bytes())
        _write(subject, path, zarr.open_array(LocalStore(room), mode="r+"), shifts)
        files.sync_tree(room)
        swap_directories(place, room)
    finally:
        files.remove_tree(room)


def _write(subject: CheckedStore, path: str, target: "zarr.Array", shifts: Shifts) -> None:  # type: ignore[type-arg]
    rows, unit = subject.arrays[path], int((target.shards or target.chunks)[0])
    written = target.with_config({"write_empty_chunks": True})  # in ours, none may be missing
    step = unit * max(1, _BYTES // max(1, unit * rows.row_bytes))
    for start in range(0, len(rows), step):
        values, good = rows.read(start, min(start + step, len(rows)))
        if not good.all():
            raise StoreFormatError(f"{subject.root}: {path} cannot be read whole: repair it first")
        written[start : start + len(values)] = values + _added(shifts, start, values)


def _added(shifts: Shifts, start: int, values: AnyArray) -> AnyArray:
    """What to add to rows [n, 1]; nothing to those of no sample."""
    owner = np.searchsorted(shifts.edges, np.arange(start, start + len(values)), "right") - 1
    inside = owner < len(shifts.by)
    added = np.where(inside, shifts.by[np.minimum(owner, len(shifts.by) - 1)], 0)
    return added.astype(values.dtype)[:, None]
