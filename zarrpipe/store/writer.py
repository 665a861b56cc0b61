"""Writing a store step by step, with nvalchemi's `AtomicDataZarrWriter` as the model of the API."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from zarrpipe.adapters import as_batch
from zarrpipe.closing import Closing
from zarrpipe.data.container import check_not_taken
from zarrpipe.data.csr import AnyArray, Int64Array, positions_of
from zarrpipe.data.fields import (
    CORE_FIELDS,
    Level,
    as_field_dtype,
    check_name,
    check_new_names,
    level_of,
)
from zarrpipe.data.schema import Field, field_from_array
from zarrpipe.errors import (
    FieldError,
    SchemaError,
    StoreClosedError,
    StoreExistsError,
    StoreNotFoundError,
)
from zarrpipe.mutex import Mutex, alone
from zarrpipe.store.appender import StoreAppender
from zarrpipe.store.config import ZarrWriteConfig
from zarrpipe.store.layout import ATOMS_PTR, EDGES_PTR, SAMPLES_MASK
from zarrpipe.store.maintenance import defragment, delete_samples, keep_samples
from zarrpipe.store.opening import check_durable
from zarrpipe.store.root import Root, StoreLike

_CAPACITY = 1_000_000


class AtomicDataZarrWriter(Closing):
    """Writer of one store: creates, appends, adds fields, deletes and defragments.

    It has the store to itself from its first change until `close` (or the end of a with
    statement). `ZarrData` is the sink for simulations; this is the tool for everything else.
    Threads may share one; their calls wait for each other.

    Parameters
    ----------
    store : StoreLike
        Where the store is or is to be.
    config : ZarrWriteConfig or mapping, optional
        Chunks and codecs of the arrays that are created; uncompressed by default.
    durable : bool
        Whether what a call stored outlasts a loss of power once it returns; see `ZarrData`.
    """

    def __init__(
        self,
        store: StoreLike,
        config: ZarrWriteConfig | Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
    ) -> None:
        self.store, self._durable, self._mutex = store, durable, Mutex()
        self._root = Root.of(store)
        check_durable(self._root, durable=durable)
        self._config = ZarrWriteConfig.of(config)
        self._appender: StoreAppender | None = None
        self._withdrawn: Int64Array | None = None  # what a deletion that failed could not put back
        self._closed = False

    @alone
    def write(self, data: Any) -> None:
        """Write the first samples of a new store.

        Parameters
        ----------
        data
            What `zarrpipe.adapters.as_batch` takes: a `Batch`, an `AtomicData`, a list of them,
            or the batches of other libraries.

        Raises
        ------
        StoreExistsError
            If samples are there already.
        FieldError
            If a new field has a name that conditions on samples read otherwise.
        """
        batch = as_batch(data)
        check_new_names(batch.fields)
        if self._exists() and self._open().extent.samples:
            raise StoreExistsError(
                f"{self._root} has {self._open().extent.samples} samples: append to it, or write "
                "to another place"
            )
        self._open().append(batch)

    @alone
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
        batch, appender = as_batch(data), self._existing()
        check_new_names(batch.fields, lambda: appender.schema)
        appender.append(batch)

    @alone
    def add_custom(self, key: str, data: Any, level: Level | str) -> None:
        """Add a field to every sample that is stored.

        Parameters
        ----------
        key
            Name of a field that the store has not.
        data : array_like
            One row for each atom, edge or sample that was not deleted, in order.
        level
            What a row belongs to.

        Raises
        ------
        StoreNotFoundError
            If there is no store.
        SchemaError
            If the store has the field.
        FieldError
            If name, level or number of rows does not fit.
        """
        appender = self._existing()
        check_name(key)
        check_not_taken(key)
        check_new_names([key], lambda: appender.schema)
        if key in appender.schema:
            raise SchemaError(f"{self._root} has the field {key!r} already: use another name")
        values = as_field_dtype(key, _tensor_of(key, data)).numpy()
        kept = self._kept_rows(level_of(key, level))
        if values.ndim == 0 or len(values) != np.count_nonzero(kept):
            raise FieldError(
                f"field {key!r} has shape {values.shape}, expected one row for each of "
                f"{np.count_nonzero(kept)} {Level(level).value}s"
            )
        spec = CORE_FIELDS.get(key)
        if spec is not None and spec.shape is not None and values.shape[1:] != spec.shape:
            raise FieldError(
                f"field {key!r} has shape {values.shape}, expected {(len(values), *spec.shape)}"
            )
        if key == "neighbor_list":
            raise FieldError(
                "a neighbor_list cannot be added to stored samples: write them anew with it"
            )
        item = field_from_array(key, Level(level), values.dtype, values.shape[1:])
        item = replace(item, unit=self._config.units.get(key, item.unit))
        appender.add_field(item, _spread(item, values, kept))

    @alone
    def delete(self, indices: int | slice | Sequence[int] | torch.Tensor | AnyArray) -> None:
        """Take samples out of sight; `defragment` frees their space.

        Parameters
        ----------
        indices
            Samples as a reader that is opened now counts them, negative ones from the end, a
            slice, or a bool mask of all of them. Repeats count once.

        Raises
        ------
        SampleIndexError
            If there is no such sample; nothing was deleted.

        Whatever else is raised, a repetition means the same samples.
        """
        appender = self._existing()
        active = np.flatnonzero(self._kept_rows(Level.SYSTEM))
        wanted = positions_of(indices, len(active), "sample", f"the store {self._root}")
        rows = np.unique(active[wanted])
        try:
            delete_samples(appender, rows)
        except BaseException:
            if appender.closed:
                self._withdrawn = rows
            raise

    @alone
    def defragment(self, config: ZarrWriteConfig | Mapping[str, Any] | None = None) -> None:
        """Write the store anew without the deleted samples; it is swapped in when complete.

        Parameters
        ----------
        config
            Chunks and codecs of the new arrays; by default those that the store has.
        """
        chosen = None if config is None else ZarrWriteConfig.of(config)
        self._appender = defragment(self._existing(), chosen)

    @alone
    def close(self) -> None:
        """Make shapes exact and give the store free; a second call does nothing."""
        self._closed = True
        if self._appender is not None:
            self._appender.close()
            self._appender = None

    def _exists(self) -> bool:
        return self._appender is not None or self._root.open_group() is not None

    def _existing(self) -> StoreAppender:
        if not self._exists():
            raise StoreNotFoundError(f"there is no store at {self._root}: write one first")
        return self._open()

    def _open(self) -> StoreAppender:
        if self._closed:
            raise StoreClosedError(f"the writer of {self._root} was closed: open a new one")
        if self._appender is None or self._appender.closed:
            self._appender = StoreAppender(
                self._root, self._config, _CAPACITY, durable=self._durable
            )
        if self._withdrawn is not None:
            keep_samples(self._appender, self._withdrawn)
            self._withdrawn = None
        return self._appender

    def _kept_rows(self, level: Level) -> AnyArray:
        """Which stored rows of a level belong to samples that were not deleted."""
        appender = self._open()
        samples = appender.extent.samples
        kept = appender.column(SAMPLES_MASK).read(0, samples)
        if level is Level.SYSTEM:
            return kept
        path = ATOMS_PTR if level is Level.ATOM else EDGES_PTR
        counts: Int64Array = np.diff(appender.column(path).read(0, samples + 1))
        return np.repeat(kept, counts)


def _tensor_of(name: str, data: Any) -> torch.Tensor:
    """Tensor on the CPU, without gradients, of what may be one."""
    try:
        return torch.as_tensor(data).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise FieldError(
            f"field {name!r} is {reprlib.repr(data)}, expected a tensor, an array or numbers"
        ) from error


def _spread(item: Field, values: AnyArray, kept: AnyArray) -> AnyArray:
    """Rows for all that is stored, with fill where samples were deleted."""
    rows = np.full((len(kept), *item.shape), item.fill, dtype=item.dtype)
    rows[kept] = values
    return rows
