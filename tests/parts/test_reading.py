"""A dataset of the parts of a parent: order, growth, state, workers."""

import pickle

import numpy as np
import pytest
import torch

import zarrpipe as zp
from reliability.numbered_systems import batch, numbers_of
from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    StoreEmptyError,
    StoreFormatError,
)


def write(store, part, *numbers):
    with zp.ZarrData(store, part=part) as sink:
        sink.write(batch(*numbers))


@pytest.fixture(params=["path", "dict"])
def store(request, tmp_path):
    return tmp_path / "run.zarr" if request.param == "path" else {}


def test_natural_order(store):
    for number, name in enumerate(["10", "9", "w2", "w10", "a.3", "a-20"]):
        write(store, name, number)
    assert list(zp.parts(store)) == ["9", "10", "a-20", "a.3", "w2", "w10"]
    assert numbers_of(zp.ZarrDataset(store)) == [1, 0, 5, 4, 2, 3]


def test_samples_come_in_the_order_of_arrival(store):
    zp.ZarrData(store, part="m")
    dataset = zp.ZarrDataset(store)
    assert len(dataset) == dataset.refresh() == 0
    assert (dataset.ids.size, dataset.num_atoms.size, dataset.num_stores) == (0, 0, 1)
    write(store, "m", 1, 2)
    assert dataset.refresh() == 2
    write(store, "z", 3)
    write(store, "m", 4)
    write(store, "a", 5)
    assert dataset.refresh() == 3
    assert numbers_of(dataset) == [1, 2, 4, 5, 3]
    write(store, "z", 6)
    assert dataset.refresh() == 1
    assert numbers_of(dataset) == [1, 2, 4, 5, 3, 6]
    assert numbers_of(zp.ZarrDataset(store)) == [5, 1, 2, 4, 3, 6]
    assert dataset.store_of([0, 3, 5]).tolist() == [0, 0, 0]
    assert dataset[3].energy.item() == -5


def test_parents_and_stores_together(store):
    write(store, "1", 1)
    other, plain = {}, {}
    write(other, "1", 2)
    with zp.ZarrData(plain) as sink:
        sink.write(batch(3))
    dataset = zp.ZarrDataset([store, plain, other])
    write(store, "0", 4)
    write(other, "2", 5)
    assert dataset.refresh() == 2
    assert numbers_of(dataset) == [1, 3, 2, 4, 5]
    assert dataset.num_stores == 3
    assert dataset.store_of().tolist() == [0, 1, 2, 0, 2]


def test_the_state_names_the_parts(store):
    write(store, "b", 1, 2)
    dataset = zp.ZarrDataset(store)
    write(store, "a", 3)
    write(store, "b", 4)
    dataset.refresh()
    state = dataset.state_dict()
    assert state["parts"] == [[0, "b"], [0, "a"]]
    write(store, "0", 5)
    other = zp.ZarrDataset(store)
    assert numbers_of(other) == [5, 3, 1, 2, 4]
    other.load_state_dict(state)
    assert numbers_of(other) == numbers_of(dataset) == [1, 2, 4, 3]
    assert other.state_dict() == state
    assert other.refresh() == dataset.refresh() == 1
    assert numbers_of(other) == numbers_of(dataset) == [1, 2, 4, 3, 5]


def test_a_state_of_other_parts(store):
    write(store, "a", 1)
    state = zp.ZarrDataset(store).state_dict()
    other, plain = {}, {}
    write(other, "b", 1)
    with pytest.raises(
        StoreFormatError, match="samples of part 'a' of store 0, which is not there"
    ):
        zp.ZarrDataset(other).load_state_dict(state)
    with zp.ZarrData(plain) as sink:
        sink.write(batch(1))
    with pytest.raises(StoreFormatError, match="store 0"):
        zp.ZarrDataset(plain).load_state_dict(state)
    with pytest.raises(StoreFormatError, match="parts of a parent"):
        zp.ZarrDataset(store).load_state_dict(zp.ZarrDataset(plain).state_dict())
    write(other, "a", 2)
    with pytest.raises(StoreFormatError, match="part 'a' of store 0 has 1 samples, the state"):
        zp.ZarrDataset(other).load_state_dict(state)


def test_a_copy_in_another_process(tmp_path):
    write(tmp_path / "run", "b", 1, 2)
    dataset = zp.ZarrDataset(tmp_path / "run")
    write(tmp_path / "run", "a", 3)
    dataset.refresh()
    write(tmp_path / "run", "c", 4)
    other = pickle.loads(pickle.dumps(dataset))
    assert numbers_of(other) == [1, 2, 3]
    assert other.refresh() == 1
    assert numbers_of(other) == [1, 2, 3, 4]
    loader = torch.utils.data.DataLoader(dataset, 2, num_workers=1, collate_fn=zp.collate)
    assert [-round(e) for one in loader for e in one.energy.reshape(-1).tolist()] == [1, 2, 3]


def test_selections_follow(store):
    write(store, "b", 1, 2, 3)
    dataset = zp.ZarrDataset(store, where="energy < -1.5")
    selected = dataset.index_select([1])
    write(store, "a", 1, 4)
    assert dataset.refresh() == 1
    assert selected.refresh() == 0
    assert numbers_of(dataset) == [2, 3, 4]
    assert numbers_of(selected) == [3]
    state = dataset.state_dict()
    again = zp.ZarrDataset(store, where="energy < -1.5")
    assert numbers_of(again) == [4, 2, 3]
    again.load_state_dict(state)
    assert numbers_of(again) == [2, 3, 4]


def test_held_on_a_device(store):
    write(store, "b", 1, 2)
    dataset = zp.ZarrDataset(store, resident="cpu")
    assert numbers_of(dataset) == [1, 2]
    write(store, "a", 3)
    dataset.refresh()
    assert numbers_of(dataset) == [1, 2, 3]
    assert dataset._resident is not None


def test_fields_that_some_parts_lack(store):
    write(store, "a", 1)
    more = batch(2).add_field("round", torch.tensor([7]), "system")
    with zp.ZarrData(store, part="b") as sink:
        sink.write(more)
    dataset = zp.ZarrDataset(store)
    assert dataset.present("round").tolist() == [False, True]
    assert dataset.read([1, 0])["round"].tolist() == [7, 0]
    assert np.array_equal(dataset.num_atoms, [2, 3])


def test_a_part_that_was_rewritten(store):
    write(store, "a", 1)
    write(store, "b", 2, 3)
    dataset = zp.ZarrDataset(store)
    with zp.AtomicDataZarrWriter(zp.parts(store)["b"]) as writer:
        writer.delete([0])
    with pytest.raises(StoreFormatError, match="part 'b' of store 0 was rewritten"):
        dataset.refresh()
    assert numbers_of(zp.ZarrDataset(store)) == [1, 3]


def test_equal_structures_stay_once(store):
    write(store, "b", 1, 2, 1)
    dataset = zp.ZarrDataset(store, unique=True)
    assert numbers_of(dataset) == [1, 2]
    write(store, "a", 2, 3)
    write(store, "b", 3, 4)
    assert dataset.refresh() == 2
    assert numbers_of(dataset) == [1, 2, 3, 4]
    assert len(set(dataset.ids.tolist())) == 4
    again = zp.ZarrDataset(store, unique=True)
    assert numbers_of(again) == [2, 3, 1, 4]
    again.load_state_dict(dataset.state_dict())
    assert numbers_of(again) == [1, 2, 3, 4]
    write(store, "b", 4, 5)
    assert again.refresh() == dataset.refresh() == 1
    assert numbers_of(again) == numbers_of(dataset) == [1, 2, 3, 4, 5]
    with pytest.raises(ArgumentError, match="unique=True, this one has unique=False"):
        zp.ZarrDataset(store).load_state_dict(dataset.state_dict())


def test_equal_structures_of_those_that_meet_a_condition(store):
    write(store, "a", 1, 2, 3)
    write(store, "b", 2, 4)
    dataset = zp.ZarrDataset(store, unique=True, where="energy < -1.5")
    write(store, "c", 1, 4, 5)
    assert dataset.refresh() == 1
    assert numbers_of(dataset) == [2, 3, 4, 5]
    assert dataset.index_select([0, 0]).refresh() == 0


def test_merged(store):
    zp.ZarrData(store, part="z")
    with pytest.raises(StoreEmptyError, match="nothing was written to any of them"):
        zp.merge(store, {})
    write(store, "10", 1, 2)
    write(store, "9", 3)
    whole, twice = {}, {}
    with zp.ZarrData(store, part="10") as running:
        running.write(batch(4))
        assert zp.merge(store, whole) == 4
        running.write(batch(5))
    assert numbers_of(zp.ZarrDataset(whole)) == [3, 1, 2, 4]
    assert zp.merge([store, whole], twice, where="energy < -1.5") == 7
    assert numbers_of(zp.ZarrDataset(twice)) == [3, 2, 4, 5, 3, 2, 4]


def test_the_sums_of_all_parts(store):
    for part, numbers in (("a", (1, 2, 3)), ("b", (4, 5))):
        write(store, part, *numbers)
    whole = {}
    zp.merge(store, whole)
    parts, one = (
        zp.ZarrDataModule(each, batch_size=2, split=(1, 0, 0)).statistics for each in (store, whole)
    )
    assert parts.num_samples == one.num_samples == 5
    assert parts.element_counts == one.element_counts
    assert parts.forces_rms == pytest.approx(one.forces_rms)
    assert parts.reference_energies == pytest.approx(one.reference_energies)


def test_a_mark_of_the_parent_is_what_all_parts_had(store):
    sinks = [zp.ZarrData(store, part=name) for name in ("10", "2", "empty")]
    sinks[0].write(batch(1))
    sinks[1].write(batch(2, 3))
    assert zp.mark(store, "round-0", note="first") == 3
    assert zp.mark(store, "round-0") == 3  # a repetition
    expected = numbers_of(zp.ZarrDataset(store))
    sinks[1].write(batch(4))
    sinks[0].write(batch(5))
    sinks[2].write(batch(6))
    write(store, "3", 7)
    marked = zp.ZarrDataset(store, at="round-0")
    assert numbers_of(marked) == expected == [2, 3, 1]
    assert marked.refresh() == 0
    assert numbers_of(pickle.loads(pickle.dumps(marked))) == expected
    data = zp.ZarrDataModule(store, at="round-0", batch_size=1, split=(1, 0, 0))
    assert data.statistics.num_samples == 3
    with pytest.raises(
        ArgumentError, match="has a mark 'round-0' of 3 samples in 2 parts, and now"
    ):
        zp.mark(store, "round-0")
    assert zp.mark(store, "round-1") == 7
    assert len(zp.ZarrDataset(store, at="round-1")) == 7
    sinks[1].mark("round-0")  # the mark of the parent is meant by its name
    assert numbers_of(zp.ZarrDataset(store, at="round-0")) == expected
    with pytest.raises(ArgumentError, match=r"make one with zarrpipe\.mark"):
        zp.ZarrDataset(store, at="round-7")


def test_a_mark_of_the_parent_is_refused_where_its_samples_are_gone(store):
    for name in ("1", "2"):
        write(store, name, int(name), int(name) + 2)
    zp.mark(store, "round-0")
    with zp.AtomicDataZarrWriter(zp.parts(store)["2"]) as writer:
        writer.delete([0])
    with pytest.raises(StoreFormatError, match="part '2' of store 0 was emptied or rewritten"):
        zp.ZarrDataset(store, at="round-0")
    assert zp.mark(store, "round-1") == 3
    assert numbers_of(zp.ZarrDataset(store, at="round-1")) == [1, 3, 4]
    with zp.ZarrData(store, part="1") as sink:
        sink.zero()
        sink.write(batch(8, 9))
    with pytest.raises(StoreFormatError, match="part '1' of store 0 was emptied or rewritten"):
        zp.ZarrDataset(store, at="round-1")
    assert numbers_of(zp.ZarrDataset(store)) == [8, 9, 4]


def test_what_cannot_be_marked(store, tmp_path):
    zp.ZarrData(store, part="1").close()
    with pytest.raises(StoreEmptyError, match="has samples, so there is nothing to mark"):
        zp.mark(store, "round-0")
    with pytest.raises(ArgumentError, match="cannot be the name of a mark"):
        zp.mark(store, "a/b")
    with pytest.raises(ArgumentTypeError, match="expected a text"):
        zp.mark(store, "round-0", note=3)
    with zp.ZarrData(tmp_path / "plain.zarr") as sink:
        sink.write(batch(1))
    with pytest.raises(ArgumentError, match="is a store without parts"):
        zp.mark(tmp_path / "plain.zarr", "round-0")


def test_marks_of_parts(store):
    first, second = zp.ZarrData(store, part="1"), zp.ZarrData(store, part="2")
    for sink, number in ((first, 1), (second, 2)):
        sink.write(batch(number))
        sink.mark("round-0")
        sink.write(batch(number + 2))
    first.mark("round-1")
    write(store, "3", 5)
    assert numbers_of(zp.ZarrDataset(store, at="round-0")) == [1, 2]
    marked = zp.ZarrDataset(store, at="round-1")
    assert numbers_of(marked) == [1, 3]
    assert marked.refresh() == 0
    assert numbers_of(zp.ZarrDataset(store)) == [1, 3, 2, 4, 5]
    with pytest.raises(ArgumentError, match="no part of store 0 has a mark 'round-7'"):
        zp.ZarrDataset(store, at="round-7")
    for sink in (first, second):
        sink.close()
    whole = {}
    with pytest.warns(UserWarning, match="the marks round-0 are not kept"):
        zp.merge(store, whole)
    assert numbers_of(zp.ZarrDataset(whole, at="round-1")) == [1, 3]


def test_a_check_of_the_parent_is_that_of_its_parts(tmp_path):
    for name in ("1", "2"):
        write(tmp_path / "run.zarr", name, int(name), int(name) + 2)
    report = zp.check(tmp_path / "run.zarr")
    assert report.ok
    assert (report.samples, report.deleted) == (4, 0)
    present = {item.name: item.present for item in report.fields}
    assert present["energy"] == 4
    lost = tmp_path / "run.zarr" / "part-2" / "core" / "positions" / "c" / "0" / "0"
    lost.unlink()
    report = zp.check(tmp_path / "run.zarr")
    assert not report.ok
    assert {finding.place.partition("/")[0] for finding in report.findings} == {"part-2"}
    repaired = zp.check(tmp_path / "run.zarr", repair=True, drop=True)
    assert all(one.startswith("part-2: ") for one in repaired.repairs)
    assert repaired.repairs
    assert numbers_of(zp.ZarrDataset(tmp_path / "run.zarr")) == [1, 3]
