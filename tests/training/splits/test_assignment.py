"""Sides of a split over real stores: no sample changes its own, and a condition is for all."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

import zarrpipe as zp
from zarrpipe import AtomicDataZarrWriter, ZarrDataModule, ZarrDataset
from zarrpipe.errors import ArgumentError, SchemaError, StoreEmptyError

SIDES = ("train", "val", "test")
SHARES = (0.5, 0.3, 0.2)
CONDITION = "serial % 3 != 0 and num_atoms < 6"


def rounds(data, count, tag):
    """Batch with field `round`, of which each batch has each value from 0 to 6."""
    batch = data.batch(count, tag=tag)
    batch.add_field("round", torch.arange(count)[:, None] % 7, "system")
    return batch


def serials(dataset):
    return dataset.system_field("serial").ravel().tolist()


def side_of_each(module):
    """Side of each sample that is on one, by its serial."""
    sides = {}
    for side in SIDES:
        own = serials(getattr(module, f"{side}_dataset"))
        assert len(set(own)) == len(own)
        assert not sides.keys() & set(own)
        sides.update(dict.fromkeys(own, side))
    return sides


class History:
    """Two stores that are grown, deleted from and written anew, and what is still there."""

    def __init__(self, place, data):
        self.place, self.data, self.tag, self.made = place, data, 0, 0
        self.stores = [place / "a", place / "b"]
        self.there = set()
        for store in self.stores:
            self.grow(store, 25)

    def grow(self, store, count=9):
        self.data.append(store, rounds(self.data, count, self.tag))
        self.there |= {1000 * self.tag + number for number in range(count)}
        self.tag += 1

    def change(self, what, random):
        store = self.stores[int(random.integers(len(self.stores)))]
        seed = int(random.integers(1000))
        match what:
            case "grow":
                self.grow(store)
            case "delete":
                dataset = ZarrDataset(store)
                gone = random.permutation(len(dataset))[:4]
                self.there -= set(dataset.system_field("serial", gone).ravel().tolist())
                with AtomicDataZarrWriter(store) as writer:
                    writer.delete(gone)
            case "defragment":
                with AtomicDataZarrWriter(store) as writer:
                    writer.defragment()
            case "compact":
                zp.compact(store, shuffle=seed)
            case "merge":
                self.made += 1
                whole = self.place / f"whole{self.made}"
                zp.merge(self.stores, whole, shuffle=seed if seed % 2 else None)
                self.stores = [whole]
            case "reverse":
                self.stores.reverse()
            case "part":
                self.stores.append(self.place / f"part{self.tag}")
                self.grow(self.stores[-1])


def ways_to_split(place, stores):
    """Arguments of the data module, with index files that are written now."""
    dataset = ZarrDataset(stores)
    number = dataset.system_field("serial").ravel()
    for side, rest in (("val", 1), ("test", 2)):
        zp.write_split(place / f"{side}.npy", dataset, np.flatnonzero(number % 5 == rest))
    files = {"val": str(place / "val.npy"), "test": place / "test.npy"}
    ways = {
        "id": {"split": SHARES},
        "round": {"split": SHARES, "split_by": "round"},
        "files": {"split": files},
        "file and shares": {"split": {"train": files["val"], "val": 0.3, "test": 0.7}},
        "file and unused": {"split": {**files, "train": files["val"], "val": None}},
    }
    return {
        **ways,
        **{f"{n} where": {**ways[n], "where": CONDITION} for n in ("id", "round", "files")},
    }


def expected_samples(name, way, history, dataset):
    """Serials that have to be on some side."""
    number = dataset.system_field("serial").ravel()
    assert set(number.tolist()) == history.there
    kept = np.ones(len(number), dtype=bool)
    if "where" in way:
        kept = (number % 3 != 0) & (dataset.num_atoms < 6)
    if name == "file and unused":
        named = [np.load(way["split"][side]) for side in ("train", "test")]
        kept &= np.isin(dataset.ids, np.concatenate(named))
    return set(number[kept].tolist())


CHANGES = ("grow", "delete", "defragment", "compact", "merge", "reverse", "part")


@pytest.mark.parametrize("seed", [None, 1])
def test_no_sample_ever_changes_sides(tmp_path, data, seed):
    random = np.random.default_rng(seed or 0)
    changes = [*CHANGES[:4], "part", "merge", "grow", "reverse", "compact"]
    if seed is not None:
        changes = random.choice(CHANGES, size=8, p=[0.3, 0.15, 0.1, 0.15, 0.1, 0.1, 0.1]).tolist()
    history = History(tmp_path, data)
    ways = ways_to_split(tmp_path, history.stores)
    by_serial, id_of = {name: {} for name in ways}, {}
    grown = {name: ZarrDataModule(history.stores, **way) for name, way in ways.items()}
    for change in [None, *changes]:
        if change is not None:
            history.change(change, random)
        dataset = ZarrDataset(history.stores)
        ids = dict(zip(serials(dataset), dataset.ids.tolist(), strict=True))
        id_of.update(ids)
        assert len(set(id_of.values())) == len(id_of)
        assert ids.items() <= id_of.items()
        for name, way in ways.items():
            fresh = ZarrDataModule(history.stores, **way)
            told, sides = (name, change, changes), side_of_each(fresh)
            assert sides.keys() == expected_samples(name, way, history, dataset), told
            if change in (None, "grow"):
                grown[name].refresh()
                assert side_of_each(grown[name]) == sides, told
            else:
                grown[name] = fresh
            known = by_serial[name]
            assert {number: known.get(number, side) for number, side in sides.items()} == sides, (
                told
            )
            known.update(sides)
    for name, sides in by_serial.items():
        expected = {"train", "test"} if name == "file and unused" else set(SIDES)
        assert set(sides.values()) == expected, name
    groups = {number % 1000 % 7: side for number, side in by_serial["round"].items()}
    assert by_serial["round"] == {n: groups[n % 1000 % 7] for n in by_serial["round"]}
    listed = {n: {1: "val", 2: "test"}.get(n % 5, "train") for n in by_serial["files"]}
    first = {n for n in listed if n < 25 or 1000 <= n < 1025}
    assert {n: by_serial["files"][n] for n in first} == {n: listed[n] for n in first}
    assert {by_serial["files"][n] for n in listed.keys() - first} <= {"train"}


def test_a_group_that_grows_stays_on_its_side_in_every_width_of_its_field(tmp_path, data):
    wide, narrow = rounds(data, 21, 0), rounds(data, 21, 1)
    narrow = narrow.without("round")
    narrow.add_field("round", (torch.arange(21)[:, None] % 7).to(torch.int8), "system")
    sides = []
    for name, batch in (("wide", wide), ("narrow", narrow)):
        data.append(tmp_path / name, batch)
        module = ZarrDataModule(tmp_path / name, split=SHARES, split_by="round")
        sides.append({n % 1000: side for n, side in side_of_each(module).items()})
    assert sides[0] == sides[1]
    assert set(sides[0].values()) == set(SIDES)


class SampleFindings(LightningModule):
    """Notes which samples came, and lets a store grow in the middle of its first epoch."""

    def __init__(self, grow=None):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.grow, self.seen, self.validated = grow, {}, {}

    def training_step(self, batch, number):
        self.seen.setdefault(self.current_epoch, []).extend(batch["serial"].ravel().tolist())
        if self.grow is not None and (self.current_epoch, number) == (0, 1):
            self.grow()

    def validation_step(self, batch, number):
        own = self.validated.setdefault(self.current_epoch, [])
        own.extend(batch["serial"].ravel().tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


def fit(place, model, module):
    Trainer(
        accelerator="cpu",
        max_epochs=2,
        num_sanity_val_steps=0,
        default_root_dir=place,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, module)


def test_a_condition_holds_on_every_side(tmp_path, data):
    stores = [tmp_path / name for name in ("all", "val")]
    for tag, store in enumerate(stores):
        data.append(store, rounds(data, 40, tag))
    every = ZarrDataModule(stores[0], split=SHARES)
    module = ZarrDataModule(stores[0], split=SHARES, where="round in (1, 5)")
    chosen = {n: side for n, side in side_of_each(every).items() if n % 7 in (1, 5)}
    assert side_of_each(module) == chosen
    read = [n for batch in module.predict_dataloader() for n in batch["serial"].ravel().tolist()]
    assert read == sorted(chosen)
    apart = ZarrDataModule(stores[0], val_store=stores[1], where="round in (1, 5)")
    assert serials(apart.val_dataset) == [1000 + n for n in range(40) if n % 7 in (1, 5)]
    data.append(stores[1], rounds(data, 8, 2))
    apart.refresh()
    assert serials(apart.val_dataset)[-2:] == [2001, 2005]


def test_a_condition_may_name_what_only_another_side_has(tmp_path, data):
    data.append(tmp_path / "rounds", rounds(data, 20, 0))
    data.append(tmp_path / "without", data.batch(6, tag=1))

    def sides(where):
        module = ZarrDataModule(
            tmp_path / "rounds", val_store=tmp_path / "without", split=(1, 0, 0), where=where
        )
        return serials(module.train_dataset), serials(module.val_dataset)

    late = [n for n in range(20) if n % 7 >= 4]
    assert sides("round >= 4") == (late, [])
    assert sides("not has(round) or round >= 4") == (late, list(range(1000, 1006)))
    with pytest.raises(SchemaError, match=r"no store has a field 'rounds' \(did you mean 'round'"):
        sides("rounds >= 4")


def test_what_arrives_in_a_fit_has_to_meet_the_condition(tmp_path, data):
    store = tmp_path / "store"
    data.append(store, rounds(data, 30, 0))
    model = SampleFindings(lambda: data.append(store, rounds(data, 30, 1)))
    module = ZarrDataModule(store, batch_size=4, split=(0.7, 0.3, 0), where="round < 5")
    fit(tmp_path, model, module)
    every = side_of_each(module)
    assert set(every) == {n for n in [*range(30), *range(1000, 1030)] if n % 1000 % 7 < 5}
    for seen, side in ((model.seen, "train"), (model.validated, "val")):
        own = [n for n in every if every[n] == side]
        assert sorted(seen[1]) == sorted(own)
    assert sorted(model.seen[0]) == [n for n in range(30) if every.get(n) == "train"]


def test_a_condition_that_leaves_nothing_to_train_on_is_named(tmp_path, data):
    data.append(tmp_path / "store", rounds(data, 10, 0))
    module = ZarrDataModule(tmp_path / "store", where="round > 6")
    with pytest.raises(StoreEmptyError, match=r": none of 10 samples meets where='round > 6'; w"):
        module.setup("fit")
    split = {"train": 0, "val": 0.5, "test": 0.5}
    module = ZarrDataModule(tmp_path / "store", where="round > 5", split=split)
    with pytest.raises(StoreEmptyError, match=r"of 10 samples .* that meets where='round > 5'"):
        module.setup("fit")
    ids = ZarrDataset(tmp_path / "store").ids
    np.save(tmp_path / "test.npy", ids)
    module = ZarrDataModule(tmp_path / "store", split={"test": str(tmp_path / "test.npy")})
    with pytest.raises(
        StoreEmptyError, match=r"split=\{'test': '/[^'\"]*test.npy', 'train': 1.0\} g"
    ):
        module.setup("fit")
    with pytest.raises(ArgumentError, match="where='round >' is no expression"):
        ZarrDataModule(tmp_path / "store", where="round >")


def test_a_resumed_epoch_has_to_have_the_same_condition(tmp_path, data):
    store = tmp_path / "store"
    data.append(store, rounds(data, 40, 0))

    def module(where):
        return ZarrDataModule(store, batch_size=4, split=(1, 0, 0), where=where)

    def rest(loader):
        return [n for batch in loader for n in batch["serial"].ravel().tolist()]

    whole = rest(module("serial < 20 or serial >= 1000").train_dataloader())
    assert sorted(whole) == list(range(20))
    first = module("serial < 20 or serial >= 1000")
    batches = iter(first.train_dataloader())
    got = [n for _ in range(2) for n in next(batches)["serial"].ravel().tolist()]
    state = first.state_dict()
    other = module("serial >= 20")
    assert len(other.train_dataset) == 20
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="the state is of other samples"):
        other.train_dataloader()
    data.append(store, rounds(data, 8, 1))
    again = module("serial < 20 or serial >= 1000")
    again.load_state_dict(state)
    assert got + rest(again.train_dataloader()) == whole
    again.refresh()
    assert sorted(serials(again.train_dataset)) == [*range(20), *range(1000, 1008)]


def test_samples_without_the_field_that_keeps_them_together(tmp_path, data):
    data.append(tmp_path / "store", rounds(data, 14, 0))
    data.append(tmp_path / "store", data.batch(5, tag=1))
    whole = ZarrDataModule(tmp_path / "store", split=SHARES, split_by="round")
    message = r"5 samples, the first of them 14, have no field 'round'.*where='has\(round\)'"
    with pytest.raises(SchemaError, match=message):
        whole.setup("fit")
    chosen = ZarrDataModule(tmp_path / "store", split=SHARES, split_by="round", where="has(round)")
    sides = side_of_each(chosen)
    assert sorted(sides) == list(range(14))
    assert all(sides[n] == sides[n + 7] for n in range(7))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"training": 0.5}, "split names 'training', which is no split"),
        ({"train": 0.5}, "val or test could have the other samples"),
        ({"val": 1.5}, "each of 0 or more and in all at most 1"),
        ("0.9", "expected shares of train, val, test or a mapping"),
        ((0.9, 0.1), "expected shares of train, val, test"),
    ],
)
def test_what_says_no_split_is_refused_at_once(tmp_path, split, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ZarrDataModule(tmp_path, split=split)
