"""Durable writers: what was acknowledged outlasts a loss of power, and nothing torn shows."""

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from zarrpipe import ZarrData
from zarrpipe.errors import FieldError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format import layout
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import ATOMS_PTR
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.rewrite.delete_defragment import delete_samples
from zarrpipe.store.write.store_writer import StoreWriter
from zarrpipe.testing import assert_batches_equal, numbered_batch

from .power import Recorder

ZSTD = {
    group: {"chunk_size": 16, "compressors": (zarr.codecs.ZstdCodec(level=1),)}
    for group in ("meta", "core", "custom")
}
FIRST, TAGGED = {"plain": 500, "compressed": 14}, 7


def tagged(numbers):
    """Batch whose systems have a field of their own."""
    batch = numbered_batch(numbers)
    batch.add_field("tag", np.array([10.0 * number for number in numbers]), "system")
    return batch


class Story:
    """A durable writer's life, and after how many operations what was acknowledged.

    `states` are lists of what may be visible from one acknowledgement to the next: the serials
    before and after the step that is going on, and which of both may be cut anywhere.
    """

    def __init__(self, folder: Path, config, first: int, recorder: Recorder) -> None:
        self.store, self.first = folder / "store", first
        self._config, self._recorder = ZarrWriteConfig.of(config), recorder
        self.states = [(0, [], [])]
        self._writer: StoreWriter | None = None

    def tell(self) -> None:
        end = self.first
        self._step(lambda writer: writer.append(numbered_batch(range(end))), [*range(end)])
        self._append(end, end + 20)
        end += 20
        self.tag_start = end
        self._step(
            lambda writer: writer.append(tagged([*range(end, end + TAGGED)])),
            [*range(end + TAGGED)],
        )
        self._close()
        end += TAGGED
        self._append(end, end + 4)
        gone = [2, end - 3]
        left = [number for number in range(end + 4) if number not in gone]
        self._step(lambda writer: delete_samples(writer, np.array(gone)), left)
        self._step(StoreWriter.zero, [])
        self._step(
            lambda writer: writer.append(numbered_batch(range(900, 905))), [*range(900, 905)]
        )
        self._close()

    def _append(self, start, stop):
        self._step(
            lambda writer: writer.append(numbered_batch(range(start, stop))),
            [*self.states[-1][2], *range(start, stop)],
        )

    def _step(self, change, after):
        before = self.states[-1][2]
        self.states.append((self._recorder.operations, before, after))
        if self._writer is None:
            root = Root.of(self.store)
            self._writer = StoreWriter(root, self._config, 1000, durable=True)
        change(self._writer)
        self.states.append((self._recorder.operations, after, after))

    def _close(self):
        self._writer.close()
        self._writer = None
        self.states.append((self._recorder.operations, *self.states[-1][1:]))

    def _state(self, operations):
        return next(state[1:] for state in reversed(self.states) if state[0] <= operations)

    def deletes(self, operations) -> bool:
        """Whether samples are just being deleted."""
        before, after = self._state(operations)
        return 0 < len(after) < len(before)

    def check(self, serials, operations):
        """Check what is visible after a number of operations."""
        before, after = self._state(operations)
        if len(after) > len(before) or not before:  # an append: a prefix
            assert serials == after[: len(serials)]
            assert len(serials) >= len(before)
        elif after:  # a deletion: any part of it
            assert set(after) <= set(serials) <= set(before)
            assert serials == sorted(serials)
        else:  # all or nothing
            assert serials in (before, after)


def visible(store, tag_start):
    """Serials of the samples that a new reader finds, whose values are all checked."""
    found = ZarrData(store, 10_000)
    if not len(found):
        return []
    batch = found.read()
    serials = [int(serial) for serial in batch["serial"]]
    if "tag" in batch:
        has = batch.present("tag").numpy()
        tags = batch["tag"].numpy().reshape(-1)
        np.testing.assert_array_equal(has, [tag_start <= s < tag_start + TAGGED for s in serials])
        np.testing.assert_array_equal(tags[has], [10.0 * s for s in np.array(serials)[has]])
        assert np.isnan(tags[~has]).all()
        batch = batch.without("tag")
    assert_batches_equal(batch, numbered_batch(serials))
    return serials


@pytest.fixture(params=["plain", "compressed"])
def story(request, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_LEAST_ROWS", 1)
    monkeypatch.setattr(layout, "_LEAST_ROWS_IN_PLACE", 1)
    monkeypatch.setattr(layout, "_LARGEST_PAGE", 4096)
    (tmp_path / "disk").mkdir()
    with monkeypatch.context() as patch:
        recorder = Recorder(tmp_path / "disk", patch)
        config = None if request.param == "plain" else ZSTD
        told = Story(tmp_path / "disk", config, FIRST[request.param], recorder)
        told.tell()
    return told, recorder, config


def moments(story, recorder, seed):
    """After which operations power is lost, and which part of what was not synced arrives."""
    if os.environ.get("ZARRPIPE_EXHAUSTIVE"):
        for operations in range(recorder.operations + 1):
            for share in (0.0, 0.5, 0.5, 0.9, 1.0):
                yield operations, share
        return
    rng = np.random.default_rng(seed)
    edges = [state[0] for state in story.states]
    for operations in sorted({*rng.choice(edges, 3), *rng.integers(0, recorder.operations, 6)}):
        yield int(operations), float(rng.choice([0.0, 0.5, 0.9]))


def test_power_may_be_lost_at_any_moment(tmp_path, story, seed):
    """Every acknowledged sample is there and right, a reader opens, and the next writer goes on."""
    told, recorder, config = story
    for number, (operations, share) in enumerate(moments(told, recorder, seed)):
        said = f"power lost after {operations} of {recorder.operations}, {share} arrives"
        print(f"{said}, seed {number}")  # noqa: T201  shown when a test fails
        disk = recorder.after_power_loss(operations, share, np.random.default_rng(number))
        place = tmp_path / f"after-{number}"
        disk.lay_out(place)
        serials = visible(place / "store", told.tag_start)
        told.check(serials, operations)
        with ZarrData(place / "store", 10_000, config) as sink:
            sink.write(numbered_batch(range(2000, 2003)))
        left, new = np.split(visible(place / "store", told.tag_start), [-3])
        told.check(left.tolist(), operations)  # a deletion that was not announced may now be
        assert set(left) == set(serials) or told.deletes(operations)
        assert new.tolist() == [2000, 2001, 2002]
        assert not [*(place / "store" / "meta").rglob("*.partial")]


@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="the system has no fdatasync")
def test_pointers_are_written_after_all_else_is_on_the_disk(tmp_path, monkeypatch):
    """The system's own calls, in the order in which they return."""
    batch = numbered_batch(range(32))
    with closing(
        StoreWriter(Root.of(tmp_path / "store"), ZarrWriteConfig(), 1000, durable=True)
    ) as writer:
        writer.append(batch)
        calls = []
        for name in ("pwrite", "fdatasync", "fsync", "rename", "replace"):
            monkeypatch.setattr(os, name, observed(getattr(os, name), name, calls))
        writer.append(batch)
        writer.append(tagged(range(32)))
        monkeypatch.undo()
    pointers = f"{tmp_path}/store/{ATOMS_PTR}/c/0"
    writes = [number for number, call in enumerate(calls) if call == ("pwrite", pointers)]
    assert len(writes) == 4  # of each append all pointers but the first, and then the first
    for start, number in zip((0, writes[1] + 2), writes[::2], strict=True):
        written = {path for name, path in calls[start:number] if name == "pwrite"}
        assert len(written) >= 8
        for path in written:
            last = max(i for i in range(start, number) if calls[i] == ("pwrite", path))
            assert {("fdatasync", path), ("fsync", path)} & {*calls[last:number]}, path
        assert calls[number + 1 : number + 3] == [("pwrite", pointers), ("fdatasync", pointers)]


def observed(call, name, calls):
    def call_it(first, *arguments):
        where = Path(f"/proc/self/fd/{first}").readlink() if isinstance(first, int) else first
        result = call(first, *arguments)
        calls.append((name, str(where)))
        return result

    return call_it


def test_memory_does_not_outlast_power():
    for store in ({}, MemoryStore()):
        with pytest.raises(FieldError, match=r"durable=True, but .* is in memory"):
            StoreWriter(Root.of(store), ZarrWriteConfig(), 10, durable=True)


def test_a_durable_writer_after_one_that_was_not(tmp_path, monkeypatch):
    """It brings to the disk what is there already, before it appends behind it."""
    with ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch(range(5)))
    synced = set()
    sync = files.sync_path
    monkeypatch.setattr(files, "sync_path", lambda path: (sync(path), synced.add(path)))
    writer = StoreWriter(Root.of(tmp_path / "store"), ZarrWriteConfig(), 1000, durable=True)
    assert set((tmp_path / "store").rglob("*")) <= synced
    assert {tmp_path / "store", tmp_path} <= synced
    writer.close()


def test_a_sync_that_fails_is_a_failed_append(tmp_path, monkeypatch):
    """Nothing of it shows, and it can be repeated; after the sync of pointers all of it shows."""
    store = tmp_path / "store"
    sink = ZarrData(store, durable=True)
    sink.write(numbered_batch(range(4)))
    calls, wrong, sync = [], [0], files.sync_data

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == wrong[0]:
            raise OSError(5, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(files, "sync_data", failing)
    for wrong[0] in range(1, 30):
        calls.clear()
        try:
            sink.write(numbered_batch(range(4, 8)))
        except OSError:
            if len(sink) == 8:
                break
            assert StoreView(store).num_samples == 4
    assert wrong[0] > 9
    monkeypatch.undo()
    sink.close()
    assert visible(store, 0) == list(range(8))
