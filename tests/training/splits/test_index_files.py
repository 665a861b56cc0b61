"""Index files: what they may hold, what is refused, and which side they give."""

import pickle

import numpy as np
import pytest
import torch

from zarrpipe import Batch, ZarrDataModule, ZarrDataset, write_split
from zarrpipe.errors import ArgumentError, ArgumentTypeError


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data):
    """A store of 30 samples, `serial` 0 to 29, and its ids."""
    path = tmp_path_factory.mktemp("whole") / "store"
    data.append(path, data.batch(30))
    return path, ZarrDataset(path).ids


def sides(store, split, **settings):
    """Serials on each side, after the ids were looked for in the stores."""
    module = ZarrDataModule(store, split=split, **settings)
    module.setup("validate")
    return tuple(
        side.system_field("serial").ravel().tolist()
        for side in (module.train_dataset, module.val_dataset, module.test_dataset)
    )


EVERY = list(range(30))


def test_a_side_has_the_samples_of_its_file_and_one_side_the_others(tmp_path, whole):
    store, ids = whole
    dataset = ZarrDataset(store)
    assert write_split(tmp_path / "val.npy", dataset, [5, 3, 4, 3]) == 3
    assert write_split(tmp_path / "test.npy", dataset, slice(10, 12)) == 2
    saved = np.load(tmp_path / "val.npy")
    assert saved.dtype == np.uint64
    assert saved.tolist() == sorted(ids[[3, 4, 5]].tolist())
    val, test = str(tmp_path / "val.npy"), tmp_path / "test.npy"
    rest = [n for n in EVERY if n not in (3, 4, 5, 10, 11)]
    assert sides(store, {"val": val, "test": test}) == (rest, [3, 4, 5], [10, 11])
    assert sides(store, {"val": val}) == (sorted([*rest, 10, 11]), [3, 4, 5], [])
    assert sides(store, {"train": val, "test": test}) == ([3, 4, 5], rest, [10, 11])
    named = {"train": val, "val": None, "test": test}
    assert sides(store, named) == ([3, 4, 5], [], [10, 11])
    # Arrays are what a file would hold, in any order and any byte order.
    arrays = {"val": ids[[5, 3, 4, 3]], "test": ids[10:12].astype(">u8")}
    assert sides(store, arrays) == (rest, [3, 4, 5], [10, 11])
    assert sides(store, {"val": np.zeros(0, dtype=np.uint64)}) == (EVERY, [], [])


def test_shares_are_of_the_samples_that_no_file_names(whole):
    store, ids = whole
    train, val, test = sides(store, {"test": ids[:6], "val": 0.4, "train": 0.6})
    assert test == EVERY[:6]
    by_hash = sides(store, (0.6, 0.4, 0.0))
    assert train == [n for n in by_hash[0] if n >= 6]
    assert val == [n for n in by_hash[1] if n >= 6]
    assert len(val) > 3
    unused = sides(store, {"test": ids[:6], "val": 0.4, "train": None})
    by_hash = sides(store, (0.0, 0.4, 0.6))
    assert unused == ([], [n for n in by_hash[1] if n >= 6], test)


def test_a_side_with_stores_of_its_own_has_no_file(tmp_path, whole, data):
    store, ids = whole
    data.append(tmp_path / "val", data.batch(4, tag=1))
    found = sides(store, {"test": ids[:3]}, val_store=tmp_path / "val")
    assert found == (EVERY[3:], list(range(1000, 1004)), [0, 1, 2])
    with pytest.raises(ArgumentError, match="split names 'val', which has stores of its own"):
        ZarrDataModule(store, split={"val": ids[:3]}, val_store=tmp_path / "val")
    with pytest.raises(ArgumentError, match="split_by is 'serial', expected 'id'"):
        ZarrDataModule(store, split={"val": ids[:3]}, split_by="serial")


def test_samples_of_one_structure_are_on_one_side(tmp_path, data):
    batch = data.batch(6)
    again = batch.index_select([1, 4])
    again["serial"][:] = torch.tensor([101, 104])
    data.append(tmp_path / "store", Batch.concatenate([batch, again]))
    dataset = ZarrDataset(tmp_path / "store")
    assert dataset.ids[1] == dataset.ids[6]
    assert write_split(tmp_path / "val.npy", dataset, [6, 0]) == 2
    split = {"val": tmp_path / "val.npy"}
    assert sides(tmp_path / "store", split) == ([2, 3, 4, 5, 104], [0, 1, 101], [])


def positions(path):
    np.save(path, np.arange(5))


def text(path):
    path.write_text("1\n2\n3\n")


def pickled(path):
    path.write_bytes(pickle.dumps([1, 2, 3]))


def objects(path):
    np.save(path, np.array([1, "two", None], dtype=object), allow_pickle=True)


def cut_off(path):
    np.save(path, np.arange(50, dtype=np.uint64))
    path.write_bytes(path.read_bytes()[:-9])


def empty(path):
    path.write_bytes(b"")


def several(path):
    with path.open("wb") as file:
        np.savez(file, a=np.arange(3, dtype=np.uint64))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (positions, r"has int64 and so no ids, uint64; positions do not survive.*write_split"),
        (text, r"is text, expected a \.npy file of ids.*write_split\(path, dataset, positions\)"),
        (pickled, r"is no file of NumPy's, expected a \.npy file of ids"),
        (objects, "is cut off, damaged or holds objects: write it anew"),
        (cut_off, "is cut off, damaged or holds objects: write it anew"),
        (empty, r"is empty, expected a \.npy file of ids"),
        (several, r"is an archive of arrays \(\.npz\), expected a \.npy file of ids"),
        (lambda path: None, r"cannot be read \(No such file.*write_split"),
        (lambda path: path.mkdir(), r"cannot be read \(Is a directory\).*write_split"),
        (
            lambda path: np.save(path, np.ones((2, 3), dtype=np.uint64)),
            r"shape \(2, 3\) and dtype uint64, expected ids, \[K\] uint64",
        ),
        (lambda path: np.save(path, np.ones(3, dtype=bool)), "has bool and so no ids"),
        (lambda path: np.save(path, np.ones(3)), r"dtype float64, expected ids"),
        (lambda path: np.save(path, np.ones(3, dtype=np.uint32)), r"dtype uint32, expected ids"),
    ],
)
def test_what_holds_no_ids_is_refused_before_training(tmp_path, whole, written, message):
    path = tmp_path / "val.npy"
    written(path)
    module = ZarrDataModule(whole[0], split={"val": path})
    with pytest.raises(ArgumentError, match=rf"split\['val'\] is '.*val\.npy'.*{message}"):
        module.setup("fit")


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([1, 2, 3], ArgumentError, "list of 3, which has int64 and so no ids"),
        (np.arange(3), ArgumentError, "ndarray of 3, which has int64 and so no ids"),
        ({"ids": 3}, ArgumentTypeError, "expected an index file or an array of ids"),
        (b"val.npy", ArgumentTypeError, "expected an index file or an array of ids"),
        (True, ArgumentTypeError, "True, expected an index file or an array of ids"),
    ],
)
def test_what_is_no_file_and_no_ids_is_refused(whole, given, kind, message):
    with pytest.raises(kind, match=message):
        ZarrDataModule(whole[0], split={"val": given}).setup("fit")


def test_an_id_in_two_files_is_refused(whole):
    store, ids = whole
    message = (
        f"2 ids are in the index files of two splits, .* {min(ids[2:4]):#018x}, in those of 'val' "
        "and 'test'"
    )
    with pytest.raises(ArgumentError, match=message):
        sides(store, {"val": ids[:4], "test": ids[2:9]})


def test_ids_of_other_stores_are_refused_and_some_that_are_missing_are_said_once(
    tmp_path, whole, data
):
    store, ids = whole
    data.append(tmp_path / "grown", data.batch(30))
    data.append(tmp_path / "later", data.batch(5, tag=1))
    late = ZarrDataset(tmp_path / "later").ids
    with pytest.raises(ArgumentError, match=r"none of the 5 ids of split\['val'\], ndarray of 5"):
        sides(store, {"val": late})
    module = ZarrDataModule(tmp_path / "grown", split={"val": np.concatenate([ids[:2], late[:3]])})
    with pytest.warns(UserWarning, match=r"3 of the 5 ids .* join that split \(val\)") as told:
        module.setup("fit")
    assert len(told) == 1
    data.append(tmp_path / "grown", data.batch(5, tag=1))
    module.setup("fit")  # all are there, so nothing is said
    assert module.val_dataset.system_field("serial").ravel().tolist() == [0, 1, 1000, 1001, 1002]
    assert len(module.train_dataset) == 30


def test_ids_that_a_condition_leaves_out_are_there(whole):
    store, ids = whole
    found = sides(store, {"val": ids[:4]}, where="serial >= 4")
    assert found == (EVERY[4:], [], [])


def test_an_index_file_is_replaced_when_the_new_one_is_complete(tmp_path, whole, monkeypatch):
    dataset, path = ZarrDataset(whole[0]), tmp_path / "val.npy"
    write_split(path, dataset, [0, 1])
    before = path.read_bytes()

    def full(file, values):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space left"):
            write_split(path, dataset)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["val.npy"]
    assert write_split(path, dataset) == 30
    assert np.array_equal(np.load(path), np.sort(whole[1]))
