import io
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zarrpipe as zp
from zarrpipe.adapters import as_batch, from_ase, to_ase
from zarrpipe.errors import FieldError

TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.5, 0.7, 5.0]])


@pytest.fixture
def crystal(ase, rng):
    """Two atoms in a triclinic cell with every result, all numbers different."""
    atoms = ase.Atoms("CuZn", positions=rng.normal(size=(2, 3)), cell=TRICLINIC, pbc=(1, 0, 1))
    atoms.calc = ase.calculators.singlepoint.SinglePointCalculator(
        atoms,
        energy=-12345.678901,
        forces=rng.normal(size=(2, 3)),
        stress=np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        dipole=np.array([0.1, 0.2, 0.3]),
        charges=np.array([0.25, -0.25]),
    )
    return atoms


def test_a_crystal_with_results_by_value(crystal):
    batch = as_batch(crystal)
    assert batch.num_graphs == 1
    assert torch.equal(batch.positions, torch.from_numpy(crystal.positions))
    assert batch.atomic_numbers.tolist() == [29, 30]
    assert torch.equal(batch.cell[0], torch.from_numpy(TRICLINIC))
    assert batch.pbc.tolist() == [[True, False, True]]
    assert batch.energy.tolist() == [[-12345.678901]]
    assert torch.equal(batch.forces, torch.from_numpy(crystal.calc.results["forces"]))
    assert batch.stress.tolist() == [[[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]]
    assert batch.dipole.tolist() == [[0.1, 0.2, 0.3]]
    assert batch.charges.tolist() == [0.25, -0.25]
    assert batch.keys == {
        "atom": {"positions", "atomic_numbers", "forces", "charges"},
        "edge": set(),
        "system": {"cell", "pbc", "energy", "stress", "dipole"},
    }


def test_the_copy_is_independent_of_the_atoms(crystal):
    batch = as_batch(crystal)
    before = batch.positions.clone()
    crystal.positions += 1.0
    assert torch.equal(batch.positions, before)


def test_floats_take_the_asked_dtype_and_integers_do_not(crystal):
    batch = from_ase(crystal, dtype=torch.float32)
    assert batch.energy.dtype is torch.float32
    assert batch.cell.dtype is torch.float32
    assert batch.atomic_numbers.dtype is torch.int64


def test_stress_is_strain_derivative_of_the_energy_so_that_compression_is_negative(ase):
    """dE/d(strain)/V by central differences, for a sheared and compressed crystal."""
    atoms = ase.build.bulk("Cu", cubic=True)
    strain = np.array([[-0.03, 0.01, 0.0], [0.01, -0.02, 0.005], [0.0, 0.005, -0.01]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(0.05, seed=1)

    def energy(deformation):
        moved = atoms.copy()
        moved.set_cell(moved.cell.array @ (np.eye(3) + deformation), scale_atoms=True)
        moved.calc = ase.calculators.emt.EMT()
        return moved.get_potential_energy()

    expected = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            step = np.zeros((3, 3))
            step[i, j] = step[j, i] = 1e-5 if i == j else 5e-6
            slope = (energy(step) - energy(-step)) / 2e-5
            expected[i, j] = slope / atoms.get_volume()
    atoms.calc = ase.calculators.emt.EMT()
    atoms.get_stress()
    stress = as_batch(atoms).stress[0].numpy()
    np.testing.assert_allclose(stress, expected, atol=1e-6)
    assert np.trace(stress) < 0


def test_a_live_calculator_is_never_run_and_stale_results_are_left_out(ase):
    atoms = ase.build.molecule("H2O")
    atoms.calc = ase.calculators.emt.EMT()
    assert "energy" not in from_ase(atoms)
    value = atoms.get_potential_energy()
    assert from_ase(atoms).energy.tolist() == [[value]]
    atoms.positions[0, 0] += 0.1
    assert from_ase(atoms).keys["system"] == {"cell", "pbc"}
    assert atoms.calc.results, "the calculator keeps its results"


def test_results_without_a_memory_of_the_atoms_are_believed(ase):
    results = {"energy": 1.5, "forces": np.ones((3, 3)), "stress": None}
    atoms = ase.build.molecule("H2O")
    atoms.calc = SimpleNamespace(results=results)
    batch = as_batch(atoms)
    assert batch.energy.tolist() == [[1.5]]
    assert "stress" not in batch


def test_a_stress_matrix_is_taken_as_it_is(ase):
    atoms = ase.build.bulk("Cu")
    atoms.calc = SimpleNamespace(results={"stress": np.arange(9.0).reshape(3, 3)})
    assert as_batch(atoms).stress.tolist() == [np.arange(9.0).reshape(3, 3).tolist()]


def test_constraints_do_not_change_the_forces(ase, crystal):
    raw = crystal.calc.results["forces"].copy()
    crystal.set_constraint(ase.constraints.FixAtoms([0]))
    assert np.all(crystal.get_forces()[0] == 0)
    assert torch.equal(as_batch(crystal).forces, torch.from_numpy(raw))


def test_what_only_some_systems_have_is_marked_absent(ase, crystal):
    bare = ase.build.molecule("H2O")
    batch = as_batch([bare, crystal])
    assert batch.num_nodes_list == [3, 2]
    assert batch.present("energy").tolist() == [False, True]
    assert batch.energy.isnan().tolist() == [[True], [False]]
    assert batch.present("cell").all()
    assert batch.cell[0].abs().sum() == 0
    assert "forces" not in batch.get_data(0)


def test_info_and_arrays_come_only_when_asked_for(crystal):
    crystal.info.update(temperature=300.0, axis=np.array([1, 2]), label="slab")
    crystal.arrays["tags"] = np.array([3, 4])
    crystal.set_masses([60.0, 61.0])
    crystal.set_momenta([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert not {"temperature", "tags", "momenta", "atomic_masses"} & set(as_batch(crystal).fields)
    batch = as_batch(crystal, info=["temperature", "axis"], arrays=["tags", "masses", "momenta"])
    assert batch.temperature.tolist() == [[300.0]]
    assert batch.axis.tolist() == [[1, 2]]
    assert batch.tags.tolist() == [3, 4]
    assert batch.atomic_masses.tolist() == [60.0, 61.0]
    assert batch.momenta.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert batch.levels["axis"] == "system"
    assert batch.levels["tags"] == "atom"


def test_labels_kept_in_info_and_arrays_take_the_shapes_of_the_registry(crystal):
    crystal.calc = None
    crystal.info.update(energy=-1.0, stress=np.arange(6.0))
    crystal.arrays["forces"] = np.ones((2, 3))
    batch = as_batch(crystal, info=["energy", "stress"], arrays=["forces"])
    assert batch.energy.tolist() == [[-1.0]]
    assert batch.stress.tolist() == [[[0.0, 5.0, 4.0], [5.0, 1.0, 3.0], [4.0, 3.0, 2.0]]]
    assert batch.forces.shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"info": {"label": "charge"}}, "'label' has dtype <U4, expected numbers"),
        ({"info": ["temperatur"]}, "none of 1 Atoms has 'temperatur' in .info; there is"),
        ({"arrays": ["tag"]}, "none of 1 Atoms has 'tag' in .arrays"),
        ({"arrays": ["positions"]}, "always taken"),
        ({"info": ["forces"]}, "'forces' is given at level 'system'"),
        ({"info": {"forces": "charges"}}, "'charges' is given at level 'system'"),
        ({"arrays": {"tags": "positions"}}, "'positions' is always taken from the Atoms"),
        (
            {"info": {"forces": "x", "label": "x"}},
            "'forces' and 'label' of .info are both mapped to",
        ),
        ({"info": {"forces": "x"}, "arrays": {"tags": "x"}}, r"\['x'\] are asked for in info and"),
    ],
)
def test_what_cannot_become_a_field_is_refused_by_name(crystal, options, message):
    crystal.info.update(label="slab", forces=1.0)
    crystal.arrays["tags"] = np.array([3, 4])
    with pytest.raises(FieldError, match=message):
        from_ase(crystal, **options)


def test_numbers_of_any_byte_order_and_none_that_are_masked(crystal):
    crystal.info["REF_energy"] = np.array(-3.5, dtype=">f8")
    crystal.arrays["weights"] = np.array([1.0, 2.0], dtype=">f4")[::-1]
    batch = from_ase(crystal, info={"REF_energy": "ref"}, arrays=["weights"])
    assert (batch.ref.tolist(), batch.weights.tolist()) == ([[-3.5]], [2.0, 1.0])
    crystal.arrays["weights"] = np.ma.array([1.0, 2.0], mask=[True, False])
    with pytest.raises(FieldError, match=r"'weights' is a masked array in which 1 of 2"):
        from_ase(crystal, arrays=["weights"])


def test_a_text_is_no_list_of_keys(crystal):
    with pytest.raises(TypeError, match="info is 'round', expected a list or a mapping of keys"):
        from_ase(crystal, info="round")


def test_a_label_of_the_calculator_and_of_a_key_is_refused(crystal, ase):
    bare = ase.build.molecule("H2")
    bare.info["REF_energy"], crystal.info["REF_energy"] = -1.0, -2.0
    names = {"REF_energy": "energy"}
    with pytest.raises(FieldError, match=r"'energy' of Atoms 1 is in .info\['REF_energy'\] and"):
        from_ase([bare, crystal], info=names)
    crystal.calc = None
    assert from_ase([bare, crystal], info=names).energy.flatten().tolist() == [-1.0, -2.0]


EXTXYZ = """2
Lattice="2 0 0 0 3 0 0 0 4" pbc="T T T" Properties=species:S:1:pos:R:3:REF_forces:R:3 \
REF_energy=-5.25 REF_stress="1 6 5 6 2 4 5 4 3" REF_virials="-24 -48 -72 -96 -120 -144" \
total_charge=-1 head=dft
Cu 0 0 0 0.5 -1.5 2.5
Zn 1 1 1 -0.5 1.5 -2.5
""".replace("\\\n", "")
KEYS = {
    "info": {
        "REF_energy": "energy",
        "REF_stress": "stress",
        "REF_virials": "virial",
        "total_charge": "charge",
    },
    "arrays": {"REF_forces": "forces"},
}


def test_keys_of_a_file_become_the_labels_that_they_mean(ase):
    """The stress is that of ASE, the virial minus 24 Angstrom^3 times it, both by hand."""
    (atoms,) = ase.io.read(io.StringIO(EXTXYZ), index=":", format="extxyz")
    assert atoms.calc is None
    batch = from_ase(atoms, **KEYS)
    stress = torch.tensor([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]).double()
    assert batch.energy.tolist() == [[-5.25]]
    assert batch.forces.tolist() == [[0.5, -1.5, 2.5], [-0.5, 1.5, -2.5]]
    assert batch.charge.tolist() == [[-1.0]]
    assert torch.equal(batch.stress[0], stress)
    assert torch.equal(batch.virial[0], -24 * stress)
    assert "REF_energy" not in batch
    (back,) = to_ase(batch.without("virial", "charge"))
    assert back.get_potential_energy() == -5.25
    assert back.get_stress().tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_labels_are_those_that_mace_reads_from_the_same_file(ase, mace):
    """By the keys that MACE has by default."""
    (atoms,) = ase.io.read(io.StringIO(EXTXYZ), index=":", format="extxyz")
    keys = mace.KeySpecification.from_defaults()
    config = mace.config_from_atoms(atoms, key_specification=keys)
    table = mace.AtomicData.from_config.__globals__["AtomicNumberTable"]([29, 30])
    theirs = as_batch(mace.AtomicData.from_config(config, z_table=table, cutoff=1.0), z_table=table)
    ours = from_ase(atoms, **KEYS, dtype=theirs.dtype)
    for name in ("energy", "forces", "stress", "virial", "charge", "cell", "positions"):
        assert theirs.present(name).all(), name
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


def test_numbers_take_the_kind_that_the_registry_has(ase):
    atoms = ase.Atoms("H2", info={"charge": -1, "spin": np.int32(3), "round": 4})
    atoms.set_masses([1.0, 2.0])
    atoms.arrays["atom_categories"] = np.array([0.0, 2.0])
    options = {"info": ["charge", "spin", "round"], "arrays": ["atom_categories"]}
    for dtype in (torch.float32, torch.float64):
        batch = from_ase(atoms, **options, dtype=dtype)
        assert batch.charge.tolist() == [[-1.0]]
        assert batch.spin.tolist() == [[3.0]]
        assert batch.charge.dtype is batch.spin.dtype is dtype
        assert batch.atom_categories.tolist() == [0, 2]
        assert batch.atom_categories.dtype is batch.round.dtype is torch.int64
    atoms.info["charge"] = 2**24 + 1
    assert from_ase(atoms, info=["charge"]).charge.tolist() == [[2**24 + 1]]
    with pytest.raises(FieldError, match=r"'charge' has dtype torch.int64, the registry has it as"):
        from_ase(atoms, info=["charge"], dtype=torch.float32)
    atoms.arrays["atom_categories"][0] = 0.5
    with pytest.raises(FieldError, match=r"'atom_categories' has dtype torch\.float64"):
        from_ase(atoms, arrays=["atom_categories"])


class TestWhatNobodyAskedFor:
    """It is told once, with the call that takes it; what ASE has by itself is not told."""

    @pytest.fixture
    def told(self):
        def told(*atoms, **options):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                with zp.ZarrData({}) as sink:
                    sink.write(list(atoms)) if not options else as_batch(list(atoms), **options)
            return [str(one.message) for one in caught]

        return told

    @pytest.fixture
    def water(self, ase):
        return ase.build.molecule("H2O")

    def test_labels_of_atoms_without_results(self, told, ase, water):
        (atoms,) = ase.io.read(io.StringIO(EXTXYZ), index=":", format="extxyz")
        water.info.update({"round": 3, "1 - x": [0.5], "name": "water", "odd": [[1], [2, 3]]})
        water.set_momenta(np.ones((3, 3)))
        (message,) = told(atoms, water, water)
        assert (
            "from_ase(atoms, info={'REF_energy': 'energy', 'REF_stress': 'stress', "
            "'REF_virials': 'virial', 'total_charge': 'charge', '1 - x': 'field_1_x', "
            "'round': 'round'}, arrays={'REF_forces': 'forces'}), units"
        ) in message

    @pytest.fixture
    def called(self, told):
        """Result of the call that is printed, from a store that it was written to."""

        def called(*atoms):
            (message,) = told(*atoms)
            call = message[message.index("from_ase") : message.index(", units")]
            with zp.ZarrData({}) as sink:
                sink.write(eval(call, {"from_ase": from_ase, "atoms": list(atoms)}))
                return sink.read()

        return called

    def test_what_it_says_can_be_called(self, called, ase):
        (atoms,) = ase.io.read(io.StringIO(EXTXYZ), index=":", format="extxyz")
        assert called(atoms).energy.tolist() == [[-5.25]]

    @pytest.mark.parametrize(
        ("where", "key", "name"),
        [
            *(("info", key, f"{key}_") for key in ("num_atoms", "num_edges", "class", "device")),
            *(("info", key, f"{key}_") for key in ("num_nodes", "batch_ptr", "cell", "pbc")),
            *(("info", key, f"{key}_") for key in ("numbers", "positions", "forces", "shifts")),
            *(("arrays", key, f"{key}_") for key in ("dipole", "energy", "cell", "lambda", "to")),
            ("arrays", "dipole_", "dipole_"),
            ("info", "_private", "private"),
            ("info", "2nd run", "field_2nd_run"),
            ("info", "%", "field_"),
            ("info", 'it\'s "odd"', "it_s_odd"),
            ("info", "x" * 300, "x" * 60),
            ("info", "atomic_numbers", "atomic_numbers_"),
            ("info", "REF_dipole", "REF_dipole"),
            ("info", "interaction_energy", "interaction_energy"),
            ("arrays", "velocities", "velocities_"),
            ("arrays", "atom_categories", "atom_categories_"),
        ],
    )
    def test_what_it_says_of_awkward_keys_can_be_called(self, called, water, where, key, name):
        getattr(water, where)[key] = 7.5 if where == "info" else np.array([0.5, 1.5, 2.5])
        expected = [[7.5]] if where == "info" else [0.5, 1.5, 2.5]
        assert called(water)[name].tolist() == expected

    def test_what_it_says_of_keys_that_meet_can_be_called(self, called, water, crystal):
        """In their names, in the results of other systems, or in info and in arrays."""
        water.info.update({"a b": 1.0, "a_b": 2.0, "a_b_": 3.0, "REF_energy": 4.0, "energy": 5.0})
        water.arrays["a_b"] = np.arange(3.0)
        water.arrays["charges"] = np.ones(3)
        crystal.info["energy"] = -12345.678901
        crystal.arrays["charges"] = np.zeros(2)
        batch = called(water, crystal)
        values = {name: batch[name][0].tolist() for name in ("a_b", "a_b_", "a_b__", "energy_")}
        assert values == {"a_b": [1.0], "a_b_": [2.0], "a_b__": [3.0], "energy_": [5.0]}
        assert batch["a_b___"].tolist()[:3] == [0.0, 1.0, 2.0]
        assert batch.energy.tolist() == [[4.0], [-12345.678901]]
        assert batch["charges_"].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]

    def test_what_cannot_be_one_field_is_not_proposed(self, called, told, water, ase):
        other = ase.build.molecule("CO")
        water.info.update(mixed=1, ragged=[1.0, 2.0], text=1.0, wide=np.uint64(1), big=2**70)
        other.info.update(mixed=1.5, ragged=[1.0, 2.0, 3.0], text="one")
        water.info["long"] = np.longdouble(1.0)
        assert told(water, other) == []
        water.info.update(REF_energy=-1, energy_ref=-3, energy=[1.0, 2.0], fine=True)
        other.info.update(REF_energy=-2.5, energy_ref=-3.5)
        batch = called(water, other)
        assert set(batch.fields) == {*as_batch(water, info=[]).fields, "energy", "energy_", "fine"}
        assert batch.energy.tolist() == [[-1.0], [-2.5]]
        assert batch["energy_"][0].tolist() == [1.0, 2.0]

    def test_the_warning_points_to_who_writes(self, water, tmp_path):
        water.info["REF_energy"] = 1.0
        stored = zp.AtomicDataZarrWriter(tmp_path / "store")
        for write in (zp.ZarrData({}).write, as_batch, stored.write):
            with pytest.warns(UserWarning, match="REF_energy") as caught:
                write(water)
            assert [one.filename for one in caught] == [__file__]

    def test_two_keys_are_two_fields(self, told, water):
        water.info.update(REF_energy=1.0, dft_energy=2.0)
        assert "{'REF_energy': 'energy', 'dft_energy': 'dft_energy'}" in told(water)[0]

    def test_labels_beside_results(self, told, crystal):
        crystal.info.update(REF_energy=1.0, charge=1, round=3, energy_weight=2.0, energy=1.0)
        crystal.set_momenta(np.ones((2, 3)))
        crystal.arrays["REF_forces"] = np.ones((2, 3))
        crystal.calc.results.pop("forces")
        (message,) = told(crystal)
        names = "{'REF_energy': 'REF_energy', 'charge': 'charge'}, arrays={'REF_forces': 'forces'}"
        assert f"from_ase(atoms, info={names}), " in message

    @pytest.mark.parametrize(
        "key",
        [
            *("REF_energy", "energy_ref", "energy_xtb", "DFT-energy", "Energy"),
            *("charge", "total_spin", "REF_stress", "virials_dft", "dipole_pbe"),
        ],
    )
    def test_a_label_in_info_beside_results(self, told, crystal, key):
        crystal.calc.results = {"energy": 1.0}
        sizes = {"stress": (6,), "virials": (3, 3), "dipole": (3,)}
        shape = next((size for word, size in sizes.items() if word in key), ())
        crystal.info[key] = np.ones(shape)
        (message,) = told(crystal)
        assert f"info={{'{key}': " in message
        crystal.info[key] = np.ones((*shape, 2))
        assert told(crystal) == []

    @pytest.mark.parametrize("key", ["dft_forces", "forces_ref", "xtb_force"])
    def test_a_label_in_arrays_beside_results(self, told, crystal, key):
        crystal.calc.results = {"energy": 1.0}
        crystal.arrays[key] = np.ones((2, 3))
        (message,) = told(crystal)
        assert f"arrays={{'{key}': 'forces'}}), units" in message
        crystal.arrays[key] = np.ones((2, 2))
        assert told(crystal) == []

    @pytest.mark.parametrize(
        "key",
        [
            *("max_force", "energy_cutoff", "spin_polarized", "kinetic_energy", "energy_sigma"),
            *("energy_per_atom", "energy_0", "energy_forces", "energy_weight", "pbc"),
            *("mace_energy", "free_energy", "energy_pred", "energy_unit"),
            *("interaction_energy", "total_forces", "charge_state", "graph_embeddings"),
        ],
    )
    def test_other_words_beside_results(self, told, crystal, key):
        crystal.info[key] = 0.05
        assert told(crystal) == []

    def test_frames_of_dynamics(self, told, water):
        water.set_momenta(np.ones((3, 3)))
        assert told(water) == []

    def test_ordinary_atoms(self, told, ase, crystal):
        oxygen, slab = ase.build.molecule("O2"), ase.build.fcc111("Cu", (2, 2, 2), vacuum=5.0)
        crystal.info.update(round=3, time=0.5)
        crystal.set_momenta(np.ones((2, 3)))
        rutile = ase.spacegroup.crystal(
            ["Ti", "O"], [(0, 0, 0), (0.3, 0.3, 0)], spacegroup=136, cellpar=[4, 4, 3, 90, 90, 90]
        )
        oxygen.set_initial_charges([0.5, -0.5])
        oxygen.set_masses([16.0, 18.0])
        oxygen.info.update(name="oxygen", data={"energy": 1.0}, nothing=None)
        assert {"initial_magmoms", "tags", "spacegroup_kinds"} <= {
            *oxygen.arrays, *slab.arrays, *rutile.arrays
        }  # fmt: skip
        assert told(oxygen, slab, rutile, crystal) == []

    def test_labels_that_the_calculator_did_not_compute(self, told, ase, water, crystal):
        copper = ase.build.bulk("Cu", cubic=True)
        copper.calc = ase.calculators.emt.EMT()
        (message,) = told(copper, water, crystal)
        assert message.startswith("1 of 3 Atoms are stored without energy and forces: their calcu")
        assert "calculator (EMT)" in message
        assert "call atoms.get_potential_energy() and atoms.get_forces() before" in message
        copper.get_potential_energy()
        assert told(copper, water, crystal) == []
        copper.calc.results.pop("forces")
        (message,) = told(copper)
        assert "1 of 1 Atoms are stored without forces: " in message
        copper.get_forces()
        copper.rattle(0.1)  # the results are stale
        (message,) = told(copper, copper)
        assert message.startswith("2 of 2 Atoms are stored without energy and forces")
        assert told(copper, info=[]) == []

    def test_that_warning_points_to_who_writes_too(self, ase):
        copper = ase.build.bulk("Cu", cubic=True)
        copper.calc = ase.calculators.emt.EMT()
        for write in (zp.ZarrData({}).write, as_batch):
            with pytest.warns(UserWarning, match="stored without energy") as caught:
                write(copper)
            assert [one.filename for one in caught] == [__file__]

    def test_who_asks_is_not_told(self, told, water):
        water.info.update(REF_energy=1.0, round=3)
        assert told(water, info=["round"]) == told(water, info=[]) == []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "REF_energy" not in from_ase(water)


def test_a_system_without_what_others_have_in_info(ase, crystal):
    crystal.info["temperature"] = 300.0
    batch = as_batch([crystal, ase.build.molecule("H2")], info=["temperature"])
    assert batch.present("temperature").tolist() == [True, False]


def test_there_and_back(crystal):
    crystal.info["temperature"] = 300.0
    crystal.arrays["tags"] = np.array([3, 4])
    crystal.set_masses([60.0, 61.0])
    crystal.set_momenta([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    batch = from_ase(crystal, info=["temperature"], arrays=["tags", "masses", "momenta"])
    (back,) = to_ase(batch)
    assert back.get_chemical_symbols() == ["Cu", "Zn"]
    np.testing.assert_array_equal(back.positions, crystal.positions)
    np.testing.assert_array_equal(back.cell.array, TRICLINIC)
    np.testing.assert_array_equal(back.pbc, [True, False, True])
    np.testing.assert_array_equal(back.get_masses(), [60.0, 61.0])
    np.testing.assert_array_equal(back.get_momenta(), crystal.get_momenta())
    np.testing.assert_array_equal(back.arrays["tags"], [3, 4])
    assert back.info == {"temperature": 300.0}
    assert back.get_potential_energy() == -12345.678901
    np.testing.assert_array_equal(back.get_forces(), crystal.get_forces())
    np.testing.assert_array_equal(back.get_stress(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    np.testing.assert_array_equal(back.get_dipole_moment(), [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(back.get_charges(), [0.25, -0.25])


def test_velocities_make_momenta_and_a_single_system_a_list_of_one(ase):
    del ase
    data = zp.AtomicData(
        positions=[[0.0, 0.0, 0.0]],
        atomic_numbers=[1],
        velocities=[[1.0, 0.0, 2.0]],
        atomic_masses=[2.0],
        system={"direction": [[1.0, 2.0]]},
    )
    (atoms,) = to_ase(data)
    np.testing.assert_allclose(atoms.get_velocities(), [[1.0, 0.0, 2.0]])
    np.testing.assert_array_equal(atoms.info["direction"], [1.0, 2.0])
    assert atoms.calc is None
    assert not atoms.pbc.any()


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    labelled=st.lists(st.booleans(), min_size=5, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_list_of_atoms_survives_the_round_trip(ase, sizes, labelled, seed):
    rng = np.random.default_rng(seed)
    systems = []
    for size, has in zip(sizes, labelled, strict=False):
        atoms = ase.Atoms(
            numbers=rng.integers(1, 90, size),
            positions=rng.normal(size=(size, 3)),
            cell=rng.normal(size=(3, 3)),
            pbc=rng.integers(0, 2, 3).astype(bool),
        )
        if has:
            atoms.calc = ase.calculators.singlepoint.SinglePointCalculator(
                atoms,
                energy=rng.normal(),
                forces=rng.normal(size=(size, 3)),
                stress=rng.normal(size=6),
            )
        systems.append(atoms)
    for before, after in zip(systems, to_ase(as_batch(systems)), strict=True):
        assert before == after
        assert (before.calc is None) is (after.calc is None)
        if before.calc is not None:
            assert before.get_potential_energy() == after.get_potential_energy()
            np.testing.assert_array_equal(before.get_forces(), after.get_forces())
            np.testing.assert_array_equal(before.get_stress(), after.get_stress())
