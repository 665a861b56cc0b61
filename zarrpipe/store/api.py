"""Write a store step by step, with the API of nvalchemi's writer."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from zarrpipe.adapters import as_batch
from zarrpipe.data.batch import Batch
from zarrpipe.data.container import check_not_taken
from zarrpipe.data.csr import AnyArray, Int64Array, positions_of
from zarrpipe.data.fields import CORE_FIELDS, as_field_dtype, check_name, check_new_names, level_of
from zarrpipe.data.levels import BUILT_IN, Level
from zarrpipe.data.schema import Field, field_from_array
from zarrpipe.data.validate import plain_array
from zarrpipe.errors import (
    FieldError,
    SchemaError,
    StoreExistsError,
    StoreNotFoundError,
)
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import SAMPLES_MASK
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.rewrite.delete_defragment import defragment, delete_samples
from zarrpipe.store.write.exclusive_calls import WriterOwner, synchronized
from zarrpipe.store.write.store_writer import StoreWriter

_CAPACITY = 1_000_000


class AtomicDataZarrWriter(WriterOwner):
    """Writer of one store: creates, appends, adds fields, deletes and defragments.

    It holds the lock of the store, if its place supports locks, from its first change until `close`
    (or the end of a with statement). `ZarrData` is the sink for simulations; this writer is for
    everything else. Threads may share one; their calls wait for each other. A call from inside
    another one of the same thread raises `StoreBusyError`. A call that raises is carried out
    completely or not at all, and the next call continues with the stored data.

    Parameters
    ----------
    store : StoreLike
        Place of the store, which need not exist yet.
    config : ZarrWriteConfig or mapping, optional
        Chunks and codecs of the arrays that are created; uncompressed by default.
    durable : bool
        Whether stored data survive a loss of power once a call has returned; see `ZarrData`.
    """

    def __init__(
        self,
        store: StoreLike,
        config: ZarrWriteConfig | Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
    ) -> None:
        self.store = store
        super().__init__(Root.of(store), ZarrWriteConfig.of(config), _CAPACITY, durable=durable)

    def write(self, data: Any) -> None:
        """Write the first samples of a new store.

        Parameters
        ----------
        data
            A `Batch`, an `AtomicData`, a list of them, or a batch of another library, as for
            `zarrpipe.adapters.as_batch`.

        Raises
        ------
        StoreExistsError
            If the store has samples already.
        FieldError
            If a new field has a name that conditions on samples read otherwise.
        """
        self._write(as_batch(data))

    @synchronized
    def _write(self, batch: Batch) -> None:
        check_new_names(batch.fields)
        self._check_open()
        if self._exists() and (samples := self._open_writer().counts.samples):
            raise StoreExistsError(
                f"{self._root} has {samples} samples: append to it, or write to another place"
            )
        self._open_writer().append(batch)
        self._make_exact()

    def append(self, data: Any) -> None:
        """Append samples to a store that exists; see `write` for `data`.

        Raises
        ------
        StoreNotFoundError
            If there is no store.
        SchemaError
            If a field does not fit the store; nothing was written.
        FieldError
            If a new field has a name that conditions on samples read otherwise.
        """
        self._append(as_batch(data))

    @synchronized
    def _append(self, batch: Batch) -> None:
        writer = self._existing()
        check_new_names(batch.fields, lambda: writer.schema)
        writer.append(batch)
        self._make_exact()

    @synchronized
    def add_custom(self, key: str, data: Any, level: Level | str) -> None:
        """Add a field to every sample that is stored.

        Parameters
        ----------
        key
            Name of a field that the store lacks.
        data : array_like
            One row for each atom, edge or sample, without those that are deleted, in order.
        level
            Level of the rows.

        Raises
        ------
        StoreNotFoundError
            If there is no store.
        SchemaError
            If the store has the field already.
        FieldError
            If the name, the level or the number of rows does not fit.
        """
        writer = self._existing()
        check_name(key)
        check_not_taken(key)
        check_new_names([key], lambda: writer.schema)
        if key in writer.schema:
            raise SchemaError(f"{self._root} has the field {key!r} already: use another name")
        values = as_field_dtype(key, _tensor_of(key, data)).numpy()
        own = {str(one): one for one in writer.schema.own_levels}
        resolved = level_of(key, level, own)
        if resolved not in (*BUILT_IN, *own) and resolved.has_pointers:
            raise FieldError(
                f"the store has no level {resolved!r}: write new samples with it, since stored "
                "ones have no rows there"
            )
        kept = self._kept_rows(resolved)
        if values.ndim == 0 or len(values) != np.count_nonzero(kept):
            raise FieldError(
                f"field {key!r} has shape {values.shape}, expected one row for each of "
                f"{np.count_nonzero(kept)} {level}s"
            )
        spec = CORE_FIELDS.get(key)
        if spec is not None and spec.shape is not None and values.shape[1:] != spec.shape:
            raise FieldError(
                f"field {key!r} has shape {values.shape}, expected {(len(values), *spec.shape)}"
            )
        if CORE_FIELDS.get(key) is not None and CORE_FIELDS[key].index_of is not None:
            raise FieldError(f"a {key} cannot be added to stored samples: write them anew with it")
        item = field_from_array(key, resolved, values.dtype, values.shape[1:])
        item = replace(item, unit=self._config.units.get(key, item.unit))
        writer.add_field(item, _spread(item, values, kept))
        self._make_exact()

    @synchronized
    def delete(self, indices: int | slice | Sequence[int] | torch.Tensor | AnyArray) -> None:
        """Delete samples by masking them; `defragment` frees their space.

        After an exception other than an interrupt, every sample is still there, and the same
        indices mean the same samples. An interrupt may come after the deletion: check the number of
        samples. If the deletion succeeded and only the masks of atoms and edges failed, a warning
        is issued.

        Parameters
        ----------
        indices
            Samples as a reader that is opened now counts them, negative ones from the end, a
            slice, or a bool mask of all of them. Repeats count once.

        Raises
        ------
        SampleIndexError
            If a sample does not exist; nothing was deleted.
        """
        writer = self._existing()
        active = np.flatnonzero(self._kept_rows(Level.SYSTEM))
        wanted = positions_of(indices, len(active), "sample", f"the store {self._root}")
        rows, before = np.unique(active[wanted]), writer.attributes
        try:
            delete_samples(writer, rows)
        except Exception as error:
            if not (writer.closed and self._was_published(before, len(rows))):
                raise
            warnings.warn(
                f"{len(rows)} samples of {self._root} were deleted, but not all of their atoms and "
                f"edges could be masked ({error}): the next call does it",
                RuntimeWarning,
                stacklevel=3,
            )
        self._make_exact()

    def _was_published(self, before: Attributes, deleted: int) -> bool:
        """Whether the store on disk has exactly `deleted` more deleted samples than `before`."""
        group = self._root.open_group()
        if group is None:
            return False
        now = Attributes.read(group)
        return (now.generation, now.deleted) == (before.generation, before.deleted + deleted)

    @synchronized
    def defragment(self, config: ZarrWriteConfig | Mapping[str, Any] | None = None) -> None:
        """Rewrite the store without deleted samples, and swap it in when it is complete.

        Parameters
        ----------
        config
            Chunks and codecs of the new arrays; by default those of the store.
        """
        chosen = None if config is None else ZarrWriteConfig.of(config)
        self._writer = defragment(self._existing(), chosen)

    def _make_exact(self) -> None:
        """Make shapes and the number of samples exact, as nvalchemi leaves them after each call."""
        try:
            self._open_writer().make_exact()
        except Exception as error:  # noqa: BLE001  the call itself has succeeded
            warnings.warn(
                f"what was written to {self._root} is stored, but the shapes of its arrays and "
                f"num_samples could not be made exact ({error}): the next call does it",
                RuntimeWarning,
                stacklevel=4,
            )

    def _exists(self) -> bool:
        return self._writer is not None or self._root.open_group() is not None

    def _existing(self) -> StoreWriter:
        self._check_open()
        if not self._exists():
            raise StoreNotFoundError(f"there is no store at {self._root}: write one first")
        return self._open_writer()

    def _kept_rows(self, level: Level) -> AnyArray:
        """Which stored rows of a level belong to samples that are not deleted."""
        writer = self._open_writer()
        samples = writer.counts.samples
        kept = writer.array(SAMPLES_MASK).read(0, samples)
        if not level.has_pointers:
            return kept
        counts: Int64Array = np.diff(writer.array(level.pointers).read(0, samples + 1))
        return np.repeat(kept, counts)


def _tensor_of(name: str, data: Any) -> torch.Tensor:
    """Convert data to a tensor on the CPU without gradients."""
    if isinstance(data, np.ndarray):
        data = plain_array(f"field {name!r}", data)
    try:
        return torch.as_tensor(data).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise FieldError(
            f"field {name!r} is {reprlib.repr(data)}, expected a tensor, an array or numbers"
        ) from error


def _spread(item: Field, values: AnyArray, kept: AnyArray) -> AnyArray:
    """Rows for all stored rows, with the fill value where samples are deleted."""
    rows = np.full((len(kept), *item.shape), item.fill, dtype=item.dtype)
    rows[kept] = values
    return rows
