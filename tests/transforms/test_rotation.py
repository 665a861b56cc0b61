"""RandomRotation: proper, uniform over SO(3), and what it turns belongs together as before."""

import math

import numpy as np
import pytest
import torch

from zarrpipe import AtomicData, Batch
from zarrpipe.adapters import from_ase, to_ase
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.testing import assert_batches_equal
from zarrpipe.transforms import RandomRotation, sample_keys, uniform
from zarrpipe.transforms.rotation import rotations

KEYS = sample_keys(0, 0, np.arange(20_000, dtype=np.uint64))
CRITICAL = 1.95
"""Of the Kolmogorov-Smirnov statistic times sqrt(n), at a level of 0.1 %."""


def distance(values, cdf):
    """Kolmogorov-Smirnov statistic times sqrt(n)."""
    ranks = np.arange(len(values) + 1) / len(values)
    expected = cdf(np.sort(values))
    found = max(np.abs(expected - ranks[1:]).max(), np.abs(expected - ranks[:-1]).max())
    return found * math.sqrt(len(values))


def vectors_turned(batch, keys):
    """The rotation of each system, found by turning the axes."""
    axes = Batch.from_data_list(
        [AtomicData(torch.eye(3, dtype=torch.float64), [1, 1, 1])] * len(keys)
    )
    return RandomRotation()(axes, keys).positions.reshape(-1, 3, 3).mT


def keys_of(count):
    return KEYS[:count]


def test_rotations_are_proper():
    turns = rotations(uniform(KEYS, 3))
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(turns), 1.0, atol=1e-14)


def test_rotations_are_uniform():
    turns = rotations(uniform(KEYS, 3))
    angle = np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert distance(angle, lambda x: (x - np.sin(x)) / np.pi) < CRITICAL
    for axis in range(3):
        image = turns[:, :, axis]
        for component in range(3):
            assert distance(image[:, component], lambda x: (x + 1) / 2) < CRITICAL
        around = np.arctan2(image[:, 1], image[:, 0])
        assert distance(around, lambda x: (x + np.pi) / (2 * np.pi)) < CRITICAL
    # <R_ij R_kl> = delta_ik delta_jl / 3; the standard error is about 0.3 / sqrt(n).
    second = np.einsum("nij,nkl->ijkl", turns, turns) / len(turns)
    expected = np.einsum("ik,jl->ijkl", np.eye(3), np.eye(3)) / 3
    np.testing.assert_allclose(second, expected, atol=5 * 0.3 / math.sqrt(len(turns)))


def test_what_is_uniform_by_parts_only_is_told_apart():
    """Three uniform Euler angles are not uniform over SO(3): the test above can fail."""
    first, second, third = 2 * np.pi * uniform(KEYS, 3).T
    trace = np.cos(second) + (1 + np.cos(second)) * np.cos(first + third)
    angle = np.arccos(np.clip((trace - 1) / 2, -1, 1))
    assert distance(angle, lambda x: (x - np.sin(x)) / np.pi) > 2 * CRITICAL


@pytest.fixture(scope="module")
def systems():
    """Crystals and a slab with EMT, argon clusters with Lennard-Jones."""
    pytest.importorskip("ase")
    from ase.build import bulk, fcc111  # noqa: PLC0415  optional
    from ase.calculators.emt import EMT  # noqa: PLC0415
    from ase.calculators.lj import LennardJones  # noqa: PLC0415
    from ase.cluster import Octahedron  # noqa: PLC0415

    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    crystal.set_cell(crystal.cell[:] @ [[1.02, 0.03, 0], [0, 0.98, 0.05], [0, 0, 1]], True)
    slab = fcc111("Al", (2, 2, 2), vacuum=4.0)
    cluster = Octahedron("Ar", 2, latticeconstant=5.2)
    for seed, (atoms, calculator) in enumerate(
        [(crystal, EMT()), (slab, EMT()), (cluster, LennardJones(sigma=3.4, rc=12.0))]
    ):
        atoms.rattle(0.1, seed=seed)
        atoms.calc = calculator
        atoms.get_potential_energy()
        atoms.get_forces()
        if atoms.pbc.any():
            atoms.get_stress()
    return [crystal, slab, cluster]


def test_energy_stays_and_forces_and_stress_turn_as_a_potential_has_them(systems):
    batch = from_ase(systems)
    volume = torch.linalg.det(batch.cell)[:, None, None]
    batch.virial = -batch.stress * volume
    turned = RandomRotation()(batch, keys_of(3))
    assert float((turned.positions - batch.positions).abs().max()) > 1
    for place, (atoms, before) in enumerate(zip(to_ase(turned), systems, strict=True)):
        one = turned.get_data(place)
        atoms.calc = before.calc
        assert atoms.pbc.tolist() == before.pbc.tolist()
        assert float(one.energy) == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(one.forces, atoms.get_forces(), atol=1e-9)
        if not atoms.pbc.any():
            assert "stress" not in one
            continue
        stress = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(one.stress[0], stress, atol=1e-10)
        np.testing.assert_allclose(one.virial[0], -stress * atoms.get_volume(), atol=1e-8)
        assert np.abs(stress - before.get_stress(voigt=False)).max() > 1e-3
    assert torch.equal(turned.present("stress"), torch.tensor([True, True, False]))


@pytest.fixture
def batch():
    """Two systems with every kind of field."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    made = []
    for atoms, edges in ((3, 4), (2, 0)):
        ends = torch.arange(edges)[:, None] % atoms
        cell, images = numbers(1, 3, 3), torch.randint(-1, 2, (edges, 3), generator=generator)
        points = numbers(atoms, 3)
        outer = points[:1, :, None] * points[:1, None, :]
        made.append(
            AtomicData(
                points,
                [1] * atoms,
                cell=cell,
                pbc=[True, True, False],
                neighbor_list=torch.cat([ends, (ends + 1) % atoms], 1),
                neighbor_list_shifts=images,
                shifts=images.double() @ cell[0],
                velocities=3 * points,
                momenta=4 * points,
                forces=5 * points,
                dipole=points[:1],
                stress=outer,
                virial=2 * outer,
                energy=numbers(1, 1),
                atom={"label": numbers(atoms), "tag": torch.zeros(atoms, 3, dtype=torch.int64)},
            )
        )
    return Batch.from_data_list(made)


def test_each_field_turns_with_its_kind(batch):
    keys = keys_of(2)
    turned, turns = RandomRotation()(batch, keys), vectors_turned(batch, keys)
    by_atom = turns[batch.batch_idx]
    points = torch.einsum("vij,vj->vi", by_atom, batch.positions)
    first = points[batch.batch_ptr[:-1]]
    outer = first[:, :, None] * first[:, None, :]
    expected = {
        "positions": points,
        "velocities": 3 * points,
        "momenta": 4 * points,
        "forces": 5 * points,
        "dipole": first,
        "stress": outer,
        "virial": 2 * outer,
        "cell": torch.einsum("bij,bkj->bki", turns, batch.cell),
    }
    for name, value in expected.items():
        torch.testing.assert_close(turned[name], value, rtol=0, atol=1e-14)
    cell = turned.cell[torch.repeat_interleave(torch.arange(2), batch.num_edges_per_graph)]
    images = torch.einsum("ei,eij->ej", turned.neighbor_list_shifts.double(), cell)
    torch.testing.assert_close(turned.shifts, images, rtol=0, atol=1e-14)
    same = ("energy", "pbc", "atomic_numbers", "neighbor_list", "neighbor_list_shifts", "label")
    for name in (*same, "tag"):
        assert torch.equal(turned[name], batch[name]), name


def test_the_batch_itself_stays(batch):
    before = batch.clone()
    RandomRotation()(batch, keys_of(2))
    assert_batches_equal(batch, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dtypes_are_kept(batch, dtype):
    narrow = batch.to(dtype=dtype)
    turned = RandomRotation()(narrow, keys_of(2))
    exact = RandomRotation()(narrow.to(dtype=torch.float64), keys_of(2))
    for name, value in turned.fields.items():
        assert value.dtype == narrow[name].dtype
        if value.is_floating_point():
            torch.testing.assert_close(value, exact[name].to(dtype), rtol=2e-3, atol=2e-3)


def test_an_absent_field_stays_absent(batch):
    mixed = Batch.concatenate([batch, batch.without("forces", "stress").get_data(0)])
    turned = RandomRotation()(mixed, keys_of(3))
    assert turned.present("forces").tolist() == [True, True, False]
    assert torch.isnan(turned.forces[5:]).all()
    assert torch.equal(turned.stress[:2], RandomRotation()(batch, keys_of(2)).stress)


def test_a_system_turns_alike_in_any_batch(batch):
    keys, rotate = keys_of(7), RandomRotation()
    many = batch.index_select([0, 1, 1, 0, 1, 0, 0])
    whole = rotate(many, keys)
    for place in range(7):
        one = rotate(many.index_select([place]), keys[place : place + 1])
        assert_batches_equal(one, whole.index_select([place]))


def test_fields_that_may_turn_have_to_be_told(batch):
    own = batch.clone().add_field("born", batch.positions[:, :, None] * torch.ones(3), "atom")
    own.add_field("magnetic", batch.positions, "atom")
    with pytest.raises(
        FieldError, match=r"'born' has rows of shape \(3, 3\).*ranks=\{'born': ...\}"
    ):
        RandomRotation()(own, keys_of(2))
    turned = RandomRotation({"born": 2, "magnetic": 1})(own, keys_of(2))
    assert torch.equal(turned.magnetic, turned.positions)
    turns = vectors_turned(batch, keys_of(2))[batch.batch_idx]
    torch.testing.assert_close(turned.born, turns @ own.born @ turns.mT)
    assert torch.equal(RandomRotation({"born": 0, "magnetic": 0})(own, keys_of(2)).born, own.born)
    with pytest.raises(FieldError, match=r"'label' has rows of shape \(\).*last axes of \(3,\)"):
        RandomRotation({"born": 2, "magnetic": 1, "label": 1})(own, keys_of(2))
    with pytest.raises(FieldError, match="'node_attrs' has rows"):
        RandomRotation()(batch.clone().add_field("node_attrs", torch.rand(5, 2)), keys_of(2))


@pytest.mark.parametrize(("name", "rank"), [("forces", 0), ("own", 3), ("energy", 1), ("own", "1")])
def test_ranks_are_checked_at_once(name, rank):
    with pytest.raises(ArgumentError, match=f"the rank of '{name}' is {rank!r}"):
        RandomRotation({name: rank})
