"""What is handed over wrongly is refused with what was expected, and the store stays as it was."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import LocalStore, MemoryStore

from zarrpipe import AtomicData, AtomicDataZarrWriter, Batch, ZarrData, ZarrDataset, merge
from zarrpipe.adapters import register
from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    FieldError,
    MissingLibraryError,
    SchemaError,
    StoreClosedError,
    StoreExistsError,
    StoreFormatError,
    StoreNotADirectoryError,
    StoreNotFoundError,
    StoreReadOnlyError,
    UnknownFieldError,
    ZarrPipeError,
)
from zarrpipe.store.reader import AtomicDataZarrReader
from zarrpipe.testing import assert_batches_equal, numbered_batch, stored_bytes, unchanged

SMALL = {group: {"chunk_size": 5} for group in ("meta", "core", "custom")}
COUNT = 5


def filled(store):
    with ZarrData(store, config=SMALL) as sink:
        sink.write(numbered_batch(range(COUNT)))
    return store


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The store that tests get copies of, which takes less time than to write it."""
    return filled(tmp_path_factory.mktemp("kept") / "store")


@pytest.fixture
def local(kept, tmp_path):
    return shutil.copytree(kept, tmp_path / "store")


@pytest.fixture(params=["path", "dict"])
def store(request):
    return request.getfixturevalue("local") if request.param == "path" else filled({})


def refused(error, builtin, match):
    """What `pytest.raises` of an error of ours that is also the builtin."""
    assert issubclass(error, ZarrPipeError)
    assert issubclass(error, builtin)
    return pytest.raises(error, match=match)


def of(value, **options):
    """Tensor-like made when its test runs."""
    return lambda: torch.tensor(value, **options)


MASKS = {
    "too short": (of([True] * 3), r"dtype torch.bool and shape \(3,\), expected bool and \(5,\)"),
    "empty": (of([], dtype=torch.bool), r"shape \(0,\)"),
    "two-dimensional": (of([[True]] * 5), r"shape \(5, 1\)"),
    "one bool": (lambda: True, r"shape \(\), expected bool and \(5,\): one entry for each"),
    "zeros and ones": (lambda: [1, 0, 1, 0, 1], r"int64 .*numbers of systems are for batch.index"),
    "float zeros and ones": (of([1.0, 0.0, 1.0, 0.0, 1.0]), "dtype torch.float32"),
    "NumPy integers": (lambda: np.ones(5, dtype=int), "dtype torch.int64"),
    "numbers of systems": (lambda: [0, 2], r"int64 and shape \(2,\)"),
    "a word": (lambda: "all", "mask of type str holds no bools, expected bool"),
    "a slice": (lambda: slice(0, 2), "mask of type slice"),
    "masked": (
        lambda: np.ma.array([True] * 5, mask=[0, 1, 0, 0, 0]),
        r"1 of 5 .* \.filled\(value\)",
    ),
    "ragged": (lambda: [[True], [True, False]], "mask of type list holds no bools"),
    "None in a list": (lambda: [None] * 5, "mask of type list"),
    "an object array": (lambda: np.array([True] * 5, object), "mask of type ndarray"),
    "without data": (of([True] * 5, device="meta"), "mask of type Tensor holds no bools"),
    "sparse": (lambda: torch.ones(5, dtype=torch.bool).to_sparse(), "give mask.to_dense()"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(local, name):
    make, match = MASKS[name]
    with (
        ZarrData(local) as sink,
        unchanged(local),
        refused(FieldError, ValueError, match),
    ):
        sink.write(numbered_batch(range(5, 10)), mask=make())


def backwards(values):
    return np.array(values[::-1])[::-1]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, backwards])
def test_masks_of_every_right_kind(store, kind):
    with ZarrData(store) as sink:
        sink.write(numbered_batch(range(5, 10)), mask=kind([False, True, False, True, False]))
        assert_batches_equal(sink.read(), numbered_batch([0, 1, 2, 3, 4, 6, 8]))


def system(**fields):
    return AtomicData([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [1, 1], **fields)


def own(value):
    return system(system={"gap": value})


def batch_of(**changes):
    whole = numbered_batch(range(2))
    arguments = {"fields": dict(whole.fields), "batch_ptr": whole.batch_ptr,
                 "edge_ptr": whole.edge_ptr, "levels": {"serial": "system"}}  # fmt: skip
    return Batch(**(arguments | changes))


HALF = {"dtype": torch.bfloat16}
SYSTEMS = {
    "no atoms": (lambda: AtomicData(torch.zeros(0, 3), []), "an empty system cannot be stored"),
    "positions of a plane": (lambda: AtomicData([[0.0, 0.0]], [1]), r"expected \(n, 3\)"),
    "no positions": (lambda: AtomicData(None, [1]), "'positions' is None, expected a tensor"),
    "other numbers of atoms": (lambda: AtomicData([[0.0] * 3], [1, 2]), "one row for each of 1"),
    "half an element": (lambda: AtomicData([[0.0] * 3], [1.5]), "has it as integer: convert it"),
    "a word": (lambda: system(energy="low"), "'energy' is 'low', expected a tensor"),
    "words": (lambda: own([["a"]]), r"'gap' is \[\['a'\]\], expected a tensor"),
    "words of atoms": (lambda: system(atom={"gap": ["a", "b"]}), "strings at level 'atom': only"),
    "ragged": (lambda: system(forces=[[1.0], [1.0, 2.0]]), "'forces' is .* expected a tensor"),
    "complex": (lambda: own(torch.ones(1, dtype=torch.complex64)), "complex64, which cannot be"),
    "bfloat16": (lambda: system(forces=torch.ones(2, 3, **HALF)), "bfloat16, which cannot be"),
    "unsigned": (lambda: own(torch.ones(1, dtype=torch.uint16)), "uint16, which cannot be"),
    "sparse": (lambda: system(forces=torch.ones(2, 3).to_sparse()), "'forces' is a sparse_coo"),
    "sparse edges": (
        lambda: system(neighbor_list=torch.tensor([[0, 1]]).to_sparse()),
        "'neighbor_list' is a sparse_coo tensor, expected a dense one",
    ),
    "an edge that leaves": (lambda: system(neighbor_list=[[0, 2]]), "expected 0 to 1"),
    "an edge of three": (lambda: system(neighbor_list=[[0, 1, 1]]), r"expected \(1, 2\)"),
    "half an edge": (lambda: system(neighbor_list=[[0.5, 1.0]]), "has it as integer"),
    "a path as a name": (lambda: system(system={"a/b": [1.0]}), "'a/b' must be a Python ident"),
    "a number as a name": (lambda: system(system={3: [1.0]}), "field name 3 must be"),
    "no level": (lambda: system(gap=1.0), "not in the registry, so its level has to be given"),
    "a level of no kind": (
        lambda: system().add_field("gap", [1.0], "bond"),
        "expected 'system', 'atom'",
    ),
    "pointers as a list": (lambda: batch_of(batch_ptr=[0, 1]), "batch_ptr is a list, expected a"),
    "presence as a list": (
        lambda: batch_of(present={"energy": [True, False]}),
        "presence of 'energy' is a list, expected a torch.Tensor",
    ),
    "pointers that fall": (lambda: batch_of(batch_ptr=torch.tensor([0, 3, 1])), "pointers never"),
    "nothing": (list, "an empty list makes no batch"),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems(local, name):
    make, match = SYSTEMS[name]
    with ZarrData(local) as sink, unchanged(local), refused(FieldError, ValueError, match):
        sink.write(make())


OBJECTS = {
    "None": (lambda: None, "of type NoneType: expected zarrpipe.Batch"),
    "a word": (lambda: "water.xyz", "of type str: expected"),
    "a dictionary": (lambda: {"positions": []}, r"AtomicData\(\*\*fields\) makes a system"),
    "a list of lists": (lambda: [[system()]], "this one is in a list of lists: join them"),
    "None in a list": (lambda: [system(), None], "of type NoneType"),
    "a tensor": (lambda: torch.ones(3, 3), "of type torch.Tensor"),
    "a class": (lambda: Batch, r"zarrpipe.adapters.register\(cls, function\)"),
    "own fields as a list": (lambda: system(atom=[1, 2]), "atom is a list, expected a mapping"),
    "fields as a list": (lambda: batch_of(fields=[1]), "fields is a list, expected a mapping"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects(local, name):
    make, match = OBJECTS[name]
    with ZarrData(local) as sink, unchanged(local), refused(ArgumentTypeError, TypeError, match):
        sink.write(make())


NAMES = {
    "num_atoms": "'num_atoms' means the number of a sample's atoms in conditions such as where=",
    "not": "'not' is a Python keyword, which neither an attribute nor a condition can name",
    "class": "'class' is a Python keyword",
}


@pytest.mark.parametrize("name", NAMES)
def test_new_fields_that_a_condition_reads_otherwise(local, name, tmp_path):
    data, fresh = system(system={name: [7.0]}), tmp_path / "fresh"
    with unchanged(local):
        with ZarrData(local) as sink, refused(FieldError, ValueError, NAMES[name]):
            sink.write(data)
        with AtomicDataZarrWriter(local) as writer:
            with refused(FieldError, ValueError, NAMES[name]):
                writer.append(data)
            with refused(FieldError, ValueError, NAMES[name]):
                writer.add_custom(name, np.ones(COUNT), "system")
    for opened in (ZarrData(fresh), AtomicDataZarrWriter(fresh)):
        with opened, refused(FieldError, ValueError, NAMES[name]):
            opened.write(data)
    assert not fresh.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_store_that_has_such_a_field_goes_on(store, name):
    data = system(system={name: [7.0]})
    with ZarrData(store) as sink:
        sink._open_writer().append(
            Batch.from_data_list([data])
        )  # as before such names were refused
    with AtomicDataZarrWriter(store) as writer:
        writer.append(data)
    with ZarrData(store) as sink:
        sink.write([data])
        assert ZarrDataset(store).__getitems__(range(COUNT, COUNT + 3))[name].tolist() == [7.0] * 3
        drained = sink.drain()
        assert drained[name][COUNT:].tolist() == [7.0] * 3
        sink.write(drained)
        assert_batches_equal(sink.read(), drained)
        sink.zero()
        sink.write(data)
        assert sink.drain()[name].tolist() == [7.0]
        with refused(FieldError, ValueError, "'yield' is a Python keyword"):
            sink.write(system(system={"yield": [7.0]}))
    with ZarrData(store) as another, refused(FieldError, ValueError, NAMES[name]):
        another.write(data)


def test_a_batch_without_data(store):
    with (
        ZarrData(store) as sink,
        unchanged(store),
        refused(FieldError, ValueError, "the meta device has no data"),
    ):
        sink.write(numbered_batch(range(5, 7)).to("meta"))


def test_a_batch_of_no_systems_writes_nothing(store):
    with ZarrData(store) as sink, unchanged(store):
        sink.write(numbered_batch([]))
        sink.write(numbered_batch([7]), mask=[False])


def test_numbers_that_are_none_are_kept(store):
    """NaN and infinities are values: nothing is refused, cleaned or filled."""
    odd = numbered_batch(range(5, 9))
    odd.energy = torch.tensor([[float("nan")], [float("inf")], [-float("inf")], [-0.0]]).double()
    odd.forces = torch.where(odd.forces < -6, torch.inf, odd.forces)
    with ZarrData(store) as sink:
        sink.write(odd)
        found = sink.read()
    assert_batches_equal(found, Batch.concatenate([numbered_batch(range(5)), odd]))
    assert torch.signbit(found.energy[-1]).item()
    assert not found.partly_present


def test_a_huge_system(tmp_path):
    """Five million atoms in one sample, between two of one atom."""
    count = 5_000_000
    positions = torch.arange(3 * count, dtype=torch.float32).reshape(count, 3)
    huge = AtomicData(positions, torch.arange(count) % 100)
    one = AtomicData(torch.ones(1, 3), [1])
    with ZarrData(tmp_path / "store") as sink:
        for data in (one, huge, one):
            sink.write(data)
    dataset = ZarrDataset(tmp_path / "store")
    assert dataset.num_atoms.tolist() == [1, count, 1]
    assert torch.equal(dataset[1].positions, positions)
    assert torch.equal(dataset[1].atomic_numbers, torch.arange(count) % 100)
    assert dataset[2].positions.tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    "capacity", [0, -1, True, 2.0, "5", None, float("nan"), [5], 10**30, torch.tensor(9)]
)
def test_capacities(local, capacity):
    with unchanged(local), refused(ArgumentError, ValueError, "capacity=.*expected a positive"):
        ZarrData(local, capacity)


def test_a_capacity_below_what_is_stored(store):
    with unchanged(store), refused(ArgumentError, ValueError, "5 samples, more than capacity=4"):
        ZarrData(store, np.int64(4))
    assert ZarrData(store, 5).is_full


class TestPlaces:
    """Where no store is or can be."""

    @pytest.fixture(params=[ZarrData, ZarrDataset, AtomicDataZarrReader, AtomicDataZarrWriter])
    def opened(self, request):
        """Open a place, and write to it where that can be."""

        def open_place(place):
            subject = request.param(place)
            if isinstance(subject, ZarrData | AtomicDataZarrWriter):
                subject.write(numbered_batch([0]))
            subject.refresh()

        return open_place

    @pytest.mark.parametrize(
        "place", [None, 3, b"store", {1}, object(), MemoryStore, (x for x in "a")], ids=type
    )
    def test_no_place(self, opened, place):
        with refused(ArgumentTypeError, TypeError, "is of type .*, expected a path, a"):
            opened(place)

    @pytest.mark.parametrize(
        ("place", "match"),
        [
            ("", "the path of the store is empty"),
            ("  ", "the path of the store is empty"),
            ("a\0b", r"'a\\x00b' has a NUL character"),
            (
                "nosuch://a/b",
                "not a URL that can be opened .*expected a path, or a URL whose proto",
            ),
        ],
    )
    def test_no_name(self, opened, place, match):
        pytest.importorskip("fsspec")
        with refused(ArgumentError, ValueError, match):
            opened(place)

    def test_a_library_that_is_missing(self, opened, monkeypatch):
        fsspec = pytest.importorskip("fsspec")

        def missing(*args, **kwargs):
            raise ImportError("Install huggingface_hub")

        monkeypatch.setattr(fsspec, "url_to_fs", missing)
        monkeypatch.setattr("zarr.storage._fsspec.url_to_fs", missing, raising=False)
        monkeypatch.setattr("fsspec.core.url_to_fs", missing)
        monkeypatch.setitem(sys.modules, "obstore.store", None)
        with refused(MissingLibraryError, ImportError, r"pip install 'zarrpipe\[s3\]'"):
            opened("s3://bucket/store")
        with refused(MissingLibraryError, ImportError, "pip install huggingface_hub"):
            opened("hf://datasets/store")

    @pytest.mark.parametrize("place", ["file", "file/below", "archive.zip"])
    def test_a_file(self, opened, tmp_path, place):
        for name in ("file", "archive.zip"):
            (tmp_path / name).write_text("mine")
        match = "file is a file, expected the directory" if "file" in place else "ZipStore"
        with (
            unchanged(tmp_path),
            refused(StoreNotADirectoryError, NotADirectoryError, match),
        ):
            opened(tmp_path / place)

    @pytest.mark.parametrize("kind", ["array", "v2 group", "v2 array"])
    def test_other_zarr(self, opened, tmp_path, kind):
        place = tmp_path / "store"
        if kind == "v2 group":
            zarr.open_group(place, mode="w", zarr_format=2).create_array("x", shape=3, dtype="f4")
        else:
            zarr.create_array(place, shape=3, dtype="f4", zarr_format=3 if kind == "array" else 2)
        match = "a single Zarr array" if kind == "array" else f"holds a Zarr {kind}, expected"
        with unchanged(place), refused(StoreFormatError, ValueError, match):
            opened(place)

    def test_a_group_of_another(self, opened, tmp_path):
        zarr.open_group(tmp_path / "store", mode="w").create_array("x", shape=3, dtype="f4")
        match = "without meta/atoms_ptr|zarrpipe did not write"
        with unchanged(tmp_path), refused(StoreFormatError, ValueError, match):
            opened(tmp_path / "store")

    def test_a_newer_format(self, opened, store):
        group = zarr.open_group(store, mode="r+")
        group.attrs["zarrpipe"] = {**group.attrs["zarrpipe"], "format": 99}
        with unchanged(store), refused(StoreFormatError, ValueError, "99.*upgrade zarrpipe"):
            opened(store)

    def test_damaged_metadata(self, opened, tmp_path):
        filled(tmp_path / "store")
        (tmp_path / "store" / "zarr.json").write_text("{")
        with unchanged(tmp_path), refused(StoreFormatError, ValueError, "damaged"):
            opened(tmp_path / "store")


class TestDirectories:
    """What else a directory may have in it."""

    def test_of_another(self, tmp_path):
        """A new store is not mixed into a directory of other things."""
        (tmp_path / "notes.txt").write_text("mine")
        (tmp_path / "runs").mkdir()
        sink = ZarrData(tmp_path)
        assert len(sink) == 0
        for change in (sink.write, AtomicDataZarrWriter(tmp_path).write):
            with (
                unchanged(tmp_path),
                refused(StoreExistsError, FileExistsError, "notes.txt.*a directory of its own"),
            ):
                change(numbered_batch([0]))
        with (
            unchanged(tmp_path),
            refused(StoreExistsError, FileExistsError, "is a directory that is not empty"),
        ):
            merge([filled({})], tmp_path)

    @pytest.mark.parametrize("hidden", [False, True])
    def test_that_is_empty(self, tmp_path, hidden):
        if hidden:
            (tmp_path / ".gitkeep").touch()
        with ZarrData(tmp_path) as sink:
            sink.write(numbered_batch([0]))
        assert_batches_equal(ZarrData(tmp_path).read(), numbered_batch([0]))

    def test_of_a_writer_that_was_killed_at_once(self, tmp_path):
        """What stands there before the root's metadata is no other thing."""
        (tmp_path / "meta" / "atoms_ptr").mkdir(parents=True)
        (tmp_path / "meta" / "atoms_ptr" / ".lock").touch()
        (tmp_path / f"zarr.{'0' * 32}.partial").touch()
        with ZarrData(tmp_path) as sink:
            sink.write(numbered_batch([0]))
        assert_batches_equal(ZarrData(tmp_path).read(), numbered_batch([0]))

    def test_without_permission(self):
        """In a process of another user where this one is root, whom no permission stops."""
        folder = Path(tempfile.mkdtemp())  # others may not look into pytest's
        folder.chmod(0o755)
        filled(folder / "store")
        try:
            if os.geteuid():
                for path in (folder, *folder.rglob("*")):
                    path.chmod(0o555)
            with unchanged(folder):
                child = os.fork()
                if child == 0:
                    os._exit(_refused_without_permission(folder))
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            for path in (folder, *folder.rglob("*")):
                path.chmod(0o755)
            shutil.rmtree(folder)

    @pytest.mark.parametrize("kind", [MemoryStore, LocalStore])
    def test_opened_for_reading(self, tmp_path, kind):
        whole = kind() if kind is MemoryStore else kind(tmp_path / "store")
        filled(whole)
        sink, writer = ZarrData(whole.with_read_only(True)), AtomicDataZarrWriter(
            whole.with_read_only(True)
        )  # fmt: skip
        changes = [
            lambda: sink.write(numbered_batch([1])),
            sink.zero,
            sink.drain,
            lambda: writer.append(numbered_batch([1])),
            lambda: writer.delete([0]),
            lambda: writer.add_custom("gap", torch.ones(5), "system"),
            writer.defragment,
        ]
        for change in changes:
            with (
                unchanged(whole),
                refused(StoreReadOnlyError, PermissionError, "read-only: open it for writing"),
            ):
                change()
        assert_batches_equal(sink.read(), numbered_batch(range(COUNT)))


def _refused_without_permission(folder) -> int:
    """0 if a store can be read and it is said that nothing may be written there or beside it."""
    try:
        if not os.geteuid():
            os.setuid(65534)
        with ZarrData(folder / "store") as sink:
            assert len(sink) == COUNT
        for place in ("store", "new"):
            try:
                ZarrData(folder / place).write(numbered_batch([0]))
            except StoreReadOnlyError as error:
                assert str(folder / place) in str(error)  # noqa: PT017
            else:
                return 1
    except BaseException:  # noqa: BLE001  the process has no other way to tell
        return 2
    return 0


class TestVanishing:
    """A store that is removed between two calls."""

    def test_of_a_sink(self, tmp_path):
        sink = ZarrData(tmp_path / "store", config=SMALL)
        sink.write(numbered_batch([0]))
        shutil.rmtree(tmp_path / "store")
        for change in (lambda: sink.write(numbered_batch([1])), sink.flush, sink.zero, sink.read):
            with refused(StoreNotFoundError, FileNotFoundError, "removed or replaced|no Zarr st"):
                change()
        with refused(StoreNotFoundError, FileNotFoundError, "what it wrote is gone"):
            sink.close()
        sink.close()
        with refused(StoreClosedError, RuntimeError, "was closed"):
            sink.write(numbered_batch([1]))
        assert not [*tmp_path.iterdir()]
        with ZarrData(tmp_path / "store") as new:
            new.write(numbered_batch([2]))

    def test_of_a_writer(self, tmp_path):
        writer = AtomicDataZarrWriter(tmp_path / "store", SMALL)
        writer.write(numbered_batch(range(3)))
        shutil.rmtree(tmp_path / "store")
        changes = [
            lambda: writer.append(numbered_batch([1])),
            lambda: writer.delete([0]),
            lambda: writer.add_custom("gap", torch.ones(3), "system"),
            writer.defragment,
        ]
        for change in changes:
            with refused(StoreNotFoundError, FileNotFoundError, "removed or replaced"):
                change()
        with refused(StoreNotFoundError, FileNotFoundError, "what it wrote is gone"):
            writer.close()
        writer.close()
        assert not [*tmp_path.iterdir()]

    def test_of_readers(self, tmp_path):
        """What was mapped can be read on; looking again says that the store is gone."""
        place = filled(tmp_path / "store")
        dataset, reader = ZarrDataset(place), AtomicDataZarrReader(place)
        assert_batches_equal(dataset.__getitems__(range(5)), numbered_batch(range(5)))
        shutil.rmtree(place)
        assert_batches_equal(dataset.__getitems__([4, 0]), numbered_batch([4, 0]))
        for look in (dataset.refresh, reader.refresh):
            with refused(StoreNotFoundError, FileNotFoundError, f"no Zarr store at {place}"):
                look()
        reader.close()

    def test_to_look_makes_nothing(self, tmp_path):
        """Whoever asks for what is not there leaves no directory behind."""
        sink, writer = ZarrData(tmp_path / "store"), AtomicDataZarrWriter(tmp_path / "store")
        assert len(sink) == 0
        sink.zero()
        with refused(StoreNotFoundError, FileNotFoundError, "no store at"):
            writer.append(numbered_batch([0]))
        with refused(StoreNotFoundError, FileNotFoundError, "no Zarr store at"):
            ZarrDataset(tmp_path / "store")
        assert not [*tmp_path.iterdir()]

    def test_of_a_sink_that_has_nothing_open(self, tmp_path):
        """It is a sink on a place where nothing is."""
        sink = ZarrData(filled(tmp_path / "store"))
        shutil.rmtree(tmp_path / "store")
        with refused(StoreNotFoundError, FileNotFoundError, "no Zarr store"):
            len(sink)
        sink.close()
        sink.close()


INDICES = {
    "half": ([0.5], TypeError, r"dtype float64 and shape \(1,\): expected integers or bool"),
    "words": (["1"], TypeError, "expected integers or bool"),
    "None": (None, TypeError, "an index of kind NoneType: expected integers"),
    "a set": ({1}, TypeError, "an index of kind set"),
    "beyond": ([0, 5], IndexError, r"sample 5 of .* of 5, expected -5 to 4"),
    "before": ([0, -6], IndexError, "sample -6 of .* of 5"),
    "far beyond": ([10**30], IndexError, f"sample {10**30} of .* of 5"),
    "a short mask": ([True], IndexError, r"a mask of shape \(1,\) for .* of 5"),
    "a table": ([[0, 1]], TypeError, r"shape \(1, 2\)"),
    "ragged": ([[0], [1, 2]], TypeError, "is no index, expected integers"),
    "complex": ([1j], TypeError, "dtype complex128"),
}


def deletion(store):
    return AtomicDataZarrWriter(store).delete


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize(
    "taker",
    [
        lambda store: AtomicDataZarrReader(store).read_many,
        lambda store: ZarrDataset(store).__getitems__,
        lambda store: ZarrDataset(store).index_select,
        lambda store: ZarrDataset(store).ids_of,
        deletion,
    ],
    ids=["reader", "dataset", "selection", "ids", "deletion"],
)
def test_indices(store, taker, name):
    index, builtin, match = INDICES[name]
    error = pytest.raises(ZarrPipeError, match=match)
    with unchanged(store), error as raised:
        taker(store)(index)
    assert isinstance(raised.value, builtin)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([], []),
        ([3, 3, -1], [3, 3, 4]),
        (range(2), [0, 1]),
        (slice(None, None, 2), [0, 2, 4]),
        (np.array([True, False, True, False, False]), [0, 2]),
        (torch.tensor([1], dtype=torch.int32), [1]),
    ],
)
def test_indices_of_every_right_kind(store, index, expected):
    dataset = ZarrDataset(store)
    assert_batches_equal(dataset.__getitems__(index), numbered_batch(expected))
    assert len(dataset.index_select(index)) == len(expected)
    found = AtomicDataZarrReader(store).read_many(index)
    assert [fields["serial"].item() for fields, _ in found] == expected
    with AtomicDataZarrWriter(store, SMALL) as writer:
        writer.delete(index)
    left = [number for number in range(5) if number not in expected]
    assert ZarrData(store).read().serial.tolist() == left


@pytest.mark.parametrize("index", [1.0, "1", None, True, slice(0, 2), [0, 1], ...])
def test_one_index(local, index):
    """A single sample is one integer: a list of one's first never stands for the list."""
    batch = numbered_batch(range(5))
    for read in (AtomicDataZarrReader(local).read, ZarrDataset(local).__getitem__, batch.get_data):
        with refused(ZarrPipeError, Exception, "expected one integer") as raised:
            read(index)
        assert isinstance(raised.value, TypeError)


CUSTOM = {
    "too short": (("gap", [1.0], "system"), FieldError, "one row for each of 5 systems"),
    "a word": (("gap", "abc", "system"), FieldError, "'gap' is 'abc', expected a tensor"),
    "None": (("gap", None, "system"), FieldError, "'gap' is None"),
    "ragged": (("gap", [[1], [1, 2]], "system"), FieldError, "expected a tensor"),
    "without data": (
        ("gap", torch.ones(5, device="meta"), "system"),
        FieldError,
        "expected a tensor",
    ),
    "sparse": (("gap", torch.ones(5).to_sparse(), "system"), FieldError, "a sparse_coo tensor"),
    "complex": (("gap", [1j] * 5, "system"), FieldError, "complex64, which cannot be stored"),
    "no level": (("gap", [1.0] * 5, None), FieldError, "its level has to be given"),
    "a level of no kind": (("gap", [1.0] * 5, 3), FieldError, "level 3; expected 'system'"),
    "a number as a name": ((3, [1.0] * 5, "system"), FieldError, "field name 3 must be"),
    "a taken name": (("num_nodes", [1.0] * 5, "system"), FieldError, "taken by"),
    "what is there": (("serial", [1] * 5, "system"), SchemaError, "has the field 'serial' alr"),
}


@pytest.mark.parametrize("name", CUSTOM)
def test_fields_to_be_added(local, name):
    arguments, error, match = CUSTOM[name]
    with (
        AtomicDataZarrWriter(local, SMALL) as writer,
        unchanged(local),
        refused(error, ValueError, match),
    ):
        writer.add_custom(*arguments)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (3, "3 is not a ZarrWriteConfig: expected a mapping of"),
        ({"cores": {}}, "is not a ZarrWriteConfig"),
        ({"core": {"chunk_size": -4}}, "chunk_size is -4, expected an integer from 1"),
        ({"core": {"chunk_size": 10**18}}, "expected an integer from 1 to 2147483648"),
        ({"core": {"serializer": "zstd"}}, "give it as compressors"),
        ({"units": {"energy": "kcal/mol"}}, "the registry has it in 'eV'"),
    ],
)
def test_configs(tmp_path, config, match):
    for taker in (ZarrData, AtomicDataZarrWriter):
        with refused(FieldError, ValueError, match):
            taker(tmp_path / "store", config=config)
    with refused(FieldError, ValueError, match):
        merge([filled({})], tmp_path / "store", config=config)
    assert not [*tmp_path.iterdir()]


def test_datasets(local):
    for options, error, builtin, match in (
        ({"fields": "energy"}, ArgumentTypeError, TypeError, "expected a list of names"),
        ({"fields": 3}, ArgumentTypeError, TypeError, "expected a list of names"),
        ({"fields": ["nope"]}, SchemaError, ValueError, "no store has a field 'nope'"),
        ({"transform": 3}, ArgumentTypeError, TypeError, "expected a function of a Batch"),
        ({"cache_bytes": -1}, FieldError, ValueError, "expected an integer of at least 1"),
        ({"resident": "gpu"}, ArgumentError, ValueError, "no device that torch has here"),
    ):
        with refused(error, builtin, match):
            ZarrDataset(local, **options)
    with refused(ArgumentError, ValueError, "an empty list of stores"):
        ZarrDataset([])


def test_fields_that_are_not_there(local):
    batch = ZarrData(local).read()
    for read in (lambda: batch["gap"], lambda: batch.get_data(0)["gap"], lambda: batch.present(3)):
        with refused(UnknownFieldError, KeyError, "no field 'gap'; it has|has field 3; it has"):
            read()


def test_adapters_to_be_registered():
    with refused(ArgumentTypeError, TypeError, "expected a class or its dotted path"):
        register(3, list)
    with refused(ArgumentTypeError, TypeError, "and a function"):
        register("mylib.Frame", None)
    with refused(ArgumentError, ValueError, "no dotted path of a class"):
        register("Frame", list)


def test_what_is_compared(tmp_path):
    """The comparison that these tests rest on sees a byte, a file and a folder."""
    place = filled(tmp_path / "store")
    before = stored_bytes(place)
    assert before["zarr.json"]
    for change in (
        (place / "new").mkdir,
        (place / "new" / "file").touch,
        lambda: (place / "zarr.json").write_bytes(before["zarr.json"] + b" "),
        (place / "core" / "energy" / "c" / "0" / "0").unlink,
    ):
        with pytest.raises(AssertionError, match="was changed in"), unchanged(place):
            change()
