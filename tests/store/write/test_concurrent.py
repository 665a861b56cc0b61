"""Stores that are far away: the writes of an append go out together, and still commit in order."""

import asyncio

import numpy as np
import pytest
from zarr.storage import MemoryStore, WrapperStore

from zarrpipe import Batch, ZarrData
from zarrpipe.store.write.append_plan import RowWrite
from zarrpipe.store.write.array_writer import ArrayWriter
from zarrpipe.store.write.open_arrays import write_in_stages
from zarrpipe.testing import assert_batches_equal, assert_plain_zarr, numbered_batch

SMALL = {group: {"chunk_size": 6} for group in ("meta", "core", "custom")}
ZSTD = {group: {"chunk_size": 6, "compressors": "zstd"} for group in ("meta", "core", "custom")}


class FarStore(WrapperStore):
    """A store that takes its time, notes what is written, and may refuse a key."""

    def __init__(self, store) -> None:
        super().__init__(store)
        self.begun, self.done, self.most, self.refused = [], [], 0, "nothing"

    async def set(self, key, value):
        self.begun.append(key)
        self.most = max(self.most, len(self.begun) - len(self.done))
        await asyncio.sleep(0.002)
        self.done.append(key)
        if self.refused in key:
            raise OSError(28, "No space left on device")
        await super().set(key, value)


def chunks(keys: list[str]) -> list[str]:
    """Arrays whose chunks were written, in the order of writing."""
    return [key.split("/c/")[0] for key in keys if "/c/" in key]


@pytest.mark.parametrize("config", [SMALL, ZSTD], ids=["small", "compressed"])
def test_what_is_written_far_away_is_read_back(config):
    memory = MemoryStore()
    store = FarStore(memory)
    parts = [numbered_batch(range(4)), numbered_batch(range(4, 25)), numbered_batch([25])]
    with ZarrData(store, config=config) as sink:
        for part in parts:
            sink.write(part)
        assert_batches_equal(sink.read(), numbered_batch(range(26)))
    assert store.most > 3
    assert_plain_zarr(memory, numbered_batch(range(26)), exact=True)


def test_pointers_go_out_when_all_else_has_arrived():
    store = FarStore(MemoryStore())
    sink = ZarrData(store, config=SMALL)
    sink.write(numbered_batch(range(3)))
    store.begun.clear()
    store.done.clear()
    sink.write(numbered_batch(range(3, 17)))
    begun, done = chunks(store.begun), chunks(store.done)
    masks = min(begun.index(f"meta/{name}") for name in ("samples_mask", "edges_ptr"))
    pointers = begun.index("meta/atoms_ptr")
    assert {"core/positions", "core/energy", "custom/serial", "meta/ids"} <= set(done[:masks])
    assert set(done[:masks]) == {name for name in begun if name[:4] in ("core", "cust")} | {
        "meta/ids"
    }
    assert set(begun[pointers:]) == {"meta/atoms_ptr"}
    assert sorted(done[:pointers]) == sorted(begun[:pointers])
    sink.close()


@pytest.mark.parametrize("refused", ["core/forces/c", "meta/edges_ptr/c", "meta/atoms_ptr/c"])
def test_an_append_that_fails_far_away(refused):
    """Nothing of it shows, nothing is still on its way, and the same sink goes on."""
    memory = MemoryStore()
    store = FarStore(memory)
    sink = ZarrData(store, config=SMALL)
    sink.write(numbered_batch(range(3)))
    store.refused = refused
    pointed = chunks(store.begun).count("meta/atoms_ptr")
    with pytest.raises(OSError, match="No space left"):
        sink.write(numbered_batch(range(3, 9)))
    store.refused = "nothing"
    assert sorted(store.begun) == sorted(store.done)
    if "atoms" not in refused:
        written = chunks(store.begun).count("meta/atoms_ptr") - pointed
        assert written <= 1  # the zeros of the pointers that are taken back
    assert len(sink) == len(ZarrData(memory)) == 3
    assert_batches_equal(sink.read(), numbered_batch(range(3)))
    sink.write(numbered_batch(range(3, 9)))
    sink.close()
    assert_batches_equal(ZarrData(memory).read(), numbered_batch(range(9)))
    assert_plain_zarr(memory, numbered_batch(range(9)), exact=True)


def test_a_new_field_far_away():
    store = FarStore(MemoryStore())
    old, new = numbered_batch(range(8)), numbered_batch(range(8, 12)).without("energy")
    new.add_field("tag", np.arange(4), "system")
    with ZarrData(store, config=SMALL) as sink:
        sink.write(old)
        sink.write(new)
        assert_batches_equal(sink.read(), Batch.concatenate([old, new]))


class Interrupted(ArrayWriter):
    """A column whose writer is stopped."""

    def write(self, start, values):
        raise KeyboardInterrupt


class Noted(ArrayWriter):
    def __init__(self, notes: list) -> None:
        self._notes = notes

    def write(self, start, values):
        self._notes.append(start)


def test_an_interrupt_in_a_stage():
    """The others of its stage end, and no later stage begins."""
    notes: list[int] = []
    columns = {"core/a": Interrupted(), "core/b": Noted(notes), "meta/atoms_ptr": Noted(notes)}
    writes = [RowWrite(path, start, np.ones(1)) for start, path in enumerate(columns)]
    with pytest.raises(KeyboardInterrupt):
        write_in_stages(columns, writes)
    assert notes == [1]
