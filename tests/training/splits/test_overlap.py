"""Structures on the training side and another one are said, and only these."""

import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from zarr.storage import FsspecStore

from zarrpipe import AtomicDataZarrWriter, Batch, ZarrDataModule, ZarrDataset, write_split
from zarrpipe.store.format.layout import IDS
from zarrpipe.training.splits.datasets import overlap


def of(batch, indices):
    return batch.index_select(torch.tensor(indices))


def setup(*arguments, **more):
    """A data module and the warnings of its setup."""
    module = ZarrDataModule(*arguments, **more)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module.setup("fit")
    return module, [str(one.message) for one in said]


@pytest.fixture
def places(tmp_path, data):
    """Stores of 40 training, and 12 and 5 other samples, of which 7 and 1 are training ones too."""
    every = data.batch(40)
    other = Batch.concatenate([of(every, [3, 9, 9, 21, 30, 31, 39]), data.batch(5, tag=1)])
    data.append(tmp_path / "train", every)
    data.append(tmp_path / "val", other)
    data.append(tmp_path / "test", Batch.concatenate([of(every, [3]), data.batch(4, tag=2)]))
    return tmp_path / "train", tmp_path / "val", tmp_path / "test"


def test_stores_that_share_structures(places):
    train, val, test = places
    module, said = setup(train, val_store=val, test_store=test)
    assert [re.match(r"\d+ of the \d+ \w+ samples", one)[0] for one in said] == [
        "7 of the 12 val samples",
        "1 of the 5 test samples",
    ]
    assert "write_split" in said[0]
    _, again = setup([train, val], val_store=test, split=(1.0, 0.0, 0.0))
    assert [one[:21] for one in again] == ["1 of the 5 val sample"]
    for stage in ("validate", "test"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module.setup(stage)


def test_what_is_not_trained_on_is_no_overlap(places, tmp_path):
    train, val, _ = places
    kept = np.isin(ZarrDataset(train).ids, ZarrDataset(val).ids, invert=True)
    write_split(tmp_path / "kept.npy", ZarrDataset(train), kept)
    files = {"train": tmp_path / "kept.npy"}
    module, said = setup(train, val_store=val, split={**files, "test": None})
    assert (len(module.train_dataset), said) == (34, [])
    assert setup(train, val_store=val, where="serial > 35 or serial < 2")[1][0][:9] == "1 of the "
    assert setup(train, val_store=val, where="serial < 2")[1] == []
    assert setup([train, val], split=(0.5, 0.3, 0.2))[1] == []


def test_groups_that_share_structures(tmp_path, data):
    batch = data.batch(10)
    batch.add_field("molecule", torch.arange(10)[:, None], "system")
    twice = data.batch(10)
    twice.add_field("molecule", 10 + torch.arange(10)[:, None], "system")
    data.append(tmp_path / "store", Batch.concatenate([batch, twice]))
    module, said = setup(tmp_path / "store", split=(0.5, 0.5, 0.0), split_by="molecule")
    shared = np.isin(module.val_dataset.ids, module.train_dataset.ids).sum()
    assert shared > 2
    assert [one.partition(" have")[0] for one in said] == [
        f"{shared} of the {len(module.val_dataset)} val samples"
    ]
    assert setup(tmp_path / "store", split=(0.5, 0.5, 0.0))[1] == []


def test_ids_are_compared_block_by_block(places, monkeypatch):
    monkeypatch.setattr("zarrpipe.training.splits.datasets._BLOCK", 4)
    said = setup(places[0], val_store=places[1], split=(1.0, 0.0, 0.0))[1]
    assert said[0].startswith("7 of the 12 val samples")


def test_what_was_looked_at_is_not_read_again(places, data, monkeypatch):
    train, val, _ = places
    module, said = setup(train, val_store=val, split=(1.0, 0.0, 0.0))
    looked = []
    monkeypatch.setattr(
        "zarrpipe.training.splits.datasets.overlap",
        lambda *sides: looked.append(1) or overlap(*sides),
    )

    def again():
        with warnings.catch_warnings(record=True) as now:
            warnings.simplefilter("always")
            module.setup("fit")
        return [str(one.message) for one in now]

    assert again() == said
    assert looked == []
    data.append(val, of(data.batch(40), [0, 1]))
    assert [one[:21] for one in again()] == ["9 of the 14 val sampl"]
    with AtomicDataZarrWriter(val) as writer:
        writer.delete([0, 1])
    data.append(val, data.batch(2, tag=3))  # as many as before
    assert [one[:21] for one in again()] == ["7 of the 14 val sampl"]
    assert len(looked) == 2


def test_stores_whose_ids_are_not_at_hand_are_left_out(places):
    train, val, _ = places
    assert len(setup(train, val_store=val)[1]) == 1
    far = FsspecStore.from_url(val.as_uri(), read_only=True)
    assert setup(train, val_store=far)[1] == []
    shutil.rmtree(val / IDS)
    assert setup(train, val_store=val)[1] == []
