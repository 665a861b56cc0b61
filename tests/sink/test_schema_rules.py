"""What the first write fixes, what fills the gaps, and who has which field, from store to loss."""

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader

from zarrpipe import (
    AtomicData,
    AtomicDataZarrReader,
    AtomicDataZarrWriter,
    Batch,
    GraphBatchSampler,
    ZarrData,
    ZarrDataset,
    collate,
    compact,
    merge,
)
from zarrpipe.errors import SchemaError
from zarrpipe.testing import assert_batches_equal, unchanged
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.statistics import measure

SMALL = {group: {"chunk_size": 5} for group in ("meta", "core", "custom")}
LEVELS = {"energy": "system", "forces": "atom", "shifts": "edge", "tag": "system"}


@pytest.fixture(params=["path", "dict"])
def place(request, tmp_path):
    return lambda name="store": tmp_path / name if request.param == "path" else {}


def system(number: int, *lacking: str, dtype: torch.dtype = torch.float32) -> AtomicData:
    """System of 1 to 4 atoms whose every value tells its number, without some of its fields."""
    atoms = 1 + number % 4
    value = torch.full((atoms, 3), float(number), dtype=dtype)
    fields = {
        "energy": torch.tensor([[float(number)]], dtype=dtype),
        "forces": -value,
        "shifts": torch.full((2, 3), number / 8, dtype=dtype),
    }
    own = {} if "tag" in lacking else {"tag": torch.tensor([number])}
    kept = {name: rows for name, rows in fields.items() if name not in lacking}
    edges = torch.tensor([[0, atoms - 1], [atoms - 1, 0]])
    return AtomicData(
        value, torch.full((atoms,), 1 + number), neighbor_list=edges, system=own, **kept
    )


def lacking(number: int) -> tuple[str, ...]:
    """Fields that a system of a mixed list lacks: some, none, or all of the four."""
    return tuple(name for bit, name in enumerate(LEVELS) if number >> bit & 1)


MIXED = [system(number, *lacking(number % 16)) for number in range(40)]
WHOLE = Batch.from_data_list(MIXED)


def check_mixed(batch: Batch, numbers) -> None:
    """Presence, filled rows and values of a batch of systems of `MIXED`."""
    numbers = [int(number) for number in numbers]
    assert batch.atomic_numbers.tolist() == [
        1 + number for number in numbers for _ in range(1 + number % 4)
    ]
    per_level = {
        "system": torch.ones(len(numbers), dtype=torch.int64),
        "atom": batch.num_nodes_per_graph.cpu(),
        "edge": batch.num_edges_per_graph.cpu(),
    }
    for name, level in LEVELS.items():
        has = torch.tensor([name not in lacking(number % 16) for number in numbers])
        if name not in batch:
            assert not has.any()
            continue
        assert torch.equal(batch.present(name).cpu(), has)
        assert (name in batch.partly_present) == (not has.all())
        value = {"energy": 1.0, "forces": -1.0, "shifts": 0.125, "tag": 1}[name]
        expected = torch.repeat_interleave(torch.tensor(numbers) * value, per_level[level])
        rows_have = torch.repeat_interleave(has, per_level[level])
        rows = batch[name].cpu().reshape(len(expected), -1)
        assert torch.equal(rows[rows_have, 0].double(), expected[rows_have].double())
        absent = rows[~rows_have]
        assert bool((absent.isnan() if absent.is_floating_point() else absent == 0).all())


def clash(kind: str) -> AtomicData:
    data = system(7)
    own = {"tag": torch.tensor([7])}
    if kind == "dtype":
        return system(7, dtype=torch.float64)
    if kind == "dtype of an own field":
        own = {"tag": torch.tensor([7.5])}
    if kind == "row shape":
        own = {"tag": torch.tensor([[7, 7]])}
    fields = {name: data[name] for name in ("energy", "forces", "shifts", "neighbor_list")}
    level = {"atom": {"tag": torch.full((4,), 7)}} if kind == "level" else {"system": own}
    return AtomicData(data.positions, data.atomic_numbers, **fields, **level)


CLASHES = {
    "dtype": r"'positions' has dtype float64, the store has float32.*\.to\(torch.float32\)",
    "dtype of an own field": "'tag' has dtype float32, the store has int64 and the cast may lose",
    "row shape": r"'tag' has rows of shape \(2,\), the store has \(\): a store keeps the shape",
    "level": "'tag' is given at level 'atom', the store has it at 'system': use another name",
}


@pytest.mark.parametrize("kind", CLASHES)
@pytest.mark.parametrize("opened_anew", [False, True])
def test_the_first_write_fixes_fields(place, kind, opened_anew):
    """What differs is refused with every byte as it was, alone and beside what would fit."""
    store = place()
    sink = ZarrData(store, config=SMALL)
    sink.write(MIXED[:3])
    sink.write([system(number) for number in (50, 51)])
    if opened_anew:
        sink.close()
        sink = ZarrData(store, config=SMALL)
        sink.write(system(52))
    wrong = Batch.from_data_list([clash(kind)])
    more = wrong.clone().add_field("later", torch.ones(1), "system")
    for refused in (wrong, more):
        with unchanged(store), pytest.raises(SchemaError, match=CLASHES[kind]):
            sink.write(refused)
    before = sink.read()
    sink.write(system(60))
    sink.close()
    assert_batches_equal(ZarrData(store).read(), Batch.concatenate([before, collate([system(60)])]))


def test_a_cast_that_loses_nothing_is_made(place):
    """float32 into float64, float16 into float32, small integers into int64."""
    store = place()
    with ZarrData(store, config=SMALL) as sink:
        sink.write(system(1, dtype=torch.float64))
        sink.write(system(2))
        data = system(3)
        data.tag = torch.tensor([3], dtype=torch.int8)
        sink.write(data)
        found = sink.read()
    assert found.energy.dtype is torch.float64
    assert found.energy.flatten().tolist() == [1.0, 2.0, 3.0]
    assert found.tag.tolist() == [1, 2, 3]


def test_what_is_absent_is_written_out(place):
    """NaN in the rows and False in ``present/`` for plain Zarr, in old chunks and in new ones."""
    store = place()
    with ZarrData(store, config=SMALL) as sink:
        sink.write([system(number, *LEVELS) for number in range(7)])
        sink.write([system(number) for number in range(7, 9)])
        sink.write(system(9, "energy", "tag"))
    group = zarr.open_group(store, mode="r")
    has = np.array([False] * 7 + [True] * 2 + [False])
    for name in ("energy", "tag"):
        np.testing.assert_array_equal(group[f"present/{name}"][:], has)
    energy, tag = group["core/energy"][:, 0], group["custom/tag"][:]
    np.testing.assert_array_equal(np.isnan(energy), ~has)
    np.testing.assert_array_equal(energy[has], [7.0, 8.0])
    np.testing.assert_array_equal(tag, [0] * 7 + [7, 8, 0])
    forces = group["core/forces"][:]
    owner = np.repeat(np.arange(10), 1 + np.arange(10) % 4)
    np.testing.assert_array_equal(np.isnan(forces[:, 0]), owner < 7)
    np.testing.assert_array_equal(group["present/forces"][:], np.arange(10) >= 7)


class TestMixedPresence:
    """One list of systems of which each lacks other fields, through all that a store does."""

    @pytest.fixture
    def store(self, place):
        store = place()
        with ZarrData(store, config=SMALL) as sink:
            for start, stop in ((0, 3), (3, 4), (4, 23), (23, 40)):
                sink.write(MIXED[start:stop])
        return store

    def test_of_a_batch(self):
        check_mixed(WHOLE, range(40))
        check_mixed(WHOLE.index_select([5, 0, 39, 5]), [5, 0, 39, 5])
        for data, number in zip(WHOLE.to_data_list(), range(40), strict=True):
            assert [name for name in LEVELS if name not in data] == [*lacking(number % 16)]

    def test_read(self, store):
        assert_batches_equal(ZarrData(store).read(), WHOLE)
        dataset, reader = ZarrDataset(store), AtomicDataZarrReader(store)
        for number in range(40):
            for fields in (dataset[number], reader[number][0]):
                assert {name for name in LEVELS if name not in fields} == {*lacking(number % 16)}
        for index in ([0], [39, 1, 1], range(16, 24), range(40)):
            check_mixed(dataset.__getitems__(index), index)

    def test_delete_and_defragment(self, store):
        left = [number for number in range(40) if number not in (0, 5, 15, 16, 39)]
        with AtomicDataZarrWriter(store, SMALL) as writer:
            writer.delete([0, 5, 15, 16, -1])
            check_mixed(ZarrDataset(store).__getitems__(range(35)), left)
            writer.defragment()
            check_mixed(ZarrDataset(store).__getitems__(range(35)), left)
            writer.append(MIXED[:2])
        check_mixed(ZarrData(store).read(), [*left, 0, 1])

    def test_add_custom(self, store):
        with AtomicDataZarrWriter(store, SMALL) as writer:
            writer.delete([1])
            writer.add_custom("gap", torch.arange(39.0), "system")
        found = ZarrData(store).read()
        assert found.gap.tolist() == [*range(39)]
        check_mixed(found, [0, *range(2, 40)])

    def test_merge_and_compact(self, store, place):
        other, target = place("other"), place("target")
        with ZarrData(other, config=SMALL) as sink:
            sink.write([system(number, *LEVELS) for number in (15, 31)])
        assert merge([other, store], target, progress=False) == 42
        check_mixed(ZarrData(target).read(), [15, 31, *range(40)])
        merge([other, store], shuffled := place("shuffled"), shuffle=3, progress=False)
        found = ZarrData(shuffled).read()
        order = (found.atomic_numbers[found.batch_ptr[:-1]] - 1).tolist()
        assert sorted(order) == sorted([15, 31, *range(40)]) != order
        check_mixed(found, order)
        compact(store, progress=False)
        assert_batches_equal(ZarrData(store).read(), WHOLE)

    def test_drain(self, store):
        with ZarrData(store, config=SMALL) as sink:
            assert_batches_equal(sink.drain(), WHOLE)
            sink.write(MIXED[20:30])
            check_mixed(sink.read(), range(20, 30))

    def test_stores_of_which_one_lacks_a_field(self, store, place):
        other = place("other")
        with ZarrData(other, config=SMALL) as sink:
            sink.write([system(number, *LEVELS) for number in (15, 31)])
        dataset = ZarrDataset([other, store])
        check_mixed(dataset.__getitems__([0, 41, 1, 2]), [15, 39, 31, 0])
        check_mixed(dataset.__getitems__([0, 1]), [15, 31])


def double_energy(batch: Batch) -> Batch:
    """Transform that keeps presence, with what is absent left as it is."""
    has = batch.present("energy")
    batch.energy[has] *= 2
    return batch


class TestOnTheWayToALoss:
    """Who has a label is known wherever a batch comes to."""

    @pytest.fixture
    def store(self, tmp_path):
        with ZarrData(tmp_path / "store", config=SMALL) as sink:
            sink.write(MIXED)
        return tmp_path / "store"

    @pytest.mark.parametrize("workers", [0, 1])
    def test_loaders(self, store, workers):
        dataset = ZarrDataset(store)
        sampler = GraphBatchSampler(dataset, batch_size=7, seed=4)
        loader = GraphLoader(dataset, sampler, num_workers=workers)
        batches = list(loader)
        loader.close()
        numbers = [(batch.atomic_numbers[batch.batch_ptr[:-1]] - 1).tolist() for batch in batches]
        assert sorted(number for here in numbers for number in here) == [*range(40)]
        for batch, here in zip(batches, numbers, strict=True):
            check_mixed(batch, here)

    def test_torch_loader(self, store):
        for options in ({}, {"collate_fn": collate}):
            batches = list(DataLoader(ZarrDataset(store), batch_size=9, **options))
            check_mixed(Batch.concatenate(batches), range(40))
        samples = [ZarrDataset(store)[number] for number in (3, 9, 0)]
        check_mixed(collate(samples), [3, 9, 0])

    def test_moves(self, store):
        batch = ZarrDataset(store).__getitems__(range(40))
        moved = [batch.to("cpu"), batch.clone(), batch.to(dtype=torch.float64), batch.detach()]
        for copy in moved:
            check_mixed(copy, range(40))
        assert batch.to("meta").present("energy").device.type == "meta"

    def test_resident(self, store):
        dataset = ZarrDataset(store, resident="cpu")
        check_mixed(dataset.__getitems__([30, 2, 15]), [30, 2, 15])

    def test_transforms(self, store):
        batch = ZarrDataset(store, transform=double_energy).__getitems__(range(40))
        has = torch.tensor([number % 2 == 0 for number in range(40)])
        assert torch.equal(batch.present("energy"), has)
        assert batch.energy[has].flatten().tolist() == [2.0 * n for n in range(0, 40, 2)]
        assert bool(batch.energy[~has].isnan().all())

    def test_statistics(self, store):
        """They are of what is labelled; what is absent is neither NaN nor zero in them."""
        sums = measure(ZarrDataset(store))
        labelled = [number for number in range(40) if "forces" not in lacking(number % 16)]
        atoms = np.array([1 + number % 4 for number in labelled])
        assert sums.sums.total("samples") == 40
        assert sums.sums.total("energies") == 20
        assert sums.sums.total("force_components") == 3 * atoms.sum()
        expected = np.sqrt((np.square(labelled) * atoms).sum() / atoms.sum())
        assert sums.statistics().forces_rms == pytest.approx(expected, rel=1e-12)

    def test_a_masked_loss(self, store):
        """Its value and gradient are those of the labelled samples alone, and never NaN."""
        batch = ZarrDataset(store).__getitems__(range(16))
        scale = torch.tensor(0.5, requires_grad=True)
        predicted = batch.positions[batch.batch_ptr[:-1], :1] * scale
        has = batch.present("energy")
        loss = (predicted - batch.energy)[has].square().mean()
        loss.backward()
        labelled = np.arange(0, 16, 2)
        assert loss.item() == pytest.approx(np.square(labelled / 2).mean())
        assert scale.grad.item() == pytest.approx(-np.square(labelled).mean())
        of_atoms = has[batch.batch_idx]
        assert of_atoms.tolist() == [n % 2 == 0 for n in range(16) for _ in range(1 + n % 4)]
