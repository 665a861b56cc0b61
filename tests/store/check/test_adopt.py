"""A store that nvalchemi wrote becomes one that a sink continues, whatever comes between."""

import sys
from contextlib import suppress

import numpy as np
import pytest
import zarr
from store_faults import Killed, mortal
from test_nvalchemi_edges import batches_of, foreign

import zarrpipe as zp
from zarrpipe.cli import main
from zarrpipe.errors import StoreFormatError, StoreNotFoundError
from zarrpipe.store.backend import files
from zarrpipe.testing import assert_batches_equal, stored_bytes


def batch_without(whole, deleted):
    return whole.index_select([i for i in range(len(whole)) if i not in deleted])


def test_a_sink_names_the_command_which_adopts_the_store(tmp_path, capsys):
    store = tmp_path / "theirs"
    whole = foreign(store, batches_of([4, 3, 5]))
    group = zarr.open_group(store, mode="r+")
    group["meta/samples_mask"][3] = False
    group.create_array("spectra", data=np.arange(5))
    group.create_array("custom/of_another", data=np.arange(3))
    group.attrs["note"] = "keep"
    (store / "notes.txt").write_text("keep")
    with pytest.raises(StoreFormatError, match=f"`zarrpipe adopt {store}`"):
        zp.ZarrData(store).write(whole)
    assert main(["adopt", str(store)]) == 0
    assert "11 samples, which ZarrData continues" in capsys.readouterr().out
    expected = batch_without(whole, {3})
    with zp.ZarrData(store) as sink:
        assert_batches_equal(sink.read(), expected)
        sink.write(whole)
    expected = zp.Batch.concatenate([expected, whole])
    assert_batches_equal(zp.ZarrData(store).read(), expected)
    assert zp.check(store).ok
    group = zarr.open_group(store, mode="r")
    assert group.attrs["note"] == "keep"
    assert group["spectra"][:].tolist() == [0, 1, 2, 3, 4]
    assert group["custom/of_another"][:].tolist() == [0, 1, 2]
    assert (store / "notes.txt").read_text() == "keep"
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    assert zp.adopt(store) == 23  # of ours already: nothing is done


def test_ids_are_those_of_a_store_that_was_always_ours(tmp_path):
    whole = foreign(tmp_path / "theirs", batches_of([5]))
    with zp.ZarrData(tmp_path / "ours") as sink:
        sink.write(whole)
    zp.adopt(tmp_path / "theirs")
    assert np.array_equal(
        zp.ZarrDataset(tmp_path / "theirs").ids, zp.ZarrDataset(tmp_path / "ours").ids
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_a_kill_leaves_the_old_store_or_the_new_one(tmp_path, seed):
    batches = batches_of([3, 4], seed)
    names = ("write_at", "write_json", "create_sized", "rename", "atomic_swap", "replace", "link")
    names += ("make_folder", "unlink", "remove_tree")
    names = tuple(name for name in names if hasattr(files, name))

    def attempt(store, left):
        whole = foreign(store, batches)
        with pytest.MonkeyPatch.context() as patch:
            count = mortal(patch, names, left)
            with suppress(Killed):
                zp.adopt(store)
        return whole, count[0]

    whole, changes = attempt(tmp_path / "whole", 10**9)
    assert changes > 20
    for left in sorted(np.random.default_rng(seed).choice(changes, 12, replace=False).tolist()):
        store = tmp_path / str(left)
        attempt(store, left)
        assert_batches_equal(zp.ZarrDataset(store).read(range(7)), whole)
        assert zp.adopt(store) == 7
        with zp.ZarrData(store) as sink:
            sink.write(whole)
        assert_batches_equal(zp.ZarrData(store).read(), zp.Batch.concatenate([whole, whole]))
    assert not [path for path in tmp_path.iterdir() if "rewrite" in path.name]


def test_what_cannot_be_adopted_is_left_as_it_is(tmp_path, capsys):
    with pytest.raises(StoreNotFoundError):
        zp.adopt(tmp_path / "nothing")
    memory = {}
    foreign(memory, batches_of([3]))
    with pytest.raises(StoreFormatError, match=r"zarrpipe\.merge"):
        zp.adopt(memory)
    with pytest.raises(StoreFormatError, match=r"zarrpipe\.merge"):
        zp.ZarrData(memory).write(batches_of([3])[0])
    store = tmp_path / "torn"
    foreign(store, batches_of([3]))
    zarr.open_group(store, mode="r+")["core/energy"].resize((2, 1))
    before = stored_bytes(store)
    assert main(["adopt", str(store)]) == 2
    assert "core/energy" in capsys.readouterr().err
    assert stored_bytes(store) == before


def test_a_store_that_is_written_to_meanwhile_is_left_as_it_is(tmp_path, monkeypatch):
    store = tmp_path / "theirs"
    whole = foreign(store, batches_of([3]))
    module = sys.modules["zarrpipe.store.adopt"]
    write_store = module.write_store

    def meanwhile(*arguments, **options):
        write_store(*arguments, **options)
        zarr.open_group(store, mode="r+").attrs["num_samples"] = 4

    monkeypatch.setattr(module, "write_store", meanwhile)
    with pytest.raises(StoreFormatError, match="was written to while it was adopted"):
        zp.adopt(store)
    zarr.open_group(store, mode="r+").attrs["num_samples"] = 3
    assert_batches_equal(zp.ZarrDataset(store).read(range(3)), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
