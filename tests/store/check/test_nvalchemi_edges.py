"""Stores as nvalchemi writes them, whose neighbour lists count from their batch, are put right."""

import shutil
from contextlib import suppress

import numpy as np
import pytest
import torch
import zarr
from store_faults import ERROR, Killed, mortal

import zarrpipe as zp
from zarrpipe.data.csr import pointers
from zarrpipe.store.check.run import check
from zarrpipe.testing import assert_batches_equal, random_batch

FIELDS = ("energy", "forces", "cell", "pbc")


def foreign(store, batches, *, relative=True, **options):
    """A store with what nvalchemi writes for batches, and their systems as they should read."""
    whole = zp.Batch.concatenate(batches)
    atoms, edges = whole.batch_ptr.numpy(), whole.edge_ptr.numpy()
    group = zarr.create_group(store)
    meta = {"atoms_ptr": atoms, "edges_ptr": edges}
    for name, size in (("samples", len(atoms) - 1), ("atoms", atoms[-1]), ("edges", edges[-1])):
        meta[f"{name}_mask"] = np.ones(size, dtype=bool)
    for name, values in meta.items():
        group.create_array(f"meta/{name}", data=values)
    for name, values in whole.fields.items():
        rows = values.numpy()
        if name == "neighbor_list" and relative:
            rows = np.concatenate([batch.neighbor_list.numpy() for batch in batches])
        group.create_array(f"core/{name}", data=rows, **options)
    levels = {name: str(level) for name, level in whole.levels.items()}
    group.attrs.update(num_samples=len(atoms) - 1, fields={"core": levels, "custom": {}})
    return whole


def batches_of(sizes, seed=0, edges=(2, 9)):
    rng = np.random.default_rng(seed)
    made = [random_batch(rng, n, atoms=(1, 5), edges=edges, fields=FIELDS) for n in sizes]
    for batch in made:
        batch.atomic_numbers.clamp_(min=1)
    return made


def spanned(batch):
    """The same batch with edges that reach from the first atom of each system to its last."""
    ptr = batch.batch_ptr.numpy()
    ends = np.stack([ptr[:-1], ptr[1:] - 1], axis=1)
    edges = np.concatenate([ends, ends[:, ::-1]], axis=1).reshape(-1, 2)
    fields = {name: value for name, value in batch.fields.items() if "neighbor" not in name}
    fields["neighbor_list"] = torch.from_numpy(edges)
    edge_ptr = torch.from_numpy(pointers(np.full(len(batch), 2)))
    return zp.Batch(fields, batch.batch_ptr, edge_ptr)


@pytest.mark.parametrize("kind", ["local", "memory", "compressed"])
def test_indices_that_count_from_their_batch_are_put_right(tmp_path, kind):
    store = {} if kind == "memory" else tmp_path / "theirs"
    options = {"compressors": (zarr.codecs.GzipCodec(),)} if kind == "compressed" else {}
    whole = foreign(store, batches_of([3, 1, 4, 5, 2]), **options)
    report = check(store)
    assert report.kinds(ERROR) == {"relative-edges"}
    (finding,) = report.of(ERROR)
    assert finding.place == "core/neighbor_list"
    assert finding.repairable
    assert "as nvalchemi writes them" in finding.message
    repaired = check(store, repair=True)
    assert repaired.of(ERROR) == ()
    assert "count from the store" in repaired.repairs[0]
    assert_batches_equal(zp.ZarrData(store).read(), whole)
    assert check(store, repair=True).repairs == ()


def test_a_store_that_is_right_is_left_as_it_is(tmp_path):
    foreign(tmp_path / "theirs", batches_of([3, 4]), relative=False)
    assert check(tmp_path / "theirs").of(ERROR) == ()
    foreign(tmp_path / "one", batches_of([7]))
    assert check(tmp_path / "one").of(ERROR) == ()


def test_what_is_ambiguous_is_named_and_left(tmp_path):
    """The last sample has one edge, which may count from its own first atom or that before it."""
    rng = np.random.default_rng(1)
    atoms, locals_ = [1, 1, 1, 8], [0, 0, 0, 4]
    systems = []
    for count, local in zip(atoms, locals_, strict=True):
        edge = np.full((1, 2), local)
        system = random_batch(rng, 1, atoms=(count, count), fields=FIELDS).get_data(0)
        systems.append(zp.AtomicData(**system.fields, neighbor_list=torch.from_numpy(edge)))
    batches = [zp.Batch.from_data_list(systems[:2]), zp.Batch.from_data_list(systems[2:])]
    store = tmp_path / "theirs"
    foreign(store, batches)
    report = check(store, repair=True)
    assert report.kinds(ERROR) == {"relative-edges"}
    assert not report.of(ERROR)[0].repairable
    assert "1 sample (3)" in report.of(ERROR)[0].message
    assert report.repairs == ()


def test_after_its_defragmentation_samples_are_put_right_by_their_span(tmp_path):
    """Their indices count from where they stood before; no division into batches explains them."""
    batches = [spanned(batch) for batch in batches_of([4, 4, 3])]
    kept = np.array([1, 2, 5, 6, 9, 10])
    whole = zp.Batch.concatenate(batches)
    chosen = whole.index_select(kept)
    store = tmp_path / "theirs"
    foreign(store, [chosen], relative=False)
    before = np.concatenate([batch.neighbor_list.numpy() for batch in batches])
    edges = whole.edge_ptr.numpy()
    old = np.concatenate([before[edges[i] : edges[i + 1]] for i in kept])
    zarr.open_array(store / "core/neighbor_list", mode="r+")[:] = old
    assert check(store).kinds(ERROR) == {"relative-edges"}
    assert check(store, repair=True).of(ERROR) == ()
    assert_batches_equal(zp.ZarrData(store).read(), chosen)


def test_a_store_of_ours_that_nvalchemi_appended_to(tmp_path):
    """It extends every array that it knows, and so not the ids."""
    first, *others = batches_of([5, 3, 4])
    store = tmp_path / "store"
    with zp.ZarrData(store) as sink:
        sink.write(first)
    whole = zp.Batch.concatenate([first, *others])
    group = zarr.open_group(store, mode="r+", use_consolidated=False)
    edges = np.concatenate([batch.neighbor_list.numpy() for batch in (first, *others)])
    rows = {f"core/{name}": value.numpy() for name, value in whole.fields.items()}
    rows |= {"core/neighbor_list": edges, "meta/atoms_ptr": whole.batch_ptr.numpy()}
    rows |= {"meta/edges_ptr": whole.edge_ptr.numpy(), "meta/samples_mask": np.ones(12, bool)}
    for path, values in rows.items():
        group[path].resize(values.shape)
        group[path][:] = values
    group.attrs["num_samples"] = 12
    assert check(store).kinds(ERROR) == {"relative-edges", "length"}
    for name, size in (("atoms", whole.num_nodes), ("edges", whole.num_edges)):
        group[f"meta/{name}_mask"].resize(size)
    report = check(store)
    assert report.kinds(ERROR) == {"relative-edges"}
    (appended,) = [item for item in report.findings if item.kind == "appended"]
    assert "7 samples (5, 6, 7, 8, 9, ...)" in appended.message
    assert check(store, repair=True).of(ERROR) == ()
    assert_batches_equal(zp.ZarrData(store).read(), whole)
    with zp.ZarrData(tmp_path / "anew") as sink:
        sink.write(whole)
    assert (zp.ZarrDataset(store).ids == zp.ZarrDataset(tmp_path / "anew").ids).all()


def test_deleted_samples_and_those_without_edges(tmp_path):
    batches = batches_of([3, 3, 3], edges=(0, 4))
    store = tmp_path / "theirs"
    whole = foreign(store, batches)
    atoms, edges = whole.batch_ptr.numpy(), whole.edge_ptr.numpy()
    for name, rows in (
        ("samples", slice(4, 5)),
        ("atoms", slice(*atoms[4:6])),
        ("edges", slice(*edges[4:6])),
    ):
        zarr.open_array(store / f"meta/{name}_mask", mode="r+")[rows] = False
    array = zarr.open_array(store / "core/neighbor_list", mode="r+")
    array[edges[4] : edges[5]] = 0
    report = check(store, repair=True)
    kept = np.delete(np.arange(9), 4)
    if report.ok:
        assert_batches_equal(zp.ZarrData(store).read(), whole.index_select(kept))
    else:
        assert not report.of(ERROR)[0].repairable


def test_killed_anywhere_the_list_is_whole_and_the_next_repair_finishes(
    tmp_path, monkeypatch, seed
):
    names = ("rename", "atomic_swap", "unlink", "remove_folder", "make_folder", "sync_path")
    whole = foreign(tmp_path / "theirs", batches_of([3, 1, 4]))

    def attempt(place, left):
        copy = shutil.copytree(tmp_path / "theirs", place)
        with monkeypatch.context() as patch:
            count = mortal(patch, names, left)
            with suppress(Killed):
                check(copy, repair=True)
        return copy, count

    changes = attempt(tmp_path / "whole", 10**9)[1][0]
    assert changes > 8
    for left in sorted(np.random.default_rng(seed).choice(changes, 8, replace=False).tolist()):
        copy, _ = attempt(tmp_path / str(left), left)
        assert check(copy, repair=True).of(ERROR) == (), left
        assert_batches_equal(zp.ZarrData(copy).read(), whole)
        found = sorted(path.name for path in (copy / "core").iterdir())
        assert found == sorted([*whole.fields, "zarr.json"]), left
