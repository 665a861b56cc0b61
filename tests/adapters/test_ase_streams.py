"""`from_ase` of iterables and other results, `to_ase` of datasets, and LAMMPS dumps through ASE."""

import io

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import as_batch, assemble, from_ase
from zarrpipe.ase import to_ase
from zarrpipe.errors import ArgumentTypeError, FieldError

FRAME = """ITEM: TIMESTEP
{step}
ITEM: NUMBER OF ATOMS
3
ITEM: BOX BOUNDS pp pp ff
1.0 11.0
1.0 11.0
1.0 21.0
ITEM: ATOMS {columns}
"""


def dump(columns, *rows, step=7):
    return FRAME.format(step=step, columns=columns) + "".join(f"{row}\n" for row in rows)


def frames(ase, *texts, **options):
    file = io.StringIO("".join(texts))
    return list(ase.io.iread(file, ":", format="lammps-dump-text", **options))


@pytest.fixture
def nickel_dump():
    """Two steps of three atoms, of which the second has them in another order."""
    columns = "id type x y z vx vy vz fx fy fz"
    return (
        dump(columns, "1 1 1 2 3 0 0 1 1 2 3", "2 2 4 5 6 0 1 0 4 5 6", "3 1 7 8 9 1 0 0 7 8 9"),
        dump(
            columns,
            *("3 1 7 8 9 1 0 0 7 8 9", "1 1 1 2 3 0 0 1 1 2 3", "2 2 4 5 6 0 1 0 4 5 6"),
            step=8,
        ),
    )


class TestLammpsDump:
    @pytest.fixture(autouse=True)
    def keeps_types(self, ase):
        if tuple(map(int, ase.__version__.split(".")[:2])) < (3, 27):
            pytest.skip("ASE before 3.27 does not keep the types of a dump")

    def test_types_that_were_read_as_elements_are_refused(self, ase, nickel_dump):
        read = frames(ase, *nickel_dump)
        assert read[0].get_chemical_symbols() == ["H", "He", "H"]
        for take in (from_ase, as_batch, zp.ZarrData({}).write):
            with pytest.raises(
                FieldError, match=r"of Atoms 0 .*\(type 1 as H, 2 as He\): give .*specorder="
            ):
                take(read)

    def test_with_an_element_for_each_type(self, ase, nickel_dump):
        read = frames(ase, *nickel_dump, specorder=["Ni", "Al"])
        batch = from_ase(read, info={"timestep": "step"}, arrays=["momenta", "type"])
        assert batch.atomic_numbers.tolist() == [28, 13, 28] * 2
        assert batch["type"].tolist() == [1, 2, 1] * 2
        assert batch.positions.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]] * 2
        assert batch.forces.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]] * 2
        assert batch.cell[0].tolist() == [[10, 0, 0], [0, 10, 0], [0, 0, 20]]
        assert batch.pbc.tolist() == [[True, True, False]] * 2
        assert batch.step.flatten().tolist() == [7, 8]
        velocities = batch.momenta / torch.tensor(read[0].get_masses())[:, None].repeat(2, 1)
        unit = ase.units.Angstrom / (1e3 * ase.units.fs)
        np.testing.assert_allclose(velocities[0], [0, 0, unit])

    def test_the_energy_that_ase_makes_up_is_left_out(self, ase, nickel_dump):
        read = frames(ase, *nickel_dump, specorder=["Ni", "Al"])
        assert read[0].get_potential_energy() == 0.0
        batch = as_batch(read)
        assert "energy" not in batch
        assert batch.present("forces").all()
        read[0].calc.results["energy"] = -1.5
        assert from_ase(read).present("energy").tolist() == [True, False]

    def test_an_energy_of_zero_of_others_stays(self, ase):
        water = ase.build.molecule("H2O")
        water.calc = ase.calculators.singlepoint.SinglePointCalculator(
            water, energy=0.0, forces=np.zeros((3, 3))
        )
        assert from_ase(water).energy.tolist() == [[0.0]]

    def test_scaled_positions_and_elements_in_the_file(self, ase):
        text = dump("id element xs ys zs", "1 H 0.1 0.2 0.5", "2 He 0 0 0", "3 H 0.5 0.5 0.5")
        batch = from_ase(frames(ase, text))
        assert batch.atomic_numbers.tolist() == [1, 2, 1]
        np.testing.assert_allclose(batch.positions[0], [1, 2, 10])

    def test_hydrogen_of_type_1_says_the_way_out(self, ase):
        text = dump("id type element x y z", *(f"{i} 1 H {i} 0 0" for i in (1, 2, 3)))
        (read,) = frames(ase, text)
        with pytest.raises(FieldError, match=r"if they are right, delete atoms.arrays\['type'\]"):
            from_ase(read)
        del read.arrays["type"]
        assert from_ase(read).atomic_numbers.tolist() == [1, 1, 1]

    def test_real_units(self, ase):
        text = dump("id type x y z fx fy fz", *(f"{i} 1 {i} 0 0 1 0 0" for i in (1, 2, 3)))
        batch = as_batch(frames(ase, text, specorder=["O"], units="real"))
        assert batch.forces[0, 0].item() == pytest.approx(ase.units.kcal / ase.units.mol)


def test_generators_and_what_is_no_atoms(ase):
    molecules = ["H2O", "CO", "CH4"]
    batch = from_ase(ase.build.molecule(name) for name in molecules)
    assert batch.num_nodes_list == [3, 2, 5]
    for wrong in ("frames.xyz", ["frames.xyz"], 7):
        with pytest.raises(ArgumentTypeError, match=r"expected ase.Atoms .* with ase.io.iread"):
            from_ase(wrong)


def test_other_results_and_other_names(ase):
    copper = ase.build.bulk("Cu", cubic=True)
    copper.calc = ase.calculators.singlepoint.SinglePointCalculator(
        copper, energy=-1.0, forces=np.ones((4, 3)), magmoms=np.arange(4.0), magmom=6.0
    )
    copper.calc.results["free_energy"] = -2.0
    names = {"free_energy": "energy", "magmoms": "magmoms", "magmom": "total_magmom"}
    batch = from_ase([copper, ase.build.molecule("CO")], results=names)
    assert batch.energy[0].item() == -2.0
    assert batch.present("energy").tolist() == [True, False]
    assert batch.magmoms[:4].tolist() == [0, 1, 2, 3]
    assert batch.total_magmom[0].tolist() == [6.0]
    assert "forces" not in batch
    with pytest.raises(FieldError, match=r"none of 1 Atoms has 'charges' in \.results; there is"):
        from_ase(copper, results=["charges"])
    with pytest.raises(FieldError, match=r"both mapped to field 'energy'"):
        from_ase(copper, results={"energy": "energy", "free_energy": "energy"})


def test_a_dataset_becomes_an_iterator_in_bounded_blocks(ase, tmp_path, monkeypatch):
    systems = [ase.build.molecule(name) for name in ("H2O", "CO", "CH4", "CH3OH") * 3]
    for number, atoms in enumerate(systems):
        atoms.calc = ase.calculators.singlepoint.SinglePointCalculator(atoms, energy=float(number))
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(systems)
    dataset, asked = zp.ZarrDataset(tmp_path / "store"), []
    read = type(dataset).__getitems__

    def counted(self, indices):
        asked.append(len(indices))
        return read(self, indices)

    monkeypatch.setattr(type(dataset), "__getitems__", counted)
    monkeypatch.setattr(assemble, "_BLOCK_BYTES", 1000)
    found = to_ase(dataset)
    assert iter(found) is found
    assert asked == []
    first = next(found)
    assert asked == [1]
    for before, after in zip(systems, [first, *found], strict=True):
        assert before == after
        assert before.get_potential_energy() == after.get_potential_energy()
    assert sum(asked) == 12
    assert max(asked) < 5
    some = to_ase(torch.utils.data.Subset(dataset, [3, 1]))
    assert [one.get_potential_energy() for one in some] == [3.0, 1.0]


def test_what_cannot_become_atoms_says_so(ase):
    del ase
    with pytest.raises(ArgumentTypeError, match=r"to_ase was given a str, .*ZarrDataset\(path\)"):
        to_ase("store.zarr")
