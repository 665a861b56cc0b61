"""Statistics against straightforward full passes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe import AtomicData, Batch, ZarrDataModule
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import FieldError
from zarrpipe.training.statistics import (
    StatisticsSums,
    count,
    mean_neighbors,
    measure,
    sample_blocks,
)

REFERENCE = {1: -13.6, 6: -1029.0, 8: -2042.0}


def flat(lists):
    return [one for part in lists for one in part]


def molecules(count, seed=0, *, numbers=None, noise=0.05, energy=True, forces=True):
    random = np.random.default_rng(seed)
    systems = []
    for _ in range(count):
        atoms = numbers or random.choice([1, 6, 8], size=random.integers(1, 9)).tolist()
        total = sum(REFERENCE[number] for number in atoms)
        labels = {}
        if energy:
            labels["energy"] = torch.tensor([[total + noise * random.normal() * len(atoms)]])
            labels["energy"] = labels["energy"].to(torch.float64)
        if forces:
            labels["forces"] = torch.from_numpy(random.normal(size=(len(atoms), 3)))
        positions = torch.from_numpy(random.normal(size=(len(atoms), 3)))
        systems.append(AtomicData(positions, atoms, **labels))
    return systems


def straight(systems):
    """Reference energies, mean and spread of energy per atom, force RMS, in the obvious way."""
    counts = np.array([[(s.atomic_numbers == z).sum() for z in REFERENCE] for s in systems], float)
    energy = np.array([float(s.energy) for s in systems])
    fitted = np.linalg.lstsq(counts, energy, rcond=None)[0]
    left = (energy - counts @ fitted) / counts.sum(1)
    forces = np.concatenate([s.forces.numpy() for s in systems])
    return fitted, left.mean(), left.std(), np.sqrt((forces**2).mean())


def check(statistics, systems):
    fitted, mean, spread, rms = straight(systems)
    found = [statistics.reference_energies.get(number, 0.0) for number in REFERENCE]
    np.testing.assert_allclose(found, fitted, rtol=1e-9, atol=1e-6)
    assert statistics.energy_per_atom_mean == pytest.approx(mean, abs=1e-8)
    assert statistics.energy_per_atom_std == pytest.approx(spread, rel=1e-5, abs=1e-4)
    assert statistics.forces_rms == pytest.approx(rms, rel=1e-12)
    assert statistics.num_samples == len(systems)
    assert statistics.num_atoms == sum(s.num_nodes for s in systems)
    numbers = torch.cat([s.atomic_numbers for s in systems])
    assert statistics.element_counts == {
        number: int((numbers == number).sum()) for number in REFERENCE if (numbers == number).any()
    }


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 100))
def test_added_and_merged_sums_equal_one_pass(blocks, seed):
    parts = [molecules(count, seed + place) for place, count in enumerate(blocks)]
    # The first block may be one molecule, so that energies left after it are of 1,000 eV.
    added, merged = StatisticsSums(), StatisticsSums()
    for part in parts:
        added.add(Batch.from_data_list(part))
        merged.merge(StatisticsSums().add(Batch.from_data_list(part)))
    every = flat(parts)
    check(added.statistics(), every)
    check(merged.statistics(), every)


def test_one_composition_reproduces_its_mean_energy():
    systems = molecules(50, numbers=[6, 6, 1, 1, 1, 1, 1, 1, 8])
    statistics = StatisticsSums().add(Batch.from_data_list(systems)).statistics()
    table = statistics.reference_energy_table()
    mean = np.mean([float(system.energy) for system in systems])
    assert float(table[systems[0].atomic_numbers].sum()) == pytest.approx(mean, abs=1e-9)
    assert statistics.energy_per_atom_mean == pytest.approx(0, abs=1e-9)
    check(statistics, systems)


def test_an_early_block_of_one_composition_leaves_no_trace():
    early = molecules(10, numbers=[6, 1, 1, 1, 1])
    later = molecules(60, seed=1)
    sums = StatisticsSums()
    for part in (early, later):
        sums.add(Batch.from_data_list(part))
    check(sums.statistics(), early + later)


def test_a_small_spread_beside_huge_energies_is_kept():
    noise = 1e-6
    systems = molecules(400, noise=noise)
    statistics = StatisticsSums().add(Batch.from_data_list(systems)).statistics()
    assert statistics.energy_per_atom_std == pytest.approx(straight(systems)[2], rel=1e-3)


def test_absent_labels_are_left_out():
    full = molecules(20)
    no_energy = molecules(5, seed=1, energy=False)
    no_forces = molecules(5, seed=2, forces=False)
    statistics = (
        StatisticsSums().add(Batch.from_data_list(no_energy + full + no_forces)).statistics()
    )
    assert statistics.num_samples == 30
    energies = straight(full + [s.add_field("forces", s.positions * 0) for s in no_forces])
    forces = np.concatenate([s.forces.numpy() for s in full + no_energy])
    assert statistics.forces_rms == pytest.approx(np.sqrt((forces**2).mean()))
    assert list(statistics.reference_energies.values()) == pytest.approx(list(energies[0]))


def test_nothing_labelled():
    bare = molecules(3, energy=False, forces=False)
    statistics = StatisticsSums().add(Batch.from_data_list(bare)).statistics()
    assert statistics.reference_energies == {}
    assert np.isnan([statistics.energy_per_atom_mean, statistics.energy_per_atom_std]).all()
    assert np.isnan(statistics.forces_rms)
    assert statistics.num_samples == 3
    assert StatisticsSums().statistics().num_atoms == 0


def test_labels_that_are_not_finite_and_numbers_that_are_no_elements_are_refused():
    wrong = molecules(3)
    wrong[1].forces[0, 0] = float("nan")
    with pytest.raises(FieldError, match="'forces' has 1 values that are NaN or infinite"):
        StatisticsSums().add(Batch.from_data_list(wrong))
    with pytest.raises(FieldError, match="of 1 samples has numbers that are not 0 to 118"):
        StatisticsSums().add(Batch.from_data_list([AtomicData([[0.0] * 3] * 2, [1, 119])]))


def test_a_dataset_is_measured_in_blocks(tmp_path, data, monkeypatch):
    systems = molecules(100)
    data.append(tmp_path / "store", Batch.from_data_list(systems))
    monkeypatch.setattr("zarrpipe.training.statistics._BLOCK_ATOMS", 50)
    check(measure(ZarrDataset(tmp_path / "store")).statistics(), systems)


@given(st.lists(st.integers(1, 90), max_size=40))
def test_blocks_hold_every_sample_once_and_not_too_many_atoms(sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zarrpipe.training.statistics._BLOCK_ATOMS", 60)
        patch.setattr("zarrpipe.training.statistics._BLOCK_SAMPLES", 7)
        blocks = [block.tolist() for block in sample_blocks(np.array(sizes, dtype=np.int64))]
    assert flat(blocks) == list(range(len(sizes)))
    for block in blocks:
        assert len(block) <= 7
        assert len(block) == 1 or sum(sizes[sample] for sample in block) <= 60


def test_mean_neighbours_within_a_cutoff(tmp_path, data):
    pytest.importorskip("vesin")
    systems = molecules(40)
    for system in systems[::2]:
        system.add_field("cell", 4.0 * torch.eye(3, dtype=torch.float64)[None])
        system.add_field("pbc", torch.ones(1, 3, dtype=torch.bool))
    data.append(tmp_path / "store", Batch.from_data_list(systems[::2]))
    data.append(tmp_path / "store", Batch.from_data_list(systems[1::2]))
    images = 4.0 * np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 3)
    pairs = 0
    for number, system in enumerate(systems):
        places = system.positions.numpy() % 4.0 if number % 2 == 0 else system.positions.numpy()
        shifts = images if number % 2 == 0 else np.zeros((1, 3))
        apart = places[:, None, None] - places[None, :, None] + shifts
        pairs += int((np.linalg.norm(apart, axis=-1) < 2.5).sum()) - len(places)
    dataset = ZarrDataset(tmp_path / "store")
    atoms = sum(system.num_nodes for system in systems)
    assert mean_neighbors(dataset, 2.5) == pytest.approx(pairs / atoms)
    some = [mean_neighbors(dataset, 2.5, samples=10, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert np.isnan(mean_neighbors(dataset.index_select([]), 2.5))
    with pytest.raises(ValueError, match="samples is 0"):
        mean_neighbors(dataset, 2.5, samples=0)
    with pytest.raises(ValueError, match="cutoff is -1"):
        mean_neighbors(dataset, -1.0)


def test_sizes_and_edges_are_counted(tmp_path, data):
    batch = data.append(tmp_path / "store", data.batch(50))
    statistics = measure(ZarrDataset(tmp_path / "store")).statistics()
    sizes = np.bincount(batch.num_nodes_list)
    assert statistics.size_histogram == {n: int(sizes[n]) for n in np.flatnonzero(sizes)}
    assert statistics.edges_per_atom == pytest.approx(batch.num_edges / batch.num_nodes)


@pytest.mark.parametrize("split", [(0.8, 0.1, 0.1), (0.33, 0.67, 0.0)])
def test_what_the_stores_keep_is_not_read(tmp_path, data, monkeypatch, split):
    for part in "ab":
        data.append(tmp_path / part, Batch.from_data_list(molecules(100, ord(part))))
    stores, read = [tmp_path / "a", tmp_path / "b"], []
    plain = ZarrDataModule(stores, split=split)
    expected = count(plain.train_dataset).statistics()
    monkeypatch.setattr(
        "zarrpipe.training.statistics.count", lambda new: read.append(len(new)) or count(new)
    )
    found = plain.statistics
    assert read == []
    for name in ("energy_per_atom_mean", "energy_per_atom_std", "forces_rms", "edges_per_atom"):
        assert getattr(found, name) == pytest.approx(
            getattr(expected, name), rel=1e-6, abs=1e-9, nan_ok=True
        )
    for name in ("num_samples", "num_atoms", "element_counts", "size_histogram"):
        assert getattr(found, name) == getattr(expected, name)
    ZarrDataModule(stores, split=(0.805, 0.195, 0.0)).statistics  # noqa: B018  it is read
    ZarrDataModule(stores, split=split, where="num_atoms < 5").statistics  # noqa: B018  as well
    assert len(read) == 2
