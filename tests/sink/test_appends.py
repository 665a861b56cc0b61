"""Append after append: what may change between two of them, and what memory a batch may be in."""

import os

import numpy as np
import pytest
import torch

from zarrpipe import Batch, ZarrData
from zarrpipe.errors import SchemaError
from zarrpipe.testing import assert_batches_equal, assert_plain_zarr, numbered_batch, random_batch

FIELDS = ("energy", "forces", "cell", "pbc")
SMALL = {group: {"chunk_size": 5} for group in ("meta", "core", "custom")}
KINDS = ("local", "memory")


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    return tmp_path / "store" if request.param == "local" else {}


def make(seed: int, count: int = 4, **options) -> Batch:
    options = {"atoms": (2, 6), "fields": FIELDS} | options
    return random_batch(np.random.default_rng(seed), count, **options)


def wrong_dtype(batch: Batch) -> Batch:
    return batch.to(dtype=torch.float64)


def wrong_shape(batch: Batch) -> Batch:
    return batch.add_field("tag", torch.ones(batch.num_graphs, 3), "system")


def wrong_level(batch: Batch) -> Batch:
    return batch.without("tag").add_field("tag", torch.ones(batch.num_nodes, 2), "atom")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_dtype, "float64, the store has float32"),
        (wrong_shape, r"rows of shape \(3,\), the store has \(2,\)"),
        (wrong_level, "level 'atom', the store has it at 'system'"),
    ],
)
def test_a_batch_of_another_make_is_checked(store, change, message):
    """However many that fit came before it."""
    batches = [
        make(seed).add_field("tag", torch.full((4, 2), float(seed)), "system") for seed in range(4)
    ]
    with ZarrData(store, config=SMALL) as sink:
        for batch in batches[:3]:
            sink.write(batch)
        with pytest.raises(SchemaError, match=message):
            sink.write(change(make(9).add_field("tag", torch.ones(4, 2), "system")))
        sink.write(batches[3])
        assert_batches_equal(sink.read(), Batch.concatenate(batches))


def test_fields_that_come_and_go(store):
    """New ones, lacking ones and ones that are absent here and there, in any order."""
    rng = np.random.default_rng(0)
    plain = [make(seed) for seed in range(10)]
    batches = [
        plain[0],
        plain[1],
        plain[2].without("energy"),
        plain[3],
        make(20, 12, absent=0.4),
        plain[4].add_field("stress", torch.from_numpy(rng.normal(size=(4, 3, 3)))),
        plain[5],
        plain[6].without("cell", "pbc"),
        plain[7].add_field("tag", torch.arange(plain[7].num_nodes), "atom"),
        plain[8],
        make(21, 12, absent=0.4),
        plain[9],
    ]
    with ZarrData(store, config=SMALL) as sink:
        for batch in batches:
            sink.write(batch)
        assert_batches_equal(sink.read(), Batch.concatenate(batches))
    assert_plain_zarr(store, Batch.concatenate(batches), exact=True)


def test_a_make_is_forgotten_when_the_store_is_emptied(store):
    with ZarrData(store, config=SMALL) as sink:
        sink.write(make(0))
        sink.zero()
        sink.write(make(1))
        sink.drain()
        sink.write(make(2, fields=("energy",)))
        assert_batches_equal(sink.read(), make(2, fields=("energy",)))


def strided(value: torch.Tensor) -> torch.Tensor:
    """Every second row and the other way round in memory."""
    apart = torch.stack([value, value.roll(1, 0)], 1).flatten(0, 1)
    return apart.flip(-1).flip(-1)[::2]


def turned(value: torch.Tensor) -> torch.Tensor:
    """Columns that follow each other in memory."""
    return value.T.contiguous().T if value.ndim == 2 else value


def with_gradient(value: torch.Tensor) -> torch.Tensor:
    return value.clone().requires_grad_() * 1 if value.is_floating_point() else value


def offset(value: torch.Tensor) -> torch.Tensor:
    """A view into the middle of a larger tensor."""
    return torch.cat([value[:1], value, value[:1]])[1:-1]


@pytest.mark.parametrize("change", [strided, turned, with_gradient, offset])
def test_memory_of_any_kind(store, change):
    """What is written is what the tensors say, whatever lies between their rows."""
    plain = [make(seed) for seed in range(3)]
    with ZarrData(store, config=SMALL) as sink:
        for batch in plain:
            fields = {name: change(value) for name, value in batch.fields.items()}
            sink.write(batch)
            sink.write(Batch(fields, batch.batch_ptr, batch.edge_ptr))
        expected = Batch.concatenate([batch for batch in plain for _ in range(2)])
        assert_batches_equal(sink.read(), expected)


def test_rows_that_share_their_memory(store):
    """One cell expanded to all systems."""
    batch = make(0)
    one = torch.arange(9.0).reshape(1, 3, 3)
    fields = {**batch.fields, "cell": one.expand(4, 3, 3)}
    with ZarrData(store, config=SMALL) as sink:
        sink.write(Batch(fields, batch.batch_ptr))
        assert sink.read().cell.tolist() == one.tolist() * 4


def test_a_safe_cast(store):
    """The store keeps the dtype of its first write, and what is narrower is cast to it."""
    wide, narrow = make(0).to(dtype=torch.float64), make(1)
    with ZarrData(store, config=SMALL) as sink:
        for batch in (wide, narrow, narrow, wide):
            sink.write(batch)
        narrow = narrow.to(dtype=torch.float64)
        assert_batches_equal(sink.read(), Batch.concatenate([wide, narrow, narrow, wide]))


def test_an_append_over_many_chunks(store):
    """And of a single sample after it, on the last chunk."""
    parts = [numbered_batch(range(3)), numbered_batch(range(3, 70)), numbered_batch([70])]
    with ZarrData(store, config=SMALL) as sink:
        for part in parts:
            sink.write(part)
        assert_batches_equal(sink.read(), numbered_batch(range(71)))
    assert_plain_zarr(store, numbered_batch(range(71)), exact=True)


def test_a_system_that_takes_a_part_of_each_write(tmp_path, monkeypatch):
    """As it may on a signal or on a disk that is nearly full."""
    original, asked = os.pwrite, []

    def pwrite(descriptor, data, offset):
        asked.append(len(memoryview(data).cast("B")))
        return original(descriptor, memoryview(data).cast("B")[:13], offset)

    monkeypatch.setattr("zarrpipe.store.write.plain_array_writer.os.pwrite", pwrite)
    with ZarrData(tmp_path / "store", config=SMALL) as sink:
        sink.write(numbered_batch(range(8)))
        assert max(asked) > 13
        assert_batches_equal(sink.read(), numbered_batch(range(8)))
