"""Readers that go on and on beside a writer, each in one of the ways in which a store is read."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from reliability.report import Findings
from reliability.truth import samples, wrong_values
from zarrpipe import (
    AtomicDataZarrReader,
    GraphBatchSampler,
    ZarrDataset,
    collate,
)
from zarrpipe.errors import ZarrPipeError
from zarrpipe.store.format.commit_log import committed_samples
from zarrpipe.store.read.view import StoreView
from zarrpipe.training.loader import GraphLoader

_BATCH = 64
_PROMISED = {
    "StoreFormatError": ("rewritten", "emptied", "was cut", "kept changing"),
    "StoreNotFoundError": ("",),
    "SampleIndexError": ("",),
    "StoreEmptyError": ("",),
}
"""Errors that a reader beside a writer that empties and rewrites may meet, and what they say."""


def read() -> None:
    """Read a store until the time is over, in the way that the number of this reader says."""
    place, _, seed, seconds, number = json.loads(sys.argv[1])
    store, end = Path(place), time.monotonic() + seconds
    while not (store / "zarr.json").exists() and time.monotonic() < end:
        time.sleep(0.01)
    kinds = sorted(WAYS)
    reader = Reader(
        store, np.random.default_rng([seed, number]), kinds[(number + seed) % len(kinds)]
    )
    while time.monotonic() < end:
        reader.go_on()
    print(reader.found.as_json())


class Reader:
    """Reads a store over and over.

    Parameters
    ----------
    store
        The store.
    rng
        Draws what is read.
    way
        How it is read, a name of `WAYS`.
    """

    def __init__(self, store: Path, rng: np.random.Generator, way: str) -> None:
        self.store, self.rng, self.way = store, rng, way
        self.found = Findings()
        self._open: Any = None
        self._failed = 0

    def go_on(self) -> None:
        """Open, refresh or read; compare what is given, and count what is raised."""
        try:
            if self._open is None:
                self._open = OPENERS[self.way](self.store)
                self.found.done[f"{self.way}: opened"] += 1
            wrong, count = WAYS[self.way](self._open, self.rng)
        except ZarrPipeError as error:
            self._met(error)
            return
        except Exception as error:  # noqa: BLE001  it is told
            self.found.add("unclear", f"{self.way}: {type(error).__name__}: {error}")
            self._open = None
            return
        self._failed = 0
        self.found.done[f"{self.way}: samples compared"] += count
        if wrong:
            self.found.add("torn", f"{self.way}: {wrong}")

    def _met(self, error: ZarrPipeError) -> None:
        """Count an error that is promised, after which a refresh or a new reader has to do."""
        name = type(error).__name__
        if not any(part in str(error) for part in _PROMISED.get(name, ())):
            self.found.add("unclear", f"{self.way}: {name}: {error}")
        self.found.done[f"{self.way}: {name}"] += 1
        self._failed += 1
        if self._failed % 2 == 0:  # a refresh did not do: open it again
            self._open = None
            time.sleep(0.01)
        if self._failed == 400:
            self.found.add("stuck", f"{self.way}: nothing but errors, the last {name}: {error}")


Read = tuple[str | None, int]
"""What was wrong, and how many samples were compared."""


def _index(rng: np.random.Generator, count: int) -> Any:
    """Samples at random and the last ones; in order and all of them now and then."""
    if rng.random() < 0.1:
        return np.arange(count)
    last = np.arange(max(0, count - 8), count)
    return np.concatenate([last, rng.integers(0, count, _BATCH)]) if count else last


def _view(view: StoreView, rng: np.random.Generator) -> Read:
    if rng.random() < 0.7:
        view.refresh()
    index = _index(rng, view.num_samples)
    if not len(index):
        return None, 0
    batch = view.gather(index)
    return wrong_values(batch), batch.num_graphs


def _dataset(dataset: ZarrDataset, rng: np.random.Generator) -> Read:
    if rng.random() < 0.7:
        dataset.refresh()
    index = _index(rng, len(dataset))
    if not len(index):
        return None, 0
    batch = collate(dataset.__getitems__(index.tolist()))
    return wrong_values(batch), batch.num_graphs


def _loader(dataset: ZarrDataset, rng: np.random.Generator) -> Read:
    dataset.refresh()
    if not len(dataset):
        return None, 0
    seed = int(rng.integers(2**31))
    sampler = GraphBatchSampler(dataset, _BATCH, seed=seed, rank=0, world_size=1)
    count, wrong = 0, None
    for batch in GraphLoader(dataset, sampler):
        wrong, count = wrong or wrong_values(batch), count + batch.num_graphs
    return wrong, count


def _reader(reader: AtomicDataZarrReader, rng: np.random.Generator) -> Read:
    if rng.random() < 0.7:
        reader.refresh()
    index = _index(rng, len(reader))[:_BATCH]
    for fields, _ in reader.read_many(index):
        number = int(fields["serial"][0])
        expected = dict(samples([number]).fields)
        if fields.keys() != expected.keys():
            return f"sample {number} has {sorted(fields)}, expected {sorted(expected)}", 0
        for name in expected.keys() - {"kind"}:  # whose codes are those of the store
            rows = expected[name]
            if not np.array_equal(fields[name].numpy(), rows.numpy()):
                return f"{name!r} of sample {number} differs", 0
    return None, len(index)


def _plain(store: Path, _: np.random.Generator) -> Read:
    """As any Zarr tool reads: the rows behind the pointers, where the generation stayed."""
    try:
        group = zarr.open_group(store, mode="r", use_consolidated=False)
        before: Any = group.attrs["zarrpipe"]
        ends = np.asarray(group["meta/atoms_ptr"][:])  # type: ignore[index]
        count = committed_samples(ends)  # the first of new pointers is written last
        kept = np.asarray(group["meta/samples_mask"][:count])  # type: ignore[index]
        if not count:
            return None, 0
        numbers = np.asarray(group["custom/serial"][:count])  # type: ignore[index]
        forces = np.asarray(group["core/forces"][: ends[count]])  # type: ignore[index]
        after: Any = zarr.open_group(store, mode="r", use_consolidated=False).attrs["zarrpipe"]
    except (KeyError, FileNotFoundError, ValueError):
        return None, 0  # emptied or rewritten between two reads, which nothing tells a Zarr tool
    if before["generation"] != after["generation"]:
        return None, 0
    expected = samples(numbers)
    if np.diff(ends[: count + 1]).tolist() != expected.num_nodes_list:
        return "pointers differ", 0
    if not np.array_equal(forces, expected["forces"].numpy()):
        return "forces differ", 0
    return (None, int(kept.sum())) if len(kept) == count else ("a mask is short", 0)


OPENERS: dict[str, Callable[[Path], Any]] = {
    "AtomicDataZarrReader": AtomicDataZarrReader,
    "StoreView": StoreView,
    "ZarrDataset": ZarrDataset,
    "loader": ZarrDataset,
    "zarr-python": Path,
}
WAYS: dict[str, Callable[[Any, np.random.Generator], Read]] = {
    "AtomicDataZarrReader": _reader,
    "StoreView": _view,
    "ZarrDataset": _dataset,
    "loader": _loader,
    "zarr-python": _plain,
}
"""How a store is read, by name."""
