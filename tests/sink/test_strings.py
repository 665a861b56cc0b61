"""Fields of strings are stored as codes and a vocabulary, and come back as the same strings."""

import numpy as np
import pytest
import torch
import zarr
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import zarrpipe as zp
from zarrpipe import AtomicData, Batch, ZarrData, ZarrDataset
from zarrpipe.adapters import from_ase, from_pyg, to_ase, to_pyg
from zarrpipe.data.categories import MOST_CATEGORIES
from zarrpipe.errors import (
    ArgumentError,
    FieldError,
    SchemaError,
    StoreFormatError,
    UnknownFieldError,
)
from zarrpipe.store.backend.location import Root
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.rewrite.merge_plan import MergePlan
from zarrpipe.store.rewrite.merge_source import MergeSource


def systems(strings, start=0):
    """Batch of systems that have these strings, or none where it is None."""
    return Batch.from_data_list(
        [
            AtomicData(
                [[float(start + number), 0.0, 0.0]],
                [1],
                energy=1.0,
                system=None if string is None else {"config_type": string},
            )
            for number, string in enumerate(strings)
        ]
    )


def every(store):
    view = StoreView(store)
    return view.gather(np.arange(view.num_samples))


def test_codes_and_vocabulary(tmp_path):
    batch = systems(["bulk", "surface", None, "bulk"])
    assert batch.config_type.tolist() == [0, 1, 0, 0]
    assert batch.config_type.dtype is torch.int32
    assert batch.categories("config_type") == ("bulk", "surface")
    assert batch.strings("config_type") == ["bulk", "surface", None, "bulk"]
    assert batch.get_data(1).strings("config_type") == ["surface"]
    with ZarrData(tmp_path / "store") as sink:
        sink.write(batch)
        dataset = ZarrDataset(tmp_path / "store")
        sink.write(systems(["slab", "surface"], 4))
        dataset.refresh()
        assert dataset.__getitems__([4, 5, 1]).strings("config_type") == [
            "slab",
            "surface",
            "surface",
        ]
    group = zarr.open_group(tmp_path / "store", mode="r")
    assert group["custom/config_type"][:].tolist() == [0, 1, 0, 0, 2, 1]
    assert group.attrs["zarrpipe"]["categories"] == {"config_type": ["bulk", "surface", "slab"]}
    report = zp.check(tmp_path / "store", progress=False)
    assert report.ok, report


def test_batches_of_strings():
    fields = {"positions": torch.zeros(2, 3), "atomic_numbers": torch.ones(2, dtype=torch.int64)}
    ptr, levels = torch.tensor([0, 1, 2]), {"mp_id": "system"}
    given = Batch({**fields, "mp_id": ["mp-2", "mp-1"]}, ptr, levels=levels)
    codes = torch.tensor([1, 0], dtype=torch.int32)
    coded = Batch(
        {**fields, "mp_id": codes}, ptr, levels=levels, categories={"mp_id": ["mp-1", "mp-2"]}
    )
    assert given.strings("mp_id") == coded.strings("mp_id") == ["mp-2", "mp-1"]
    both = Batch.concatenate([given, coded])
    assert both.strings("mp_id") == ["mp-2", "mp-1"] * 2
    assert both.index_select([3, 0]).strings("mp_id") == ["mp-1", "mp-2"]
    for wrong, match in (
        ({"categories": {"mp_id": ["mp-1"]}}, "codes from 0 to 1, expected 0 to 0"),
        ({"categories": {"mp_id": ["a", "a"]}}, "are not distinct"),
        ({"categories": {"mp_id": ["a", 1]}}, "contain 1, expected strings"),
        ({"categories": {"mp_id": "ab"}}, "'mp_id' are 'ab', expected a list of strings"),
        ({"categories": {"positions": ["a"]}}, "'positions' is given as strings at level 'atom'"),
    ):
        with pytest.raises(FieldError, match=match):
            Batch({**fields, "mp_id": codes}, ptr, levels=levels, **wrong)
    with pytest.raises(FieldError, match="'names' is given as strings at level 'atom'"):
        AtomicData([[0.0] * 3], [1], atom={"names": ["H"]})
    with pytest.raises(FieldError, match="'kinds' is given as strings at level 'bond'"):
        AtomicData([[0.0] * 3], [1], other_levels={"bond": {"kinds": ["single", "double"]}})
    for mixed in (b"bulk", ["a", 1]):
        with pytest.raises(FieldError, match="an array, numbers, or strings and nothing else"):
            AtomicData([[0.0] * 3], [1], system={"kind": mixed})
    with pytest.raises(
        FieldError, match=r"'positions' has numbers; the fields of strings are \['mp_id'\]"
    ):
        given.categories("positions")
    number = AtomicData([[0.0] * 3], [1], system={"mp_id": torch.zeros(1, dtype=torch.int32)})
    for parts in ([number, given], [given, number]):
        with pytest.raises(FieldError, match=r"'mp_id' of sample 1 has .*, samples before it have"):
            Batch.concatenate(parts)
    with pytest.raises(UnknownFieldError, match="no field 'kind'"):
        given.strings("kind")


@given(
    parts=st.lists(
        st.lists(st.sampled_from(["a", "b", "c", "d", "", "ä", None]), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    ),
    compressed=st.booleans(),
)
@settings(max_examples=20)
def test_round_trip(parts, compressed):
    """Appends, deletion, merging and several stores as one keep every string."""
    config = {"custom": {"compressors": ("zstd",)}} if compressed else None
    store, other, merged = MemoryStore(), MemoryStore(), MemoryStore()
    strings = [string for part in parts for string in part]
    with ZarrData(store, config=config) as sink:
        for number, part in enumerate(parts):
            sink.write(systems(part, 10 * number))
        read = sink.read()
    has = any(string is not None for string in strings)
    if not has:
        assert "config_type" not in read
        return
    assert read.strings("config_type") == strings
    with ZarrData(other) as sink:
        sink.write(systems(["d", "x"]))
    zp.merge([other, store], merged, progress=False)
    assert every(merged).strings("config_type") == ["d", "x", *strings]
    order = np.random.default_rng(0).permutation(2 + len(strings))
    together = ZarrDataset([store, other], resident="cpu")
    expected = [[*strings, "d", "x"][place] for place in order]
    assert together.__getitems__(order).strings("config_type") == expected
    assert ZarrDataset([store, other]).__getitems__(order).strings("config_type") == expected
    with zp.AtomicDataZarrWriter(merged) as writer:
        writer.delete([0])
        writer.defragment()
    assert every(merged).strings("config_type") == ["x", *strings]
    assert zp.check(merged, progress=False).ok


def test_workers_hand_out_strings(tmp_path):
    strings = [f"type-{number % 7}" for number in range(64)]
    with ZarrData(tmp_path / "store") as sink:
        sink.write(systems(strings))
    module = zp.ZarrDataModule(
        tmp_path / "store", batch_size=16, num_workers=1, split=(1.0, 0.0, 0.0)
    )
    module.setup("fit")
    drawn = Batch.concatenate(list(module.train_dataloader()))
    module.teardown("fit")
    expected = [strings[int(place)] for place in drawn.positions[:, 0]]
    assert drawn.strings("config_type") == expected


def test_what_does_not_fit_changes_nothing(tmp_path):
    store = tmp_path / "store"
    with ZarrData(store) as sink:
        sink.write(systems(["a", "b"]))
        numbers = AtomicData(
            [[0.0] * 3], [1], system={"config_type": torch.zeros(1, dtype=torch.int32)}
        )
        with pytest.raises(SchemaError, match="'config_type' has numbers, the store has strings"):
            sink.write(numbers)
        many = [f"name-{number}" for number in range(MOST_CATEGORIES)]
        fields = {
            "positions": torch.zeros(len(many), 3),
            "atomic_numbers": torch.ones(len(many), dtype=torch.int64),
            "config_type": many,
        }
        large = Batch(fields, torch.arange(len(many) + 1), levels={"config_type": "system"})
        with pytest.raises(FieldError, match="has 100,002 distinct strings, at most 100,000 can"):
            sink.write(large)
        assert len(sink) == 2
    group = zarr.open_group(store)
    group["custom/config_type"][1] = 7
    assert "codes" in zp.check(store, progress=False).kinds()
    own = dict(group.attrs["zarrpipe"])
    group.attrs["zarrpipe"] = {**own, "categories": {"config_type": ["a", "a"]}}
    with pytest.raises(StoreFormatError, match="'config_type' are not distinct"):
        ZarrDataset(store)


def test_a_hundred_thousand_strings(tmp_path):
    """Each sample its own string, which is the most that there can be."""
    names = [f"mp-{number}" for number in range(MOST_CATEGORIES)]
    fields = {
        "positions": torch.zeros(len(names), 3),
        "atomic_numbers": torch.ones(len(names), dtype=torch.int64),
        "mp_id": names,
    }
    with ZarrData(tmp_path / "store") as sink:
        sink.write(Batch(fields, torch.arange(len(names) + 1), levels={"mp_id": "system"}))
    found = ZarrDataset(tmp_path / "store").__getitems__([99_999, 5])
    assert found.strings("mp_id") == ["mp-99999", "mp-5"]


def test_conditions_splits_weights_and_tables(tmp_path):
    """Strings stand for themselves wherever values do, whatever codes the stores have."""
    first, second = tmp_path / "first", tmp_path / "second"
    kinds = ("bulk", "slab", "gas", *(f"cluster-{number}" for number in range(7)))
    strings = [kinds[number % 10] for number in range(60)]
    with ZarrData(first) as sink:
        sink.write(systems(strings))
    with ZarrData(second) as sink:
        sink.write(systems([*strings[::-1], None], 100))
    expected = [*strings, *strings[::-1], None]
    dataset = ZarrDataset([first, second])
    assert dataset.strings("config_type") == expected
    assert dataset.strings("config_type", [120, 61, 0]) == [None, *(expected[n] for n in (61, 0))]
    for condition, chosen in (
        ("config_type == 'slab'", {"slab"}),
        ("config_type != 'slab'", {*kinds} - {"slab"}),
        ("config_type in ('gas', 'slab', 'none')", {"gas", "slab"}),
        ("not config_type in ['gas']", {*kinds} - {"gas"}),
        ("has(config_type) and config_type == 'none'", set()),
    ):
        found = dataset.where(condition).tolist()
        assert found == [place for place, one in enumerate(expected) if one in chosen], condition
    with pytest.raises(SchemaError, match="'config_type' has strings: compare it with one"):
        dataset.where("config_type < 3")
    module = zp.ZarrDataModule(
        [first, second], split=(0.5, 0.5, 0.0), split_by="config_type", where="has(config_type)"
    )
    module.setup("fit")
    sides = [
        {*module.train_dataset.strings("config_type")},
        {*module.val_dataset.strings("config_type")},
    ]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {*kinds}
    sampler = zp.GraphBatchSampler(
        dataset, 10, seed=0, weights={"config_type": {"gas": 3.0, "other": 1.0}}
    )
    drawn = [expected[place] for batch in sampler for place in batch]
    assert sum(one == "gas" for one in drawn) / len(drawn) == pytest.approx(0.75, abs=0.02)
    with pytest.raises(
        ArgumentError, match=r"has config_type = 'bulk', and weights name \['gas'\]"
    ):
        list(zp.GraphBatchSampler(dataset, 10, weights={"config_type": {"gas": 1.0}}))
    numbers = ZarrDataset(first, where="num_atoms == 1")
    with pytest.raises(ArgumentError, match=r"name \['new'\], and its values are numbers"):
        list(zp.GraphBatchSampler(numbers, 10, weights={"energy": {"new": 1.0}}))
    frame = dataset.to_pandas(["config_type"])
    assert frame["config_type"][:120].tolist() == expected[:120]
    assert frame["config_type"][120:].isna().all()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_strings_of_ase_and_pyg(tmp_path):
    """They come from ``info`` and from attributes, and go back there."""
    atoms = [Atoms("H", info={"config_type": kind, "round": 1}) for kind in ("bulk", "slab")]
    atoms.append(Atoms("He"))
    batch = from_ase(atoms, info=["config_type", "round"])
    assert batch.strings("config_type") == ["bulk", "slab", None]
    assert [one.info.get("config_type") for one in to_ase(batch)] == ["bulk", "slab", None]
    graphs = to_pyg(batch.index_select([1, 0]))
    assert graphs["config_type"] == ["slab", "bulk"]
    with ZarrData(tmp_path / "store") as sink:
        sink.write(from_pyg(graphs, levels={"config_type": "system"}))
        sink.write(from_pyg(graphs.to_data_list()[1], levels={"config_type": "system"}))
    assert every(tmp_path / "store").strings("config_type") == ["slab", "bulk", "bulk"]


def test_codes_that_another_writer_appended_and_that_are_no_strings(tmp_path):
    stores = [tmp_path / "slabs", tmp_path / "bulks"]
    for store, name in zip(stores, ("slab", "bulk"), strict=True):
        with zp.ZarrData(store) as sink:
            sink.write([zp.AtomicData([[0.0, 0.0, 0.0]], [1], system={"kind": [name]})] * 2)
    told = "'kind' has codes from -1 to 0, expected 0 to 0"
    zarr.open_group(stores[1])["custom/kind"][1] = -1
    dataset = zp.ZarrDataset(stores[1])
    with pytest.raises(FieldError, match=told):
        dataset.strings("kind")
    with pytest.raises(FieldError, match=told):
        dataset.read([0, 1]).strings("kind")
    with pytest.raises(StoreFormatError, match=told):
        zp.ZarrDataset(stores).read([0, 2, 3])
    with pytest.raises(StoreFormatError, match=told):
        zp.merge(stores, tmp_path / "merged")


def test_a_merge_does_not_see_strings_that_a_writer_adds_meanwhile(tmp_path):
    stores = [tmp_path / "slabs", tmp_path / "bulks"]
    for store, name in zip(stores, ("slab", "bulk"), strict=True):
        with zp.ZarrData(store) as sink:
            sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [1], system={"kind": [name]}))
    plan = MergePlan([MergeSource(Root.of(store)) for store in stores])
    with zp.ZarrData(stores[1]) as sink:
        sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [2], system={"kind": ["gas"]}))
    assert np.concatenate([*plan.blocks(plan.schema["kind"])]).tolist() == [0, 1]
