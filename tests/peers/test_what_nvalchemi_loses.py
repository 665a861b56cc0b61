"""What a user of nvalchemi 0.2 loses, one test for each: none of it happens here.

The list was measured with nvalchemi 0.2's `ZarrData` and its readers. nvalchemi itself is not
needed for these tests.
"""

import errno
import io
import os
import random
import signal
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from torch.utils.data import DataLoader
from zarr.storage import LocalStore, MemoryStore, StorePath

from zarrpipe import (
    AtomicDataZarrReader,
    AtomicDataZarrWriter,
    Batch,
    ZarrData,
    ZarrDataset,
    collate,
)
from zarrpipe.errors import SchemaError
from zarrpipe.store.backend import files
from zarrpipe.testing import assert_batches_equal, numbered_batch, stored_bytes, unchanged

SMALL = {group: {"chunk_size": 8} for group in ("meta", "core", "custom")}
KINDS = ("path", "text", "LocalStore", "MemoryStore", "dict", "StorePath")


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    """A place for a store, named in each of the ways that there are."""
    return {
        "path": lambda: tmp_path / "store",
        "text": lambda: str(tmp_path / "store"),
        "LocalStore": lambda: LocalStore(tmp_path / "store"),
        "MemoryStore": MemoryStore,
        "dict": dict,
        "StorePath": lambda: StorePath(MemoryStore(), "runs/one"),
    }[request.param]()


def edges_of(store) -> list[list[list[int]]]:
    """Neighbour list of each sample, in the sample's own atoms, as three readers give it."""
    dataset, reader = ZarrDataset(store), AtomicDataZarrReader(store)
    found = [dataset[index].neighbor_list.tolist() for index in range(len(dataset))]
    assert found == [reader[index][0]["neighbor_list"].tolist() for index in range(len(reader))]
    whole = ZarrData(store).read()
    assert found == [data.neighbor_list.tolist() for data in whole.to_data_list()]
    return found


def expected_edges(numbers) -> list[list[list[int]]]:
    return [data.neighbor_list.tolist() for data in numbered_batch(numbers).to_data_list()]


def test_neighbour_lists_are_right_after_the_second_write(store):
    with ZarrData(store, config=SMALL) as sink:
        for numbers in (range(5), range(5, 9), range(9, 30)):
            sink.write(numbered_batch(numbers))
    assert edges_of(store) == expected_edges(range(30))


def test_neighbour_lists_are_right_after_delete_and_defragment(store):
    with AtomicDataZarrWriter(store, SMALL) as writer:
        writer.write(numbered_batch(range(12)))
        writer.append(numbered_batch(range(12, 30)))
        writer.delete([0, 3, 17])
        left = [number for number in range(30) if number not in (0, 3, 17)]
        assert edges_of(store) == expected_edges(left)
        writer.defragment()
        assert edges_of(store) == expected_edges(left)
        writer.append(numbered_batch(range(30, 34)))
    assert edges_of(store) == expected_edges([*left, *range(30, 34)])


def test_a_new_sink_on_a_store_that_exists_has_its_length_reads_it_and_writes_on(store):
    with ZarrData(store, config=SMALL) as sink:
        sink.write(numbered_batch(range(4)))
    sink = ZarrData(store, config=SMALL)
    assert len(sink) == 4
    assert_batches_equal(sink.read(), numbered_batch(range(4)))
    sink.write(numbered_batch(range(4, 7)))
    assert len(sink) == 7
    assert_batches_equal(sink.read(), numbered_batch(range(7)))
    sink.close()


def test_writing_goes_on_after_zero_on_every_kind_of_store(store):
    with ZarrData(store, config=SMALL) as sink:
        for first in (0, 10, 20):
            sink.write(numbered_batch(range(first, first + 4)))
            assert_batches_equal(sink.read(), numbered_batch(range(first, first + 4)))
            sink.zero()
            assert len(sink) == 0
        sink.write(numbered_batch(range(3)))
    assert_batches_equal(ZarrData(store).read(), numbered_batch(range(3)))


def test_zero_leaves_the_files_of_others_alone(tmp_path):
    store = tmp_path / "store"
    sink = ZarrData(store, config=SMALL)
    sink.write(numbered_batch(range(3)))
    others = {name: name.encode() for name in ("notes.txt", "logs/run.log", "core/readme.md")}
    for name, content in others.items():
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_bytes(content)
    sink.zero()
    sink.close()
    found = stored_bytes(store)
    assert {name: found[name] for name in others} == others


def test_zero_does_nothing_where_the_sink_never_wrote(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "runs").mkdir()
    with unchanged(tmp_path), ZarrData(tmp_path) as sink:
        sink.zero()
    with unchanged(tmp_path), ZarrData(tmp_path / "nothing") as sink:
        sink.zero()
    zarr.open_group(tmp_path / "group", mode="w").create_array("spectra", data=np.arange(5))
    with unchanged(tmp_path), pytest.raises(ValueError, match="expected a store that zarrpipe"):
        ZarrData(tmp_path / "group").zero()


def test_a_field_that_a_batch_lacks_does_not_shift_the_labels_of_later_samples(store):
    parts = [numbered_batch(range(4)), numbered_batch(range(4, 7)).without("energy", "forces")]
    parts.append(numbered_batch(range(7, 12)))
    with ZarrData(store, config=SMALL) as sink:
        for part in parts:
            sink.write(part)
    whole = ZarrDataset(store).__getitems__(range(12))
    assert_batches_equal(whole, Batch.concatenate(parts))
    has = torch.tensor([True] * 4 + [False] * 3 + [True] * 5)
    assert torch.equal(whole.present("energy"), has)
    assert whole.energy[has].flatten().tolist() == [*range(4), *range(7, 12)]
    assert bool(whole.energy[~has].isnan().all())


def test_a_field_that_is_new_later_is_not_dropped(store):
    parts = [numbered_batch(range(3)).without("energy"), numbered_batch(range(3, 8))]
    with ZarrData(store, config=SMALL) as sink:
        for part in parts:
            sink.write(part)
    whole = ZarrDataset(store).__getitems__(range(8))
    assert whole.present("energy").tolist() == [False] * 3 + [True] * 5
    assert whole.energy[3:].flatten().tolist() == [*range(3, 8)]


def test_float64_is_not_cast_into_a_float32_store(store):
    narrow = numbered_batch(range(3)).to(dtype=torch.float32)
    wide = numbered_batch(range(3, 5))
    wide.energy = torch.tensor([[1e300], [0.1]], dtype=torch.float64)
    with ZarrData(store, config=SMALL) as sink:
        sink.write(narrow)
        with pytest.raises(SchemaError, match=r"float64, the store has float32.*\.to\(torch"):
            sink.write(wide)
        assert_batches_equal(sink.read(), narrow)


def _append_until_killed(place: Path, acknowledge: int) -> None:
    """Append to a store, each time saying how many samples there are."""
    with ZarrData(place, config=SMALL) as sink:
        stored = len(sink)
        while True:
            sink.write(numbered_batch(range(stored, stored + 3)))
            stored += 3
            os.write(acknowledge, stored.to_bytes(4, "little"))


def _killed_writer(place: Path, appends: int, delay: float) -> int:
    """Let a process append, kill it some time after an append, and count what it acknowledged."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            torch.set_num_threads(1)  # threads of the parent are not in a fork
            os.close(read_end)
            _append_until_killed(place, write_end)
        os._exit(1)
    os.close(write_end)
    acknowledged = b""
    while len(acknowledged) < 4 * appends:
        said = os.read(read_end, 4) if wait([read_end], 60) else b""
        assert said, "the writer ended or hangs"
        acknowledged += said
    signal.sigtimedwait((), delay)
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    while more := os.read(read_end, 4096):
        acknowledged += more
    os.close(read_end)
    whole = len(acknowledged) // 4 * 4
    return int.from_bytes(acknowledged[whole - 4 : whole], "little")


def test_sigkill_while_appending_loses_and_tears_nothing(tmp_path):
    """Eight kills of writers that continue one store: what they acknowledged is there, and right.

    `python -m reliability kills` does it by the thousand, to every method.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    chance, place = random.Random(seed), tmp_path / "store"
    for _ in range(8):
        acknowledged = _killed_writer(place, chance.randint(1, 6), chance.random() / 200)
        dataset = ZarrDataset(place)
        assert len(dataset) >= acknowledged
        assert_batches_equal(dataset.__getitems__(range(len(dataset))),
                             numbered_batch(range(len(dataset))))  # fmt: skip
    assert edges_of(place) == expected_edges(range(len(dataset)))
    with ZarrData(place, config=SMALL) as sink:
        stored = len(sink)
        sink.write(numbered_batch([stored]))
        assert_batches_equal(sink.read(), numbered_batch(range(stored + 1)))
    assert not [finding for finding in sink.check().findings if finding.severity == "error"]


def test_a_reader_beside_a_writer_never_sees_a_torn_sample(tmp_path):
    """Reads while another process appends: each is a prefix, whole and right.

    `python -m reliability live` does it for minutes, through deletions and rewrites as well.
    """
    place = tmp_path / "store"
    with ZarrData(place, config=SMALL) as sink:
        sink.write(numbered_batch([0]))
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            torch.set_num_threads(1)
            with ZarrData(place, config=SMALL) as sink:
                for first in range(1, 301, 3):
                    sink.write(numbered_batch(range(first, first + 3)))
            os._exit(0)
        os._exit(1)
    dataset, lengths = ZarrDataset(place), []
    while len(dataset) < 301:
        dataset.refresh()
        lengths.append(len(dataset))
        last = range(max(0, len(dataset) - 20), len(dataset))
        assert_batches_equal(dataset.__getitems__(last), numbered_batch(last))
        if len(lengths) % 10 == 0:
            fresh = ZarrDataset(place)
            whole = range(len(fresh))
            assert_batches_equal(fresh.__getitems__(whole), numbered_batch(whole))
        assert len(lengths) < 5000, "the writer did not finish"
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lengths == sorted(lengths)
    assert_batches_equal(dataset.__getitems__(range(301)), numbered_batch(range(301)))


def test_a_full_disk_in_the_middle_of_an_append_loses_nothing(tmp_path, monkeypatch):
    """At each write in turn: an error, what was stored is readable, and the retry succeeds.

    `python -m reliability disk` does it with a disk that is full.
    """
    place, write_at, room = tmp_path / "store", files.write_at, [10**9]

    def until_full(descriptor, data, offset):
        room[0] -= 1
        if room[0] == -1:  # what takes pointers back writes where there are blocks already
            write_at(descriptor, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        write_at(descriptor, data, offset)

    monkeypatch.setattr(files, "write_at", until_full)
    sink, stored = ZarrData(place, config=SMALL), 4
    sink.write(numbered_batch(range(stored)))
    for failures in count():
        room[0] = failures
        try:
            sink.write(numbered_batch(range(stored, stored + 9)))
        except OSError:
            room[0] = 10**9
        else:
            break
        for reader in (ZarrData(place), sink):
            assert_batches_equal(reader.read(), numbered_batch(range(stored)))
        sink.write(numbered_batch([stored]))
        stored += 1
    room[0] = 10**9
    assert failures >= 10
    stored += 9
    assert_batches_equal(sink.read(), numbered_batch(range(stored)))
    sink.close()
    assert_batches_equal(ZarrData(place).read(), numbered_batch(range(stored)))


@pytest.mark.parametrize("options", [{}, {"collate_fn": collate}, {"shuffle": True}])
def test_a_data_loader_of_torch_needs_no_collate_by_hand(tmp_path, options):
    with ZarrData(tmp_path / "store", config=SMALL) as sink:
        sink.write(numbered_batch(range(12)))
        sink.write(numbered_batch(range(12, 20)).without("energy"))
    batches = list(DataLoader(ZarrDataset(tmp_path / "store"), batch_size=8, **options))
    assert [batch.num_graphs for batch in batches] == [8, 8, 4]
    numbers = torch.cat([batch.serial for batch in batches]).tolist()
    assert sorted(numbers) == [*range(20)]
    for batch in batches:
        expected = numbered_batch(batch.serial.tolist())
        assert torch.equal(batch.positions, expected.positions)
        assert torch.equal(batch.neighbor_list, expected.neighbor_list)
        has = batch.serial < 12
        assert torch.equal(batch.present("energy"), has)
        assert torch.equal(batch.energy[has], expected.energy[has])


def test_an_append_costs_the_same_however_many_samples_there_are(tmp_path, monkeypatch):
    """Calls of the system and bytes read do not grow: appends are linear in what is appended."""
    with ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch(range(5)))
        early = _cost(partial(sink.write, numbered_batch(range(5, 10))), monkeypatch)
        for first in range(10, 2025, 65):
            sink.write(numbered_batch(range(first, first + 65)))
        late = _cost(partial(sink.write, numbered_batch(range(2025, 2030))), monkeypatch)
    assert late == early
    assert late == early
    assert early["pwrite"] > 5


def _cost(call, monkeypatch) -> Counter[str]:
    """Calls of functions of the system by name, and bytes that they read."""
    cost: Counter[str] = Counter()

    def counted(name, function):
        def counting(*args, **kwargs):
            found = function(*args, **kwargs)
            cost[name] += 1
            if name.startswith("p") or name == "read":
                cost[f"bytes of {name}"] += len(found) if isinstance(found, bytes) else found
            return found

        return counting

    with monkeypatch.context() as patch:
        for name in ("open", "pread", "pwrite", "read", "write", "stat", "fstat", "ftruncate"):
            patch.setattr(os, name, counted(name, getattr(os, name)))
        patch.setattr(io, "open", counted("open of a file", io.open))
        call()
    return cost
