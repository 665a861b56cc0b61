"""Levels of a user's own go through every way in and out of a store with equal values."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

import zarrpipe as zp
from zarrpipe import AtomicData, Batch, ZarrData, ZarrDataset
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError, SchemaError, StoreFormatError
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import assert_batches_equal, assert_plain_zarr

BOND, ANGLE, PAIR = (
    Level.segmented("bond"),
    Level.segmented("angle"),
    Level.product("atom_pair", "atom", "atom"),
)
FRAME = Level.uniform("frame")
ZSTD = (zarr.codecs.ZstdCodec(level=1),)
GROUPS = ("meta", "core", "custom")
KINDS = {
    "mapped": {},
    "small": {group: {"chunk_size": 16} for group in GROUPS},
    "compressed": {group: {"chunk_size": 32, "compressors": ZSTD} for group in GROUPS},
    "sharded": {group: {"chunk_size": 32, "shard_size": 128} for group in GROUPS},
}


def random_systems(seed, count, have=("bond", "angle", "atom_pair", "frame")):
    """Batch of systems, each with the levels of `have` or, by chance, without one of them."""
    rng, systems = np.random.default_rng(seed), []
    for _ in range(count):
        atoms, bonds = int(rng.integers(1, 5)), int(rng.integers(0, 4))
        groups = {
            BOND: {
                "bond_order": rng.normal(size=bonds),
                "bond_atoms": rng.integers(0, atoms, (bonds, 2)),
            },
            ANGLE: {"angle_bonds": rng.integers(0, max(bonds, 1), (int(bonds > 1), 2))},
            PAIR: {"hessian": rng.normal(size=(atoms, atoms, 3, 3)).astype(np.float32)},
            FRAME: {"time": rng.normal(size=1), "center": rng.integers(0, atoms, 1)},
        }
        if rng.random() < 0.2:
            groups.pop(PAIR)
        if rng.random() < 0.2:
            groups.pop(ANGLE)
        systems.append(
            AtomicData(
                rng.normal(size=(atoms, 3)),
                rng.integers(1, 90, atoms),
                neighbor_list=rng.integers(0, atoms, (int(rng.integers(0, 3)), 2)),
                energy=rng.normal(),
                other_levels={level: group for level, group in groups.items() if level in have},
                index_of={
                    name: counted
                    for name, counted, level in (
                        ("bond_atoms", "atom", "bond"),
                        ("angle_bonds", BOND, "angle"),
                        ("center", "atom", "frame"),
                    )
                    if level in have
                },
            )
        )
    return Batch.from_data_list(systems)


@given(
    kind=st.sampled_from([*KINDS]),
    memory=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.integers(0, 2**32),
            st.integers(1, 6),
            st.sampled_from([("bond", "angle", "atom_pair", "frame"), ("bond",), ()]),
            st.booleans(),
        ),
        min_size=1,
        max_size=3,
    ),
    removed=st.frozensets(st.integers(0, 8), max_size=3),
)
@settings(max_examples=10)
def test_round_trip(kind, memory, steps, removed):
    """Appends, reopening, deletion, merging and defragmentation keep every value."""
    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore() if memory else Path(folder, "store")
        sink, parts = ZarrData(store, config=KINDS[kind]), []
        for seed, count, have, reopen in steps:
            parts.append(random_systems(seed, count, have))
            sink.write(parts[-1])
            if reopen:
                sink.close()
                sink = ZarrData(store, config=KINDS[kind])
        whole = Batch.concatenate(parts)
        assert_batches_equal(sink.read(), whole)
        sink.close()
        assert_plain_zarr(store, whole, exact=True)
        report = zp.check(store, progress=False)
        assert report.ok, report
        gone = sorted({number for number in removed if number < whole.num_graphs - 1})
        kept = [number for number in range(whole.num_graphs) if number not in gone]
        with zp.AtomicDataZarrWriter(store, config=KINDS[kind]) as writer:
            writer.delete(gone)
            assert_batches_equal(every(store), whole.index_select(kept))
            writer.defragment()
        assert_batches_equal(every(store), whole.index_select(kept))
        assert zp.check(store, progress=False).ok
        merged = MemoryStore()
        zp.merge([store, store], merged, config=KINDS[kind], progress=False)
        assert_batches_equal(every(merged), whole.index_select([*kept, *kept]))
        order = np.random.default_rng(0).permutation(3 * len(kept))
        both = ZarrDataset([store, merged]).__getitems__(order)
        assert_batches_equal(both, whole.index_select([*kept, *kept, *kept]).index_select(order))


def every(store):
    view = StoreView(store)
    return view.gather(np.arange(view.num_samples))


def test_resident_workers_and_prefetch(tmp_path):
    """What a loader hands out is what was written, in process, in workers and from memory."""
    whole = Batch.concatenate([random_systems(seed, 40) for seed in range(3)])
    with ZarrData(tmp_path / "store") as sink:
        sink.write(random_systems(0, 40))
        dataset = ZarrDataset(tmp_path / "store", resident="cpu")
        assert_batches_equal(dataset.__getitems__([3, 39, 3]), whole.index_select([3, 39, 3]))
        sink.write(random_systems(1, 40))
        sink.write(random_systems(2, 40))
        dataset.refresh()
    assert_batches_equal(dataset.__getitems__([3, 100, 47]), whole.index_select([3, 100, 47]))
    module = zp.ZarrDataModule(
        tmp_path / "store", batch_size=16, num_workers=1, split=(1.0, 0.0, 0.0)
    )
    module.setup("fit")
    drawn = Batch.concatenate(list(module.train_dataloader()))
    module.teardown("fit")
    places = [whole.energy.flatten().tolist().index(value) for value in drawn.energy.flatten()]
    assert sorted(places) == [*range(120)]
    assert_batches_equal(drawn, whole.index_select(places))


def test_a_level_comes_to_a_store_that_has_samples(tmp_path):
    """Samples from before have no rows of it; a reader that was open follows."""
    first, second = random_systems(0, 5, ()), random_systems(1, 4)
    with ZarrData(tmp_path / "store") as sink:
        sink.write(first)
        dataset = ZarrDataset(tmp_path / "store")
        assert "bond_order" not in dataset.__getitems__([0])
        sink.write(second)
        dataset.refresh()
        whole = Batch.concatenate([first, second])
        assert_batches_equal(dataset.__getitems__(range(9)), whole)
    assert dataset.__getitems__(range(9)).level_ptr(BOND)[:6].tolist() == [0] * 6
    group = zarr.open_group(tmp_path / "store", mode="r")
    definitions = group.attrs["levels"]["definitions"]
    assert group.attrs["levels"]["version"] == 1
    assert definitions["atom_pair"] == {"kind": "product", "left": "atoms", "right": "atoms"}
    assert group.attrs["fields"]["levels"]["time"] == "frame"
    assert group["meta/level_ptrs/bond"].shape == (10,)


def test_what_does_not_fit_changes_nothing(tmp_path):
    with ZarrData(tmp_path / "store") as sink:
        sink.write(random_systems(0, 3))
        other = AtomicData([[0.0] * 3], [1], other_levels={Level.uniform("bond"): {"x": [1.0]}})
        plain = AtomicData([[0.0] * 3], [1], other_levels={"bond": {"bond_atoms": [[0, 0]]}})
        same = AtomicData(
            [[0.0] * 3], [1], other_levels={Level.uniform("bond"): {"bond_order": [1.0]}}
        )
        uniform = "level 'bond' is uniform, in the store it is segmented: use another name"
        for data, match in (
            (other, uniform),
            (same, uniform),
            (plain, "'bond_atoms' counts no rows, in the store atoms"),
        ):
            with pytest.raises((SchemaError, FieldError), match=match):
                sink.write(data)
        assert len(sink) == 3
    assert_batches_equal(every(tmp_path / "store"), random_systems(0, 3))


def test_samples_with_damaged_levels_are_given_up(tmp_path):
    """A repair that may drop samples deletes those that its plan names, and the rest is right."""
    store = tmp_path / "store"
    bonds = {"bond_atoms": [[0, 1]], "bond_order": [1.0]}
    systems = [
        AtomicData(
            [[float(place)] * 3] * 2,
            [1, 1],
            system={"kind": f"kind {place}"},
            other_levels={"bond": bonds},
            index_of={"bond_atoms": "atom"},
        )
        for place in range(8)
    ]
    with ZarrData(store) as sink:
        sink.write(systems)
    group = zarr.open_group(store)
    group["levels/bond/bond_atoms"][1] = [9, 9]
    group["custom/kind"][3] = 77
    group["meta/level_ptrs/bond"][6] = 0  # of samples 5 and 6, as far as anybody can tell
    plain = zp.check(store, repair=True, progress=False)
    assert not plain.ok
    assert not any("again" in step for step in plain.plan())
    assert zp.check(store, repair=True, drop=True, progress=False).ok
    kept = every(store)
    places = [int(place) for place in kept.positions[::2, 0]]
    assert {0, 2, 4, 7} <= {*places}
    assert not {1, 3, 5} & {*places}
    expected = Batch.from_data_list([systems[place] for place in places])
    assert kept.strings("kind") == expected.strings("kind")
    assert_batches_equal(kept.without("kind"), expected.without("kind"))


def test_damaged_levels_are_found(tmp_path):
    """A row number outside of its sample, a wrong number of pairs, and a lost array."""
    store = tmp_path / "store"
    with ZarrData(store) as sink:
        sink.write(random_systems(2, 6))
    group = zarr.open_group(store)
    whole = every(store)
    row = int(whole.level_ptr(BOND)[:-1][whole.rows_per_graph(BOND) > 0][0])
    group["levels/bond/bond_atoms"][row] = [whole.num_nodes, 0]
    assert "row-numbers" in zp.check(store, progress=False).kinds()
    group["levels/bond/bond_atoms"][row] = whole.bond_atoms[row].numpy()
    assert zp.check(store, progress=False).ok
    pairs = group["meta/level_ptrs/atom_pair"]
    ends = pairs[:]
    large = int(np.argmax(np.diff(ends)))
    changed = ends.copy()
    changed[large + 1] -= 1
    pairs[:] = changed
    assert "pairs" in zp.check(store, progress=False).kinds()
    pairs[:] = ends
    group.attrs["levels"] = {"version": 2, "definitions": {}}
    with pytest.raises(StoreFormatError, match="levels of version 2, this zarrpipe reads"):
        ZarrDataset(store)


def test_many_rows_of_a_product(tmp_path):
    """A Hessian is bit for bit what was written, also where it is the only own level."""
    hessians = [torch.randn(n, n, 3, 3, generator=torch.manual_seed(n)) for n in (1, 2, 7, 30)]
    systems = [
        AtomicData(torch.zeros(len(h), 3), [6] * len(h), other_levels={PAIR: {"hessian": h}})
        for h in hessians
    ]
    with ZarrData(tmp_path / "store") as sink:
        sink.write(systems)
    reader = zp.AtomicDataZarrReader(tmp_path / "store")
    for (fields, _), expected in zip(reader, hessians, strict=True):
        assert torch.equal(fields["hessian"].reshape(expected.shape), expected)


@pytest.mark.parametrize("kind", [*KINDS])
def test_row_numbers_of_a_level_without_fields(tmp_path, kind):
    """A dataset of some fields hands out row numbers of a level whose fields it leaves out."""
    bonds = {"bond": {"bond_order": [1.0, 2.0]}, "angle": {"angle_bonds": torch.tensor([[0, 1]])}}
    systems = [
        AtomicData([[0.0, 0.0, float(z)]], [z], other_levels=bonds, index_of={"angle_bonds": BOND})
        for z in (1, 2, 3)
    ]
    with ZarrData(tmp_path / "whole") as sink:
        sink.write(systems)
    some = ZarrDataset(tmp_path / "whole", fields=["angle_bonds"])
    with ZarrData(tmp_path / "some", config=KINDS[kind]) as sink:
        sink.write(AtomicData([[0.0, 0.0, 0.0]], [9]))
        sink.write(some)
        sink.write(some)
    back = ZarrDataset(tmp_path / "some")
    for held in (back, ZarrDataset(tmp_path / "some", resident="cpu")):
        batch = held.__getitems__([0, 6, 2])
        assert batch.level_ptr(BOND).tolist() == [0, 0, 2, 4]
        assert batch.angle_bonds.tolist() == [[0, 1], [2, 3]]
    assert zp.check(tmp_path / "some").ok
    zp.compact(tmp_path / "some")
    assert ZarrDataset(tmp_path / "some")[3].angle_bonds.tolist() == [[0, 1]]


def of_level(level, *names, rows=1):
    """System of two atoms with fields of `rows` rows at a level."""
    fields = {name: torch.arange(float(rows)) for name in names}
    return AtomicData([[0.0] * 3, [1.0] * 3], [1, 1], other_levels={level: fields})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (of_level("pair", "x", rows=4), of_level(Level.uniform("pair"), "x")),
        (of_level("pair", "x", rows=4), of_level(Level.uniform("pair"), "y")),
        (of_level(Level.uniform("pair"), "x"), of_level("pair", "x")),
        (
            of_level(Level.product("pair", "atom", "atom"), "x", rows=4),
            of_level("pair", "x", rows=3),
        ),
        (
            of_level("pair", "x", rows=4),
            of_level(Level.product("pair", "atom", "atom"), "x", rows=4),
        ),
    ],
)
def test_levels_of_one_name_and_another_kind_are_refused(first, second):
    stores = [{}, {}]
    for store, system in zip(stores, (first, second), strict=True):
        with ZarrData(store) as sink:
            sink.write(system)
    with ZarrData(stores[0]) as sink:
        sink.write(first)
        with pytest.raises((SchemaError, FieldError), match="level 'pair' is"):
            sink.write(second)
        assert len(sink) == 2
    with pytest.raises(FieldError, match="level 'pair'"):
        Batch.from_data_list([first, second])
    with pytest.raises(SchemaError, match="level 'pair' is"):
        ZarrDataset(stores)
    with pytest.raises(SchemaError, match="level 'pair' is"):
        zp.merge(stores, {})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_small_row_numbers_outgrow_their_dtype(dtype):
    atoms, store, whole = 100, {}, {}
    bonds = {"bond": {"bond_atoms": torch.tensor([[0, atoms - 1]], dtype=dtype)}}
    system = AtomicData(
        torch.zeros(atoms, 3), [1] * atoms, other_levels=bonds, index_of={"bond_atoms": "atom"}
    )
    with ZarrData(store) as sink:
        for _ in range(2):
            sink.write([system] * 200)
    zp.merge(store, whole)
    for place in (store, whole):
        batch = ZarrDataset(place).__getitems__(np.arange(400))
        assert batch.bond_atoms[399].tolist() == [39_900, 39_999]
        assert batch.get_data(399).bond_atoms.tolist() == [[0, 99]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_row_numbers_are_integers(dtype):
    with pytest.raises(FieldError, match=r"'bond_atoms' has dtype .*, expected integers"):
        AtomicData(
            [[0.0, 0.0, 0.0]],
            [1],
            other_levels={"bond": {"bond_atoms": torch.zeros(1, 2, dtype=dtype)}},
            index_of={"bond_atoms": "atom"},
        )


def test_an_emptied_store_defines_no_levels(tmp_path):
    with ZarrData(tmp_path / "s") as sink:
        sink.write(of_level("bond", "x"))
        sink.zero()
        sink.write(AtomicData([[0.0, 0.0, 0.0]], [1]))
    assert zarr.open_group(tmp_path / "s").attrs["levels"]["definitions"] == {}
    assert not (tmp_path / "s" / "levels" / "bond").exists()  # nvalchemi refuses it without a level
    assert len(ZarrDataset(tmp_path / "s")) == 1
