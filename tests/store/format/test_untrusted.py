"""Stores that nobody can trust: whatever stands in them, reading gives an error or right rows."""

import json
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import MemoryStore

from zarrpipe import AtomicData, AtomicDataZarrWriter, Batch, ZarrData, ZarrDataset
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import assert_batches_equal, numbered_batch

COUNT = 30
ZSTD = {"compressors": "zstd", "chunk_size": 16}
PLAIN = {"chunk_size": 512}


def written(store, array, count=COUNT):
    with ZarrData(store, config={"meta": array, "core": array, "custom": array}) as sink:
        sink.write(numbered_batch(range(count)))
    return store


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The stores that tests get copies of, which takes less time than to write them."""
    folder = tmp_path_factory.mktemp("kept")
    configs = {"plain": PLAIN, "zstd": ZSTD}
    return {name: written(folder / name, config) for name, config in configs.items()}


@pytest.fixture(params=["plain", "zstd"])
def store(request, kept, tmp_path):
    return shutil.copytree(kept[request.param], tmp_path / "store")


@pytest.fixture
def plain(kept, tmp_path):
    return shutil.copytree(kept["plain"], tmp_path / "store")


def edit(path, change):
    """Change the document of a node in place."""
    content = json.loads((path / "zarr.json").read_text())
    change(content)
    (path / "zarr.json").write_text(json.dumps(content))


def own(store, **changes):
    edit(store, lambda content: content["attributes"]["zarrpipe"].update(changes))


def read(store):
    view = StoreView(store)
    return view.gather(np.arange(view.num_samples))


def refused(store, match):
    """Opening and reading, by whatever is the first to see it, gives one error."""
    with pytest.raises(StoreFormatError, match=match):
        read(store)
    with pytest.raises(StoreFormatError, match=match):
        ZarrDataset(store).__getitems__([0])


class TestAttributes:
    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"units": ["eV"]}, "'units' of the attributes should be an object"),
            ({"units": {"energy": 1}}, "'units' of the attributes should be an object"),
            ({"units": {"energy": "kcal/mol"}}, "has 'energy' in kcal/mol, expected eV"),
            ({"partly_present": "energy"}, "'partly_present' of the attributes should be a list"),
            ({"partly_present": [["energy"]]}, "should be a list of fields of the store"),
            ({"partly_present": ["stress"]}, "should be a list of fields of the store"),
            ({"deleted": -1}, "'deleted' of the attributes should be a number of samples"),
            ({"deleted": True}, "'deleted' of the attributes should be a number of samples"),
            ({"deleted": 1.0}, "'deleted' of the attributes should be a number of samples"),
            ({"deleted": COUNT + 1}, f"{COUNT + 1} samples are said to be deleted"),
            ({"deleted": 1}, "1 samples are said to be deleted, and meta/samples_mask has 0"),
            ({"generation": 3}, "'generation' of the attributes should be a text"),
        ],
    )
    def test_of_a_wrong_type(self, plain, changes, match):
        own(plain, **changes)
        refused(plain, match)

    @pytest.mark.parametrize(
        ("fields", "match"),
        [
            ({"core": {"../secret": "system"}}, r"'\.\./secret' cannot be the name of a field"),
            ({"core": {"..": "system"}}, "cannot be the name of a field"),
            ({"core": {"": "system"}}, "cannot be the name of a field"),
            ({"core": {"a" * 300: "system"}}, "cannot be the name of a field"),
            ({"core": {"energy": 3}}, "field 'energy' has level 3"),
            ({"core": {"energy": ["system"]}}, "field 'energy' has level"),
            ({"core": {f"f{i}": "system" for i in range(5000)}}, "name 5000 fields, at most 1024"),
        ],
    )
    def test_fields(self, plain, fields, match):
        edit(plain, lambda content: content["attributes"].update(fields=fields))
        refused(plain, match)

    def test_fewer_samples_than_when_it_was_closed(self, plain):
        edit(plain, lambda content: content["attributes"].update(num_samples=COUNT + 1))
        refused(
            plain, f"had {COUNT + 1} samples when it was closed, and meta/atoms_ptr has {COUNT}"
        )

    def test_the_unit_of_a_users_own_field(self, plain):
        own(plain, units={"serial": "GPa"})
        assert StoreView(plain).schema["serial"].unit == "GPa"

    @pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "\ufeff{}", "null", "", "\0"])
    def test_a_text_that_is_no_document(self, plain, text):
        for path in (plain / "core" / "energy" / "zarr.json", plain / "zarr.json"):
            path.write_text(text)
            refused(plain, r"cannot be read|cannot be opened|name the field|no field")


class TestArrays:
    @pytest.mark.parametrize(
        ("dtype", "fill"),
        [
            ("string", ""),
            ("variable_length_bytes", ""),
            ("r64", [0] * 8),
            ("complex64", [0.0, 0.0]),
            ("complex128", [0.0, 0.0]),
            ({"name": "numpy.datetime64", "configuration": {"unit": "s", "scale_factor": 1}}, 0),
            ("object", None),
            ("zz", 0),
        ],
    )
    @pytest.mark.filterwarnings("ignore:The data type:zarr.errors.UnstableSpecificationWarning")
    def test_a_dtype_that_is_no_number(self, plain, dtype, fill):
        changes = {"data_type": dtype, "fill_value": fill}
        if dtype in ("string", "variable_length_bytes"):
            codec = "vlen-utf8" if dtype == "string" else "vlen-bytes"
            changes["codecs"] = [{"name": codec, "configuration": {}}]
        edit(plain / "custom" / "serial", lambda content: content.update(changes))
        refused(plain, "custom/serial.* (has dtype|cannot be read)")

    @pytest.mark.parametrize(
        ("shape", "chunk", "match"),
        [
            ([2**62, 3], None, "are accepted"),
            ([-1, 3], None, "cannot be read"),
            ([2**64, 3], None, "are accepted"),
            ([COUNT * 3, 3], [2**31, 2**31], "are accepted"),
            ([COUNT * 3, 3], [2**62, 2**62], "are accepted"),
            ([2**40, 3], [1, 3], "are accepted"),
            ([COUNT * 3, 3], [0, 3], "cannot be read|expected rows in each"),
            ([2, 3], None, "has 2 rows, the pointers say"),
            ([COUNT * 3, 4], None, "the registry has 'forces'"),
            ([COUNT * 3], [16], "the registry has 'forces'"),
            ([], [], "cannot be read|is a single number"),
        ],
    )
    def test_shapes(self, plain, shape, chunk, match):
        def change(content):
            content["shape"] = shape
            if chunk is not None:
                content["chunk_grid"]["configuration"]["chunk_shape"] = chunk

        edit(plain / "core" / "forces", change)
        refused(plain, match)

    @pytest.mark.parametrize("fill", ["zz", None, [0], 10**400, {}])
    def test_fill_values(self, plain, fill):
        edit(plain / "core" / "energy", lambda content: content.update(fill_value=fill))
        refused(plain, "core/energy cannot be read")

    @pytest.mark.parametrize("path", ["meta/atoms_ptr", "meta/samples_mask", "meta/edges_ptr"])
    def test_meta_arrays_of_another_dtype(self, plain, path):
        own(plain, deleted=1)  # so that the mask is looked at
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
        change = {"data_type": "float64", "fill_value": 0.0, "codecs": codecs}
        edit(plain / path, lambda content: content.update(change))
        refused(plain, f"{path} has dtype float64 .*, expected one dimension of")

    def test_a_group_in_the_place_of_an_array(self, store):
        for path in ("meta/edges_ptr", "core/forces"):
            (store / path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
            refused(store, path)

    @pytest.mark.parametrize("name", ["positions", "atomic_numbers"])
    def test_a_required_field_that_is_not_there(self, store, name):
        edit(store, lambda content: content["attributes"]["fields"]["core"].pop(name))
        refused(store, f"has samples and no field '{name}'")

    @pytest.mark.parametrize("name", ["positions", "atomic_numbers"])
    def test_a_required_field_that_is_too_short(self, store, name):
        edit(store / "core" / name, lambda content: content["shape"].__setitem__(0, 20))
        with pytest.raises(StoreFormatError, match=f"{name} has 20 rows, the pointers say"):
            StoreView(store)

    def test_big_endian_is_read_right(self, store):
        group = zarr.open_group(store, mode="r+")
        values = group["core/forces"][:]
        bytes_codec = {"name": "bytes", "configuration": {"endian": "big"}}
        del group["core/forces"]
        group.create_array(
            "core/forces",
            data=values,
            chunks=(512, 3),
            compressors=None,
            serializer=zarr.codecs.BytesCodec.from_dict(bytes_codec),
        )
        assert_batches_equal(read(store), numbered_batch(range(COUNT)))

    def test_a_hole_of_a_large_chunk_is_not_written_out(self, plain):
        """A foreign store may lack chunks; one of absurd size with a fill is not made up."""
        edit(plain, lambda content: content["attributes"].pop("zarrpipe"))

        def change(content):
            content["shape"][0] = 2**20
            content["chunk_grid"]["configuration"]["chunk_shape"] = [2**37]

        edit(plain / "custom" / "serial", lambda content: content.update(fill_value=7))
        edit(plain / "custom" / "serial", change)
        (plain / "custom" / "serial" / "c" / "0").unlink()
        refused(plain, "serial/c/0 is not there, and should hold 1099511627776 bytes")


class TestPointers:
    @pytest.mark.parametrize("name", ["atoms_ptr", "edges_ptr"])
    @pytest.mark.parametrize(
        ("entry", "value"), [(0, 1), (0, -1), (5, 10**15), (5, -3), (5, 1), (COUNT, 10**15)]
    )
    def test_that_cannot_be_true(self, store, name, entry, value):
        array = zarr.open_group(store, mode="r+")[f"meta/{name}"]
        assert array[entry] != value
        array[entry] = value
        refused(store, f"{name}|positions has .* rows|neighbor_list has .* rows")

    def test_one_sample_of_absurd_size(self, store):
        """Not even where the shapes agree is memory asked for that no file backs."""
        group = zarr.open_group(store, mode="r+")
        group["meta/atoms_ptr"][COUNT] = 10**15
        for name in ("positions", "atomic_numbers", "forces"):
            change = {"shape": [10**15, *group[f"core/{name}"].shape[1:]]}
            edit(store / "core" / name, lambda content, change=change: content.update(change))
        refused(store, "are accepted")

    def test_a_zero_between_ends_the_store(self, store):
        """As after a cut of power; what was closed with more is damaged."""
        group = zarr.open_group(store, mode="r+")
        group["meta/atoms_ptr"][9] = 0
        refused(store, f"had {COUNT} samples when it was closed, and meta/atoms_ptr has 8")
        edit(store, lambda content: content["attributes"].update(num_samples=0))
        assert_batches_equal(read(store), numbered_batch(range(8)))

    def test_entries_behind_the_shape_are_none(self, plain):
        with (plain / "meta/atoms_ptr/c/0").open("r+b") as file:
            file.seek(8 * (COUNT + 1))
            file.write(np.int64(10**6).tobytes())
        assert_batches_equal(read(plain), numbered_batch(range(COUNT)))


class TestFiles:
    @pytest.fixture
    def chunk(self, store):
        return sorted((store / "core" / "positions" / "c").rglob("0"))[-1]

    @pytest.mark.parametrize("what", ["fifo", "socket", "folder", "zero", "loop", "nowhere"])
    @pytest.mark.parametrize("place", ["chunk", "document", "root", "pointers"])
    def test_that_are_none(self, store, what, place, monkeypatch):
        path = {
            "chunk": store / "core/positions/c/0/0",
            "document": store / "core/positions/zarr.json",
            "root": store / "zarr.json",
            "pointers": store / "meta/atoms_ptr/c/0",
        }[place]
        path.unlink()
        if what == "fifo":
            os.mkfifo(path)
        elif what == "socket":
            monkeypatch.chdir(path.parent)  # the name of a socket is short
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        elif what == "folder":
            path.mkdir()
        else:
            path.symlink_to({"zero": "/dev/zero", "loop": path, "nowhere": "nowhere"}[what])
        refused(store, r"not a regular file|which does not exist")

    def test_links_to_files_are_followed(self, store, tmp_path):
        kept = tmp_path / "annex"
        kept.mkdir()
        for number, path in enumerate(sorted(store.rglob("*"))):
            if path.is_file() and path.name != ".lock":
                path.rename(kept / str(number))
                path.symlink_to(kept / str(number))
        assert_batches_equal(read(store), numbered_batch(range(COUNT)))

    @pytest.mark.parametrize("name", ["positions", "forces", "atomic_numbers", "neighbor_list"])
    def test_a_chunk_that_is_not_there(self, plain, name):
        next(path for path in (plain / "core" / name / "c").rglob("0") if path.is_file()).unlink()
        refused(plain, rf"{name}/c/0.* is not there, and should hold .* bytes of rows")

    @pytest.mark.parametrize("name", ["positions", "atomic_numbers"])
    def test_a_compressed_chunk_without_which_no_atom_is(self, tmp_path, name):
        store = written(tmp_path / "store", ZSTD)
        next(path for path in (store / "core" / name / "c").rglob("*") if path.is_file()).unlink()
        refused(store, rf"{name}/c/.* is not there, and should hold rows")

    @pytest.mark.parametrize("path", ["core/energy/c/0/0", "present/energy/c/0"])
    def test_a_chunk_of_a_field_that_some_samples_lack(self, plain, path):
        """Of which whole chunks before the first that has it may not be there, and no others."""
        batch = numbered_batch(range(COUNT, COUNT + 5))
        fields = {name: value for name, value in batch.fields.items() if name != "energy"}
        with ZarrData(plain) as sink:
            sink.write(Batch(fields, batch.batch_ptr, batch.edge_ptr, levels={"serial": "system"}))
        read(plain)
        (plain / path).unlink()
        refused(plain, f"{path} is not there, and should hold")

    def test_atoms_that_are_all_fill(self, tmp_path):
        """They are kept, and so is the chunk that says so, also by a sink that came later."""
        array = ZSTD | {"write_empty_chunks": False}
        dummy = AtomicData(torch.full((16, 3), torch.nan), torch.zeros(16, dtype=torch.int64))
        store = tmp_path / "store"
        for _ in range(2):
            with ZarrData(store, config={"core": array}) as sink:
                sink.write([dummy, dummy])
        found = read(store)
        assert found.num_nodes == 64
        assert found["positions"].isnan().all()
        assert not found["atomic_numbers"].any()

    @pytest.mark.parametrize("size", [0, 100, 10**6])
    def test_a_chunk_of_another_size(self, plain, size):
        os.truncate(plain / "core/positions/c/0/0", size)
        refused(plain, f"positions/c/0/0 has {size} bytes, expected")

    @pytest.mark.parametrize("content", [b"", b"no zstd", b"\x28\xb5\x2f\xfd" + bytes(40)])
    def test_a_chunk_that_cannot_be_decoded(self, tmp_path, content):
        store = written(tmp_path / "store", ZSTD)
        (store / "core/energy/c/0/0").write_bytes(content)
        refused(store, r"core/energy cannot be read, it is damaged|energy/c/0/0 has 0 bytes")

    @pytest.mark.parametrize("size", [0, 10, 150])
    def test_a_shard_that_is_truncated(self, tmp_path, size):
        store = written(tmp_path / "store", ZSTD | {"shard_size": 64})
        os.truncate(store / "core/forces/c/0/0", size)
        refused(store, "core/forces.*(were requested: the file was truncated|cannot be read)")

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to the superuser")
    def test_a_file_that_may_not_be_read(self, store):
        (store / "core/positions/c/0/0").chmod(0)
        with pytest.raises(PermissionError):
            read(store)

    def test_truncated_while_it_is_mapped(self, plain):
        """A refresh sees it before a row is touched; in between nothing could be done."""
        code = """
import os, sys, numpy as np
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.read.view import StoreView

view = StoreView(sys.argv[1])
view.gather(np.arange(30))
os.truncate(f"{sys.argv[1]}/core/forces/c/0/0", 0)
for look in (view.refresh, lambda: view.gather(np.arange(30))):
    try:
        look()
    except StoreFormatError as error:
        assert "forces/c/0/0 has 0 bytes, expected" in str(error), error
    else:
        raise AssertionError("nothing was seen")
print(view.gather(np.arange(30), ["energy"])["energy"].sum().item())
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(plain)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == sum(range(COUNT))


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("how", ["filter", "dtype", "compressor"])
@pytest.mark.parametrize("place", [dict, MemoryStore, None])
def test_nothing_is_unpickled(tmp_path, how, place):
    """A chunk that is a pickle stays one, whatever the metadata say that it is."""
    import pickle  # noqa: PLC0415

    store = written(tmp_path / "store", PLAIN)
    (store / "core/energy/c/0/0").write_bytes(pickle.dumps(Bomb()))

    def change(content):
        codec = {"name": "numcodecs.pickle", "configuration": {"protocol": 4}}
        if how == "dtype":
            content["data_type"], content["codecs"] = "object", [codec]
        elif how == "filter":
            content["codecs"] = [codec, *content["codecs"]]
        else:
            content["codecs"] = [*content["codecs"], codec]

    edit(store / "core" / "energy", change)
    given = store if place is None else _in_memory(store, place)
    refused(given, "core/energy cannot be read")


@pytest.mark.parametrize("library", ["numcodecs.zarr3", "somewhere"])
def test_codecs_that_others_have_made_known(tmp_path, monkeypatch, library):
    """Pickle, by whatever name, and what is neither Zarr's nor numcodecs' is not called."""
    name = "Pickle" if library.startswith("numcodecs") else "Other"
    kind = type(name, (zarr.codecs.GzipCodec,), {"__module__": library})
    store = written(tmp_path / "store", PLAIN)
    codec = {"name": "gzip", "configuration": {"level": 1}}
    edit(store / "core/energy", lambda content: content["codecs"].append(codec))
    known = zarr.core.metadata.v3.get_codec_class
    monkeypatch.setattr(
        "zarr.core.metadata.v3.get_codec_class", lambda n: kind if n == "gzip" else known(n)
    )
    with pytest.raises(StoreFormatError, match=f"is encoded by {library}.{name}"):
        read(store)


def _in_memory(store, kind):
    files = {
        str(path.relative_to(store)): zarr.buffer.cpu.Buffer.from_bytes(path.read_bytes())
        for path in store.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    return files if kind is dict else MemoryStore(files)


def test_a_deletion_survives_what_is_checked(store):
    with AtomicDataZarrWriter(store) as writer:
        writer.delete([3, 4])
    left = [i for i in range(COUNT) if i not in (3, 4)]
    assert_batches_equal(read(store), numbered_batch(left))
