"""Objects of other libraries, handed to the sink as they are."""

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import as_batch, to_pyg, to_torch_sim


@pytest.fixture
def labelled_atoms(ase, rng):
    systems = [ase.build.molecule(name) for name in ("H2O", "CH4", "CO2")]
    for atoms in systems:
        atoms.calc = ase.calculators.singlepoint.SinglePointCalculator(
            atoms, energy=rng.normal() - 1e4, forces=rng.normal(size=(len(atoms), 3))
        )
    return systems


def stored(sink, *, of):
    batch = sink.read()
    assert set(batch.fields) == set(of.fields)
    return all(torch.equal(batch[name], value) for name, value in of.fields.items())


def test_ase_atoms_with_a_mask(labelled_atoms):
    with zp.ZarrData({}) as sink:
        sink.write(labelled_atoms, torch.tensor([True, False, True]))
        sink.write(labelled_atoms[1])
        expected = as_batch(labelled_atoms).index_select([0, 2, 1])
        assert stored(sink, of=expected)
        assert sink.read().energy.dtype is torch.float64


def test_a_pyg_batch(pyg, labelled_atoms):
    expected = as_batch(labelled_atoms)
    expected.add_field("own", torch.arange(len(expected.positions)), "atom")
    batch = to_pyg(expected)
    assert isinstance(batch, pyg.Batch)
    with zp.ZarrData({}) as sink:
        sink.write(batch)
        sink.write(batch.to_data_list())
        assert stored(sink, of=zp.Batch.concatenate([expected, expected]))


def test_a_torch_sim_state_with_a_mask(torch_sim, labelled_atoms):
    state = to_torch_sim(as_batch(labelled_atoms))
    assert isinstance(state, torch_sim.SimState)
    with zp.ZarrData({}) as sink:
        sink.write(state, torch.tensor([False, True, True]))
        assert stored(sink, of=as_batch(state[[1, 2]]))


def test_systems_of_several_libraries_in_one_store(torch_sim, labelled_atoms):
    """Labelled systems first, then states without labels: those are absent, not shifted."""
    del torch_sim
    state = to_torch_sim(as_batch(labelled_atoms))
    with zp.ZarrData({}) as sink:
        sink.write(labelled_atoms)
        sink.write(state)
        batch = sink.read()
    assert batch.present("energy").tolist() == [True] * 3 + [False] * 3
    assert batch.present("atomic_masses").tolist() == [False] * 3 + [True] * 3
    np.testing.assert_array_equal(batch.positions[:11], batch.positions[11:])


def test_an_object_without_an_adapter_writes_nothing():
    with zp.ZarrData({}) as sink:
        with pytest.raises(TypeError, match="no adapter"):
            sink.write({"positions": [[0.0, 0.0, 0.0]]})
        assert len(sink) == 0
