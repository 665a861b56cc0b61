"""What a user does in a notebook: interrupt, remove, open twice, and go on."""

import errno
import shutil

import pytest
import zarr

from zarrpipe import AtomicDataZarrWriter, ZarrData, ZarrDataset
from zarrpipe.errors import FieldError, StoreLockedError, StoreNotFoundError
from zarrpipe.store.format.layout import ATOMS_MASK
from zarrpipe.store.rewrite import delete_defragment
from zarrpipe.store.write.open_arrays import OpenArrays
from zarrpipe.store.write.open_for_writing import RootMetadata
from zarrpipe.store.write.plain_array_writer import PlainArrayWriter
from zarrpipe.store.write.store_writer import StoreWriter
from zarrpipe.testing import assert_batches_equal, numbered_batch


def test_an_old_sink_leaves_a_new_store_alone(tmp_path):
    """A sink whose store was removed, and replaced by another's, neither writes nor trims."""
    old = ZarrData(tmp_path / "store")
    old.write(numbered_batch(range(2)))
    shutil.rmtree(tmp_path / "store")
    for change in (lambda: old.write(numbered_batch([2])), old.flush, old.zero):
        with pytest.raises(StoreNotFoundError, match="removed or replaced"):
            change()
    with ZarrData(tmp_path / "store") as new:
        new.write(numbered_batch(range(20)))
    for change in (lambda: old.write(numbered_batch([2])), old.close):
        with pytest.raises(StoreNotFoundError, match="removed or replaced"):
            change()
    with ZarrData(tmp_path / "store") as new:
        new.write(numbered_batch(range(20, 24)))
    dataset = ZarrDataset(tmp_path / "store")
    assert_batches_equal(dataset.__getitems__(range(24)), numbered_batch(range(24)))


@pytest.mark.parametrize("kind", ["path", "dict"])
@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (RootMetadata, "empty"),
        (StoreWriter, "_open"),
        (OpenArrays, "release"),
        (OpenArrays, "open"),
    ],
)
def test_a_clearing_that_was_interrupted(tmp_path, monkeypatch, kind, owner, step):
    """After Ctrl-C in zero the same sink goes on with a store that is empty."""
    store = tmp_path / "store" if kind == "path" else {}
    sink = ZarrData(store)
    sink.write(numbered_batch(range(5)))

    def interrupted(*args, **kwargs):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.zero()
    assert len(sink) == 0
    sink.write(numbered_batch(range(10, 13)))
    assert_batches_equal(sink.read(), numbered_batch(range(10, 13)))
    sink.close()
    dataset = ZarrDataset(store)
    assert_batches_equal(dataset.__getitems__(range(3)), numbered_batch(range(10, 13)))


@pytest.mark.parametrize("kind", ["path", "dict"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize(
    ("owner", "step"), [(StoreWriter, "zero"), (StoreWriter, "_open"), (OpenArrays, "release")]
)
def test_a_drain_that_fails_loses_nothing(tmp_path, monkeypatch, kind, error, owner, step):
    """Samples are returned or still there, whatever clearing their files comes to."""
    store = tmp_path / "store" if kind == "path" else {}
    sink = ZarrData(store)
    sink.write(numbered_batch(range(5)))

    def failing(*args, **kwargs):
        monkeypatch.undo()
        raise error("no")

    monkeypatch.setattr(owner, step, failing)
    if error is KeyboardInterrupt or step == "zero":
        with pytest.raises(error):
            sink.drain()
        assert_batches_equal(sink.read(), numbered_batch(range(5)))
        assert_batches_equal(sink.drain(), numbered_batch(range(5)))
    else:
        with pytest.warns(RuntimeWarning, match="not all that it held could be removed"):
            found = sink.drain()
        assert_batches_equal(found, numbered_batch(range(5)))
    assert len(sink) == 0
    sink.write(numbered_batch(range(7, 9)))
    assert_batches_equal(sink.read(), numbered_batch(range(7, 9)))
    sink.close()
    assert_batches_equal(ZarrData(store).read(), numbered_batch(range(7, 9)))


def test_an_interrupt_at_the_closing_of_a_file(tmp_path, monkeypatch):
    """The file's number may be another file's a moment later: it is closed once and no more."""
    sink = ZarrData(tmp_path / "store")
    sink.write(numbered_batch(range(2)))
    closed = []

    def close(descriptor):
        closed.append(descriptor)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr("zarrpipe.store.write.plain_array_writer.os.close", close)
    column = sink._writer.array("core/positions")
    assert isinstance(column, PlainArrayWriter)
    with pytest.raises(KeyboardInterrupt):
        column.close()
    column.close()
    assert len(closed) == 1
    sink.write(numbered_batch([2]))
    sink.close()
    dataset = ZarrDataset(tmp_path / "store")
    assert_batches_equal(dataset.__getitems__(range(3)), numbered_batch(range(3)))


@pytest.mark.parametrize("step", ["publish", "_replace"])
@pytest.mark.parametrize("kind", ["path", "dict"])
def test_an_interrupt_in_a_deletion(tmp_path, monkeypatch, kind, step):
    """Until it is published the next call takes it back, so a repetition means the same samples."""
    store = tmp_path / "s.zarr" if kind == "path" else {}
    writer = AtomicDataZarrWriter(store)
    writer.write(numbered_batch(range(6)))
    writer.delete([5])

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RootMetadata, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.delete([1, 4])
    assert zarr.open_group(store, mode="r")["meta/samples_mask"][:6].tolist() == [
        True, False, True, True, False, False
    ]  # fmt: skip
    writer.delete([1, 4])
    writer.close()
    dataset = ZarrDataset(store)
    assert_batches_equal(dataset.__getitems__(range(3)), numbered_batch([0, 2, 3]))
    assert dataset.check()[0].ok


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_deletion_that_was_published(tmp_path, monkeypatch, error):
    """What fails after it is done by the next call; only an interrupt is raised."""
    writer = AtomicDataZarrWriter(tmp_path / "s.zarr")
    writer.write(numbered_batch(range(6)))
    unmask = delete_defragment._unmask

    def failing(appender, path, rows):
        if path == ATOMS_MASK:
            raise error("no")
        unmask(appender, path, rows)

    told = pytest.warns(RuntimeWarning, match="2 samples of .* were deleted, but not all")
    with monkeypatch.context() as patch:
        patch.setattr(delete_defragment, "_unmask", failing)
        with told if error is OSError else pytest.raises(error):
            writer.delete([1, 4])
    writer.append(numbered_batch([6]))
    writer.close()
    dataset = ZarrDataset(tmp_path / "s.zarr")
    assert_batches_equal(dataset.__getitems__(range(5)), numbered_batch([0, 2, 3, 5, 6]))
    masks = zarr.open_group(tmp_path / "s.zarr", mode="r")["meta/atoms_mask"][:]
    assert masks.sum() == numbered_batch([0, 2, 3, 5, 6]).num_nodes
    assert dataset.check()[0].ok


def test_a_disk_that_fails_right_after_a_rewrite_took_its_place(tmp_path, monkeypatch):
    """The new store stands, and the writer goes on with it."""
    writer = AtomicDataZarrWriter(tmp_path / "s.zarr")
    writer.write(numbered_batch(range(6)))
    writer.delete([1, 4])

    def failing(path):
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("zarrpipe.store.backend.files.sync_path", failing)
        with pytest.raises(OSError, match="Input/output"):
            writer.defragment()
    writer.append(numbered_batch([7]))
    writer.close()
    dataset = ZarrDataset(tmp_path / "s.zarr")
    assert_batches_equal(dataset.__getitems__(range(5)), numbered_batch([0, 2, 3, 5, 7]))


def test_two_sinks_on_a_store_without_a_lock():
    """The second to write is refused, and nothing that the first wrote is lost."""
    memory: dict = {}
    one, other = ZarrData(memory), ZarrData(memory)
    one.write(numbered_batch(range(2)))
    other.write(numbered_batch([7]))
    with pytest.raises(StoreLockedError, match="another writer"):
        one.write(numbered_batch(range(2, 4)))
    expected = numbered_batch([0, 1, 7])
    assert_batches_equal(ZarrData(memory).read(), expected)


@pytest.mark.parametrize("codec", ["zstd", {"name": "zstd"}, ({"name": "gzip"},)])
def test_codecs_by_name(tmp_path, codec):
    with ZarrData(tmp_path / "store", config={"core": {"compressors": codec}}) as sink:
        sink.write(numbered_batch(range(3)))
        assert_batches_equal(sink.read(), numbered_batch(range(3)))
    codecs = zarr.open_group(tmp_path / "store", mode="r")["core/positions"].compressors
    assert [type(item).__name__ for item in codecs] in (["ZstdCodec"], ["GzipCodec"])


@pytest.mark.parametrize("codec", ["auto", 3, {"name": "zstd", "level": 3}, {"name": "none-such"}])
def test_unknown_codecs_are_refused_before_anything_is_made(tmp_path, codec):
    with pytest.raises(FieldError, match=r"compressors=.*expected a name such as 'zstd'"):
        ZarrData(tmp_path / "store", config={"core": {"compressors": codec}})
    assert not (tmp_path / "store").exists()


def test_a_file_url_is_a_path(tmp_path):
    with ZarrData(f"file://{tmp_path}/a store") as sink:
        sink.write(numbered_batch([4]))
    assert_batches_equal(ZarrData(tmp_path / "a store").read(), numbered_batch([4]))


def test_an_empty_path_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the path of the store is empty"):
        ZarrData("").write(numbered_batch([0]))
    assert not list(tmp_path.iterdir())


def test_a_mask_that_is_none(tmp_path):
    with pytest.raises(
        FieldError, match=r"mask of type str holds no bools, expected bool and \(1,\)"
    ):
        ZarrData({}).write(numbered_batch([0]), mask="all")
