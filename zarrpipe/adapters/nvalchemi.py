"""nvalchemi: its `Batch` and `AtomicData`, whose names and shapes are ours too."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from zarrpipe.adapters.assemble import assemble, require, without_presence
from zarrpipe.compat import nvalchemi_levels
from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import CORE_FIELDS, INDEX_FIELDS, SEGMENTED, Level
from zarrpipe.errors import FieldError, StoreEmptyError

if TYPE_CHECKING:
    from nvalchemi.data import AtomicData as NvalchemiData
    from nvalchemi.data import Batch as NvalchemiBatch
    from nvalchemi.data import Dataset
    from nvalchemi.data.datapipes.backends.base import Reader

_LEVELS = {"node": Level.ATOM, "edge": Level.EDGE, "system": Level.SYSTEM}
_GROUPS = {"atoms": Level.ATOM, "edges": Level.EDGE, "system": Level.SYSTEM}
_KEYS = {"node": "atoms", "edge": "edges", "system": "system"}
_EPHEMERAL = frozenset({"neighbor_matrix", "neighbor_matrix_shifts", "num_neighbors"})


def from_nvalchemi(data: "NvalchemiBatch | NvalchemiData") -> Batch:
    """Batch of an nvalchemi ``Batch`` or ``AtomicData``, with fields of the user's own.

    The dense neighbour matrix, which is rebuilt at every step with a width of its own, and the
    ``info`` dictionary are left out.

    Raises
    ------
    FieldError
        If a field of a batch is at a level of the user's own, as nvalchemi 0.3 has them.
    """
    if not hasattr(data, "num_nodes_list"):
        return _from_system(data)
    atoms = torch.tensor(data.num_nodes_list, device=data.device)
    edges = torch.tensor(data.num_edges_list or [0] * len(atoms), device=data.device)
    rows = {Level.ATOM: int(atoms.sum()), Level.EDGE: int(edges.sum()), Level.SYSTEM: len(atoms)}
    declared = nvalchemi_levels(data)
    fields: dict[str, tuple[Level, torch.Tensor]] = {}
    for name, value in data.to_dict().items():
        level = _level(name, value, declared, rows)
        if level is not None:
            fields[name] = (level, value[: rows[level]])
    return assemble(fields, atoms, edges)


def _level(name: str, value: Any, declared: dict[str, str], rows: dict[Level, int]) -> Level | None:
    """Level of a tensor of a batch; None for one that is not stored."""
    if not isinstance(value, torch.Tensor) or value.ndim == 0 or name in _EPHEMERAL:
        return None
    if name in declared and declared[name] not in _LEVELS:
        raise FieldError(
            f"field {name!r} is at the level {declared[name]!r}, and only fields of nodes, edges "
            f"and systems are stored: remove it with batch.drop_level({declared[name]!r})"
        )
    if name in CORE_FIELDS:
        return CORE_FIELDS[name].level
    if name in declared:
        return _LEVELS[declared[name]]
    fitting = [level for level, count in rows.items() if value.shape[0] == count]
    return fitting[0] if fitting else Level.SYSTEM


def _from_system(data: "NvalchemiData") -> Batch:
    groups = (
        (Level.ATOM, data.node_properties),
        (Level.EDGE, data.edge_properties),
        (Level.SYSTEM, data.system_properties),
    )
    fields = {
        name: (CORE_FIELDS[name].level if name in CORE_FIELDS else level, value)
        for level, properties in groups
        for name, value in properties.items()
        if isinstance(value, torch.Tensor) and name not in _EPHEMERAL
    }
    where = data.positions.device
    atoms = torch.tensor([data.num_nodes], device=where)
    return assemble(fields, atoms, torch.tensor([data.num_edges], device=where))


def to_nvalchemi(batch: Batch) -> "NvalchemiBatch":
    """The batch as an nvalchemi ``Batch``, with every field of ours.

    nvalchemi casts floats to the dtype of the positions and adds masses, categories and zero
    velocities where they are missing. A field that some system lacks keeps its fill values.
    """
    library = require("nvalchemi.data", "nvalchemi")
    return library.Batch.from_data_list(
        [
            _to_system(one.fields, one.levels, library)
            for one in without_presence(batch).to_data_list()
        ]
    )


def _to_system(fields: Any, levels: Any, library: Any) -> Any:
    dtype = fields["positions"].dtype
    cast = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in fields.items()
    }
    own = [name for name in cast if name not in CORE_FIELDS]
    data = library.AtomicData(**{name: cast[name] for name in cast if name not in own})
    add = {
        Level.ATOM: data.add_node_property,
        Level.EDGE: data.add_edge_property,
        Level.SYSTEM: data.add_system_property,
    }
    for name in own:
        add[levels[name]](name, cast[name])
    return data


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
            return {name: str(item.level.value) for name, item in dataset.schema.items()}

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
                    _whole_batch(dataset.read(np.asarray(indices, dtype=np.int64)), self)
                    for indices in batch_index_lists
                ]
            if stream is not None:
                stream.synchronize()
            return batches

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


def _sample_dicts(batch: Batch) -> list[dict[str, torch.Tensor]]:
    """Tensors of each system, with neighbours that count from it."""
    sizes = {level: batch.row_pointers(level).diff().tolist() for level in SEGMENTED}
    columns = []
    for name, values in batch.fields.items():
        level, target = batch.levels[name], INDEX_FIELDS.get(name)
        if target is not None:
            starts = batch.row_pointers(target)[:-1]
            counts = batch.row_pointers(level).diff()
            values = values - starts.repeat_interleave(counts)[:, None]  # noqa: PLW2901
        columns.append(torch.split(values, sizes.get(level, 1)))
    return [dict(zip(batch.fields, row, strict=True)) for row in zip(*columns, strict=True)]


def _whole_batch(batch: Batch, dataset: Any) -> Any:
    """The batch as one of nvalchemi, on the device of its dataset, without copies of systems."""
    library = require("nvalchemi.data", "nvalchemi")
    storage = require("nvalchemi.data.level_storage", "nvalchemi")
    batch = batch.to(dataset.target_device)
    schema, groups = storage.LevelSchema(), {}
    for group, level in _GROUPS.items():
        data = {name: value for name, value in batch.fields.items() if batch.levels[name] is level}
        for name in data.keys() - CORE_FIELDS.keys():
            schema.set(name, group, is_segmented=level in SEGMENTED)
        options: dict[str, Any] = {"device": batch.device, "attr_map": schema, "validate": False}
        if data and level in SEGMENTED:
            lengths = batch.row_pointers(level).diff()
            groups[group] = storage.SegmentedLevelStorage(data, segment_lengths=lengths, **options)
        elif data:
            groups[group] = storage.UniformLevelStorage(data, **options)
    keys = {name: {*groups.get(group, ())} for name, group in _KEYS.items()}
    stored = storage.MultiLevelStorage(groups=groups, attr_map=schema, validate=False)
    return library.Batch(device=batch.device, storage=stored, keys=keys)
