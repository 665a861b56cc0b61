"""Killed anywhere: the committed samples stay, nothing else shows, and the next writer goes on.

The simulations stop a writer at every single operation on its store, one after the other.
Processes that the system kills, at moments that nobody chose, are in tests/reliability.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import MemoryStore

from zarrpipe import AtomicDataZarrWriter, Batch, ZarrData
from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format import commit_log as commit
from zarrpipe.store.format.commit_log import (
    RowCounts,
    check_pointers,
    committed_samples,
    new_samples,
    rising_samples,
)
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, SAMPLES_MASK
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.write import array_writer
from zarrpipe.store.write.append_plan import host_arrays, plan_append
from zarrpipe.store.write.store_writer import StoreWriter
from zarrpipe.testing import assert_batches_equal, assert_plain_zarr, numbered_batch

STORED, MORE = 10, 9
GROUPS = ("meta", "core", "custom")
CHANGES = (
    *("write_at", "resize", "create", "rename", "link", "unlink"),
    *("make_folder", "remove_folder"),
)
SMALL = {group: {"chunk_size": 6} for group in GROUPS}
ZSTD = {
    group: {"chunk_size": 6, "compressors": (zarr.codecs.ZstdCodec(level=1),)} for group in GROUPS
}


class Killed(BaseException):
    """What a writer meets instead of its next operation."""


class Budget:
    """Number of operations that a writer still has; it is dead after them."""

    def __init__(self, operations: int = 10**9) -> None:
        self.left = operations
        self.spent = 0

    def spend(self) -> bool:
        """Whether this is the last operation, which is only begun."""
        if self.left < 0:
            raise Killed
        self.left -= 1
        self.spent += 1
        return self.left < 0


class MortalMemory(MemoryStore):
    """Memory whose writer can be killed between any two changes of a key."""

    def __init__(self, content: dict, budget: Budget) -> None:
        super().__init__(content)
        self._budget = budget

    async def _change(self, name, *arguments, **options):
        if self._budget.spend():
            raise Killed
        return await getattr(MemoryStore, name)(self, *arguments, **options)

    async def set(self, *arguments, **options):
        await self._change("set", *arguments, **options)

    async def set_if_not_exists(self, *arguments, **options):
        await self._change("set_if_not_exists", *arguments, **options)

    async def delete(self, *arguments, **options):
        await self._change("delete", *arguments, **options)

    def set_sync(self, key, value):
        if self._budget.spend():
            raise Killed
        super().set_sync(key, value)

    def delete_sync(self, key):
        if self._budget.spend():
            raise Killed
        super().delete_sync(key)


class Memory:
    """A store in memory, restored before each life of a writer."""

    config = ZSTD

    def __init__(self, folder: Path) -> None:
        self._content: dict = {}
        self._kept: dict = {}

    @property
    def store(self):
        return MemoryStore(self._content)

    def keep(self) -> None:
        self._kept = dict(self._content)

    def restore(self) -> None:
        self._content = dict(self._kept)

    def mortal(self, budget: Budget):
        return MortalMemory(self._content, budget)


class Local:
    """A directory; what a writer does there is a positional write, a file, a name or a removal."""

    config = SMALL

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self._kept = folder / "store", folder / "kept"
        self._budget = Budget()
        for name in CHANGES:
            monkeypatch.setattr(files, name, self._mortal(getattr(files, name)))

    def _mortal(self, operation):
        def change(*arguments, **options):
            if self._budget.spend():
                if len(arguments) == 3:  # a write that is torn, between two of its rows
                    first, data, offset = arguments[0], arguments[1].cast("B"), arguments[2]
                    operation(first, data[: len(data) // 16 * 8], offset)
                raise Killed
            return operation(*arguments, **options)

        return change

    def keep(self) -> None:
        if self.store.exists():
            shutil.copytree(self.store, self._kept)

    def restore(self) -> None:
        shutil.rmtree(self.store, ignore_errors=True)
        if self._kept.exists():
            shutil.copytree(self._kept, self.store)

    def mortal(self, budget: Budget):
        self._budget = budget
        return self.store


class Plain(Local):
    """The default: whole pages, and therefore mapped."""

    config = None


@pytest.fixture(params=["memory", "local", "plain"])
def place(request, tmp_path, monkeypatch, quick):
    if request.param == "memory":
        place = Memory(tmp_path)
    else:
        place = (Plain if request.param == "plain" else Local)(tmp_path, monkeypatch)
    place.kills_drawn = 1 if quick else 3
    return place


def lives(place, change, seed):
    """Carry out `change` on the store as it is now, once for each kill, and yield after each.

    Yields whether the writer was killed. Kills are at a few operations that are drawn, and
    at the last two; with ZARRPIPE_EXHAUSTIVE=1 at every one.
    """
    place.keep()
    whole = Budget()
    change(place.mortal(whole))
    place.mortal(Budget())
    yield False
    assert whole.spent > 2
    if os.environ.get("ZARRPIPE_EXHAUSTIVE"):
        points = range(whole.spent)
    else:
        few = np.random.default_rng(seed).integers(0, whole.spent, place.kills_drawn)
        points = sorted({*few.tolist(), whole.spent - 2, whole.spent - 1})
    for operations in points:
        print(f"killed at operation {operations} of {whole.spent}")  # noqa: T201  shown when a test fails
        place.restore()
        with pytest.raises(Killed):
            change(place.mortal(Budget(operations)))
        place.mortal(Budget())
        yield True


def continued(place, count: int) -> None:
    """Check that a new writer goes on where the last left off."""
    with ZarrData(place.store, 100, config=place.config) as sink:
        assert len(sink) == count
        sink.write(numbered_batch(range(count, count + MORE)))
        assert_batches_equal(sink.read(), numbered_batch(range(count + MORE)))
    assert_plain_zarr(place.store, numbered_batch(range(count + MORE)), exact=True)


def test_an_append(place, seed):
    """Over a chunk border of the pointers: every kill leaves a prefix of the systems."""
    with ZarrData(place.store, 100, config=place.config) as sink:
        sink.write(numbered_batch(range(STORED)))

    def append(store):
        sink = ZarrData(store, 100, config=place.config)
        try:
            sink.write(numbered_batch(range(STORED, STORED + MORE)))
        finally:
            if sink._writer is not None:
                sink._writer.abandon()

    counts = []
    for killed in lives(place, append, seed):
        view = StoreView(place.store)
        assert_batches_equal(
            view.gather(np.arange(view.num_samples)), numbered_batch(range(view.num_samples))
        )
        counts.append(view.num_samples)
        assert killed or view.num_samples == STORED + MORE
        continued(place, view.num_samples)
    assert counts[1:] == sorted(counts[1:])
    assert set(counts) <= set(range(STORED, STORED + MORE + 1))


def test_the_first_write(place, seed):
    """A store that is being made is no store, an empty one, or one with a prefix."""

    def write(store):
        sink = ZarrData(store, 100, config=place.config)
        try:
            sink.write(numbered_batch(range(3)))
        finally:
            if sink._writer is not None:
                sink._writer.abandon()

    for killed in lives(place, write, seed):
        sink = ZarrData(place.store, 100, config=place.config)
        count = len(sink)
        assert count in (range(4) if killed else (3,))
        continued(place, count)


def test_an_append_that_changes_the_schema(place, seed):
    """A new field and a lacking one: what was stored keeps its labels, and lacks the new ones."""
    old = numbered_batch(range(STORED))
    new = numbered_batch(range(STORED, STORED + 4)).without("energy")
    new.stress = torch.ones(4, 3, 3, dtype=torch.float64)
    with ZarrData(place.store, 100, config=place.config) as sink:
        sink.write(old)

    def append(store):
        sink = ZarrData(store, 100, config=place.config)
        try:
            sink.write(new)
        finally:
            if sink._writer is not None:
                sink._writer.abandon()

    whole = Batch.concatenate([old, new])
    for _ in lives(place, append, seed):
        with ZarrData(place.store, 100, config=place.config) as sink:
            count = len(sink)
            found = sink.read()
            if "stress" in found and count == STORED:
                assert not bool(found.present("stress").any())
                found = found.without("stress")
            names = [name for name in whole.fields if name not in found]
            expected = whole.index_select(slice(0, count)).without(*names)
            assert_batches_equal(found, expected)
            sink.write(new)
            rest = Batch.concatenate([whole.index_select(slice(0, count)), new])
            assert_batches_equal(sink.read(), rest)


def test_a_deletion(place, seed):
    """Some of the samples may be deleted, and every reader and writer agrees on which."""
    with ZarrData(place.store, 100, config=place.config) as sink:
        sink.write(numbered_batch(range(STORED)))
    gone = [1, 2, 8]

    def delete(store):
        writer = AtomicDataZarrWriter(store, config=place.config)
        try:
            writer.delete(gone)
        finally:
            if writer._writer is not None:
                writer._writer.abandon()

    for killed in lives(place, delete, seed):
        view = StoreView(place.store)
        left = view.gather(np.arange(view.num_samples))["serial"].tolist()
        assert set(range(STORED)) - set(gone) <= set(left) <= set(range(STORED))
        assert killed or len(left) == STORED - len(gone)
        with ZarrData(place.store, 100, config=place.config) as sink:
            sink.write(numbered_batch([77]))
            left = sink.read()["serial"].tolist()
            assert len(sink) == len(left)
        assert set(range(STORED)) - set(gone) <= set(left) - {77}
        view = StoreView(place.store)
        assert_batches_equal(view.gather(np.arange(view.num_samples)), numbered_batch(left))


def test_clearing(place, seed):
    """Either all samples are there or none, and the store can be used again."""
    with ZarrData(place.store, 100, config=place.config) as sink:
        sink.write(numbered_batch([99, *range(STORED)]))
    with AtomicDataZarrWriter(place.store, config=place.config) as writer:
        writer.delete([0])

    def zero(store):
        sink = ZarrData(store, 100, config=place.config)
        try:
            sink.zero()
        finally:
            if sink._writer is not None:
                sink._writer.abandon()

    for killed in lives(place, zero, seed):
        count = len(ZarrData(place.store, 100))
        assert count in ((STORED, 0) if killed else (0,))
        if count:
            assert_batches_equal(ZarrData(place.store).read(), numbered_batch(range(STORED)))
        else:
            continued(place, 0)


@pytest.mark.parametrize("config", [None, SMALL, ZSTD], ids=["plain", "small", "compressed"])
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_every_prefix_of_a_plan(tmp_path, kind, config):
    """Until the last write of a plan is begun, exactly the old samples are visible."""
    store = tmp_path / "store" if kind == "local" else MemoryStore()
    batch = numbered_batch(range(STORED, STORED + MORE))
    root, chosen = Root.of(store), ZarrWriteConfig.of(config)
    with ZarrData(store, 100, config=config) as sink:
        sink.write(numbered_batch(range(STORED)))
    view = StoreView(store)
    writer = StoreWriter(root, chosen, 100)
    state = (writer.schema, writer.attributes.nullable, writer.counts)
    plan, _ = plan_append(*state, *host_arrays(batch))
    for write in plan:
        view.refresh()
        fresh = StoreView(store)
        for reader in (view, fresh):
            assert reader.num_samples == STORED
        if write is plan[-1]:
            assert_batches_equal(fresh.gather(np.arange(STORED)), numbered_batch(range(STORED)))
        writer.array(write.path).write(write.start, write.values)
    assert view.refresh() == MORE
    assert_batches_equal(view.gather(np.arange(19)), numbered_batch(range(19)))
    writer.abandon()


def test_the_order_of_a_plan():
    """Fields, ids and masks, edge pointers, and the atom pointers last."""
    batch = numbered_batch(range(4))
    state = (Schema.of(batch), frozenset({"energy"}), RowCounts.of(3, 20, 7))
    plan, after = plan_append(*state, *host_arrays(batch))
    assert after == RowCounts.of(7, 30, 13)
    assert [write.path for write in plan[-5:]] == [
        "present/energy",
        "meta/ids",
        SAMPLES_MASK,
        EDGES_PTR,
        ATOMS_PTR,
    ]
    starts = {write.path: write.start for write in plan}
    assert starts["core/positions"] == 20
    assert starts["core/neighbor_list"] == 7
    assert (starts["custom/serial"], starts[SAMPLES_MASK], starts[ATOMS_PTR]) == (3, 3, 4)
    values = {write.path: write.values.tolist() for write in plan}
    assert values[ATOMS_PTR] == [21, 23, 26, 30]
    assert values[EDGES_PTR] == [7, 8, 10, 13]
    assert values["core/neighbor_list"] == (batch.neighbor_list + 20).tolist()
    assert values["present/energy"] == [True] * 4


@pytest.mark.parametrize("allocated", [0, 1, 5, 100, 101])
def test_committed_samples_is_the_zero_free_prefix(allocated, monkeypatch):
    """Whatever is known of it, and whatever stands behind the first zero."""
    monkeypatch.setattr(commit, "_BLOCK", 7)
    rng = np.random.default_rng(allocated)
    for samples in range(allocated):
        pointers = np.zeros(allocated, dtype=np.int64)
        pointers[1 : samples + 1] = np.cumsum(rng.integers(1, 9, samples))
        behind = pointers.copy()
        behind[samples + 2 :] = rng.integers(0, 2, len(behind[samples + 2 :])) * 77
        for known in {0, samples // 2, samples}:
            assert committed_samples(pointers, known) == samples
            assert committed_samples(behind, known) == samples
            for some in (pointers, behind):
                assert rising_samples("ptr", some, *new_samples(some, known)) == samples
    assert committed_samples(np.array([0, 0, 7, 9]), known=3) == 0


@pytest.mark.parametrize("sample", [0, 6, 7, 20])
def test_pointers_that_fall_are_refused_where_they_are_new(sample, monkeypatch):
    """At the first that does, whatever stands behind."""
    monkeypatch.setattr(commit, "_BLOCK", 7)
    pointers = np.arange(31) * 3
    pointers[sample + 1 :] -= 4
    pointers[30] = 0
    message = f"sample {sample} would have rows {3 * sample} to {3 * sample - 1};"
    with pytest.raises(StoreFormatError, match=message):
        rising_samples("ptr", pointers, *new_samples(pointers, 0))
    with pytest.raises(StoreFormatError, match=message):
        check_pointers("ptr", pointers, 29, 0)
    known = sample + 1
    assert rising_samples("ptr", pointers, *new_samples(pointers, known)) == 29
    check_pointers("ptr", pointers, 29, known)


def test_a_zero_between_pointers_ends_the_store(tmp_path):
    """As a cut of power leaves it: readers stop there, the next writer clears what is behind."""
    store, where = tmp_path / "store", tmp_path / "store" / "meta" / "atoms_ptr" / "c" / "0"
    with ZarrData(store) as sink:
        sink.write(numbered_batch(range(STORED)))
        view = StoreView(store)
        sink.write(numbered_batch(range(STORED, 200)))
        pointers = np.fromfile(where, dtype="<i8")
        np.testing.assert_array_equal(pointers[1:201] > 0, True)
        pointers[60:70] = 0
        pointers.tofile(where)
        sink._writer.abandon()
        assert view.refresh() == 59 - STORED
        assert StoreView(store).num_samples == 59
    with ZarrData(store) as sink:
        assert len(sink) == 59
        sink.write(numbered_batch(range(59, 63)))
        assert not np.fromfile(where, dtype="<i8")[64:].any()
        assert_batches_equal(sink.read(), numbered_batch(range(63)))
    assert_plain_zarr(store, numbered_batch(range(63)), exact=True)


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_failed_append_can_be_repeated(tmp_path, monkeypatch, kind):
    """A full disk, at any operation: the same writer goes on once there is room."""
    config = SMALL if kind == "local" else ZSTD
    store = tmp_path / "store" if kind == "local" else MemoryStore()
    sink = ZarrData(store, 200, config=config)
    sink.write(numbered_batch(range(5)))
    name = ("PlainArrayWriter", "write") if kind == "local" else ("ZarrArrayWriter", "_write_chunk")
    writer, calls = getattr(array_writer, name[0]), [0, 0]
    original = getattr(writer, name[1])

    def write(self, start, values):
        calls[0] += 1
        if calls[0] == calls[1]:
            if kind == "local":
                original(self, start, values[: len(values) // 2])
            raise OSError(28, "No space left on device")
        original(self, start, values)

    monkeypatch.setattr(writer, name[1], write)
    count = 5
    for calls[1] in range(1, 60):
        calls[0] = 0
        batch = numbered_batch(range(count, count + 8))
        with suppress(OSError):
            sink.write(batch)
            break
        assert len(sink) == len(ZarrData(store, 200)) == count
        assert_batches_equal(sink.read(), numbered_batch(range(count)))
    else:
        pytest.fail("no write came through")
    assert calls[1] == calls[0] + 1 > 11
    assert_batches_equal(sink.read(), numbered_batch(range(count + 8)))
    sink.close()
    assert_plain_zarr(store, numbered_batch(range(count + 8)), exact=True)


def test_a_reader_beside_an_append_that_failed(tmp_path, monkeypatch):
    """It met a new chunk of pointers that was taken back, and goes on seeing what is appended."""
    sink = ZarrData(tmp_path / "store", config={"meta": {"chunk_size": 512}})
    sink.write(numbered_batch(range(511)))  # the pointers fill a chunk
    view, write = StoreView(tmp_path / "store"), files.write_at

    def full(descriptor, data, offset):
        if sorted((tmp_path / "store" / "meta" / "atoms_ptr" / "c").glob("1")):
            view.refresh()
            raise OSError(28, "No space left on device")
        write(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_at", full)
        with pytest.raises(OSError, match="No space left"):
            sink.write(numbered_batch(range(511, 520)))
    for stop in (515, 530):
        sink.write(numbered_batch(range(len(sink), stop)))
        view.refresh()
        assert view.num_samples == stop
    assert_batches_equal(view.gather(np.arange(530)), numbered_batch(range(530)))
    sink.close()
