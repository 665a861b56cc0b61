"""nvalchemi's `Reader`, `Dataset` and `DataSink` over stores of zarrpipe.

Their classes are made in functions, where nvalchemi is imported.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError, StoreEmptyError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from nvalchemi.data import Dataset
    from nvalchemi.data.datapipes.backends.base import Reader
    from nvalchemi.dynamics.sinks import DataSink

_GROUPS = {"atoms": Level.ATOM, "edges": Level.EDGE, "system": Level.SYSTEM}
_KEYS = {"node": "atoms", "edge": "edges", "system": "system"}


class GatheredSamples(Protocol):
    """What gives batches of samples by index: a `ZarrDataset`."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """Fields by name, each with its level."""
        ...

    def read(self, index: Any) -> Batch:
        """Batch of the samples at integers [K]."""
        ...

    def refresh(self) -> int:
        """Look for new samples."""
        ...

    def __len__(self) -> int: ...


def nvalchemi_reader(dataset: GatheredSamples, *, pin_memory: bool = False) -> "Reader":
    """A ``Reader`` of nvalchemi that reads a `ZarrDataset` by its gather.

    It goes where nvalchemi takes one of its own readers: into its ``Dataset``, ``InMemoryDataset``
    and ``MultiDataset``. Its ``DataLoader`` is faster with `nvalchemi_dataset`.

    Parameters
    ----------
    dataset : ZarrDataset
        Samples of one or several stores; its fields, condition and transform apply.
    pin_memory : bool
        Whether tensors are page-locked.

    Returns
    -------
    nvalchemi.data.datapipes.backends.base.Reader
        Its samples are dicts of tensors, ``[n, ...]``, ``[e, ...]`` and ``[1, ...]`` by level,
        with neighbours that count from the sample. A field that a sample lacks is NaN or 0.

    Raises
    ------
    MissingLibraryError
        If nvalchemi is not installed.
    """
    base: Any = require("nvalchemi.data.datapipes.backends.base", "nvalchemi").Reader

    class ZarrPipeReader(base):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(dataset)

        @property
        def field_levels(self) -> dict[str, str]:
            return {name: str(item.level) for name, item in dataset.schema.items()}

        def _load_many_samples(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
            return _sample_dicts(dataset.read(np.asarray(indices, dtype=np.int64)))

        def get_metadata(self, index: int) -> tuple[int, int]:
            batch = dataset.read(np.array([index]))
            return batch.num_nodes, batch.num_edges

        def refresh(self) -> None:
            if dataset.refresh():
                self._metadata_revision += 1

    return ZarrPipeReader(pin_memory=pin_memory)


def nvalchemi_dataset(
    dataset: GatheredSamples, *, device: "str | torch.device | None" = None
) -> "Dataset":
    """A ``Dataset`` of nvalchemi whose batches are gathered whole, for its ``DataLoader``.

    nvalchemi makes a batch out of one object for each sample; here one gather makes its tensors.

    Parameters
    ----------
    dataset : ZarrDataset
        Samples of one or several stores. Its `transform` takes the place of nvalchemi's.
    device : str or torch.device, optional
        Device of the batches; by default a GPU if there is one.

    Returns
    -------
    nvalchemi.data.Dataset
        With ``load_batches`` and the calls with which a ``DataLoader`` prefetches. All else is
        that of nvalchemi over `nvalchemi_reader`.

    Raises
    ------
    MissingLibraryError
        If nvalchemi is not installed.

    Examples
    --------
    >>> from nvalchemi.data import DataLoader  # doctest: +SKIP
    >>> samples = zarrpipe.ZarrDataset("run.zarr")  # doctest: +SKIP
    >>> loader = DataLoader(nvalchemi_dataset(samples), batch_size=64)  # doctest: +SKIP
    """
    base: Any = require("nvalchemi.data", "nvalchemi").Dataset

    class ZarrPipeDataset(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(nvalchemi_reader(dataset), device=device, skip_validation=True)
            self._gathers = ThreadPoolExecutor(1, thread_name_prefix="zarrpipe-gather")
            self._pending: deque[Future[list[Any]]] = deque()

        def load_batches(
            self,
            batch_index_lists: Sequence[Sequence[int]],
            stream: "torch.cuda.Stream | None" = None,
        ) -> list[Any]:
            with torch.cuda.stream(stream):  # nothing without one
                batches = [
                    _whole_batch(self._read(indices), self.target_device)
                    for indices in batch_index_lists
                ]
            if stream is not None:
                stream.synchronize()
            return batches

        def _read(self, indices: Sequence[int]) -> Batch:
            return dataset.read(np.asarray(indices, dtype=np.int64))

        def prefetch_fused_batches(
            self,
            batch_index_lists: Sequence[Sequence[int]],
            stream: "torch.cuda.Stream | None" = None,
        ) -> None:
            lists = [list(indices) for indices in batch_index_lists]
            self._pending.append(self._gathers.submit(self.load_batches, lists, stream))

        def has_pending_fused_batches(self) -> bool:
            return bool(self._pending)

        def get_fused_batches(self) -> Iterator[Any]:
            if not self._pending:
                raise StoreEmptyError("no batches were asked for: call prefetch_fused_batches")
            yield from self._pending.popleft().result()

        def cancel_prefetch(self, index: int | None = None) -> None:
            super().cancel_prefetch(index)
            if index is None:
                self._pending.clear()

        @property
        def prefetch_count(self) -> int:
            return int(super().prefetch_count) + len(self._pending)

        def close(self) -> None:
            self._gathers.shutdown(cancel_futures=True)
            super().close()

    return ZarrPipeDataset()


class Sink(Protocol):
    """What stores batches: a `ZarrData`."""

    @property
    def capacity(self) -> int:
        """Most samples that it may hold."""
        ...

    def write(self, batch: Any, mask: Any = None) -> None:
        """Append systems."""
        ...

    def read(self) -> Batch:
        """Every sample."""
        ...

    def drain(self) -> Batch:
        """Every sample, after which the sink is empty."""
        ...

    def zero(self) -> None:
        """Remove every sample."""
        ...

    def resize(self, capacity: int) -> None:
        """Make room for more samples."""
        ...

    def __len__(self) -> int: ...


def nvalchemi_sink(sink: Sink) -> "DataSink":
    """A ``DataSink`` of nvalchemi that writes into a `ZarrData` and reads nvalchemi's batches back.

    Hooks take a `ZarrData` as it is, since they only write. This one is for where nvalchemi asks
    for its class or reads back: ``sinks=`` of its dynamics, and the capture sink of distillation.

    Parameters
    ----------
    sink : ZarrData
        It is to be closed by whoever opened it.

    Returns
    -------
    nvalchemi.dynamics.sinks.DataSink
        It can be resized. ``read`` and ``drain`` give nvalchemi's ``Batch`` on the CPU.

    Raises
    ------
    MissingLibraryError
        If nvalchemi is not installed.
    """
    base: Any = require("nvalchemi.dynamics.sinks", "nvalchemi").DataSink

    class ZarrPipeSink(base):  # type: ignore[misc]
        def write(self, batch: Any, mask: torch.Tensor | None = None) -> None:
            if batch.num_graphs:
                sink.write(batch, mask)

        def read(self) -> Any:
            return _whole_batch(sink.read(), torch.device("cpu"))

        def drain(self) -> Any:
            return _whole_batch(sink.drain(), torch.device("cpu"))

        def zero(self) -> None:
            sink.zero()

        @property
        def capacity(self) -> int:
            return sink.capacity

        def resize(self, capacity: int) -> None:
            sink.resize(capacity)

        def __len__(self) -> int:
            return len(sink)

    return ZarrPipeSink()


def _sample_dicts(batch: Batch) -> list[dict[str, torch.Tensor]]:
    """Tensors of each system, with neighbours that count from it."""
    _check_levels(batch)
    sizes = {level: batch.level_ptr(level).diff().tolist() for level in batch.pointer_levels}
    columns = []
    for name, values in batch.fields.items():
        level, target = batch.levels[name], batch.roles[name].index_of
        if target is not None:
            starts, counts = batch.level_ptr(target)[:-1], batch.level_ptr(level).diff()
            values = values - starts.repeat_interleave(counts)[:, None]  # noqa: PLW2901
        columns.append(torch.split(values, sizes.get(level, 1)))
    return [dict(zip(batch.fields, row, strict=True)) for row in zip(*columns, strict=True)]


def _check_levels(batch: Batch) -> None:
    """Refuse levels of the user's own, which are handed over system by system alone."""
    own = sorted({str(level) for level in batch.levels.values() if not level.built_in})
    if own:
        raise FieldError(
            f"the samples have fields at the levels {own}: leave them out with the fields= of "
            "ZarrDataset, or convert batches with zarrpipe.adapters.to_nvalchemi"
        )


def _whole_batch(batch: Batch, device: torch.device) -> Any:
    """The batch as one of nvalchemi on a device, without an object for each system."""
    library = require("nvalchemi.data", "nvalchemi")
    storage = require("nvalchemi.data.level_storage", "nvalchemi")
    _check_levels(batch)
    batch = batch.to(device)
    schema, groups = storage.LevelSchema(), {}
    for group, level in _GROUPS.items():
        data = {name: value for name, value in batch.fields.items() if batch.levels[name] is level}
        for name in data.keys() - CORE_FIELDS.keys():
            schema.set(name, group, is_segmented=level.has_pointers)
        options: dict[str, Any] = {"device": batch.device, "attr_map": schema, "validate": False}
        if data and level.has_pointers:
            lengths = batch.level_ptr(level).diff()
            groups[group] = storage.SegmentedLevelStorage(data, segment_lengths=lengths, **options)
        elif data:
            groups[group] = storage.UniformLevelStorage(data, **options)
    keys = {name: {*groups.get(group, ())} for name, group in _KEYS.items()}
    stored = storage.MultiLevelStorage(groups=groups, attr_map=schema, validate=False)
    return library.Batch(device=batch.device, storage=stored, keys=keys)
