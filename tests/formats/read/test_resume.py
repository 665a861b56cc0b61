"""An import that is killed goes on without doubles; processes give the same as none."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from extxyz_files import water

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, SourceError, StoreExistsError
from zarrpipe.formats.read.files.extxyz import ExtXYZ
from zarrpipe.formats.read.frames import Failure, Part
from zarrpipe.formats.read.processes import parsing
from zarrpipe.formats.read.resume import ImportRecord
from zarrpipe.testing import assert_batches_equal

pytestmark = pytest.mark.usefixtures("ase")

GOOD = 60


@pytest.fixture
def files(tmp_path):
    """Two files of 30 frames, some of which cannot be read, in parts of 7 frames."""
    frames = [
        water(f"energy={-i - 1.5} name=n{i % 5} step={i}", forces="forces", shift=i / 100)
        for i in range(GOOD)
    ]
    broken = frames[0].replace("0.96", "x")
    first = [*frames[:3], broken, *frames[3:25], broken, broken, *frames[25:30], broken]
    paths = [tmp_path / "a.xyz", tmp_path / "b.xyz"]
    paths[0].write_text("".join(first))
    paths[1].write_text("".join([*frames[30:], broken]))
    return paths


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("zarrpipe.formats.read.files.extxyz._PART_FRAMES", 7)


SCRIPT = """
import os, signal, sys
import zarrpipe as zp
from zarrpipe.formats.read.files import extxyz
from zarrpipe.store.backend import files

extxyz._PART_FRAMES = 7
left, write_at = int(sys.argv[1]), files.write_at

def counted(*arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write_at(*arguments)

files.write_at = counted
zp.read_into(sys.argv[2], sys.argv[3:], resume=True)
print(left)
"""


def run(at, store, files):
    """Import in another process that dies at its write number `at`; its exit code and output."""
    arguments = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        SCRIPT,
        str(at),
        str(store),
        *map(str, files),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def all_of(store):
    return zp.ZarrDataset(store).read(slice(None))


def test_an_import_that_is_killed_again_and_again(files, tmp_path, small_parts):
    """The store is that of an import that nothing disturbed, record and all."""
    zp.read_into(tmp_path / "whole", files)
    rng, store, kills, code = np.random.default_rng(8), tmp_path / "killed", 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        code, _ = run(int(rng.integers(30, 90)), store, files)
        kills += code == -signal.SIGKILL
    assert code == 0
    assert kills >= 2
    assert_batches_equal(all_of(store), all_of(tmp_path / "whole"))
    assert all_of(store)["step"].flatten().tolist() == [*range(GOOD)]
    records = [zp.ZarrData(place)._imports() for place in (store, tmp_path / "whole")]
    assert records[0] == records[1]
    assert len(records[0]) == 1
    assert zp.check(store).exit_code == 0


@pytest.mark.parametrize("stop", [1, 4, 9])
def test_an_import_that_raises_says_how_to_go_on(files, tmp_path, small_parts, monkeypatch, stop):
    write, calls = zp.ZarrData.write, []

    def failing(self, batch):
        calls.append(1)
        if len(calls) == stop:
            raise OSError("no space left")
        write(self, batch)

    monkeypatch.setattr(zp.ZarrData, "write", failing)
    with pytest.raises(OSError, match="no space left") as error:
        zp.read_into(tmp_path / "store", files)
    assert "resume=True (--resume)" in error.value.__notes__[0]
    monkeypatch.setattr(zp.ZarrData, "write", write)
    if stop > 1:
        with pytest.raises(StoreExistsError, match=r"last import did not end: go on .*--resume"):
            zp.read_into(tmp_path / "store", files)
    monkeypatch.setattr(zp.ZarrData, "write", write)
    report = zp.read_into(tmp_path / "store", files, resume=True)
    assert report.num_before + report.num_samples == GOOD
    assert (report.num_before > 0) is (stop > 1)
    assert all_of(tmp_path / "store")["step"].flatten().tolist() == [*range(GOOD)]


def test_a_complete_import_is_not_repeated(files, tmp_path):
    zp.read_into(tmp_path / "store", files, resume=True)
    report = zp.read_into(tmp_path / "store", files, resume=True)
    assert (report.num_samples, report.num_before) == (0, GOOD)
    assert len(zp.ZarrDataset(tmp_path / "store")) == GOOD


def test_what_is_not_the_same_is_refused(files, tmp_path):
    zp.read_into(tmp_path / "store", files)
    with pytest.raises(ArgumentError, match=r"had sources .* and this one has .* resume needs"):
        zp.read_into(tmp_path / "store", files[:1], resume=True)
    with pytest.raises(ArgumentError, match=r"had fields .* resume needs the same"):
        zp.read_into(tmp_path / "store", files, resume=True, ignore=["step"])
    with pytest.raises(ArgumentError, match="had options"):
        zp.read_into(tmp_path / "store", files, resume=True, source_fields=True)
    assert len(zp.ZarrDataset(tmp_path / "store")) == GOOD


def test_merged_and_copied_stores_keep_what_was_read_as_what(files, tmp_path):
    zp.read_into(tmp_path / "store", files)
    zp.merge([tmp_path / "store", tmp_path / "store"], tmp_path / "merged")
    zp.copy(tmp_path / "store", tmp_path / "copy")
    zp.compact(tmp_path / "store")
    for name, count in (("store", 1), ("copy", 1), ("merged", 2)):
        records = zp.ZarrData(tmp_path / name)._imports()
        assert len(records) == count
        assert records[-1]["fields"]["energy"]["keys"] == ["results:energy"]
        with pytest.raises(ArgumentError, match="merged or compacted since"):
            zp.read_into(tmp_path / name, files, resume=True)


def test_samples_of_others_are_noticed(files, tmp_path, small_parts, monkeypatch):
    store = tmp_path / "store"
    monkeypatch.setattr(zp.ZarrData, "write", failing_after(3))
    with pytest.raises(OSError, match="stop"):
        zp.read_into(store, files)
    monkeypatch.undo()
    monkeypatch.setattr("zarrpipe.formats.read.files.extxyz._PART_FRAMES", 7)
    with zp.ZarrData(store) as sink:
        sink.write(zp.ZarrDataset(store).read([0]))
    with pytest.raises(ArgumentError, match="something else was written or deleted"):
        zp.read_into(store, files, resume=True)


@pytest.mark.parametrize("change", ["delete", "append", "other file"])
def test_samples_that_moved_are_noticed_at_the_boundary_of_a_part(
    files, tmp_path, small_parts, monkeypatch, change
):
    store = tmp_path / "store"
    monkeypatch.setattr(zp.ZarrData, "write", failing_after(3))
    with pytest.raises(OSError, match="stop"):
        zp.read_into(store, files)
    monkeypatch.undo()
    monkeypatch.setattr("zarrpipe.formats.read.files.extxyz._PART_FRAMES", 7)
    if change == "delete":
        with zp.AtomicDataZarrWriter(store) as writer:
            writer.delete([0])
    elif change == "append":
        with zp.ZarrData(store) as sink:
            sink.write(zp.ZarrDataset(store).read(np.zeros(GOOD, dtype=int)))
    else:
        text = files[0].read_text()
        files[0].write_text(text.replace("0.96", "0.95"))
    with pytest.raises(ArgumentError, match="frames of this import: something else was written"):
        zp.read_into(store, files, resume=True)


def test_samples_that_were_deleted_before_an_import_are_noticed(files, tmp_path, monkeypatch):
    store = tmp_path / "store"
    zp.read_into(store, files[1])
    monkeypatch.setattr(zp.ZarrData, "write", failing_after(0))
    with pytest.raises(OSError, match="stop"):
        zp.read_into(store, files[0], if_exists="append")
    monkeypatch.undo()
    with zp.AtomicDataZarrWriter(store) as writer:
        writer.delete([0])
    with pytest.raises(ArgumentError, match="samples before this import are fewer"):
        zp.read_into(store, files[0], resume=True)


def test_failures_before_a_kill_are_reported_after_it(files, tmp_path, small_parts, monkeypatch):
    store = tmp_path / "store"
    whole = zp.read_into({}, files).failures
    monkeypatch.setattr(zp.ZarrData, "write", failing_after(2))
    with pytest.raises(OSError, match="stop"):
        zp.read_into(store, files)
    monkeypatch.undo()
    monkeypatch.setattr("zarrpipe.formats.read.files.extxyz._PART_FRAMES", 7)
    for _ in range(2):
        assert zp.read_into(store, files, resume=True).failures == whole


def test_an_import_that_wrote_nothing_leaves_no_second_record(files, tmp_path, monkeypatch):
    monkeypatch.setattr(zp.ZarrData, "write", failing_after(0))
    for _ in range(3):
        with pytest.raises(OSError, match="stop"):
            zp.read_into(tmp_path / "store", files)
    assert len(zp.ZarrData(tmp_path / "store")._imports()) == 1


def failing_after(count):
    write, calls = zp.ZarrData.write, []

    def failing(self, batch):
        calls.append(1)
        if len(calls) > count:
            raise OSError("stop")
        write(self, batch)

    return failing


def test_the_next_part_follows_from_the_number_of_samples():
    parts = [(0, Part("a", 0, 3)), (0, Part("a", 4, 2)), (1, Part("b", 0, 5))]
    places = [(0, 1), (0, 4), (0, 5), (1, 2)]
    failed = {place: Failure("file", place[1], None, "broken") for place in places}
    record = ImportRecord({}, 0, failed)
    places = [record.next_part(parts, stored) for stored in range(7)]
    assert places == [(0, 0), (0, 1), (1, 0), (2, 1), (2, 2), (2, 3), (3, 0)]
    assert record.add(1, []) is False


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_give_the_same(files, tmp_path, small_parts, processes):
    alone = zp.read_into(tmp_path / "one", files, processes=1)
    many = zp.read_into(tmp_path / "many", files, processes=processes)
    assert_batches_equal(all_of(tmp_path / "many"), all_of(tmp_path / "one"))
    assert many.failures == alone.failures
    assert len(many.failures) == 5
    assert many.to_dict() == alone.to_dict()


class Strange(ExtXYZ):
    """Reader that fails, or ends its process."""

    def __reduce__(self):
        return Strange, ()

    def read(self, part):
        if part.first == 1:
            raise SourceError("strange")
        if part.first == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdout.write("a library that prints")
        return part.first


def test_errors_of_processes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    strange = importable()
    parts = [(strange, Part("file", first, 1)) for first in (0, 3, 1)]
    with parsing(2) as read_parts:
        answers = read_parts(parts)
        assert [next(answers)[1], next(answers)[1]] == [0, 3]
        with pytest.raises(SourceError, match="strange"):
            next(answers)
    killed = r"read file from frame 2 on was killed by SIGKILL"
    with parsing(2) as read_parts, pytest.raises(RuntimeError, match=killed):
        list(read_parts([(strange, Part("file", 2, 1))]))


def importable():
    """Instance of the class of this module as another process imports it."""
    return __import__("test_resume").Strange()


def test_no_process_is_left(files, tmp_path, small_parts):
    zp.read_into(tmp_path / "store", files, processes=2)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        names = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children.read_text().split()]
        assert not [name for name in names if "formats.read.processes" in name]
