"""Sinks of parts: names, places, what is refused, and recipes for other processes."""

import json
import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch.distributed as dist
import zarr
from zarr.storage import LocalStore, MemoryStore, StorePath

import zarrpipe as zp
from reliability.numbered_systems import batch, numbers_of, write_numbers
from zarrpipe.errors import (
    ArgumentError,
    StoreExistsError,
    StoreFormatError,
    StoreFullError,
    StoreLockedError,
    StorePartsError,
)
from zarrpipe.store.parts.sink_recipe import SinkRecipe

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS")


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch):
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(
    params=["path", "text", "local", "prefix", "dict", "memory", "memory prefix", "url"]
)
def store(request, tmp_path):
    memory = MemoryStore()
    return {
        "path": lambda: tmp_path / "run.zarr",
        "text": lambda: str(tmp_path / "run.zarr"),
        "local": lambda: LocalStore(tmp_path / "run.zarr"),
        "prefix": lambda: StorePath(LocalStore(tmp_path), "deep/run.zarr"),
        "dict": dict,
        "memory": lambda: memory,
        "memory prefix": lambda: StorePath(memory, "deep/run.zarr"),
        "url": lambda: f"memory://{tmp_path.name}/run.zarr",
    }[request.param]()


def test_parts_are_stores_of_their_own(store):
    with zp.ZarrData(store, part="b") as first, zp.ZarrData(store, part="a") as second:
        first.write(batch(1, 2))
        second.write(batch(3))
        first.write(batch(4))
        assert (first.part, len(first), second.part, len(second)) == ("b", 3, "a", 1)
        assert first.store is store
        assert first.read().energy.reshape(-1).tolist() == [-1, -2, -4]
    assert numbers_of(zp.ZarrDataset(store)) == [3, 1, 2, 4]
    places = zp.parts(store)
    assert list(places) == ["a", "b"]
    assert numbers_of(zp.ZarrDataset(places["b"])) == [1, 2, 4]
    assert zp.check(places["b"]).ok
    with zp.ZarrData(store, part="a") as again:
        again.write(batch(5))
        assert again.check().ok
    assert numbers_of(zp.ZarrDataset(places["a"])) == [3, 5]


def test_the_parent_is_a_plain_group(tmp_path):
    with zp.ZarrData(tmp_path / "run.zarr", part="x") as sink:
        sink.write(batch(1))
    document = json.loads((tmp_path / "run.zarr" / "zarr.json").read_text())
    assert document == {
        "attributes": {"zarrpipe": {"format": 2, "parts": 1}},
        "zarr_format": 3,
        "node_type": "group",
    }
    assert sorted(entry.name for entry in (tmp_path / "run.zarr").iterdir()) == [
        "part-x",
        "zarr.json",
    ]
    assert set(zarr.open_group(tmp_path / "run.zarr", mode="r").group_keys()) == {"part-x"}


@pytest.mark.parametrize("name", ["", "a/b", "..\\", "ü", "a b", "x" * 101, 3, True, "a\n"])
def test_names_that_are_none(name):
    store = {}
    with pytest.raises(ArgumentError, match="expected 'auto' or a name of 1 to 100 letters"):
        zp.ZarrData(store, part=name)
    assert store == {}


def test_a_store_has_no_parts_and_a_parent_no_samples(store):
    with zp.ZarrData(store, part="x") as sink:
        sink.write(batch(1))
    plain = {}
    with zp.ZarrData(plain) as sink:
        sink.write(batch(2))
    refused = [
        lambda: zp.ZarrData(store),
        lambda: zp.AtomicDataZarrWriter(store).write(batch(2)),
        lambda: zp.AtomicDataZarrWriter(store).delete([0]),
        lambda: zp.copy(store, {}),
        lambda: zp.merge(plain, store),
        lambda: zp.info(store),
        lambda: zp.AtomicDataZarrReader(store),
    ]
    for call in refused:
        with pytest.raises(StorePartsError, match=r"is a parent of parts.*read all of them with"):
            call()
    with pytest.raises(StoreFormatError):  # of a far one also says that it is far
        zp.compact(store)
    assert numbers_of(zp.ZarrDataset(store)) == [1]


def test_a_store_with_samples_refuses_parts(tmp_path):
    with zp.ZarrData(tmp_path / "one") as sink:
        sink.write(batch(1))
    with pytest.raises(StoreExistsError, match="is a store itself, so that it cannot have parts"):
        zp.ZarrData(tmp_path / "one", part="x")
    zarr.create_group(tmp_path / "foreign", attributes={"of": "others"})
    with pytest.raises(StoreExistsError, match="a group that zarrpipe did not write"):
        zp.ZarrData(tmp_path / "foreign", part="x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    with pytest.raises(StoreExistsError, match=r"other things in it \(thesis.tex\)"):
        zp.ZarrData(tmp_path / "folder", part="x")
    assert [one.name for one in (tmp_path / "folder").iterdir()] == ["thesis.tex"]


def test_parts_of_a_newer_version_are_refused():
    store = {}
    zarr.create_group(MemoryStore(store), attributes={"zarrpipe": {"format": 3, "parts": 2}})
    with pytest.raises(StoreFormatError, match=r"parts of version 2.*upgrade zarrpipe"):
        zp.ZarrDataset(store)


def test_one_sink_for_each_part(tmp_path):
    with zp.ZarrData(tmp_path / "run", part="x") as first:
        first.write(batch(1))
        second = zp.ZarrData(tmp_path / "run", part="x")
        with pytest.raises(StoreLockedError):
            second.write(batch(2))
        with zp.ZarrData(tmp_path / "run", part="y") as other:
            other.write(batch(3))
    assert numbers_of(zp.ZarrDataset(tmp_path / "run")) == [1, 3]


def test_the_name_of_a_rank(monkeypatch, tmp_path):
    def name():
        return zp.ZarrData(tmp_path / "run", part="auto").part

    assert name() != name()
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert name() not in ("5", name())
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert name() == "5"
    monkeypatch.setenv("RANK", "3")
    assert name() == "3"
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert name() == "0"
    finally:
        dist.destroy_process_group()


def test_eight_processes_create_the_parent_together(tmp_path):
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(8)
    processes = [
        context.Process(
            target=write_numbers,
            args=(SinkRecipe(zp.ZarrData, tmp_path / "run", str(number)), [number], gate),
        )
        for number in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0] * 8
    assert numbers_of(zp.ZarrDataset(tmp_path / "run")) == list(range(8))


def test_a_recipe_opens_in_another_process(tmp_path):
    sink = zp.ZarrData(tmp_path / "run", part="main", capacity=50, durable=True)
    recipe = sink.for_part("worker-1")
    assert len(pickle.dumps(recipe)) < 2000
    process = multiprocessing.get_context("spawn").Process(target=write_numbers, args=(recipe, [7]))
    process.start()
    process.join(240)
    assert process.exitcode == 0
    assert numbers_of(zp.ZarrDataset(tmp_path / "run")) == [7]
    with pickle.loads(pickle.dumps(recipe)).open() as other:
        assert (other.part, other.capacity, len(other)) == ("worker-1", 50, 1)
    assert Path(zp.parts(tmp_path / "run")["worker-1"]) == tmp_path / "run" / "part-worker-1"


def test_recipes_that_cannot_be():
    sink = zp.ZarrData({}, part="main")
    with sink.for_part("x").open() as other:  # in this process
        other.write(batch(1))
    with pytest.raises(TypeError, match="in the memory of this process"):
        pickle.dumps(sink.for_part("x"))
    with pytest.raises(ArgumentError, match="expected 'auto' or a name"):
        sink.for_part("a/b")
    with pytest.raises(ArgumentError, match="has no part"):
        zp.ZarrData({}).for_part("x")


def test_capacities():
    store = {}
    first = zp.ZarrData(store, part="a", capacity=3, total_capacity=5)
    second = first.for_part("b").open()
    first.write(batch(1, 2, 3))
    assert first.is_full
    assert not second.is_full
    second.write(batch(4))
    with pytest.raises(StoreFullError, match="total_capacity=5"):
        second.write(batch(5, 6))
    second.write(batch(5))
    assert second.is_full
    assert numbers_of(zp.ZarrDataset(store)) == [1, 2, 3, 4, 5]
