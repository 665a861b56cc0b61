"""fairchem on a store: its batches and its data set by value, its loss, its sampler."""

import os
import re
import subprocess
import sys
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import from_ase, to_fairchem
from zarrpipe.errors import ArgumentError, FieldError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fairchem and what it imports
    pytest.importorskip("fairchem.core.units.mlip_unit.mlip_unit")
    from fairchem.core.datasets.collaters.mt_collater import MTCollater
    from fairchem.core.datasets.collaters.simple_collater import data_list_collater
    from fairchem.core.datasets.mt_concat_dataset import create_concat_dataset
    from fairchem.core.datasets.samplers.max_atom_distributed_sampler import (
        MaxAtomDistributedBatchSampler,
    )

    from benchmarks.trainers import fairchem as training

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks.trainers.structures import crystals, molecules

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:fairchem.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:fairchem.*"),
]
ROOT = Path(__file__).parents[2]
KEYS = {"r_data_keys": ["charge", "spin"]}


def own(work, structures, **config):
    """Items of fairchem's own data set of an ASE database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE's database, with this NumPy
        return training.own_data(work, structures, config)


def moved(structures, rng):
    """The structures somewhere else than in their cells, with their labels."""
    for atoms in structures:
        results = dict(atoms.calc.results)
        atoms.positions += rng.normal(scale=10.0, size=3)
        atoms.calc = SinglePointCalculator(atoms, **results)
    return structures


def check(ours, theirs):
    """Every attribute, and how a batch is split again."""
    assert set(ours.keys()) == set(theirs.keys())
    for key in theirs.keys():  # noqa: SIM118  of fairchem
        if isinstance(theirs[key], torch.Tensor):
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=2e-6, msg=key)
        else:
            assert ours[key] == theirs[key], key
    assert ours.get_batch_stats() == theirs.get_batch_stats()


@pytest.mark.parametrize("kind", [molecules, crystals])
def test_batches_of_its_own_data_set_by_value(tmp_path, kind):
    structures = moved(kind(6), np.random.default_rng(0))
    data = own(tmp_path, structures, a2g_args={"task_name": "omat"})
    theirs = data_list_collater([data[place] for place in range(6)], otf_graph=True)
    ours = to_fairchem(from_ase(structures, dtype=torch.float64), dataset="omat")
    check(ours, theirs)
    assert {"energy", "forces"} <= set(ours.keys())
    assert ("stress" in ours) is (kind is crystals)
    third = ours.get_example(2)
    for key in ("pos", "energy", "forces", "cell", "atomic_numbers"):
        torch.testing.assert_close(third[key], data[2][key], rtol=1e-6, atol=2e-6)


def test_slabs_tags_constraints_charges_and_open_cells_by_value(tmp_path):
    slab = Atoms("Cu3", np.arange(9.0).reshape(3, 3) * 2, cell=[4, 5, 20], pbc=[True, True, False])
    slab.set_tags([0, 2, 1])
    slab.set_constraint(FixAtoms([0, 2]))
    slab.info.update(charge=-1, spin=2)
    chain = Atoms("H2", [[0, 0, 0.1], [0, 0, 9.0]], cell=[[0, 0, 0], [0, 3, 0], [1, 0, 5]])
    wire = Atoms("C", [[0.1, -3, 2]], cell=[[0, 0, 0], [1, 2, 3], [0, 0, 0]])
    wire.info["charge"] = 1
    structures = [slab, chain, wire]
    data = own(tmp_path, structures, a2g_args=KEYS)
    theirs = data_list_collater([data[place] for place in range(3)], otf_graph=True)
    batch = from_ase(structures, dtype=torch.float64)
    batch.add_field("tags", np.array([0, 2, 1, 0, 0, 0]), "atom")
    batch.add_field("fixed", np.array([1, 0, 1, 0, 0, 0]), "atom")
    batch.add_field("charge", torch.tensor([[-1.0], [0.0], [0.9]], dtype=torch.float64))
    batch.add_field("spin", torch.tensor([[2.0], [0.0], [0.0]], dtype=torch.float64))
    ours = to_fairchem(batch)
    check(ours, theirs)
    assert ours.tags.tolist() == [0, 2, 1, 1, 1, 1]
    assert ours.fixed.tolist() == [1, 0, 1, 0, 0, 0]
    assert ours.charge.tolist() == [-1, 0, 1]


def test_molecules_in_vacuum_by_value(tmp_path):
    structures = moved(molecules(5), np.random.default_rng(1))
    data = own(tmp_path, structures, a2g_args={"molecule_cell_size": 20.0})
    theirs = data_list_collater([data[place] for place in range(5)], otf_graph=True)
    batch = from_ase(structures, dtype=torch.float64)
    check(to_fairchem(batch, molecule_cell_size=20.0), theirs)
    mixed = from_ase([structures[0], crystals(1)[0]], dtype=torch.float64)
    both = to_fairchem(mixed.without("stress"), molecule_cell_size=20.0)
    first = to_fairchem(batch[[0]], molecule_cell_size=20.0)
    torch.testing.assert_close(both.cell[0], first.cell[0])
    torch.testing.assert_close(both.cell[1], mixed.cell[1].float())
    structures[0].cell = [30, 30, 30]  # not periodic all the same
    walled = to_fairchem(from_ase(structures[0]), molecule_cell_size=20.0)
    assert walled.cell[0].diagonal().tolist() == [30, 30, 30]
    assert not walled.pbc.any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_stays_on_the_device():
    batch = from_ase(crystals(5), dtype=torch.float64)
    there = to_fairchem(batch.to("cuda"), dataset="omat")
    tensors = [value for _, value in there if isinstance(value, torch.Tensor)]
    assert {value.device.type for value in tensors} == {"cuda"}
    check(there.cpu(), to_fairchem(batch, dataset="omat"))


def test_its_loss_leaves_out_what_is_missing():
    complete = from_ase(crystals(3), dtype=torch.float64)
    parts = complete.to_data_list()
    bare = zp.AtomicData(
        parts[1].positions, parts[1].atomic_numbers, cell=parts[1].cell, pbc=parts[1].pbc
    )
    batch = zp.Batch.from_data_list([parts[0], bare, parts[2]])
    names = {
        "dataset": "omat",
        "dataset_name": "omat.train",
        "key_mapping": training.NAMES,
        "flat_stress": True,
    }
    data, rest = (to_fairchem(one, **names) for one in (batch, complete[[0, 2]]))
    assert torch.isinf(data.omat_energy).tolist() == [False, True, False]
    assert torch.isinf(data.omat_forces).all(1).tolist() == [
        owner == 1 for owner in data.batch.tolist()
    ]
    assert data.omat_stress.shape == (3, 9)
    losses = {}
    for name, given in (("all", data), ("rest", rest)):
        predicted = {
            new: {old: torch.zeros_like(given[new]).requires_grad_()}
            for old, new in training.NAMES.items()
        }
        losses[name] = training.compute_loss(training.tasks(), predicted, given)
    for name, loss in losses["rest"].items():
        assert torch.isfinite(loss)
        torch.testing.assert_close(losses["all"][name], loss)


def test_cells_without_a_volume_are_refused():
    flat = Atoms("Cu", cell=[3, 3, 0], pbc=[True, True, False])
    with pytest.raises(FieldError, match=r"system 1 of the batch has pbc=\[True, True, False\]"):
        to_fairchem(from_ase([Atoms("H"), flat]))


@pytest.fixture
def stored(tmp_path):
    structures = moved(crystals(24), np.random.default_rng(2))
    with zp.ZarrData(tmp_path / "labelled.zarr") as sink:
        sink.write(structures)
    return tmp_path / "labelled.zarr", structures


def test_samples_of_a_data_set_by_value(stored, tmp_path):
    store, structures = stored
    data = zp.fairchem.StoreDataset({"src": str(store), **training.CONFIG})
    theirs = own(tmp_path, structures, **training.CONFIG)
    assert len(data) == 24
    for place in (0, 7, 23):
        ours, expected = data[place], theirs[place]
        assert set(ours.keys()) == set(expected.keys())
        assert ours.omat_stress.shape == (1, 9)
        for key in expected.keys():  # noqa: SIM118  of fairchem
            if isinstance(expected[key], torch.Tensor):
                torch.testing.assert_close(ours[key], expected[key], rtol=1e-6, atol=2e-6, msg=key)
            else:
                assert ours[key] == expected[key], key


def test_a_data_set_goes_the_way_of_its_configuration(stored):
    store, structures = stored
    config = {
        "format": "zarrpipe.fairchem.StoreDataset",
        "splits": {
            "train": {"src": str(store), "where": "num_atoms > 4", "max_atoms": 16},
        },
        **training.CONFIG,
    }
    joined = create_concat_dataset(
        OmegaConf.create({"omat": config}),
        {"sampling": {"type": "explicit", "ratios": {"omat.train": 1.0}}},
    )
    sizes = [len(atoms) for atoms in structures if 4 < len(atoms) <= 16]
    assert len(joined) == len(sizes) > 4
    sampler = MaxAtomDistributedBatchSampler(joined, 40, 1, 0, seed=0)
    collate = MTCollater(training.TASK_CONFIG, [])
    batches = [collate([joined[place] for place in chosen]) for chosen in sampler]
    assert sorted(n for batch in batches for n in batch.natoms.tolist()) == sorted(sizes)
    assert max(int(batch.natoms.sum()) for batch in batches) <= 40
    assert {name for batch in batches for name in batch.dataset_name} == {"omat.train"}
    assert all(torch.isfinite(batch.omat_energy).all() for batch in batches)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({}, "has no 'src'"),
        ({"src": "s", "a2g_args": {"r_edges": True}}, r"a2g_args has \['r_edges'\].*otf_graph"),
    ],
)
def test_a_configuration_that_cannot_be_followed(config, match):
    with pytest.raises(ArgumentError, match=match):
        zp.fairchem.StoreDataset(config)


def test_batches_of_the_data_module(stored):
    store, structures = stored
    names = {"dataset": "omat", "dataset_name": "omat.train", "key_mapping": training.NAMES}
    data = zp.fairchem.ZarrDataModule(store, batch_size=5, split=(1.0, 0.0, 0.0), **names)
    data.setup("fit")
    order = [chosen.tolist() for chosen in data.train_dataloader().sampler.plan().batches(0)]
    batches = list(data.train_dataloader())
    assert [batch.num_graphs for batch in batches] == [5, 5, 5, 5, 4]
    for chosen, batch in zip(order, batches, strict=True):
        some = from_ase([structures[place] for place in chosen], dtype=torch.float64)
        check(batch, to_fairchem(some, flat_stress=True, **names))
        for place, one in enumerate(batch.batch_to_atomicdata_list()):
            assert torch.equal(one.omat_forces, batch.omat_forces[batch.batch == place])
            assert torch.equal(one.omat_energy, batch.omat_energy[[place]])


def test_a_runner_goes_to_an_epoch_and_a_step(stored):
    store, _ = stored
    loader = zp.fairchem.dataloader(store, batch_size=5, split=(1.0, 0.0, 0.0), seed=3)
    assert len(loader) == 5
    epochs = []
    for number in range(2):
        loader.batch_sampler.set_epoch_and_start_iteration(number, 0)
        epochs.append([batch.energy.tolist() for batch in loader])
    assert sorted(chain(*epochs[0])) == sorted(chain(*epochs[1]))
    assert epochs[0] != epochs[1]
    for step in (0, 2, 4):
        loader.batch_sampler.set_epoch_and_start_iteration(1, step)
        assert [batch.energy.tolist() for batch in loader] == epochs[1][step:]
    named = zp.fairchem.dataloader(store, "val", split=(0.5, 0.5, 0.0), dataset_name="omat.val")
    assert list(named.dataset.dataset_names) == ["omat.val"]
    assert 0 < sum(batch.num_graphs for batch in named) < 24
    assert named.waited > 0


def test_a_loader_that_would_be_wrong_is_refused(stored, monkeypatch):
    with pytest.raises(ArgumentError, match="part is 'valid', expected one of train, val, test"):
        zp.fairchem.dataloader(stored[0], "valid")
    monkeypatch.setattr("fairchem.core.common.gp_utils.initialized", lambda: True)
    with pytest.raises(ArgumentError, match="graph-parallel"):
        zp.fairchem.dataloader(stored[0])


@pytest.mark.slow
def test_its_command_trains_by_the_example_configuration(tmp_path):
    with zp.ZarrData(tmp_path / "labelled.zarr") as sink:
        sink.write(crystals(60))
    command = [sys.executable, "-W", "ignore", "-c", "from fairchem.core._cli import main; main()"]
    ran = subprocess.run(
        [*command, "-c", str(ROOT / "configs" / "fairchem.yaml")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said[-3000:]
    losses = [float(found) for found in re.findall(r"'train/loss': ([\d.e+-]+)", said)]
    validation = [float(found) for found in re.findall(r"val/loss: ([\d.e+-]+)", said)]
    assert len(losses) >= 3
    assert len(validation) == 2
    assert np.isfinite(losses + validation).all()
    assert "omat.val,omat_stress,mae" in said


@pytest.mark.filterwarnings("ignore:none of 24 samples is in the validation split")
def test_code_of_the_page_runs(stored, monkeypatch):
    page = (ROOT / "docs" / "guides" / "trainers" / "fairchem.md").read_text()
    python, (loader, joined) = (
        re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        for language in ("python", "yaml")
    )
    store, structures = stored
    monkeypatch.chdir(store.parent)
    for block in python:
        exec(compile(block, "fairchem.md", "exec"), {"__name__": "fairchem_page"})
    (settings,) = OmegaConf.create(loader).values()
    batches = list(instantiate(settings))
    assert max(int(batch.natoms.sum()) for batch in batches) <= 512
    assert set(training.NAMES.values()) <= set(batches[0].keys())
    ratios = {"sampling": {"type": "explicit", "ratios": {"omat.train": 1.0}}}
    data = create_concat_dataset(OmegaConf.create(joined), ratios)
    assert len(data) == sum(len(atoms) > 4 for atoms in structures)


@pytest.mark.slow
def test_losses_are_those_of_its_own_loader(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = training.pair(tmp_path, 50)
    assert len(run.ours.losses) == 50
    assert run.difference <= 1e-5  # float32
    assert np.mean(run.ours.losses[-10:]) < np.mean(run.ours.losses[:10])
