"""Reading a store sample by sample, with the API of nvalchemi's reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zarr
from zarr.storage import StorePath

from zarrpipe.compat import nvalchemi_schema
from zarrpipe.data.csr import AnyArray, position_of, positions_of
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    FieldError,
    StoreFormatError,
)
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.store.format.layout import SAMPLES_MASK, find_array
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.write.exclusive_calls import Closing

Sample = tuple[dict[str, torch.Tensor], dict[str, Any]]

_SHOWN = 4


@dataclass(frozen=True)
class FieldSchema:
    """Level, dtype and shape of a row of a stored field."""

    level: str
    dtype: torch.dtype
    row_shape: tuple[int, ...]


class AtomicDataZarrReader(Closing):
    """Reader of one store, a dictionary of tensors for each sample.

    `ZarrDataset` reads whole batches, as a training run needs; this reader is for inspecting
    single samples.

    Parameters
    ----------
    store : StoreLike
        The store to read; a writer may go on appending to it.
    fields : sequence of str, optional
        Fields of each sample, in this order; all of them by default.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    ArgumentTypeError, ArgumentError
        If `fields` is not a sequence of names, is empty, or repeats one.
    FieldError
        If the store has no such field.
    """

    def __init__(self, store: StoreLike, *, fields: Sequence[str] | None = None) -> None:
        self._fields = None if fields is None else _checked_names(fields)
        self._view = StoreView(store)
        for name in self._fields or ():
            self._item(name)

    @property
    def store(self) -> StoreLike:
        """The store as it was given."""
        return self._view.store

    @property
    def num_samples(self) -> int:
        """Number of samples that the store holds, deleted ones included; `len` leaves them out."""
        return self._view.snapshot.extent.samples

    @property
    def field_names(self) -> list[str]:
        """Names of the fields of a sample."""
        return [*(self._view.schema if self._fields is None else self._fields)]

    @property
    def field_levels(self) -> dict[str, str]:
        """Level of each field: "atom", "edge", "system" or one of the user's own."""
        return {name: str(item.level) for name, item in self._view.schema.items()}

    @property
    def level_schema(self) -> Any:
        """Levels of the user's own as a ``LevelSchema`` of nvalchemi 0.3; None without any."""
        own = self._view.schema.own_levels
        if not own:
            return None
        items = (item for item in self._view.schema.values() if item.level in own)
        fields = {item.name: (item.level, _torch_dtype(item.dtype)) for item in items}
        return nvalchemi_schema(own, fields)

    def schema(self) -> dict[str, FieldSchema]:
        """Level, dtype and shape of a row of every stored field."""
        return {
            name: FieldSchema(str(item.level), _torch_dtype(item.dtype), item.shape)
            for name, item in self._view.schema.items()
        }

    def level_sizes(self) -> dict[str, int]:
        """Number of rows that the store holds at each level, those of deleted samples included."""
        extent, own = self._view.snapshot.extent, self._view.schema.own_levels
        levels = (Level.SYSTEM, Level.ATOM, Level.EDGE, *own)
        return {str(level): extent.rows(level) for level in levels}

    def field_array(self, field: str) -> zarr.Array[Any]:
        """The Zarr array of a field, read-only.

        It may have more rows than `level_sizes` says while a sink is open.

        Raises
        ------
        FieldError
            If the store has no such field.
        """
        place = self._view.snapshot.group.store_path / self._item(field).path
        store = place.store if place.store.read_only else place.store.with_read_only(read_only=True)
        return zarr.open_array(StorePath(store, place.path), mode="r")

    def get_metadata(self, index: int) -> tuple[int, int]:
        """Number of atoms and of edges of a sample; see `read` for `index` and errors."""
        samples = positions_of([index], len(self), "sample", self._named)
        atoms = self._view.counts_of(Level.ATOM, samples)[0]
        return int(atoms), int(self._view.counts_of(Level.EDGE, samples)[0])

    def check_integrity(self) -> None:
        """Refuse a store whose arrays have other numbers of rows than its pointers say.

        Only metadata and pointers are read; `zarrpipe.check` reads every row. Arrays of a store
        that a zarrpipe sink has open, or had when it was killed, may have more rows.

        Raises
        ------
        StoreFormatError
            If an array has fewer rows, or in a store of another library more.
        """
        snapshot = self._view.snapshot
        snapshot.refresh()
        extent, schema = snapshot.extent, snapshot.schema
        wanted = {item.path: extent.rows(item.level) for item in schema.values()}
        pointers = (level.pointers for level in schema.pointer_levels)
        wanted |= dict.fromkeys(pointers, self.num_samples + 1)
        wanted[SAMPLES_MASK] = self.num_samples
        wrong = []
        for path, rows in wanted.items():
            array = find_array(snapshot.group, path)
            found = 0 if array is None else int(array.shape[0])
            if found < rows or (found > rows and not snapshot.attributes.ours):
                wrong.append(f"{path} has {found} rows instead of {rows}")
        if wrong:
            more = f" and {len(wrong) - _SHOWN} further arrays" if len(wrong) > _SHOWN else ""
            raise StoreFormatError(
                f"{snapshot.root} has pointers of {self.num_samples} samples, but "
                f"{', '.join(wrong[:_SHOWN])}{more}, as an append leaves it that was interrupted: "
                "`zarrpipe check` says more"
            )

    def _item(self, name: str) -> Field:
        """Field of the store."""
        item = self._view.schema.get(name)
        if item is None:
            have = list(self._view.schema)
            raise FieldError(f"{self._named} has no field {name!r}; it has {have}")
        return item

    @property
    def units(self) -> dict[str, str]:
        """Unit of each field that has one."""
        return self._view.schema.units

    def read(self, index: int) -> Sample:
        """Fields of a sample, and its place in the store.

        Parameters
        ----------
        index
            Number of the sample, without deleted ones; negative from the end.

        Returns
        -------
        fields : dict of str to torch.Tensor
            ``[n, ...]``, ``[e, ...]`` and ``[1, ...]`` by level, except fields that the sample
            lacks; ``neighbor_list`` counts the atoms of the sample.
        metadata : dict
            ``index``, ``source_file`` and ``physical_index``, the row in the store as text.

        Raises
        ------
        SampleIndexError
            If the sample does not exist.
        """
        return self.read_many([position_of(index, len(self), "sample", self._named)])[0]

    def read_many(self, indices: Sequence[int] | torch.Tensor | AnyArray) -> list[Sample]:
        """Read several samples; see `read`."""
        wanted = positions_of(indices, len(self), "sample", self._named)
        batch = self._view.gather(wanted, self._fields)
        rows = self._view.stored_rows(wanted)
        return [
            (self._chosen(batch.get_data(place).fields), self._metadata(int(index), int(row)))
            for place, (index, row) in enumerate(zip(wanted, rows, strict=True))
        ]

    def _chosen(self, fields: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The fields that were asked for."""
        return {name: fields[name] for name in self._fields or fields if name in fields}

    @property
    def _named(self) -> str:
        """Name of the store, for error messages."""
        return f"the store {self._view.store}"

    def _metadata(self, index: int, row: int) -> dict[str, Any]:
        source = str(self._view.store)
        return {"index": index, "source_file": source, "physical_index": str(row)}

    def refresh(self) -> int:
        """Update the reader, and return the number of new samples."""
        return self._view.refresh()

    def close(self) -> None:
        """Release the store; a second call does nothing."""
        self._view.close()

    def __len__(self) -> int:
        return self._view.num_samples

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(index) for index in range(len(self)))


def _checked_names(fields: Sequence[str]) -> tuple[str, ...]:
    """Names of fields, of which there is at least one and none twice."""
    named = isinstance(fields, Sequence) and all(isinstance(name, str) for name in fields)
    if isinstance(fields, str | bytes) or not named:
        raise ArgumentTypeError(
            f"fields is {fields!r}, expected a list of names such as ['energy', 'forces']"
        )
    if not fields or len({*fields}) < len(fields):
        raise ArgumentError(f"fields is {fields!r}, expected at least one name, and each once")
    return tuple(fields)


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
