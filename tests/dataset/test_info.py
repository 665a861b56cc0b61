"""`info`: what is said of a store is what is in it."""

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
import zarr

import zarrpipe as zp
from zarrpipe.dataset import label_ranges
from zarrpipe.errors import StoreFormatError, StoreNotFoundError
from zarrpipe.store.query.elements import SYMBOLS

KINDS = ("bulk", "surface", "bulk", "cluster", "bulk")


def systems(count):
    """Systems of 1 to 5 atoms; some lack forces or stress, and some labels are not finite."""
    random = np.random.default_rng(3)
    made = []
    for serial in range(count):
        atoms = 1 + serial % 5
        fields = {"energy": float(random.normal()) - 5 * atoms}
        if serial % 3:
            fields["forces"] = random.normal(size=(atoms, 3))
        if serial % 4 == 1:
            fields["stress"] = random.normal(size=(1, 3, 3))
        if serial == 7:
            fields["energy"] = float("nan")
        if serial % 2:
            fields["neighbor_list"] = [[0, atoms - 1]] * serial
        made.append(
            zp.AtomicData(
                random.normal(size=(atoms, 3)),
                random.choice([1, 6, 29], size=atoms),
                system={"round": [serial // 10], "config_type": KINDS[serial % 5]},
                **fields,
            )
        )
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A closed store of 40 systems of which two were deleted and one stands twice, and the rest."""
    made, path = systems(40), tmp_path_factory.mktemp("info") / "store"
    with zp.ZarrData(path, capacity=100) as sink:
        sink.write(made)
        sink.write(made[4])
    with zp.AtomicDataZarrWriter(path) as writer:
        writer.delete([0, 11])
    return path, [one for place, one in enumerate([*made, made[4]]) if place not in (0, 11)]


def made_of(kept, deleted):
    """All stored systems, deleted ones too."""
    return [*kept, *(systems(40)[place] for place in deleted)]


def value_of(one, name):
    if name == "energy":
        return one.energy.item() / one.num_nodes
    return one.forces.norm(dim=1).max().item()


def test_counts(written):
    path, kept = written
    facts = zp.info(path)
    sizes = [one.num_nodes for one in kept]
    assert (facts.samples, facts.deleted, facts.atoms) == (39, 2, sum(sizes))
    assert facts.edges == sum(one.num_edges for one in kept)
    spread = facts.atoms_per_sample
    assert (spread.smallest, spread.median, spread.largest) == (1, np.median(sizes), 5)
    assert facts.edges_per_sample.largest == 39
    numbers = Counter(int(z) for one in kept for z in one.atomic_numbers)
    assert facts.elements == {SYMBOLS[z]: count for z, count in numbers.items()}
    assert [*facts.elements.values()] == sorted(facts.elements.values(), reverse=True)
    assert facts.repeated == 1
    assert facts.rounds == Counter(one["round"].item() for one in kept)
    strings = Counter(KINDS[place % 5] for place in [*range(40), 4] if place not in (0, 11))
    assert [*facts.categories] == ["config_type"]
    assert [*facts.categories["config_type"].items()] == strings.most_common()


def test_labels(written):
    path, kept = written
    facts = zp.info(path)
    assert [*facts.labels] == ["energy_per_atom", "max_force", "max_stress"]
    energies = [one.energy.item() / one.num_nodes for one in kept]
    finite = [energy for energy in energies if np.isfinite(energy)]
    spread = facts.labels["energy_per_atom"]
    assert spread.smallest == min(finite)
    assert spread.median == np.median(finite)
    assert spread.largest == max(finite)
    assert (spread.count, spread.not_finite) == (len(kept) - 1, 1)
    assert (spread.unit, spread.estimated) == ("eV", False)
    forces = [one.forces.norm(dim=1).max().item() for one in kept if "forces" in one]
    spread = facts.labels["max_force"]
    assert spread.largest == pytest.approx(max(forces), rel=1e-14)
    assert (spread.count, spread.not_finite, spread.unit) == (len(forces), 0, "eV/Angstrom")
    stress = [one.stress.abs().max().item() for one in kept if "stress" in one]
    spread = facts.labels["max_stress"]
    assert (spread.smallest, spread.largest) == (min(stress), max(stress))
    assert (spread.count, spread.samples) == (len(stress), len(kept))


def test_fields(written):
    path, kept = written
    facts = {item.name: item for item in zp.info(path).fields}
    forces = facts["forces"]
    assert (forces.level, forces.dtype, forces.shape) == ("atom", "float64", (3,))
    assert forces.unit == "eV/Angstrom"
    assert forces.present == sum("forces" in one for one in kept)
    assert facts["energy"].present == len(kept)
    assert facts["config_type"].dtype == "string"
    assert (forces.chunk_rows, forces.shard_rows, forces.codec) == (65536, 0, "")
    chunks = [*(path / "core" / "forces").rglob("*")]
    assert forces.bytes_stored == sum(512 * one.stat().st_blocks for one in chunks if one.is_file())


def test_bytes_are_those_of_all_files(written):
    path, _ = written
    held = sum(512 * one.stat().st_blocks for one in path.rglob("*") if one.is_file())
    assert zp.info(path).bytes_stored == held > 0


def test_a_published_store(written, tmp_path):
    path, kept = written
    config = zp.ZarrWriteConfig.published(checksum=True)
    zp.merge(path, tmp_path / "published", config=config)
    before, facts = zp.info(path), zp.info(tmp_path / "published")
    assert (facts.samples, facts.deleted) == (len(kept), 0)
    for name in ("elements", "labels", "rounds", "categories", "repeated", "atoms_per_sample"):
        assert getattr(facts, name) == getattr(before, name), name
    assert facts.generation != before.generation
    forces = next(item for item in facts.fields if item.name == "forces")
    assert forces.codec == "zstd, crc32c"
    assert forces.shard_rows % forces.chunk_rows == 0 < forces.shard_rows


@pytest.mark.parametrize("published", [False, True])
def test_large_stores_are_sampled_and_say_so(written, tmp_path, monkeypatch, published):
    """Runs of 5 stored samples, from which those of the deleted ones are left out."""
    path, kept = written
    deleted = (0, 11)
    if published:
        zp.merge(path, tmp_path / "published", config=zp.ZarrWriteConfig.published())
        path, deleted = tmp_path / "published", ()
    whole = zp.info(path).labels
    for name in ("_MOST_NUMBERS", "_MOST_ENCODED"):
        monkeypatch.setattr(label_ranges, name, 20)
    for name in ("_RUNS", "_ENCODED_RUNS"):
        monkeypatch.setattr(label_ranges, name, 4)
    facts = zp.info(path)
    stored = [place for place in range(len(kept) + len(deleted)) if place not in deleted]
    for label, name, numbers in (("energy_per_atom", "energy", 1), ("max_force", "forces", 3)):
        atoms = sum(one.num_nodes for one in made_of(kept, deleted)) if name == "forces" else 0
        count = len(kept) + len(deleted)
        length = max(1, count * 20 // (numbers * atoms or count) // 4)
        starts = np.linspace(0, count - length, 4).astype(int)
        rows = [
            stored.index(place)
            for start in starts
            for place in range(start, start + length)
            if place in stored
        ]
        spread = facts.labels[label]
        assert spread.estimated
        assert spread.looked_at == len(rows)
        values = [value_of(kept[row], name) for row in rows if name in kept[row]]
        assert spread.largest == pytest.approx(np.nanmax(values), rel=1e-14)
        assert spread.smallest == pytest.approx(np.nanmin(values), rel=1e-14)
        assert spread.largest <= whole[label].largest
    assert f"{facts.labels['max_force'].looked_at} looked at" in str(facts)
    assert facts.repeated == 1  # counts are exact


def test_samples_beyond_the_kept_sums_are_counted(tmp_path):
    made = systems(12)
    with zp.ZarrData(tmp_path / "run") as sink:
        sink.write(made[:5])
    with zp.ZarrData(tmp_path / "run") as sink:
        sink.write(made[5:])
        facts = zp.info(tmp_path / "run")
        assert facts.writing
        assert f"process {os.getpid()} on " in facts.writer
        assert f"writer       process {os.getpid()} on " in str(facts)
    numbers = Counter(int(z) for one in made for z in one.atomic_numbers)
    assert facts.elements == {SYMBOLS[z]: count for z, count in numbers.items()}
    closed = zp.info(tmp_path / "run")
    assert (closed.writer, closed.writing) == ("", False)
    assert facts.allocated > closed.allocated == 12
    assert f"room for {facts.allocated:,} samples" in str(facts)


def test_a_killed_writer_is_named(written, monkeypatch):
    path, _ = written
    lock = path / "meta" / "atoms_ptr" / ".lock"
    gone = 2**22 + 5  # above the largest number of a process
    host = os.uname().nodename
    before = lock.read_text()
    lock.write_text(json.dumps({"host": host, "pid": gone, "since": 0.0}))
    try:
        facts = zp.info(path)
    finally:
        lock.write_text(before)
    assert (facts.writing, str(gone) in facts.writer) == (False, True)
    assert "did not close the store" in str(facts)


def test_imports_are_shown(written):
    path, _ = written
    document = path / "zarr.json"
    before = document.read_text()
    content = json.loads(before)
    content["attributes"]["zarrpipe"]["imports"] = [{"source": "frames.xyz", "frames": 40}]
    document.write_text(json.dumps(content))
    try:
        facts = zp.info(path)
    finally:
        document.write_text(before)
    assert facts.imports == ({"source": "frames.xyz", "frames": 40},)
    assert '{"source": "frames.xyz", "frames": 40}' in str(facts)


def test_a_store_of_another_library_has_no_ids(written, tmp_path):
    path, kept = written
    zp.merge(path, tmp_path / "foreign")
    document = tmp_path / "foreign" / "zarr.json"
    content = json.loads(document.read_text())
    del content["attributes"]["zarrpipe"]
    content["attributes"]["fields"]["custom"].pop("config_type")
    document.write_text(json.dumps(content))
    for name in ("ids", "sums"):
        (tmp_path / "foreign" / "meta" / name).rename(tmp_path / name)
    facts = zp.info(tmp_path / "foreign")
    assert (facts.samples, facts.repeated, facts.generation) == (len(kept), None, "")
    assert "not known: the store has no ids" in str(facts)
    assert sum(facts.elements.values()) == facts.atoms


def test_an_empty_store_and_one_in_memory():
    store = {}
    zp.ZarrData(store).close()
    with zp.ZarrData(store) as sink:
        sink.write(systems(3))
        sink.zero()
    facts = zp.info(store)
    assert (facts.samples, facts.atoms, facts.elements, facts.repeated) == (0, 0, {}, 0)
    assert all(np.isnan(spread.largest) for spread in facts.labels.values())
    assert str(facts)
    with zp.ZarrData(store) as sink:
        sink.write(systems(3))
    facts = zp.info(store)
    assert (facts.samples, facts.writer) == (3, "")
    assert facts.bytes_stored == sum(len(value.to_bytes()) for value in store.values())


def test_levels_of_ones_own():
    store, pair = {}, zp.Level.product("pair", "atom", "atom")
    one = zp.AtomicData(
        torch.zeros(2, 3),
        [1, 1],
        other_levels={"bond": {"order": [1.0]}, pair: {"hessian": torch.zeros(4, 9)}},
    )
    with zp.ZarrData(store) as sink:
        sink.write([one])
    facts = zp.info(store)
    assert facts.levels == {"bond": "segmented", "pair": "product"}
    assert {item.name: item.level for item in facts.fields}["hessian"] == "pair"
    assert all(item.bytes_stored for item in facts.fields)


def test_to_dict_is_json(written):
    path, _ = written
    facts = zp.info(path)
    shown = json.loads(json.dumps(facts.to_dict()))
    assert shown["samples"] == facts.samples
    assert shown["fields"][0]["shape"] == [3]
    assert shown["labels"]["max_force"]["estimated"] is False
    assert [*shown] == [
        *("store", "samples", "deleted", "atoms", "edges", "allocated", "generation", "writer"),
        *("writing", "bytes_stored", "fields", "levels", "elements", "atoms_per_sample"),
        *("edges_per_sample", "labels", "repeated", "rounds", "categories", "imports", "marks"),
    ]


def test_what_is_no_store(tmp_path):
    with pytest.raises(StoreNotFoundError):
        zp.info(tmp_path / "nothing")
    zarr.create_group(tmp_path / "other").create_array("x", shape=(3,), dtype="f4")
    with pytest.raises(StoreFormatError, match="expected a store that zarrpipe or nvalchemi"):
        zp.info(tmp_path / "other")
