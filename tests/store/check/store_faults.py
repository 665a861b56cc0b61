"""Stores, and the faults that a store can have: what does each, and what a check has to say."""

import json
import os

import numpy as np
import zarr

import zarrpipe as zp
from zarrpipe.store.backend import files
from zarrpipe.store.check.report import Severity
from zarrpipe.testing import numbered_batch

SMALL = {group: {"chunk_size": 16} for group in ("meta", "core", "custom")}
ZSTD = {
    group: {"chunk_size": 16, "compressors": ("zstd", "crc32c")}
    for group in ("meta", "core", "custom")
}
SHARDED = {group: {**options, "shard_size": 64} for group, options in ZSTD.items()}
ERROR, WARNING, NOTE = Severity


def write(store, count=100, **options):
    """A store of numbered samples, closed."""
    with zp.ZarrData(store, **options) as sink:
        sink.write(numbered_batch(range(count)))
    return store


def edit(store, change):
    """Change the document of a root or array."""
    document = json.loads((store / "zarr.json").read_text())
    change(document)
    (store / "zarr.json").write_text(json.dumps(document))


def own(document):
    return document["attributes"]["zarrpipe"]


def damage(name, **changes):
    """Decorator: a fault of that name, which is done to a store on a path."""

    def note(function):
        FAULTS[name] = (function, changes)
        return function

    return note


FAULTS = {}


def opened(store, path):
    return zarr.open_array(store / path, mode="r+")


@damage("flipped-position", kind="ids", place="meta/ids", says="1 sample (42)")
def _(store):
    array = opened(store, "core/positions")
    array[int(opened(store, "meta/atoms_ptr")[42]), 1] += 1e-9


@damage("flipped-number", kind="ids", place="meta/ids", says="1 sample (0)")
def _(store):
    opened(store, "core/atomic_numbers")[0] = 2


@damage("flipped-id", kind="ids", place="meta/ids", says="1 sample (7)")
def _(store):
    array = opened(store, "meta/ids")
    array[7] = array[7] ^ np.uint64(1 << 40)


@damage("no-ids", kind="ids-lacking", place="meta/ids", says="100 samples (0, 1")
def _(store):
    (store / "meta/ids/c/0").unlink()


@damage("few-ids", kind="ids-lacking", place="meta/ids", says="30 samples (70, 71")
def _(store):
    opened(store, "meta/ids").resize(70)


@damage("nan", kind="not-finite", severity=WARNING, place="core/forces", says="2 samples (8, 9)")
def _(store):
    ptr = opened(store, "meta/atoms_ptr")
    array = opened(store, "core/forces")
    array[int(ptr[8])] = np.nan
    array[int(ptr[10]) - 1] = np.inf


@damage("stray-edge", kind="edges", place="core/neighbor_list", says="1 sample (3)")
def _(store):
    array = opened(store, "core/neighbor_list")
    array[int(opened(store, "meta/edges_ptr")[3]), 0] = 299


@damage(
    "odd-element",
    kind="atomic-numbers",
    severity=WARNING,
    place="core/atomic_numbers",
    says="1 sample (0)",
)
def _(store):
    opened(store, "core/atomic_numbers")[0] = 119


@damage("falling-pointer", kind="pointers", place="meta/atoms_ptr", says="1 entry (50)")
def _(store):
    opened(store, "meta/atoms_ptr")[50] = 1 << 40


@damage("zero-pointer", kind="pointers", place="meta/atoms_ptr", says="1 entry (50)")
def _(store):
    opened(store, "meta/atoms_ptr")[50] = 0


@damage("first-pointer", kind="pointers", place="meta/edges_ptr", says="1 entry (0)")
def _(store):
    opened(store, "meta/edges_ptr")[0] = -1


@damage("falling-edges", kind="pointers", place="meta/edges_ptr", says="1 entry (20)")
def _(store):
    opened(store, "meta/edges_ptr")[20] = 2


@damage(
    "uncommitted-mask",
    kind="uncommitted",
    severity=WARNING,
    place="meta/samples_mask",
    says="4 rows",
)
def _(store):
    array = opened(store, "meta/samples_mask")
    array.resize(110)
    array[102:106] = True


@damage(
    "uncommitted-pointers",
    kind="uncommitted",
    severity=WARNING,
    place="meta/atoms_ptr",
    says="2 entries",
)
def _(store):
    array = opened(store, "meta/atoms_ptr")
    array.resize(110)
    array[105:107] = 500


@damage(
    "lost-count",
    kind="deleted",
    severity=WARNING,
    place="meta/samples_mask",
    says="count 0 deleted samples",
)
def _(store):
    opened(store, "meta/samples_mask")[4] = False


@damage(
    "row-mask", kind="row-masks", severity=WARNING, place="meta/atoms_mask", says="1 sample (1)"
)
def _(store):
    array = opened(store, "meta/atoms_mask")
    array[:] = np.arange(300) != int(opened(store, "meta/atoms_ptr")[1])


@damage("short", kind="length", place="custom/serial", says="90 rows, 100 are expected")
def _(store):
    opened(store, "custom/serial").resize(90)


@damage("too-many-samples", kind="num-samples", place="zarr.json", says="num_samples is 120")
def _(store):
    edit(store, lambda document: document["attributes"].update(num_samples=120))


@damage("not-closed", kind="num-samples", severity=NOTE, place="zarr.json", says="was not closed")
def _(store):
    edit(store, lambda document: document["attributes"].update(num_samples=60))


@damage("unit", kind="unit", place="zarr.json", says="'energy' is in 'kcal/mol'")
def _(store):
    edit(store, lambda document: own(document)["units"].update(energy="kcal/mol"))


@damage(
    "no-unit",
    kind="unit",
    severity=WARNING,
    place="zarr.json",
    says="no unit is stored for 'energy'",
)
def _(store):
    edit(store, lambda document: own(document)["units"].pop("energy"))


@damage("unit-of-nothing", kind="unit", severity=NOTE, place="zarr.json", says="'stress'")
def _(store):
    edit(store, lambda document: own(document)["units"].update(stress="eV/Angstrom^3"))


@damage("stray-array", kind="stray", severity=NOTE, place="custom/other", says="do not name it")
def _(store):
    zarr.open_group(store).create_array("custom/other", shape=(3,), dtype="i4")


@damage("no-array", kind="missing", place="core/forces", says="no such array")
def _(store):
    (store / "core/forces/zarr.json").unlink()


@damage("bad-metadata", kind="metadata", place="core/forces", says="put its zarr.json back")
def _(store):
    (store / "core/forces/zarr.json").write_text("{")


@damage("bad-level", kind="level", place="core/neighbor_list", says="'atom'")
def _(store):
    fields = lambda document: document["attributes"]["fields"]["core"]  # noqa: E731
    edit(store, lambda document: fields(document).update(neighbor_list="atom"))


@damage("bad-dtype", kind="dtype", place="core/neighbor_list", says="float64")
def _(store):
    edit(store / "core/neighbor_list", lambda document: document.update(data_type="float64"))


@damage("bad-pointers", kind="metadata", place="meta/edges_ptr", says="float64")
def _(store):
    edit(store / "meta/edges_ptr", lambda document: document.update(data_type="float64"))


@damage(
    "partial", kind="leftover", severity=WARNING, place="core/forces/c/1.partial", says="killed"
)
def _(store):
    (store / "core/forces/c/1.partial").write_bytes(b"x")


@damage(
    "rewrite", kind="leftover", severity=WARNING, place="../.store.rewrite-0123abcd", says="killed"
)
def _(store):
    (store.parent / ".store.rewrite-0123abcd/meta").mkdir(parents=True)


@damage("cut-chunk", kind="chunk", place="core/forces", says="1 chunk (0)")
def _(store):
    os.truncate(store / "core/forces/c/0/0", 250 * 24)


@damage("no-chunk", kind="missing-chunk", place="core/energy", says="100 samples (0, 1")
def _(store):
    (store / "core/energy/c/0/0").unlink()


@damage("no-mask", kind="mask-lost", place="meta/samples_mask", says="the mask 100")
def _(store):
    (store / "meta/samples_mask/c/0").unlink()


@damage("bad-group", kind="metadata", place="present", says="put its zarr.json back")
def _(store):
    (store / "present/zarr.json").write_text("{")


@damage("odd-chunk-behind", kind="chunk", severity=WARNING, place="meta/ids/c/5", says="3 bytes")
def _(store):
    (store / "meta/ids/c/5").write_bytes(b"abc")


@damage("attributes", kind="attributes", place="zarr.json", says="'fields'")
def _(store):
    edit(store, lambda document: document["attributes"].update(fields=3))


@damage("presence", kind="missing", place="present/energy", says="no such array")
def _(store):
    edit(store, lambda document: own(document).update(partly_present=["energy"]))


class Killed(BaseException):
    """What a repair meets instead of its next change."""


def mortal(patch, names, left):
    """Let the functions of the module that changes files die after some calls; counts them."""
    count = [0]

    def dying(function):
        def call(*arguments, **options):
            if count[0] >= left:
                raise Killed
            count[0] += 1
            return function(*arguments, **options)

        return call

    for name in names:
        patch.setattr(files, name, dying(getattr(files, name)))
    return count
