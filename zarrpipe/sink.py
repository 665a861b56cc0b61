"""`ZarrData`: the sink that a simulation writes into, on any Zarr store."""

import os
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.adapters import as_batch
from zarrpipe.closing import Closing
from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import check_new_names
from zarrpipe.data.validate import plain_array
from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    FieldError,
    StoreClosedError,
    StoreEmptyError,
    StoreFormatError,
    StoreFullError,
    StoreNotFoundError,
)
from zarrpipe.mutex import ForkSafeLock, synchronized
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.check.report import Report
from zarrpipe.store.check.run import check
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.write.open_for_writing import check_durable
from zarrpipe.store.write.store_writer import StoreWriter

_MOST_SAMPLES = 1 << 40


class ZarrData(Closing):
    """Sink for batches of atomic systems, in one Zarr store.

    A sink on a store that exists continues it. What was written can be read at once, by this
    object, by other processes and by any Zarr tool, whether or not the sink is ever closed.
    From its first write until `close`, a sink on a local store is its only writer. Other stores
    have no lock: there a write raises if it finds that another writer has written meanwhile.
    Threads may share a sink; their calls wait for each other.

    Parameters
    ----------
    store : StoreLike
        Path, URL, zarr Store or StorePath, or a dict; it is created by the first write.
    capacity : int
        Most samples that the sink may hold.
    config : ZarrWriteConfig or mapping, optional
        Chunks and codecs of the arrays that are created. By default arrays are uncompressed,
        which is what can be appended to in place and mapped.
    durable : bool
        Whether what `write` stored outlasts a loss of power once it returns, for which each write
        waits for the disk. Without it, what was written outlasts the process, whatever ends it. A
        store that is not local is as durable as it says itself; one in memory is not.

    Raises
    ------
    ValueError
        If the capacity is not positive, or the store has more samples.
    SchemaError
        If the config gives a field another unit than the store.
    StoreFormatError
        If what stands there is damaged, or of a newer format.

    Examples
    --------
    >>> import torch
    >>> from zarrpipe import AtomicData, Batch, ZarrData
    >>> batch = Batch.from_data_list(
    ...     [AtomicData([[0.0, 0.0, 0.0]], [z], energy=-float(z)) for z in (1, 2, 3)]
    ... )
    >>> with ZarrData({}, capacity=100) as sink:
    ...     sink.write(batch, mask=torch.tensor([True, False, True]))
    ...     len(sink), sink.read().atomic_numbers.tolist()
    (2, [1, 3])
    """

    def __init__(
        self,
        store: StoreLike,
        capacity: int = 1_000_000,
        config: ZarrWriteConfig | Mapping[str, Any] | None = None,
        *,
        durable: bool = False,
    ) -> None:
        whole = isinstance(capacity, int | np.integer) and not isinstance(capacity, bool)
        if not whole or not 0 < capacity <= _MOST_SAMPLES:
            raise ArgumentError(
                f"capacity={capacity!r}, expected a positive integer of samples, at most "
                f"{_MOST_SAMPLES}"
            )
        self._store, self._capacity, self._mutex = store, int(capacity), ForkSafeLock()
        self._config = ZarrWriteConfig.of(config)
        self._root, self._durable = Root.of(store), durable
        check_durable(self._root, durable=durable)
        self._appender: StoreWriter | None = None
        self._view: StoreView | None = None
        self._closed = False
        self._removed: frozenset[str] = frozenset()  # fields of what was drained or removed
        view = self._reader()
        if view is not None:
            view.schema.with_units(self._config.units)  # refuses what the first write would
        if len(self) > capacity:
            raise ArgumentError(
                f"{self._root} has {len(self)} samples, more than capacity={capacity}: open it "
                "with a larger capacity"
            )

    @property
    def store(self) -> StoreLike:
        """The store as it was given."""
        return self._store

    @property
    def capacity(self) -> int:
        """Most samples that the sink may hold."""
        return self._capacity

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another sample."""
        return len(self) >= self._capacity

    @property
    def global_rank(self) -> int:
        """Rank among all processes: of torch.distributed, else of torchrun, else 0."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank()
        return int(os.environ.get("RANK", "0"))

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this machine, as torchrun gives it, else 0."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    @synchronized
    def write(self, batch: Any, mask: npt.ArrayLike | torch.Tensor | None = None) -> None:
        """Append the systems of a batch for which the mask is True, in order.

        Parameters
        ----------
        batch
            What `zarrpipe.adapters.as_batch` takes: a `Batch` or `AtomicData` on any device, a
            list of them, or the batches of other libraries (nvalchemi, PyG, torch-sim, ASE).
        mask : torch.Tensor [B] bool, optional
            Which systems to write; all by default. It may be on any device, or be an array or a
            list of bools.

        Raises
        ------
        RuntimeError
            If there is not room for all of them (StoreFullError), another writer has the store
            (StoreLockedError), or the sink was closed (StoreClosedError); nothing was written.
        ValueError
            If the mask has another length or dtype, a new field has a name that conditions on
            samples read otherwise (FieldError), or a field does not fit what the store has fixed
            (SchemaError); nothing was written. A field that this sink has drained is not new.
        TypeError
            If the batch is of no known kind (ArgumentTypeError).
        """
        self._check_open()
        chosen = as_batch(batch)
        if mask is not None:
            chosen = _masked(chosen, mask)
        if chosen.num_graphs == 0:
            return
        check_new_names(chosen.fields, self._stored_fields)
        stored = len(self)
        if stored + chosen.num_graphs > self._capacity:
            raise StoreFullError(
                f"the sink is full: {stored} of {self._capacity} samples are stored and "
                f"{chosen.num_graphs} more were given, none of which was written; drain it or "
                "give it a larger capacity"
            )
        self._writer().append(chosen)

    @synchronized
    def read(self) -> Batch:
        """Every sample, in the order of writing, on the CPU.

        Raises
        ------
        StoreEmptyError
            If there is none.
        StoreNotFoundError
            If the store was removed.
        """
        count = len(self)
        view = self._reader()
        if count and view is None:
            raise StoreNotFoundError(
                f"there is no Zarr store at {self._root} any more: it was removed while this sink "
                f"had it open, and the {count} samples in it are gone"
            )
        if count == 0 or view is None:
            raise StoreEmptyError(f"the sink is empty: nothing was written to {self._root}")
        view.refresh()
        return view.gather(np.arange(view.num_samples))

    @synchronized
    def drain(self) -> Batch:
        """Every sample, after which the sink is empty.

        If it raises, every sample is still stored. Where the samples are gone and only their
        files could not be cleared away, they are returned and the next writer clears the rest.

        Raises
        ------
        StoreEmptyError
            If there is none.
        """
        self._check_open()
        if len(self):
            self._writer()
        batch = self.read()
        try:
            self.zero()
        except Exception:
            if self._holds_samples():
                raise
        except BaseException:  # an interrupt has to go on, so what it cut off is put back
            if not self._holds_samples():
                self._writer().append(batch)
            raise
        return batch

    def _holds_samples(self) -> bool:
        """Whether a fresh look finds samples, and not a store that is empty, torn or gone."""
        try:
            return len(self) > 0
        except (OSError, StoreFormatError):
            return False

    @synchronized
    def zero(self) -> None:
        """Remove every sample and what zarrpipe made for them, and nothing else."""
        self._check_open()
        if self._appender is not None or self._root.open_group() is not None:
            writer = self._writer()
            self._removed |= frozenset(writer.schema)
            try:
                writer.zero()
            except BaseException:
                self._view = None  # it may have seen what was half cleared
                raise

    @synchronized
    def flush(self) -> None:
        """Make array shapes exact and write the number of samples, for plain Zarr tools.

        What was written is readable without it.
        """
        self._check_open()
        if self._appender is not None and not self._appender.closed:
            self._appender.flush()

    def check(self) -> Report:
        """Look the store through for damage; see `zarrpipe.check`."""
        return check(self._store)

    @synchronized
    def close(self) -> None:
        """Do what `flush` does and let other writers in; reading still works after it."""
        self._closed = True
        if self._appender is not None:
            self._appender.close()
            self._appender = None

    @synchronized
    def __len__(self) -> int:
        if self._appender is not None and not self._appender.closed:
            return self._appender.num_samples
        view = self._reader()
        if view is None:
            return 0
        view.refresh()
        return view.num_samples

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(
            f"the sink of {self._root} can be neither pickled nor copied: it is the one writer of "
            "its store and stays in its process; hand the store's path over and open a sink, or a "
            "ZarrDataset for reading, there"
        )

    def __repr__(self) -> str:
        return f"ZarrData({str(self._root)!r}, {len(self)} of {self._capacity} samples)"

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"the sink of {self._root} was closed: open a new one")

    def _writer(self) -> StoreWriter:
        if self._appender is None or self._appender.closed:
            self._appender = StoreWriter(
                self._root, self._config, self._capacity, durable=self._durable
            )
        return self._appender

    def _stored_fields(self) -> Collection[str]:
        """Names of the fields that the store has, or had before this sink emptied it."""
        if self._appender is not None and not self._appender.closed:
            return self._removed.union(self._appender.schema)
        view = self._reader()
        if view is None:
            return self._removed
        view.refresh()
        return self._removed.union(view.schema)

    def _reader(self) -> StoreView | None:
        """View of the store; None while there is no store."""
        if self._view is None:
            try:
                self._view = StoreView(self._root.path)
            except StoreNotFoundError:
                return None
        return self._view


def _masked(batch: Batch, mask: Any) -> Batch:
    """Systems of a batch for which the mask is True."""
    expected = f"expected bool and ({batch.num_graphs},): one entry for each system of the batch"
    if isinstance(mask, np.ndarray):
        mask = plain_array("mask", mask)
    try:
        chosen = torch.as_tensor(mask).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise FieldError(
            f"mask of type {type(mask).__name__} holds no bools, {expected}"
        ) from error
    if chosen.dtype is not torch.bool or chosen.shape != (batch.num_graphs,):
        whole = not (
            chosen.is_floating_point() or chosen.is_complex() or chosen.dtype is torch.bool
        )
        hint = " (numbers of systems are for batch.index_select)" if whole else ""
        raise FieldError(
            f"mask has dtype {chosen.dtype} and shape {tuple(chosen.shape)}, {expected}{hint}"
        )
    if chosen.layout is not torch.strided:
        raise FieldError(f"mask is a tensor of layout {chosen.layout}: give mask.to_dense()")
    return batch if bool(chosen.all()) else batch.index_select(chosen)
