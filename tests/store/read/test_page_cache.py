"""Rows that will be read soon are brought to memory, and only those where not all fit."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.store.read import page_cache as ahead
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import assert_batches_equal, random_batch


@pytest.fixture
def batch():
    fields = ("energy", "forces")
    return random_batch(np.random.default_rng(0), 4000, atoms=(30, 60), fields=fields)


@pytest.fixture
def store(tmp_path, batch):
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(batch)
    return tmp_path / "store"


def forget(store: Path) -> None:
    """Take the files of a store out of the page cache."""
    for path in store.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def forces_of(view: StoreView) -> np.ndarray:
    return view.snapshot.rows("core/forces", view.snapshot.extent.atoms)[
        : view.snapshot.extent.atoms
    ]


def test_what_fits_is_read_through(store, batch):
    forget(store)
    view = StoreView(store)
    forces = forces_of(view)
    if ahead.cold_bytes(forces) < forces.nbytes // 2:
        pytest.skip("this file system does not forget")
    view.prefetch(np.array([3]))
    deadline = time.monotonic() + 120
    while ahead.cold_bytes(forces) > ahead.PAGE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ahead.cold_bytes(forces) <= ahead.PAGE
    assert_batches_equal(view.gather(np.arange(4000)), batch)


def test_of_what_does_not_fit_the_next_samples_are_asked_for(store, batch, monkeypatch):
    asked = []
    monkeypatch.setattr(ahead, "available_memory", lambda: 0)
    monkeypatch.setattr(ahead, "cold_bytes", lambda array: array.nbytes)
    monkeypatch.setattr(ahead, "will_need", lambda *piece: asked.append(piece))
    view = StoreView(store)
    view.prefetch(np.array([3999, 7]), ["forces"])
    forces, ptr = forces_of(view), batch.batch_ptr.tolist()
    expected = {(forces.ctypes.data + ptr[i] * 12, (ptr[i + 1] - ptr[i]) * 12) for i in (3999, 7)}
    assert expected <= set(asked)
    assert len(asked) == 6  # positions, numbers and forces


def test_what_is_in_memory_costs_nothing(store, monkeypatch):
    view = StoreView(store)
    view.gather(np.arange(4000))
    monkeypatch.setattr(ahead, "will_need", lambda *_: pytest.fail("asked for"))
    view.prefetch(np.arange(4000))
    time.sleep(0.05)


@pytest.mark.parametrize("place", ["local", "memory", "several"])
def test_advice_changes_no_values(place, store, batch):
    second: dict = {}
    with zp.ZarrData(second) as sink:
        sink.write(batch)
    stores = {"local": store, "memory": second, "several": [store, second]}[place]
    dataset = zp.ZarrDataset(stores)
    index = np.random.default_rng(1).permutation(len(dataset))[:200]
    dataset.prefetch(index)
    assert_batches_equal(dataset.__getitems__(index), batch.index_select(index % 4000))


def test_available_memory_is_no_more_than_there_is():
    assert 0 < ahead.available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
