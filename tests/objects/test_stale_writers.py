"""Puts of a writer that lost its lease, which arrive after its successor has taken over.

A put of an append is held back, and released at a moment of the life of the successor. What was
acknowledged must be there with its values, whatever became of the late put.
"""

import asyncio
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import obstore
import pytest
import torch
import zarr
from zarr.buffer import default_buffer_prototype

import zarrpipe as zp
from reliability.truth import everything
from zarrpipe.compat import sync
from zarrpipe.errors import StoreLockedError
from zarrpipe.store.backend import lease
from zarrpipe.store.backend.location import Root

SECONDS = 120


class LatePut:
    """Holds back the first put of a key that matches, from `hold` to `release`."""

    def __init__(self, monkeypatch):
        self.held, self.pattern = threading.Event(), None
        self._released, self._put = Future(), obstore.put_async
        monkeypatch.setattr(obstore, "put_async", self._late)

    async def _late(self, store, key, *args, **options):
        if self.pattern is not None and re.search(self.pattern, key):
            self.pattern = None
            self.held.set()
            await asyncio.wrap_future(self._released)
        return await self._put(store, key, *args, **options)

    def hold(self, pattern):
        self.pattern = pattern

    def release(self):
        if not self._released.done():
            self._released.set_result(None)


@pytest.fixture
def late(monkeypatch):
    late = LatePut(monkeypatch)
    yield late
    late.release()


@pytest.fixture
def expired(monkeypatch):
    """Leases of others count as expired."""
    monkeypatch.setattr(lease._LeaseObject, "is_expired", lambda *_: True)


def batch(number, count=2, *, empty=False):
    """Samples whose values all follow from a number; `empty` ones look like rows never written."""
    atoms, edges = 3 * count, 0 if empty else 2 * count
    values = {
        "positions": torch.full((atoms, 3), 0.0 if empty else float(number)),
        "atomic_numbers": torch.full((atoms,), number % 100 + 1),
        "energy": torch.full((count, 1), float("nan") if empty else float(number)),
        "neighbor_list": torch.tensor([[3 * i, 3 * i + 1] for i in range(count) for _ in range(2)])
        if edges
        else torch.zeros((0, 2), dtype=torch.int64),
        "mark": torch.full((count,), 0 if empty else number),
        "number": torch.full((count,), number),
    }
    ptr = torch.arange(count + 1) * 3
    edge_ptr = torch.arange(count + 1) * (0 if empty else 2)
    return zp.Batch(values, ptr, edge_ptr, levels={"mark": "system", "number": "system"})


def written(place):
    """Number of each sample that a new reader sees, after a comparison of all its values."""
    found = everything(place)
    numbers = found["number"].tolist()
    for index, number in enumerate(numbers):
        one, wanted = found.index_select([index]), batch(abs(number), 1, empty=number in EMPTY)
        for name in ("positions", "atomic_numbers", "energy", "neighbor_list", "mark"):
            assert np.array_equal(
                one[name].numpy(), wanted[name].numpy(), equal_nan=name == "energy"
            ), (number, name)
    return numbers


EMPTY = (30, 31)
KEYS = {
    "rows": r"core/positions/c/",
    "rows of samples": r"custom/mark/c/",
    "labels": r"core/energy/c/",
    "edges": r"core/neighbor_list/c/",
    "ids": r"meta/ids/c/",
    "mask": r"meta/samples_mask/c/",
    "pointers of edges": r"meta/edges_ptr/c/",
    "commit": r"meta/atoms_ptr/c/",
}


LATE = [
    *((key, "written", True) for key in KEYS),  # a successor's rows like rows never written
    *((key, "opened", False) for key in ("rows", "mask", "commit")),
    ("commit", "closed", False),
]
"""What is held back, when it is released, and whether the successor writes such rows."""


@pytest.mark.parametrize(("key", "moment", "empty"), LATE)
def test_a_late_put_harms_nothing(url, late, expired, key, moment, empty):
    number = 30 if empty else 3
    old, new = zp.ZarrData(url, stage=False), zp.ZarrData(url, stage=False)
    acknowledged = [1, 1]
    old.write(batch(1))
    late.hold(KEYS[key])
    with ThreadPoolExecutor(1) as pool:
        stale = pool.submit(old.write, batch(2))
        assert late.held.wait(SECONDS)

        def write(value):
            for _ in range(2):  # a conflict with the late put may end the writer once
                try:
                    new.write(batch(value, empty=value in EMPTY))
                except StoreLockedError:
                    continue
                acknowledged.extend([value] * 2)
                return

        new.write(batch(1)[:0])
        new._open_writer()
        if moment == "opened":
            late.release()
            assert isinstance(stale.exception(SECONDS), StoreLockedError)
        write(number)
        if moment == "written":
            late.release()
            assert isinstance(stale.exception(SECONDS), StoreLockedError)
        write(number + 1)
        new.close()
        late.release()
        assert isinstance(stale.exception(SECONDS), StoreLockedError)
    assert written(url) == acknowledged
    with zp.ZarrData(url, stage=False) as again:
        again.write(batch(5))
    assert written(url) == [*acknowledged, 5, 5]
    assert zp.check(url).ok


def test_a_writer_that_stops_before_it_reads_cannot_go_on_from_what_another_wrote(
    url, monkeypatch, expired
):
    """A put on condition of what was read is no protection if it was read after the takeover."""
    with zp.ZarrData(url, stage=False) as first:
        first.write(batch(1))
    old, new = zp.ZarrData(url, stage=False), zp.ZarrData(url, stage=False)
    writer = old._open_writer()
    held, released, get = threading.Event(), Future(), obstore.get_async

    async def late_get(store, key, *args, **options):
        if key == "core/positions/c/0/0" and not held.is_set():
            held.set()
            await asyncio.wrap_future(released)
        return await get(store, key, *args, **options)

    monkeypatch.setattr(obstore, "get_async", late_get)
    with ThreadPoolExecutor(1) as pool:
        stale = pool.submit(old.write, batch(2))
        assert held.wait(SECONDS)
        new.write(batch(3))
        writer._session._lock._renewal._valid_until = 0.0  # so long was it stopped
        released.set_result(None)
        assert isinstance(stale.exception(SECONDS), StoreLockedError)
    assert written(url) == [1, 1, 3, 3]
    new.close()
    assert written(url) == [1, 1, 3, 3]


def test_a_commit_whose_answer_comes_after_the_lease_expired_is_not_acknowledged(url, late):
    sink = zp.ZarrData(url, stage=False)
    sink.write(batch(1))
    late.hold(KEYS["commit"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sink.write, batch(2))
        assert late.held.wait(SECONDS)
        sink._writer._session._lock._renewal._valid_until = 0.0
        late.release()
        assert isinstance(waiting.exception(SECONDS), StoreLockedError)
    sink.write(batch(3))
    assert written(url) == [1, 1, 2, 2, 3, 3]


def test_a_sink_whose_lease_expired_goes_on_where_nobody_took_it(url):
    sink = zp.ZarrData(url, stage=False)
    sink.write(batch(1))
    sink._writer._session._lock._renewal._valid_until = 0.0  # as after a night in which it slept
    with zp.ZarrData(url, stage=False) as other, pytest.raises(StoreLockedError):
        other.write(batch(2))
    sink.write(batch(3))
    sink.close()
    assert written(url) == [1, 1, 3, 3]


def test_a_sink_whose_lease_was_taken_is_refused_and_closes(url, expired):
    old, new = zp.ZarrData(url, stage=False), zp.ZarrData(url, stage=False)
    old.write(batch(1))
    new.write(batch(2))
    old._writer._session._lock._renewal._lost = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease._LeaseObject, "is_expired", lambda *_: False)
        with pytest.raises(StoreLockedError, match="is held by"):
            old.write(batch(3))
        old.close()
        new.write(batch(4))
    new.close()
    assert written(url) == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("document", ["zarr.json", "core/positions/zarr.json"])
def test_a_late_document_is_refused(url, late, expired, document):
    """The attributes of a new field, and the shape that a writer leaves when it closes."""
    old, new = zp.ZarrData(url, stage=False), zp.ZarrData(url, stage=False)
    old.write(batch(1))
    late.hold(f"^{document}$")
    with ThreadPoolExecutor(1) as pool:
        stale = pool.submit(old.close)
        assert late.held.wait(SECONDS)
        new.write(batch(3))
        late.release()
        assert isinstance(stale.exception(SECONDS), StoreLockedError)
        new.write(batch(4))
    new.close()
    assert written(url) == [1, 1, 3, 3, 4, 4]
    assert zp.check(url).ok


def test_a_failed_writer_leaves_a_lease_that_the_next_one_fences(url, monkeypatch):
    """Its requests may still be on their way, although it is no more."""
    sink = zp.ZarrData(url, stage=False)
    sink.write(batch(1))
    put = obstore.put_async

    async def failing(store, key, *args, **options):
        if key.startswith("core/positions/c/"):
            raise OSError("the network is gone")
        return await put(store, key, *args, **options)

    with monkeypatch.context() as broken:
        broken.setattr(obstore, "put_async", failing)
        with pytest.raises(OSError, match="the network is gone"):
            sink.write(batch(2))
    with zp.ZarrData(url, stage=False) as after:
        assert after._open_writer()._session.fence == 2
    with zp.ZarrData(url, stage=False) as later:
        assert later._open_writer()._session.fence is None


@pytest.mark.parametrize("samples", [4094, 4095, 4096])
def test_pointers_are_fenced_wherever_the_next_one_goes(url, expired, samples):
    """Also where it is the last entry of its chunk, or the first of one that does not exist."""
    config = {group: {"chunk_size": 4096} for group in ("meta", "core", "custom")}
    old, new = (
        zp.ZarrData(url, stage=False, config=config),
        zp.ZarrData(url, stage=False, config=config),
    )
    old.write(batch(1, samples))
    place = Root.of(url).path.store.store
    key = f"meta/atoms_ptr/c/{(samples + 1) // 4096}"
    before = tag(place, key)
    new._open_writer()
    assert tag(place, key) not in (before, None)
    new.write(batch(2))
    new.close()
    assert written(url)[-3:] == [1, 2, 2]


def tag(place, key):
    try:
        return obstore.head(place, key)["e_tag"]
    except FileNotFoundError:
        return None


def test_equal_contents_have_different_tags(url):
    """S3's tags are digests of the content, which other Zarr tools must be able to read."""
    with zp.ZarrData(url, stage=False) as sink:
        sink.write(batch(1))
        place, keys = Root.of(url).path.store.store, ("zarr.json", "meta/ids/c/0")
        before = [tag(place, key) for key in keys]
        store = sink._writer.root.path.store
        values = [sync(store.get(key, default_buffer_prototype())) for key in keys]
        for key, value in zip(keys, values, strict=True):
            sync(store.set(key, value))
        assert all(tag(place, key) != old for key, old in zip(keys, before, strict=True))
    group = zarr.open_group(Root.of(url).path.store, mode="r", use_consolidated=False)
    assert group["custom/number"][:].tolist() == [1, 1]
