"""Stores that commit 4be0422 wrote are read, checked, continued, merged and compacted.

`tests/fixtures/write_stores_of_4be0422.py` made them, and what that version read from them.
"""

import json
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zarrpipe import (
    AtomicData,
    AtomicDataZarrReader,
    AtomicDataZarrWriter,
    Batch,
    ZarrData,
    ZarrDataset,
    check,
    compact,
    merge,
)
from zarrpipe.testing import assert_batches_equal, stored_bytes
from zarrpipe.training.statistics import count, measure

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "stores_of_4be0422.tar.xz"
STORES = ("closed", "killed", "compressed")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The archive's directory: stores and expected values."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:  # Python before 3.11.4 has no filters
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(folder)
    return folder


@pytest.fixture
def earlier(unpacked, tmp_path):
    """Gives a copy of a store: its path, and its batch, ids and facts as 4be0422 read them."""
    facts = json.loads((unpacked / "facts.json").read_text())

    def open_copy(name):
        with np.load(unpacked / f"{name}.npz") as arrays:
            tensors = {key: torch.from_numpy(arrays[key]) for key in arrays if key != "ids"}
            ids = arrays["ids"]
        batch = Batch(
            part(tensors, "field/"),
            tensors["ptr/atoms"],
            tensors["ptr/edges"],
            levels=facts[name]["levels"],
            present=part(tensors, "present/"),
        )
        path = shutil.copytree(unpacked / name, tmp_path / name)
        return SimpleNamespace(path=path, batch=batch, ids=ids, **facts[name])

    return open_copy


def part(tensors, prefix):
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def everything(path):
    dataset = ZarrDataset(path)
    return dataset.read(range(len(dataset)))


def added():
    """Two systems as they may come to these stores, with fewer fields than those have."""
    systems = [
        AtomicData(
            torch.full((atoms, 3), float(atoms)),
            [8] * atoms,
            energy=torch.tensor([[-13.0 * atoms]], dtype=torch.float64),
            cell=torch.eye(3, dtype=torch.float64)[None],
            pbc=torch.ones(1, 3, dtype=torch.bool),
            neighbor_list=torch.tensor([[0, atoms - 1]]),
            neighbor_list_shifts=torch.tensor([[0, 0, 1]]),
            edge={"bond_orders": torch.ones(1, 2, dtype=torch.float64)},
            system={"serial": torch.tensor([1000 + atoms])},
        )
        for atoms in (2, 3)
    ]
    return Batch.from_data_list(systems)


def assert_statistics(dataset, expected):
    for sums in (measure(dataset), count(dataset)):
        found = vars(sums.statistics())
        for name, value in expected.items():
            got = found[name]
            if isinstance(value, dict):
                got = {str(key): one for key, one in got.items()}
            assert got == pytest.approx(value, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("name", STORES)
def test_it_is_read(earlier, name):
    expected = earlier(name)
    before = stored_bytes(expected.path)
    dataset = ZarrDataset(expected.path)
    assert_batches_equal(everything(expected.path), expected.batch)
    np.testing.assert_array_equal(dataset.ids, expected.ids)
    assert_statistics(dataset, expected.statistics)
    with AtomicDataZarrReader(expected.path) as reader:
        assert dict(reader.units) == expected.units
    with ZarrData(expected.path) as sink:
        assert_batches_equal(sink.read(), expected.batch)
    assert stored_bytes(expected.path) == before


@pytest.mark.parametrize("name", STORES)
def test_it_is_checked(earlier, name):
    expected = earlier(name)
    report = check(expected.path)
    assert {key: getattr(report, key) for key in expected.check} == expected.check, report
    assert_batches_equal(everything(expected.path), expected.batch)


@pytest.mark.parametrize("name", STORES)
def test_it_is_continued(earlier, name):
    expected = earlier(name)
    with ZarrData(expected.path) as sink:
        sink.write(added())
        sink.write(expected.batch)
    found, old = everything(expected.path), len(expected.ids)
    assert found.num_graphs == 2 * old + 2
    assert_batches_equal(found.index_select(np.arange(old)), expected.batch)
    assert_batches_equal(found.index_select(np.arange(old + 2, 2 * old + 2)), expected.batch)
    assert found["serial"][old : old + 2].tolist() == [1002, 1003]
    assert not found.present("forces")[old : old + 2].any()
    np.testing.assert_array_equal(ZarrDataset(expected.path).ids[:old], expected.ids)
    np.testing.assert_array_equal(ZarrDataset(expected.path).ids[old + 2 :], expected.ids)
    assert check(expected.path).ok
    dataset = ZarrDataset(expected.path)
    assert_statistics(dataset, vars(count(dataset).statistics()) | {"num_samples": 2 * old + 2})


@pytest.mark.parametrize("name", STORES)
def test_samples_are_deleted_and_the_rest_defragmented(earlier, name):
    expected = earlier(name)
    kept = np.delete(np.arange(len(expected.ids)), [2, 5])
    with AtomicDataZarrWriter(expected.path) as writer:
        writer.delete([2, 5])
        assert_batches_equal(everything(expected.path), expected.batch.index_select(kept))
        writer.defragment()
    assert_batches_equal(everything(expected.path), expected.batch.index_select(kept))
    assert check(expected.path).ok


def test_they_are_merged(earlier, tmp_path):
    stores = [earlier(name) for name in STORES]
    whole = tmp_path / "whole"
    assert merge([one.path for one in stores], whole) == sum(len(one.ids) for one in stores)
    start, found = 0, everything(whole)
    for one in stores:
        rows = np.arange(start, start + len(one.ids))
        assert_batches_equal(found.index_select(rows), one.batch)
        start += len(rows)
    np.testing.assert_array_equal(
        ZarrDataset(whole).ids, np.concatenate([one.ids for one in stores])
    )
    assert check(whole).ok


@pytest.mark.parametrize("name", STORES)
def test_it_is_compacted(earlier, name):
    expected = earlier(name)
    assert compact(expected.path) == len(expected.ids)
    assert_batches_equal(everything(expected.path), expected.batch)
    np.testing.assert_array_equal(ZarrDataset(expected.path).ids, expected.ids)
    assert_statistics(ZarrDataset(expected.path), expected.statistics)
    report = check(expected.path)
    assert (report.ok, report.deleted) == (True, 0)
