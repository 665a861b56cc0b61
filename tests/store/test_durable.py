"""Durable writers: what was acknowledged outlasts a loss of power, and nothing half-written shows."""

import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from zarrpipe import Batch, ZarrData
from zarrpipe.errors import FieldError
from zarrpipe.store import files, layout
from zarrpipe.store.appender import StoreAppender
from zarrpipe.store.config import ZarrWriteConfig
from zarrpipe.store.layout import ATOMS_PTR
from zarrpipe.store.maintenance import delete_samples
from zarrpipe.store.root import Root
from zarrpipe.store.view import StoreView
from zarrpipe.testing import assert_batches_equal, numbered_batch

from .power import Recorder

ZSTD = {
    group: {"chunk_size": 16, "compressors": (zarr.codecs.ZstdCodec(level=1),)}
    for group in ("meta", "core", "custom")
}
FIRST, TAGGED = {"plain": 500, "compressed": 14}, 7


def tagged(numbers, start):
    """Batch whose systems from `start` on have a field of their own."""
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
        self._writer: StoreAppender | None = None

    def tell(self) -> None:
        end = self.first
        self._step(lambda writer: writer.append(numbered_batch(range(end))), [*range(end)])
        self._append(end, end + 20)
        end += 20
        self.tag_start = end
        self._step(
            lambda writer: writer.append(tagged([*range(end, end + TAGGED)], end)),
            [*range(end + TAGGED)],
        )
        self._close()
        end += TAGGED
        self._append(end, end + 4)
        gone = [2, end - 3]
        left = [number for number in range(end + 4) if number not in gone]
        self._step(lambda writer: delete_samples(writer, np.array(gone)), left, deleting=True)
        self._step(StoreAppender.zero, [])
        self._step(
            lambda writer: writer.append(numbered_batch(range(900, 905))), [*range(900, 905)]
        )
        self._close()

    def _append(self, start, stop):
        self._step(
            lambda writer: writer.append(numbered_batch(range(start, stop))),
            [*self.states[-1][2], *range(start, stop)],
        )

    def _step(self, change, after, *, deleting=False):
        del deleting
        before = self.states[-1][2]
        self.states.append((self._recorder.operations, before, after))
        if self._writer is None:
            root = Root.of(self.store)
            self._writer = StoreAppender(root, self._config, 1000, durable=True)
        change(self._writer)
        self.states.append((self._recorder.operations, after, after))

    def _close(self):
        self._writer.close()
        self._writer = None
        self.states.append((self._recorder.operations, *self.states[-1][1:]))

    def check(self, serials, operations):
        """Check what is visible after a number of operations."""
        before, after = next(state[1:] for state in reversed(self.states) if state[0] <= operations)
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


def moments(story, recorder):
    """After which operations power is lost, and which part of what was not synced arrives."""
    if os.environ.get("ZARRPIPE_EXHAUSTIVE"):
        for operations in range(recorder.operations + 1):
            for share in (0.0, 0.5, 0.5, 0.9, 1.0):
                yield operations, share
        return
    rng = np.random.default_rng()
    edges = [state[0] for state in story.states]
    for operations in sorted({*rng.choice(edges, 3), *rng.integers(0, recorder.operations, 6)}):
        yield int(operations), float(rng.choice([0.0, 0.5, 0.9]))


def test_power_may_be_lost_at_any_moment(tmp_path, story):
    """Every acknowledged sample is there and right, a reader opens, and the next writer goes on."""
    told, recorder, config = story
    for number, (operations, share) in enumerate(moments(told, recorder)):
        print(
            f"power lost after {operations} of {recorder.operations}, {share} arrives, seed {number}"
        )  # noqa: T201  shown when a test fails
        disk = recorder.after_power_loss(operations, share, np.random.default_rng(number))
        place = tmp_path / f"after-{number}"
        disk.lay_out(place)
        serials = visible(place / "store", told.tag_start)
        told.check(serials, operations)
        with ZarrData(place / "store", 10_000, config) as sink:
            sink.write(numbered_batch(range(2000, 2003)))
        assert visible(place / "store", told.tag_start) == [*serials, 2000, 2001, 2002]
        assert not [*(place / "store" / "meta").rglob("*.partial")]
