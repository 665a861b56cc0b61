"""pymatgen's structures and molecules to and from batches; needs the extra `pymatgen`."""

import warnings

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import from_pymatgen, to_ase, to_pymatgen
from zarrpipe.errors import ArgumentTypeError, FieldError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    core = pytest.importorskip("pymatgen.core")

pytestmark = pytest.mark.filterwarnings(
    "ignore:Structure charge .* is set to be not equal to the sum of oxidation states:UserWarning"
)
TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.5, 0.7, 5.0]])
FORCES = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]


@pytest.fixture
def salt():
    return core.Structure(
        core.Lattice(TRICLINIC, pbc=(True, True, False)),
        ["Na", "Cl"],
        [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]],
        charge=1,
        site_properties={"forces": FORCES, "magmom": [0.5, -0.5], "kind": ["a", None]},
        properties={"e_dft": -12.5, "mp_id": "mp-22862", "note": None},
    )


@pytest.fixture
def water():
    return core.Molecule(["O", "H", "H"], [[0, 0, 0], [0, 0.76, 0.5], [0, -0.76, 0.5]], charge=1)


NAMED = {
    "properties": {"e_dft": "energy", "mp_id": "mp_id"},
    "site_properties": ["forces", "magmom"],
}


def test_structures_and_molecules_by_value(salt, water):
    batch = from_pymatgen([salt, water], **NAMED)
    assert batch.num_nodes_list == [2, 3]
    assert np.allclose(batch.positions[:2], salt.cart_coords, rtol=0, atol=0)
    assert batch.atomic_numbers.tolist() == [11, 17, 8, 1, 1]
    assert np.allclose(batch.cell[0], TRICLINIC)
    assert batch.pbc.tolist() == [[True, True, False], [False] * 3]
    assert batch.energy[0].item() == -12.5
    assert batch.forces[:2].tolist() == FORCES
    assert batch.magmom[:2].tolist() == [0.5, -0.5]
    assert batch.strings("mp_id")[0] == "mp-22862"
    assert batch.present("energy").tolist() == [True, False]
    assert batch.charge.flatten().tolist() == [1, 1]
    assert batch.present("spin_multiplicity").tolist() == [False, True]
    assert batch.spin_multiplicity[1].item() == 2


def test_a_sink_takes_them_and_says_what_it_leaves_out(salt, water):
    with zp.ZarrData({}) as sink:
        with pytest.warns(UserWarning, match="not stored unless they are named") as caught:
            sink.write([salt, water])
        sink.write(water)
        sink.write(one for one in [water, water])
        assert len(sink) == 5
        assert "energy" not in sink.read()
    (message,) = [one for one in caught if "unless" in str(one.message)]
    assert (
        "from_pymatgen(structures, properties=['e_dft', 'mp_id', 'note'], "
        "site_properties=['forces', 'kind', 'magmom'])" in str(message.message)
    )
    assert message.filename == __file__


def test_there_and_back(salt, water):
    before = from_pymatgen([salt, water], **NAMED)
    back = to_pymatgen(before)
    assert isinstance(back[0], core.Structure)
    assert isinstance(back[1], core.Molecule)
    assert back[0].properties == {"energy": -12.5, "mp_id": "mp-22862"}
    assert back[0].site_properties == {"forces": FORCES, "magmom": [0.5, -0.5]}
    assert back[0].charge == 1
    assert back[0].lattice.pbc == (True, True, False)
    assert (back[1].charge, back[1].spin_multiplicity) == (1, 2)
    assert core.Structure.from_dict(back[0].as_dict()).properties == back[0].properties
    names = {"properties": ["energy", "mp_id"], "site_properties": ["forces", "magmom"]}
    after = from_pymatgen(back, **names)
    assert {*after.fields} == {*before.fields}
    for name, value in before.fields.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-14, equal_nan=True)


def test_labels_of_an_attached_calculator(salt, ase):
    (atoms,) = to_ase(from_pymatgen(salt))
    atoms.calc = ase.calculators.singlepoint.SinglePointCalculator(
        atoms, energy=-3.0, forces=np.array(FORCES), stress=np.arange(6.0)
    )
    adaptor = pytest.importorskip("pymatgen.io.ase").AseAtomsAdaptor
    structure = adaptor.get_structure(atoms)
    batch = from_pymatgen(structure)
    assert batch.energy.tolist() == [[-3.0]]
    assert batch.forces.tolist() == FORCES
    assert batch.stress[0].tolist() == [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    structure.perturb(0.1)
    assert "energy" not in from_pymatgen(structure), "they are those of other positions"


def test_what_cannot_be_carried_is_refused(salt):
    mixed = core.Structure(core.Lattice.cubic(3), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
    with pytest.raises(FieldError, match=r"structure 1 \(K0.5 Na0.5\) is disordered: make ordered"):
        from_pymatgen([salt, mixed])
    dummy = core.Structure(core.Lattice.cubic(3), [core.DummySpecies("X")], [[0, 0, 0]])
    with pytest.raises(FieldError, match=r"structure 0 .* sites of no element"):
        from_pymatgen(dummy)
    with pytest.raises(FieldError, match="'kind' has dtype object, expected numbers"):
        from_pymatgen(salt, site_properties=["kind"])
    with pytest.raises(ArgumentTypeError, match=r"given 'salt.cif', expected a pymatgen"):
        from_pymatgen(["salt.cif"])
