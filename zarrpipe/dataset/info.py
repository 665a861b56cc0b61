"""`info`: what a store has, from what it keeps and from bounded reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from zarr.storage import MemoryStore

from zarrpipe.compat import memory_content
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.dataset.label_ranges import label_ranges, spread_of
from zarrpipe.dataset.store_info import FieldInfo, StoreInfo
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.backend.lock import holder_of
from zarrpipe.store.check.stray_files import holder_lives
from zarrpipe.store.format.layout import ATOMS_PTR, find_arrays, is_plain
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.summary import element_counts


def info(store: StoreLike) -> StoreInfo:
    """Say what a store has: fields, sizes, elements, ranges of labels, rounds, and who writes it.

    Counts follow from pointers, ids, presence and the sums that a store keeps, and are exact.
    Ranges of labels are of all samples in stores of up to some hundred thousand; of larger ones a
    sample of evenly spread runs is read, and `Spread.estimated` says so. Nothing is written and
    nothing is locked; a writer may go on.

    Parameters
    ----------
    store : StoreLike
        A store that zarrpipe or nvalchemi wrote.

    Returns
    -------
    StoreInfo
        The facts, for `print`, and with `to_dict` for programs.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    StoreFormatError
        If it is damaged, or not a store of atomic systems.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> store = {}
    >>> with zp.ZarrData(store) as sink:
    ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0], [0.0, 0.0, 0.7]], [1, 1], energy=-31.7))
    >>> facts = zp.info(store)
    >>> facts.samples, facts.elements, facts.labels["energy_per_atom"].largest
    (1, {'H': 2}, -15.85)
    """
    view = StoreView(store)
    try:
        return _Examined(view).info()
    finally:
        view.close()


class _Examined:
    """A store of which facts are found, over the samples of one snapshot."""

    def __init__(self, view: StoreView) -> None:
        self._view, self._snapshot = view, view.snapshot
        self._root, self._count = view.snapshot.root, view.num_samples
        self._num_atoms = view.num_atoms

    def info(self) -> StoreInfo:
        """All facts."""
        attributes, edges = self._snapshot.attributes, self._view.num_edges
        holder = None if self._root.directory is None else holder_of(self._root.directory)
        sizes = _bytes_by_array(self._root)
        arrays = find_arrays(
            self._snapshot.group, [*(item.path for item in self._view.schema.values()), ATOMS_PTR]
        )
        allocated = arrays[ATOMS_PTR]
        return StoreInfo(
            store=str(self._root),
            samples=self._count,
            deleted=self._snapshot.extent.samples - self._count,
            atoms=int(self._num_atoms.sum()),
            edges=int(edges.sum()),
            allocated=0 if allocated is None else max(0, allocated.shape[0] - 1),
            generation=attributes.generation,
            writer="" if holder is None else str(holder),
            writing=holder is not None and holder_lives(holder),
            bytes_stored=None if sizes is None else sum(sizes.values()),
            fields=tuple(
                self._field(item, arrays[item.path], sizes) for item in self._view.schema.values()
            ),
            levels={str(one): str(one.kind) for one in self._view.schema.own_levels},
            elements=dict(element_counts(self._view)[0].most_common()),
            atoms_per_sample=spread_of(self._num_atoms, "", self._count, self._count),
            edges_per_sample=spread_of(edges, "", self._count, self._count),
            labels=label_ranges(self._view),
            repeated=self._repeated(),
            rounds=self._rounds(),
            categories=dict(self._categories()),
            imports=attributes.imports,
            marks=attributes.marks,
        )

    def _field(
        self, item: Field, array: zarr.Array[Any] | None, sizes: Mapping[str, int] | None
    ) -> FieldInfo:
        """Facts of a field and of its array."""
        present = self._count
        if item.name in self._snapshot.attributes.nullable:
            present = int(np.count_nonzero(self._view.present(item.name)))
        facts = (item.name, item.level, _dtype_text(item), item.shape, item.unit, present)
        held = None if sizes is None else sizes.get(item.path, 0)
        if array is None:
            return FieldInfo(*facts, bytes_stored=held)
        shard = array.shards[0] if array.shards else 0
        return FieldInfo(*facts, array.chunks[0], shard, _codec(array), held)

    def _repeated(self) -> int | None:
        """Samples with the id of an earlier one."""
        if not self._count:
            return 0
        if self._snapshot.stored_ids() < self._snapshot.extent.samples:
            return None
        ids = self._view.ids
        ids.sort()  # in less time than `np.unique`, which hashes
        return int(np.count_nonzero(ids[1:] == ids[:-1]))

    def _rounds(self) -> dict[int, int]:
        """Samples by round, if the store has such a field of whole numbers."""
        item = self._view.schema.get("round")
        if item is None or item.level is not Level.SYSTEM or item.dtype.kind not in "iu":
            return {}
        if item.categories is not None or np.prod(item.shape, dtype=int) != 1:
            return {}
        return dict(_counted(self._present_values("round").reshape(-1)))

    def _categories(self) -> Iterator[tuple[str, dict[str, int]]]:
        """Samples by string, for each field of strings."""
        for name, item in self._view.schema.items():
            if item.categories is not None:
                codes = _counted(self._present_values(name))
                most = sorted(codes, key=lambda pair: -pair[1])
                yield name, {item.categories[code]: count for code, count in most}

    def _present_values(self, name: str) -> AnyArray:
        """Values of a field of systems, of the samples that have it."""
        values = self._view.system_field(name)
        nullable = name in self._snapshot.attributes.nullable
        return values[self._view.present(name)] if nullable else values


def _counted(values: AnyArray) -> list[tuple[int, int]]:
    """Whole numbers, ascending, and how often each is there."""
    found, counts = np.unique(values, return_counts=True)
    return [*zip(found.tolist(), counts.tolist(), strict=True)]


def _dtype_text(item: Field) -> str:
    return str(item.dtype) if item.categories is None else "string"


def _codec(array: zarr.Array[Any]) -> str:
    """Names of the codecs of an array, "" for plain bytes."""
    if is_plain(array):
        return ""
    codecs: Any = array.metadata.to_dict()["codecs"]
    inner = codecs if array.shards is None else codecs[0]["configuration"]["codecs"]
    return ", ".join(codec["name"] for codec in inner if codec["name"] != "bytes")


def _bytes_by_array(root: Root) -> dict[str, int] | None:
    """Bytes that the files or objects of each array take; None for an object store."""
    held: dict[str, int] = {}
    for path, size in _files(root):
        parts = path.split("/")
        deep = parts[0] == "levels" or parts[:2] == ["meta", "level_ptrs"]
        array = "/".join(parts[: 3 if deep else 2])
        held[array] = held.get(array, 0) + size
    return held or None


def _files(root: Root) -> Iterable[tuple[str, int]]:
    """Paths and bytes of the files or objects of a store that is local or in memory."""
    if root.directory is not None:
        for folder, _, names in os.walk(root.directory):
            inside = os.path.relpath(folder, root.directory).replace(os.sep, "/")
            for name in names:
                blocks = os.lstat(os.path.join(folder, name)).st_blocks  # noqa: PTH118
                yield f"{inside}/{name}".removeprefix("./"), 512 * blocks
    elif isinstance(root.path.store, MemoryStore):
        before = f"{root.path.path}/" if root.path.path else ""
        for key, value in memory_content(root.path.store).items():
            if key.startswith(before):
                yield key.removeprefix(before), len(value)
