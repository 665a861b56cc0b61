"""Whatever is written, in whatever portions, reads back as its concatenation."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from zarrpipe import Batch, ZarrData
from zarrpipe.data.fields import FieldSpec, Kind
from zarrpipe.data.levels import Level
from zarrpipe.store.format import layout
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import assert_batches_equal, assert_plain_zarr, random_batch

OWN = (
    FieldSpec("tag", Level.SYSTEM, Kind.INTEGER),
    FieldSpec("flags", Level.ATOM, Kind.BOOL, (2,)),
    FieldSpec("weights", Level.EDGE, shape=(3, 2)),
)
FIELDS = ("energy", "forces", "cell", "pbc", "stress", "charges", "shifts", *OWN)
ZSTD = (zarr.codecs.ZstdCodec(level=1),)
GROUPS = ("meta", "core", "custom")
KINDS = {
    "mapped": {},
    "small": {group: {"chunk_size": 16} for group in GROUPS},
    "compressed": {group: {"chunk_size": 32, "compressors": ZSTD} for group in GROUPS},
    "sharded": {group: {"chunk_size": 32, "shard_size": 128} for group in GROUPS},
    "mixed": {"core": {"compressors": ZSTD, "chunk_size": 100}, "meta": {"chunk_size": 512}},
}


@dataclass(frozen=True)
class Step:
    seed: int
    size: int
    lacking: frozenset[str]
    absent: float
    masked: bool
    reopen: bool
    clear: bool


@dataclass(frozen=True)
class History:
    kind: str
    memory: bool
    dtype: torch.dtype
    atoms: tuple[int, int]
    steps: list[Step]


@st.composite
def histories(draw):
    """Few large systems or many small ones, so that borders of atom and pointer chunks are met."""
    kind = draw(st.sampled_from([*KINDS]))
    many = kind != "small" and draw(st.booleans())
    largest = 12 if kind == "small" else (300 if many else 8)
    atoms = (1, 6) if kind == "small" else ((1, 3) if many else (40, 160))
    names = [item if isinstance(item, str) else item.name for item in FIELDS]
    step = st.builds(
        Step,
        seed=st.integers(0, 2**32),
        size=st.integers(0, largest),
        lacking=st.frozensets(st.sampled_from(names), max_size=len(names)),
        absent=st.sampled_from([0.0, 0.0, 0.5]),
        masked=st.booleans(),
        reopen=st.booleans(),
        clear=st.integers(0, 11).map(lambda n: n == 11),
    )
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16]))
    memory = draw(st.booleans())
    return History(kind, memory, dtype, atoms, draw(st.lists(step, min_size=1, max_size=5)))


def masked_batch(history: History, step: Step) -> tuple[Batch, torch.Tensor | None]:
    rng = np.random.default_rng(step.seed)
    edges = None if {"shifts", "weights"} <= step.lacking else (0, 5)
    fields = [
        item
        for item in FIELDS
        if (item if isinstance(item, str) else item.name) not in step.lacking
        and (edges or item != "shifts")
    ]
    batch = random_batch(
        rng,
        step.size,
        atoms=history.atoms,
        edges=edges,
        fields=fields,
        dtype=history.dtype,
        absent=step.absent,
    )
    return batch, torch.from_numpy(rng.random(step.size) < 0.6) if step.masked else None


def check(store: object, expected: list[Batch], rng: np.random.Generator, *, exact: bool) -> None:
    whole = Batch.concatenate(expected)
    view = StoreView(store)
    assert view.num_samples == whole.num_graphs
    index = rng.integers(0, whole.num_graphs, min(whole.num_graphs, 40))
    assert_batches_equal(view.gather(index), whole.index_select(torch.from_numpy(index)))
    assert_plain_zarr(store, whole, exact=exact)


@settings(max_examples=8)
@given(histories())
def test_any_history_reads_back(history):
    rng = np.random.default_rng(0)
    with ExitStack() as stack:
        if history.kind == "mapped":  # chunks of one page each, so that tests cross them
            stack.enter_context(patch.object(layout, "_LEAST_ROWS", 1))
            stack.enter_context(patch.object(layout, "_LARGEST_PAGE", 4096))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store = MemoryStore() if history.memory else Path(folder) / "store"

        def open_sink() -> ZarrData:
            return ZarrData(store, 2000, config=KINDS[history.kind])

        sink, expected = open_sink(), []
        for step in history.steps:
            batch, mask = masked_batch(history, step)
            sink.write(batch, mask=mask)
            written = batch if mask is None else batch.index_select(mask)
            expected += [written] if written.num_graphs else []
            assert len(sink) == sum(part.num_graphs for part in expected)
            if expected and step.clear:
                assert_batches_equal(sink.drain(), Batch.concatenate(expected))
                expected = []
            if expected and step.seed % 2:
                check(store, expected, rng, exact=False)
            if step.reopen:
                sink.close()
                sink = open_sink()
        if expected:
            assert_batches_equal(sink.read(), Batch.concatenate(expected))
            check(store, expected, rng, exact=False)
            sink.close()
            check(store, expected, rng, exact=True)
        sink.close()


@pytest.mark.parametrize("kind", ["mapped", "small"])
def test_splits_do_not_matter(tmp_path, monkeypatch, kind):
    """One write and many leave the same bytes in every array, but for the rounding of sums."""
    monkeypatch.setattr(layout, "_LEAST_ROWS", 1)
    monkeypatch.setattr(layout, "_LARGEST_PAGE", 4096)
    rng = np.random.default_rng(3)
    size = 700 if kind == "mapped" else 60
    whole = random_batch(rng, size, edges=(0, 4), fields=FIELDS)
    cuts = np.sort(rng.choice(np.arange(1, size), 6, replace=False))
    stores = [tmp_path / "one", tmp_path / "many"]
    for store, parts in zip(stores, ([], cuts), strict=True):
        with ZarrData(store, 2000, config=KINDS[kind]) as sink:
            for piece in np.split(np.arange(size), parts):
                sink.write(whole.index_select(torch.from_numpy(piece)))
    groups = [zarr.open_group(store, mode="r") for store in stores]
    names = [name for name, item in groups[0].members(max_depth=None) if hasattr(item, "chunks")]
    assert len(names) == 7 + len(whole.fields)
    names.remove("meta/sums")
    for name in names:
        one, many = (group[name][:] for group in groups)
        np.testing.assert_array_equal(one, many, err_msg=name)
