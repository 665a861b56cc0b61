"""ConvertUnits: the factors of ase.units, and quantities that stay consistent."""

import numpy as np
import pytest
import torch

from zarrpipe import AtomicData, Batch
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.testing import assert_batches_equal
from zarrpipe.transforms import ConvertUnits
from zarrpipe.transforms.units import parse


@pytest.mark.parametrize(
    "name",
    [
        *("eV", "Hartree", "Rydberg", "J", "kJ", "kcal", "Angstrom", "Bohr", "nm", "m", "C", "kg"),
        *("Debye", "GPa", "Pa", "bar", "s", "fs", "mol"),
    ],
)
def test_units_are_those_of_ase(name):
    units = pytest.importorskip("ase.units")
    known = {"Pa": units.Pascal, "s": units.second, "Rydberg": units.Rydberg, "eV": 1.0}
    expected = known.get(name) or getattr(units, name)
    assert parse(name).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        ("kcal/mol/Angstrom", lambda u: u.kcal / u.mol),
        ("Hartree/Bohr^3", lambda u: u.Hartree / u.Bohr**3),
        ("sqrt(kg*J)/mol", lambda u: (u.kg * u.J) ** 0.5 / u.mol),
        ("nm^-2*e", lambda u: u.nm**-2),
        ("", lambda _: 1.0),
        ("sqrt(Bohr)^3", lambda u: u.Bohr**1.5),
    ],
)
def test_expressions(text, factor):
    assert parse(text).value == pytest.approx(factor(pytest.importorskip("ase.units")), rel=1e-12)


def batch_of(rng):
    def floats(*shape):
        return torch.from_numpy(rng.normal(size=shape))

    return Batch.from_data_list(
        [
            AtomicData(
                floats(atoms, 3),
                [1, 8, 6][:atoms],
                energy=floats(1, 1),
                forces=floats(atoms, 3),
                velocities=floats(atoms, 3),
                momenta=floats(atoms, 3),
                atomic_masses=floats(atoms).abs(),
                kinetic_energies=floats(atoms, 1),
                charges=floats(atoms),
                charge=floats(1, 1),
                dipole=floats(1, 3),
                cell=floats(1, 3, 3),
                stress=floats(1, 3, 3),
                virial=floats(1, 3, 3),
                spin=floats(1, 1),
                pbc=[True, True, True],
                neighbor_list=[[0, 1], [1, 0]],
                neighbor_list_shifts=[[0.0, 1, 0], [0, -1, 0]],
                shifts=floats(2, 3),
                system={"round": torch.tensor([3]), "gap": floats(1)},
            )
            for atoms in (2, 3)
        ]
    )


@pytest.fixture
def batch():
    return batch_of(np.random.default_rng(0))


def test_every_field_of_the_registry_with_a_unit_is_converted(batch):
    units = pytest.importorskip("ase.units")
    energy, length, mass, charge = units.kcal / units.mol, units.Bohr, 1e-3 * units.kg, units.C
    convert = ConvertUnits(
        energy="kcal/mol", length="Bohr", mass="g", charge="C", own={"gap": "Hartree"}
    )
    expected = {
        "eV": energy,
        "Angstrom": length,
        "amu": mass,
        "e": charge,
        "eV/Angstrom": energy / length,
        "eV/Angstrom^3": energy / length**3,
        "sqrt(eV/amu)": (energy / mass) ** 0.5,
        "sqrt(eV*amu)": (energy * mass) ** 0.5,
        "e*Angstrom": charge * length,
        "": 1.0,
    }
    assert {spec.unit for spec in CORE_FIELDS.values()} == set(expected)
    converted = convert(batch)
    for name, value in batch.fields.items():
        if name in CORE_FIELDS:
            factor = 1 / expected[CORE_FIELDS[name].unit]
            wanted = value if factor == 1 else value * factor
            torch.testing.assert_close(converted[name], wanted, rtol=1e-12, atol=0)
            assert convert.factors[name] == pytest.approx(factor, rel=1e-12)
        assert converted[name].dtype == value.dtype
    torch.testing.assert_close(
        converted.gap, batch.gap * units.Hartree / energy, rtol=1e-12, atol=0
    )
    assert torch.equal(converted.round, batch.round)


def test_quantities_stay_consistent(batch):
    """Work, kinetic energy and pressure times volume are energies before and after."""
    convert = ConvertUnits(energy="kJ/mol", length="nm", mass="kg", own={"gap": ""})
    converted, factor = convert(batch), convert.factors["energy"]
    for energy in (
        lambda one: (one.forces * one.positions).sum(1),
        lambda one: (one.atomic_masses[:, None] * one.velocities**2).sum(1),
        lambda one: (one.velocities * one.momenta).sum(1),
        lambda one: one.stress * torch.linalg.det(one.cell)[:, None, None],
        lambda one: one.virial,
    ):
        torch.testing.assert_close(energy(converted), energy(batch) * factor, rtol=1e-11, atol=0)


def test_single_fields_may_have_units_of_their_own(batch):
    units = pytest.importorskip("ase.units")
    convert = ConvertUnits(
        energy="kcal/mol",
        fields={"stress": "GPa", "dipole": "Debye", "velocities": "Angstrom/fs", "gap": "meV"},
        own={"gap": "Hartree"},
    )
    converted = convert(batch)
    for name, unit in {
        "stress": units.GPa,
        "dipole": units.Debye,
        "velocities": 1 / units.fs,
        "energy": units.kcal / units.mol,
        "forces": units.kcal / units.mol,
        "gap": 1e-3 / units.Hartree,
        "positions": 1.0,
    }.items():
        torch.testing.assert_close(converted[name], batch[name] / unit, rtol=1e-12, atol=0)


def test_absent_rows_stay_absent_and_the_batch_stays(batch):
    mixed = Batch.concatenate([batch, batch.without("energy").get_data(0)])
    before = mixed.clone()
    converted = ConvertUnits(energy="Hartree", own={"gap": ""})(mixed)
    assert converted.present("energy").tolist() == [True, True, False]
    assert torch.isnan(converted.energy[2]).all()
    assert_batches_equal(mixed, before)
    assert_batches_equal(ConvertUnits(own={"gap": "eV"})(mixed), before)


def test_floats_of_which_the_unit_is_not_known_are_refused(batch):
    with pytest.raises(FieldError, match=r"'gap' is not in the registry.*own=\{'gap': ...\}"):
        ConvertUnits(energy="kcal/mol")(batch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"energy": "kcal"}, None),
        ({"energy": "parsec"}, "'parsec' of 'parsec' is not a known unit"),
        (
            {"energy": "Bohr"},
            "the unit of energy is 'Bohr', which is length, expected one of energy",
        ),
        ({"length": ""}, "which is a number, expected one of length"),
        ({"energy": "kcal mol"}, "'kcal mol' is no unit from ' mol' on"),
        ({"energy": "eVAngstrom"}, "is not a known unit"),
        ({"energy": "/eV"}, "'/eV' is no unit from"),
        ({"energy": "eV/"}, "is no unit from '/' on"),
        ({"fields": {"stress": "eV"}}, r"of stress is 'eV'.*expected one of energy\*length\^-3"),
        ({"fields": {"gap": "eV"}}, "fields has 'gap', which is not in the registry"),
        ({"own": {"energy": "eV"}}, "own has 'energy', which the registry has in 'eV'"),
    ],
)
def test_units_are_checked_at_once(arguments, message):
    if message is None:
        ConvertUnits(**arguments)
        return
    with pytest.raises(ArgumentError, match=message):
        ConvertUnits(**arguments)
