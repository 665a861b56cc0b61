"""The reader of docs/reference/format.md, and its tables, against the package."""

import ast
import hashlib
import json
import math
import re
import struct
import tarfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import MemoryStore

import zarrpipe as zp
from zarrpipe.data.fields import CORE_FIELDS, Kind
from zarrpipe.data.ids import structure_ids
from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.format.metadata import FORMAT, Attributes, Mark
from zarrpipe.testing import numbered_batch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "format.md"
TEXT = PAGE.read_text()
CODE, EXAMPLE = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
EARLIER = ROOT / "tests" / "fixtures" / "stores_of_4be0422.tar.xz"
GROUPS = ("meta", "core", "custom")
SMALL = {group: {"chunk_size": 16} for group in GROUPS}
SHARDED = {group: {"chunk_size": 8, "shard_size": 32, "compressors": "zstd"} for group in GROUPS}
PAIR = zp.Level.product("atom_pair", "atom", "atom")
CHANGES = (
    *("write_at", "resize", "create", "rename", "link", "unlink"),
    *("make_folder", "remove_folder"),
)


def reader():
    """Run the code of the page, and give back its `read`."""
    names = {}
    exec(compile(CODE, PAGE.name, "exec"), names)
    return names["read"]


read = reader()


def systems(first, count):
    """Systems that lack a label here and there, with levels of their own, strings and edges."""
    samples = []
    for number in range(first, first + count):
        rng = np.random.default_rng([16, number])
        atoms, bonds = int(rng.integers(1, 5)), int(rng.integers(0, 4))
        fields = {"energy": rng.normal()} if number % 3 else {}
        if number % 4:
            fields["forces"] = torch.from_numpy(rng.normal(size=(atoms, 3)))
            fields["neighbor_list"] = rng.integers(0, atoms, (int(rng.integers(0, 5)), 2))
        own = {
            "bond": {
                "bond_order": rng.normal(size=bonds),
                "bond_atoms": rng.integers(0, atoms, (bonds, 2)),
            },
            zp.Level.uniform("frame"): {"center": rng.integers(0, atoms, 1)},
        }
        counted = {"bond_atoms": "atom", "center": "atom"}
        if number % 5 == 1:
            own[PAIR] = {"hessian": rng.normal(size=(atoms, atoms, 3, 3)).astype(np.float32)}
            own["angle"] = {"angle_bonds": rng.integers(0, max(bonds, 1), (int(bonds > 0), 2))}
            counted["angle_bonds"] = "bond"
        words = {"config_type": f"kind {number % 6}"} if number % 2 else {}
        samples.append(
            zp.AtomicData(
                torch.from_numpy(rng.normal(size=(atoms, 3))),
                rng.integers(1, 90, atoms),
                cell=torch.from_numpy(rng.normal(size=(3, 3))),
                pbc=[True, False, True],
                system={"serial": [number], **words},
                other_levels=own,
                index_of=counted,
                **fields,
            )
        )
    return zp.Batch.from_data_list(samples)


def assert_same(store, count=None):
    """Each field of each sample is what `ZarrDataset` gives, to the bit and the dtype."""
    dataset, found = zp.ZarrDataset(store), list(read(store))
    assert len(found) == len(dataset)
    assert count is None or len(found) == count
    batch = dataset.read(range(len(found)))
    for number, sample in enumerate(found):
        expected = batch.get_data(number)
        assert sample.keys() == expected.fields.keys()
        for name, value in expected.fields.items():
            if expected.roles[name].categories is not None:
                assert sample[name] == expected.strings(name), name
                continue
            assert sample[name].dtype == value.numpy().dtype, name
            np.testing.assert_array_equal(sample[name], value.numpy(), err_msg=name, strict=True)


def test_the_reader_is_short_and_uses_zarr_and_numpy_alone():
    tree = ast.parse(CODE)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert sorted(name.name for node in imports for name in node.names) == ["Any", "numpy", "zarr"]
    assert CODE.count("\n") <= 60


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, PAGE.name, "exec"), {"read": read})


@pytest.mark.parametrize("config", [None, SMALL, SHARDED], ids=["plain", "small", "sharded"])
def test_a_live_a_closed_and_a_continued_store(tmp_path, config):
    path = tmp_path / "store"
    with zp.ZarrData(path, config=config) as sink:
        for first in range(0, 60, 20):
            sink.write(systems(first, 20))
            assert_same(path, first + 20)
    assert_same(path, 60)
    with zp.ZarrData(path, config=config) as sink:
        sink.write(zp.Batch.from_data_list([zp.AtomicData(np.ones((2, 3)), [1, 1])]))
        assert_same(path, 61)
        sink.zero()
        assert list(read(path)) == []


@pytest.mark.parametrize("make", [dict, MemoryStore])
def test_stores_that_are_no_directory(make):
    store = make()
    with zp.ZarrData(store) as sink:
        sink.write(systems(0, 30))
        assert_same(store, 30)
    assert_same(store, 30)


def test_merged_compacted_copied_and_published_stores(tmp_path):
    parts = [tmp_path / "a", tmp_path / "b"]
    for number, path in enumerate(parts):
        with zp.ZarrData(path, config=SMALL) as sink:
            sink.write(systems(30 * number, 30))
    zp.merge(parts, tmp_path / "merged")
    assert_same(tmp_path / "merged", 60)
    zp.merge(parts, tmp_path / "published", config=zp.ZarrWriteConfig.published(checksum=True))
    codecs = zarr.open_array(tmp_path / "published/core/positions").metadata.codecs
    assert type(codecs[0]).__name__ == "ShardingCodec"
    assert_same(tmp_path / "published", 60)
    zp.compact(parts[0], config=zp.ZarrWriteConfig.published())
    assert_same(parts[0], 30)
    zp.copy(tmp_path / "published", tmp_path / "copied")
    assert_same(tmp_path / "copied", 60)


def test_deleted_samples(tmp_path):
    path = tmp_path / "store"
    with zp.ZarrData(path) as sink:
        sink.write(systems(0, 40))
    with zp.AtomicDataZarrWriter(path) as writer:
        writer.delete([0, 7, 39])
        assert_same(path, 37)
        writer.append(systems(40, 3))
        assert_same(path, 40)
        writer.defragment()
    assert_same(path, 40)
    assert [sample["serial"].item() for sample in read(path)][-4:] == [38, 40, 41, 42]


@pytest.mark.parametrize("name", ["closed", "killed", "compressed"])
def test_stores_of_an_earlier_version(tmp_path, name):
    with tarfile.open(EARLIER) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(tmp_path, [one for one in archive if one.name.startswith(name)])
    assert_same(tmp_path / name)


class Killed(BaseException):
    """What a writer meets in place of its next operation on files."""


def test_an_append_that_is_killed_at_each_operation(tmp_path, monkeypatch):
    path, left, most, counts = tmp_path / "store", [0], 10**9, [9]
    with zp.ZarrData(path, config=SMALL) as sink:
        sink.write(numbered_batch(range(9)))

    def mortal(operation):
        def change(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                if len(arguments) == 3:  # a write that is torn between two rows
                    whole = arguments[1].cast("B")
                    operation(arguments[0], whole[: len(whole) // 16 * 8], arguments[2])
                raise Killed
            return operation(*arguments, **options)

        return change

    for name in CHANGES:
        monkeypatch.setattr(files, name, mortal(getattr(files, name)))
    for operations in range(most):
        left[0] = most
        sink = zp.ZarrData(path, config=SMALL)
        assert len(sink) == counts[-1]
        batch = numbered_batch(range(counts[-1], counts[-1] + 9))
        left[0] = operations
        try:
            sink.write(batch)
        except Killed:
            left[0] = most
            assert_same(path)
            counts.append(len(zp.ZarrDataset(path)))
            assert counts[-1] - counts[-2] in {0, 9}
        else:
            break
    assert 20 < operations < most - 1
    assert_same(path, counts[-1] + 9)


def test_a_store_that_grows_while_it_is_read(tmp_path):
    path, done = tmp_path / "store", threading.Event()
    with zp.ZarrData(path, config=SMALL) as sink:
        sink.write(numbered_batch(range(3)))

        def grow():
            for first in range(3, 300, 9):
                sink.write(numbered_batch(range(first, first + 9)))
            done.set()

        writer = threading.Thread(target=grow)
        writer.start()
        counts = []
        while not done.is_set() or len(counts) < 2:
            found = list(read(path))
            counts.append(len(found))
            for number, sample in enumerate(found):
                expected = numbered_batch([number])
                assert sample.keys() == expected.fields.keys()
                for name, value in expected.fields.items():
                    np.testing.assert_array_equal(sample[name], value.numpy())
        writer.join()
    assert counts == sorted(counts)
    assert len(list(read(path))) == 300


def test_strings_and_fields_that_are_added_while_it_looks(tmp_path, monkeypatch):
    path, slicing = tmp_path / "store", zarr.Array.__getitem__
    with zp.ZarrData(path) as sink:
        sink.write(systems(0, 2))

        def extended_first(array, selection):
            if array.path == "meta/atoms_ptr":
                monkeypatch.undo()
                sink.write(systems(2, 8))
            return slicing(array, selection)

        monkeypatch.setattr(zarr.Array, "__getitem__", extended_first)
        found = list(read(path))
        assert [sample["serial"].item() for sample in found] == [*range(10)]
        assert found[9]["config_type"] == ["kind 3"]
        assert_same(path, 10)


def test_a_store_that_is_emptied_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "store"
    with zp.ZarrData(path) as sink:
        sink.write(numbered_batch(range(9)))
        slicing = zarr.Array.__getitem__

        def emptied_first(array, selection):
            if array.path == "core/energy":
                monkeypatch.undo()
                sink.zero()
                sink.write(numbered_batch(range(9), generation=1))
            return slicing(array, selection)

        monkeypatch.setattr(zarr.Array, "__getitem__", emptied_first)
        with pytest.raises((RuntimeError, KeyError, FileNotFoundError)):
            list(read(path))


def test_samples_that_another_zarr_writer_appended(tmp_path):
    path, batch = tmp_path / "store", numbered_batch(range(8))
    with zp.ZarrData(path, config=SMALL) as sink:
        sink.write(batch.without("neighbor_list"))
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    lengths = {"atom": batch.num_nodes, "system": 8}
    for name in ("positions", "atomic_numbers", "energy", "forces", "serial"):
        array = group["custom/serial" if name == "serial" else f"core/{name}"]
        array.append(batch[name].numpy())
        assert array.shape[0] == 2 * lengths[batch.levels[name]]
    for name in ("atoms_ptr", "edges_ptr"):
        ends = group[f"meta/{name}"]
        ends.append(ends[-1] + (batch.batch_ptr.numpy()[1:] if name == "atoms_ptr" else [0] * 8))
    group["meta/samples_mask"].append(np.ones(8, bool))
    group["meta/atoms_mask"].append(np.ones(batch.num_nodes, bool))
    group.attrs["num_samples"] = 16
    assert_same(path, 16)


def write_by_the_page(path, *, foreign):
    """Write three samples with zarr-python alone, as the page says."""
    group = zarr.create_group(path)
    float_fill, number_fill = float("nan"), 0
    rows = {
        "meta/atoms_ptr": (np.array([0, 2, 3, 6]), 0),
        "meta/edges_ptr": (np.array([0, 2, 2, 3]), 0),
        "meta/samples_mask": (np.array([True, True, True]), False),
        "meta/atoms_mask": (np.ones(6, bool), True),
        "meta/edges_mask": (np.ones(3, bool), True),
        "core/positions": (np.arange(18.0).reshape(6, 3), float_fill),
        "core/atomic_numbers": (np.array([8, 1, 2, 6, 1, 1]), number_fill),
        "core/neighbor_list": (np.array([[0, 1], [1, 0], [3, 5]]), number_fill),
        "core/energy": (np.array([[-1.0], [float_fill], [-3.0]]), float_fill),
        "custom/config_type": (np.array([1, 0, 1], dtype=np.int32), number_fill),
    }
    fields = {
        "core": {
            "positions": "atom",
            "atomic_numbers": "atom",
            "neighbor_list": "edge",
            "energy": "system",
        },
        "custom": {"config_type": "system"},
    }
    header = {"num_samples": 3, "fields": fields}
    if not foreign:
        header["zarrpipe"] = {
            "format": 1,
            "generation": 32 * "0",
            "partly_present": ["energy"],
            "categories": {"config_type": ["bulk", "gas"]},
        }
        ptr = rows["meta/atoms_ptr"][0]
        ids = structure_ids(rows["core/positions"][0], rows["core/atomic_numbers"][0], ptr)
        rows["meta/ids"] = (ids, 0)
        rows["present/energy"] = (np.array([True, False, True]), True)
    for place, (values, fill) in rows.items():
        array = group.create_array(
            place, shape=values.shape, chunks=values.shape, dtype=values.dtype, fill_value=fill
        )
        array[...] = values
    group.attrs.update(header)


@pytest.mark.parametrize("foreign", [True, False])
def test_a_store_that_zarr_python_wrote_by_the_page(tmp_path, foreign):
    path = tmp_path / "store"
    write_by_the_page(path, foreign=foreign)
    assert_same(path, 3)
    dataset = zp.ZarrDataset(path)
    assert dataset[2].neighbor_list.tolist() == [[0, 2]]
    assert ("energy" in dataset[1].fields) is foreign
    assert zp.check(path).ok
    if foreign:
        zp.adopt(path)
    else:
        assert dataset.read([0, 1]).strings("config_type") == ["gas", "bulk"]
    with zp.ZarrData(path) as sink:
        sink.write(dataset.read([0]))
    assert_same(path, 4)


def hash_by_the_page(numbers, positions, cell=(0.0,) * 9, pbc=(0, 0, 0)):
    """Id of a structure, in Python's integers."""
    golden, most = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def mix(z):
        z &= most
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & most
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & most
        return z ^ (z >> 31)

    def bits(x):
        if math.isnan(x):
            return 0x7FF8000000000000
        return 0 if x == 0 else struct.unpack("<Q", struct.pack("<d", x))[0]

    s = len(numbers)
    for a, (row, number) in enumerate(zip(positions, numbers, strict=True)):
        p = sum(mix(bits(x) + (4 * a + 1 + k) * golden) for k, x in enumerate(row))
        s += mix(p + mix(number + (4 * a + 4) * golden))
    b = sum(mix(bits(x) + (k + 1) * golden) for k, x in enumerate(np.ravel(cell).tolist()))
    b += sum(mix(int(flag) + (10 + k) * golden) for k, flag in enumerate(pbc))
    return mix(mix(s) + b)


def test_ids_are_those_of_the_page():
    hydrogen = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]]
    vectors = [
        ([1], [[0.0, 0.0, 0.0]], None, None),
        ([1, 1], hydrogen, None, None),
        ([1, 1], hydrogen, 4 * np.eye(3), [1, 1, 0]),
        ([118], [[-0.0, float("nan"), 1e300]], None, None),
    ]
    printed = [int(text, 16) for text in re.findall(r"`0x(\w{16})` \|", TEXT)]
    rng = np.random.default_rng(5)
    for atoms in (1, 5):
        positions, cell = rng.normal(size=(atoms, 3)), rng.normal(size=(3, 3))
        vectors.append((rng.integers(1, 90, atoms).tolist(), positions, cell, [0, 1, 1]))
    for place, (numbers, positions, cell, pbc) in enumerate(vectors):
        box = {} if cell is None else {"cell": cell, "pbc": pbc}
        arrays = {name: np.array(value)[None] for name, value in box.items()}
        ptr = np.array([0, len(numbers)])
        (found,) = structure_ids(np.array(positions), np.array(numbers), ptr, **arrays)
        assert found == hash_by_the_page(numbers, np.array(positions).tolist(), **box)
        assert place >= len(printed) or printed[place] == found
    assert len(printed) == 4


def test_the_table_of_core_fields_is_that_of_the_registry():
    part = TEXT[TEXT.index("<!-- begin core fields -->") : TEXT.index("<!-- end core fields -->")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()[3:]]
    kinds = {Kind.FLOAT: "float", Kind.INTEGER: "int64", Kind.NUMBER: "number", Kind.BOOL: "bool"}
    assert rows == [
        [
            f"`{spec.name}`",
            str(spec.level),
            kinds[spec.kind],
            "any" if spec.shape is None else str(spec.shape),
            spec.unit,
        ]
        for spec in CORE_FIELDS.values()
    ]


def test_the_keys_of_the_attributes_are_those_of_the_page(tmp_path):
    path = tmp_path / "store"
    with zp.ZarrData(path) as sink:
        sink.write(systems(0, 10))
    root = json.loads((path / "zarr.json").read_text())["attributes"]
    listed = {*re.findall(r"^\| `([a-z_.]+)` \|", TEXT, re.MULTILINE)}
    attributes = Attributes.read(zarr.open_group(path))
    written = Attributes.to_dict(
        Attributes(
            0, own_levels=attributes.own_levels, imports=({"a": 1},), marks={"m": Mark(1, 0, 0.0)}
        ),
        Schema(zp.ZarrDataset(path).schema),
    )
    assert written.keys() == root.keys()
    assert {f"zarrpipe.{key}" for key in written["zarrpipe"]} == {
        name for name in listed if name.startswith("zarrpipe.")
    }
    assert {*root, "format", "dense", "rows"} <= listed
    mark = json.loads((path / "core/positions/zarr.json").read_text())["attributes"]
    assert {*mark} == {"zarrpipe"}
    assert {*mark["zarrpipe"]} == {"format", "dense", "rows"}


def test_the_sums_begin_as_the_page_says(tmp_path):
    path = tmp_path / "store"
    with zp.ZarrData(path) as sink:
        sink.write(systems(0, 30))
    with zp.AtomicDataZarrWriter(path) as writer:
        writer.delete([3, 4])
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    sums, own = group["meta/sums"], group.attrs["zarrpipe"]
    assert sums.chunks == sums.shape
    numbers = sums[:]
    assert numbers[0] == 1398099283
    assert numbers[1] in {1, 2}
    without = numbers.copy()
    without[3] = 0
    assert numbers[3] == zlib.crc32(without.astype("<f8").tobytes())
    digest = hashlib.blake2b(own["generation"].encode(), digest_size=16).digest()
    assert numbers[4:8].tolist() == np.frombuffer(digest, "<u4").tolist()
    ends = [int(group[f"meta/{name}_ptr"][30]) for name in ("atoms", "edges")]
    assert numbers[8:12].tolist() == [30, *ends, own["deleted"]]
    assert own["deleted"] == 2


def test_a_newer_format_is_refused_and_keys_are_kept_as_the_page_says(tmp_path):
    path = tmp_path / "store"
    with zp.ZarrData(path) as sink:
        sink.write(numbered_batch(range(2)))
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    group.attrs["citation"] = "ours"
    group.attrs["zarrpipe"] = {**group.attrs["zarrpipe"], "unknown": 1}
    group.create_group("notes").create_array("day", data=np.arange(3))
    assert_same(path, 2)
    with zp.ZarrData(path) as sink:
        sink.write(numbered_batch([2]))
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    assert group.attrs["citation"] == "ours"
    assert "unknown" not in group.attrs["zarrpipe"]
    np.testing.assert_array_equal(group["notes/day"][:], [0, 1, 2])
    group.attrs["zarrpipe"] = {**group.attrs["zarrpipe"], "format": FORMAT + 1}
    with pytest.raises(StoreFormatError, match=f"has format {FORMAT + 1}"):
        zp.ZarrDataset(path)
    with pytest.raises(ValueError, match="is not of format 1"):
        list(read(path))
