"""Derived columns, compared with what Python and ASE say of each sample."""

import math
import operator

import numpy as np
import pytest
import torch

from zarrpipe import (
    AtomicData,
    AtomicDataZarrWriter,
    Batch,
    ZarrData,
    ZarrDataset,
    ZarrWriteConfig,
    merge,
)
from zarrpipe.errors import SchemaError
from zarrpipe.store.query import columns as query_columns
from zarrpipe.store.query.columns import StoreColumns
from zarrpipe.store.query.derived import DERIVED

ase = pytest.importorskip("ase")
units = pytest.importorskip("ase.units")


def systems(count, seed=0):
    """Systems of which some lack forces, energy, cell, a volume, or have masses of their own."""
    random = np.random.default_rng(seed)
    made = []
    for serial in range(count):
        atoms = int(random.integers(1, 9))
        fields = {"forces": torch.from_numpy(random.normal(size=(atoms, 3)).astype(np.float32))}
        if serial % 7 != 3:
            fields["energy"] = float(random.normal())
        if serial % 5 == 2:
            del fields["forces"]
        if serial % 3:
            cell = random.normal(size=(3, 3)) * 5
            fields["cell"] = torch.from_numpy(cell * (serial % 4 != 1))
        if serial % 11 == 4:
            fields["atomic_masses"] = torch.from_numpy(random.uniform(1, 9, atoms))
        numbers = random.choice([1, 6, 8, 29], size=atoms, p=[0.5, 0.3, 0.15, 0.05])
        made.append(AtomicData(torch.from_numpy(random.normal(size=(atoms, 3))), numbers, **fields))
    return made


def facts(system):
    """Derived columns of a system; a column that it lacks is not there."""
    found = {}
    if "forces" in system:
        found["max_force"] = max(math.hypot(*row) for row in system.forces.tolist())
    if "energy" in system:
        found["energy_per_atom"] = system.energy.item() / system.num_nodes
    atoms = ase.Atoms(system.atomic_numbers.numpy(), system.positions.numpy())
    found["formula"] = atoms.get_chemical_formula()
    if "cell" in system and bool((system.cell != 0).any()):
        atoms.cell = system.cell[0].numpy()
        if "atomic_masses" in system:
            atoms.set_masses(system.atomic_masses.numpy())
        found["volume"] = atoms.get_volume()
        grams = atoms.get_masses().sum() / units._Nav
        found["density"] = grams / (found["volume"] * 1e-24)
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    made = systems(120)
    path = tmp_path_factory.mktemp("derived") / "store"
    with ZarrData(path, capacity=1000) as sink:
        for start in range(0, 120, 30):
            sink.write(Batch.from_data_list(made[start : start + 30]))
    return path, made, [facts(one) for one in made]


@pytest.fixture(params=["whole", "pieces"])
def small_blocks(request, monkeypatch):
    """Blocks of the usual size, or of a few atoms and samples."""
    if request.param == "pieces":
        monkeypatch.setattr(query_columns, "_ATOMS", 7)
        monkeypatch.setattr(query_columns, "_SAMPLES", 11)
        monkeypatch.setattr("zarrpipe.dataset.table.BLOCK", 50)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", [name for name in DERIVED if name != "formula"])
def test_a_derived_number_is_that_of_each_sample(stored, name):
    path, _, expected = stored
    dataset = ZarrDataset(path)
    having = [place for place, found in enumerate(expected) if name in found]
    assert 0 < len(having) < 120
    assert dataset.where(f"has({name})").tolist() == having
    values = [expected[place][name] for place in having]
    threshold = float(sorted(values)[len(values) // 2])
    for sign, compare in (("<", operator.lt), (">=", operator.ge)):
        limit = threshold * (1 - 1e-5) if threshold > 0 else threshold * (1 + 1e-5)
        wanted = [place for place in having if compare(expected[place][name], limit)]
        assert dataset.where(f"{name} {sign} {limit!r}").tolist() == wanted
        assert dataset.where(f"not not {name} {sign} {limit!r}").tolist() == wanted
    table = dataset.to_pandas([name])[name].to_numpy()
    assert np.allclose(table[having], values, rtol=1e-6)
    assert np.isnan(np.delete(table, having)).all()


@pytest.mark.usefixtures("small_blocks")
def test_formulas_and_elements_are_those_of_each_sample(stored):
    path, made, expected = stored
    dataset = ZarrDataset(path)
    texts = [found["formula"] for found in expected]
    some = sorted(set(texts))[:3]
    assert dataset.to_pandas(["formula"])["formula"].astype(str).tolist() == texts
    for text in some:
        same = [place for place, one in enumerate(texts) if one == text]
        other = [place for place, one in enumerate(texts) if one != text]
        assert dataset.where(f"formula == {text!r}").tolist() == same
        assert dataset.where(f"{text!r} != formula").tolist() == other
    among = [place for place, one in enumerate(texts) if one in some]
    assert dataset.where(f"formula in {tuple(some)}").tolist() == among
    assert dataset.where(f"formula not in {[*some, 'Og9']}").tolist() == [
        place for place in range(120) if place not in among
    ]
    copper = [place for place, one in enumerate(made) if 29 in one.atomic_numbers]
    assert 0 < len(copper) < 120
    assert dataset.where("has_element('Cu')").tolist() == copper
    assert dataset.where("not has_element('Cu') or num_atoms < 0").tolist() == [
        place for place in range(120) if place not in copper
    ]
    assert dataset.where("has_element('U')").tolist() == []


def test_conditions_on_several_stores_selections_and_deleted_samples(stored, tmp_path):
    path, _, expected = stored
    bare = [AtomicData(one.positions, one.atomic_numbers) for one in systems(10, seed=1)]
    with ZarrData(tmp_path / "bare") as sink:
        sink.write(bare)
    with AtomicDataZarrWriter(tmp_path / "bare") as writer:
        writer.delete([0, 4])
    dataset = ZarrDataset([tmp_path / "bare", path])
    wanted = [8 + place for place, one in enumerate(expected) if one.get("max_force", 0) > 2]
    assert dataset.where("max_force > 2").tolist() == wanted
    assert dataset.where("not has(max_force) and num_atoms < 100").tolist() == [
        *range(8),
        *(8 + place for place, one in enumerate(expected) if "max_force" not in one),
    ]
    part = dataset.index_select([*range(100, 0, -1)])
    assert [100 - place for place in part.where("max_force > 2").tolist()] == [
        place for place in range(100, 0, -1) if place in wanted
    ]


def test_a_field_takes_the_place_of_a_derived_column_of_its_name(tmp_path):
    with ZarrData(tmp_path / "store") as sink:
        for value in (3.0, 5.0):
            cell = torch.eye(3, dtype=torch.float64) * 2
            system = {"volume": value, "formula": value}
            sink.write(AtomicData([[0.0, 0.0, 0.0]], [1], cell=cell, system=system))
    dataset = ZarrDataset(tmp_path / "store")
    assert dataset.where("volume == 5 and formula > 4").tolist() == [1]
    assert dataset.where("1.66 < density * volume").tolist() == []
    with pytest.raises(SchemaError, match="'formula' has no strings"):
        dataset.where("formula == 'H'")


def test_small_floats_do_not_overflow(tmp_path):
    forces = torch.tensor([[60000.0, 60000.0, 0.0]], dtype=torch.float16)
    with ZarrData(tmp_path / "store") as sink:
        sink.write(AtomicData([[0.0, 0.0, 0.0]], [1], forces=forces))
    assert ZarrDataset(tmp_path / "store").where("84000 < max_force < 85000").tolist() == [0]


def test_compressed_stores_are_read_in_blocks_too(stored, monkeypatch):
    path, _, expected = stored
    packed = {}
    merge(path, packed, config=ZarrWriteConfig.published())
    monkeypatch.setattr(query_columns, "_SAMPLES", 16)
    wanted = [place for place, one in enumerate(expected) if one.get("max_force", 0) > 2]
    dataset = ZarrDataset(packed, cache_bytes=1 << 20)
    assert dataset.where("max_force > 2").tolist() == wanted


def test_a_derived_column_is_computed_once(stored, monkeypatch):
    calls = []
    batches = StoreColumns.batches

    def counted(self, *fields):
        calls.append(fields)
        return batches(self, *fields)

    monkeypatch.setattr(StoreColumns, "batches", counted)
    ZarrDataset(stored[0]).where("max_force > 1 and max_force < 2 and has(max_force)")
    assert calls == [("forces",)]
