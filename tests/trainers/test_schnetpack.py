"""SchNetPack on a store: its dictionary by value, its task and ``spktrain``, equal losses."""

import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import from_ase, to_schnetpack
from zarrpipe.errors import FieldError
from zarrpipe.transforms import NeighborList

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit and others, when they are imported
    pytest.importorskip("schnetpack")
    from benchmarks.trainers import schnetpack as bench

import pytorch_lightning as pl
import schnetpack
import torchmetrics
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances, Strain
from schnetpack.data.loader import _atoms_collate_fn
from schnetpack.data.stats import calculate_stats, estimate_atomrefs
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.transform import AddOffsets, CastTo64, MatScipyNeighborList

from benchmarks.trainers.structures import crystals, molecules
from zarrpipe.schnetpack import DataMonitor, OnlyLabelled, ZarrDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*is an instance of `nn.Module` and is already saved"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn.t accept:DeprecationWarning"),
]
ROOT = Path(__file__).parents[2]
CUTOFF = 4.0


def own(structures, properties):
    """SchNetPack's own batch of structures."""
    items = []
    for place, atoms in enumerate(structures):
        item = {
            "_idx": torch.tensor([place]),
            "_n_atoms": torch.tensor([len(atoms)]),
            "_atomic_numbers": torch.tensor(atoms.numbers, dtype=torch.long),
            "_positions": torch.tensor(atoms.positions),
            "_cell": torch.tensor(atoms.cell.array[None]),
            "_pbc": torch.tensor(atoms.pbc),
            "energy": torch.tensor([atoms.get_potential_energy()]),
            "forces": torch.tensor(atoms.get_forces()),
        }
        if "stress" in properties:
            item["stress"] = torch.tensor(atoms.get_stress(voigt=False)[None])
        items.append(MatScipyNeighborList(CUTOFF)(item))
    return _atoms_collate_fn(items)


def network(*, stress=False, postprocessors=(), dtype="float32"):
    torch.manual_seed(1)
    return schnetpack.model.NeuralNetworkPotential(
        representation=schnetpack.representation.SchNet(
            n_atom_basis=8,
            n_interactions=1,
            radial_basis=GaussianRBF(n_rbf=8, cutoff=CUTOFF),
            cutoff_fn=CosineCutoff(CUTOFF),
        ),
        input_modules=[*([Strain()] if stress else []), PairwiseDistances()],
        output_modules=[Atomwise(n_in=8, output_key="energy"), Forces(calc_stress=stress)],
        postprocessors=list(postprocessors),
        input_dtype_str=dtype,
    )


def task_of(model, *, constraints=(), targets=("energy", "forces")):
    outputs = [
        schnetpack.task.ModelOutput(
            name,
            torch.nn.MSELoss(),
            metrics={"mae": torchmetrics.MeanAbsoluteError()},
            constraints=list(constraints),
        )
        for name in targets
    ]
    return schnetpack.AtomisticTask(model, outputs, torch.optim.Adam, {"lr": 1e-3})


def trainer(tmp_path, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        inference_mode=False,
        **(quiet | {"enable_checkpointing": False} | settings),
    )


def store_of(structures, place=None):
    place = {} if place is None else place
    with zp.ZarrData(place) as sink:
        sink.write(structures)
    return place


def batch_of(structures):
    return NeighborList(CUTOFF)(from_ase(structures))


@pytest.mark.parametrize(
    ("structures", "properties"),
    [(crystals(5), {"stress"}), (crystals(1), {"stress"}), (molecules(6), set())],
    ids=["crystals", "one", "molecules"],
)
def test_the_dictionary_is_that_of_its_own_loader(structures, properties):
    theirs = own(structures, properties)
    ours = to_schnetpack(batch_of(structures), dtype=torch.float64)
    assert set(ours) == set(theirs)
    pairs = ("_idx_i", "_idx_j", "_idx_i_local", "_idx_j_local", "_offsets")
    for key in set(theirs) - set(pairs):
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-15, msg=key)

    def edges(inputs):
        found = torch.cat([inputs[key].reshape(len(inputs["_idx_i"]), -1) for key in pairs], 1)
        return np.array(sorted(found.round(decimals=6).tolist()))

    assert all(ours[key].dtype == theirs[key].dtype for key in pairs)
    np.testing.assert_allclose(edges(ours), edges(theirs), rtol=0, atol=2e-6)
    assert {value.dtype for value in to_schnetpack(batch_of(structures)).values()} == {
        torch.float32,
        torch.int64,
        torch.bool,
    }


def test_stress_has_the_unit_and_sign_of_its_models():
    """Against the derivative of a model's own energy by strain, in eV/Angstrom^3."""
    model = network(stress=True, dtype="float64").double().eval()
    (atoms,) = crystals(1, seed=4)

    def inputs(strained, **given):
        batch = from_ase([strained])
        for name, value in given.items():
            batch.add_field(name, torch.tensor(value)[None])
        return to_schnetpack(NeighborList(CUTOFF)(batch), dtype=torch.float64)

    stress, step = np.zeros((3, 3)), 1e-4
    for i, j in np.ndindex(3, 3):
        ends = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step
            moved = atoms.copy()
            moved.set_cell(atoms.cell @ strain, scale_atoms=True)
            ends.append(float(model(inputs(moved))["energy"].detach()))
        stress[i, j] = (ends[0] - ends[1]) / (2 * step) / atoms.get_volume()
    stress = (stress + stress.T) / 2
    assert abs(stress).max() > 1e-6
    plain = atoms.copy()
    given = inputs(plain, stress=stress)
    expected = given["stress"].clone()
    predicted = model(given)["stress"][0].detach()
    torch.testing.assert_close(expected[0], (predicted + predicted.T) / 2, rtol=1e-4, atol=1e-10)
    virial = inputs(plain, virial=-stress * plain.get_volume())
    torch.testing.assert_close(virial["stress"], expected, rtol=1e-12, atol=0)


def test_other_fields_have_its_keys():
    batch = batch_of(molecules(3))
    atoms = batch.num_nodes
    batch = batch.add_field("dipole", torch.rand(3, 3)).add_field("charge", torch.ones(3, 1))
    batch = batch.add_field("charges", torch.rand(atoms)).add_field("spin", torch.ones(3, 1))
    batch = batch.add_field("gap", torch.rand(3, 1), "system")
    batch = batch.add_field("kind", ["a", "b", "a"], "system")
    made = to_schnetpack(batch)
    assert torch.equal(made["dipole_moment"], batch.dipole)
    assert made["total_charge"].tolist() == made["spin_multiplicity"].tolist() == [1.0] * 3
    assert torch.equal(made["partial_charges"], batch.charges)
    assert torch.equal(made["gap"], batch.gap.flatten())
    assert "kind" not in made
    with pytest.raises(FieldError, match="no 'neighbor_list'"):
        to_schnetpack(from_ase(molecules(1)))
    with pytest.raises(FieldError, match="has the atomic number 8, and atomrefs has 3 entries"):
        to_schnetpack(batch, atomrefs=torch.zeros(3))


def test_statistics_are_those_that_schnetpack_computes():
    structures = molecules(60)
    data = ZarrDataModule(
        store_of(structures), cutoff=CUTOFF, batch_size=8, dtype="float64", split=(0.8, 0.2, 0.0)
    )
    data.setup("fit")
    every = [dict(batch) for batch in data.train_dataloader()]

    class Loader(list):
        dataset = data.train_dataset

    theirs = estimate_atomrefs(Loader(every), {"energy": True})["energy"]
    refs = data.get_atomrefs("energy", True)["energy"]
    torch.testing.assert_close(refs.float(), theirs, rtol=1e-3, atol=1e-3)
    assert refs.shape == theirs.shape == (100,)
    for by_atom in (True, False):
        mean, std = calculate_stats(every, {"energy": by_atom})["energy"]
        torch.testing.assert_close(data.get_stats("energy", by_atom, False), (mean, std))
    left = [{**batch, "energy": batch["energy"].clone()} for batch in every]
    mean, std = calculate_stats(left, {"energy": True}, {"energy": refs})["energy"]
    ours = data.get_stats("energy", True, True)
    torch.testing.assert_close(ours, (mean, std), rtol=1e-6, atol=1e-9)
    for asked in (("dipole_moment", True, True), ("energy", False, True)):
        with pytest.raises(ValueError, match=r"give property_mean= to the transform"):
            data.get_stats(*asked)
    with pytest.raises(ValueError, match=r"give atomrefs= to the transform"):
        data.get_atomrefs("gap", False)


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("atomrefs", [False, True])
def test_a_model_adds_what_is_taken_from_the_energies(mean, atomrefs):
    data = ZarrDataModule(
        store_of(molecules(60)),
        cutoff=CUTOFF,
        batch_size=8,
        dtype="float64",
        split=(0.8, 0.2, 0.0),
        remove_mean=mean,
        remove_atomrefs=atomrefs,
    )
    data.setup("fit")
    add = AddOffsets("energy", add_mean=mean, add_atomrefs=atomrefs, estimate_atomref=True)
    add.datamodule(data)
    plain = ZarrDataModule(
        data.store, cutoff=CUTOFF, batch_size=8, dtype="float64", split=(0.8, 0.2, 0.0)
    )
    plain.setup("fit")
    for batch, whole in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        left = batch["energy"].clone()
        torch.testing.assert_close(add(batch)["energy"], whole["energy"], rtol=1e-12, atol=1e-12)
        assert torch.equal(left, whole["energy"]) is not (mean or atomrefs)


def partly(count, label):
    """Structures of which every second lacks a label."""
    each = [from_ase([atoms]) for atoms in crystals(count)]
    return zp.Batch.concatenate(
        [one.without(label) if place % 2 else one for place, one in enumerate(each)]
    )


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
@pytest.mark.parametrize("size", [1, 8])
def test_missing_labels_are_refused_unless_a_constraint_leaves_them_out(tmp_path, label, size):
    data = ZarrDataModule(
        store_of(partly(40, label)), cutoff=CUTOFF, batch_size=size, split=(0.8, 0.2, 0.0)
    )
    targets = ("energy", "forces", "stress")
    task = task_of(network(stress=True), targets=targets)
    with pytest.raises(FieldError, match=rf"have no '{label}'.*OnlyLabelled.*has\({label}\)"):
        trainer(tmp_path, max_steps=1).fit(task, data)
    task = task_of(network(stress=True), targets=targets, constraints=[OnlyLabelled()])
    fit = trainer(tmp_path, max_steps=8)
    fit.fit(task, data)
    assert math.isfinite(fit.callback_metrics["train_loss"])
    assert all(bool(value.isfinite().all()) for value in task.parameters())


def test_the_loss_of_labelled_rows_is_that_of_a_batch_of_them():
    pred = {"forces": torch.rand(4, 3), "energy": torch.rand(2)}
    targets = {"forces": torch.rand(4, 3), "energy": torch.tensor([1.0, 2.0])}
    targets["forces"][1] = float("nan")
    outputs = {name: schnetpack.task.ModelOutput(name, metrics={}) for name in targets}
    made, wanted = OnlyLabelled()(pred, targets, outputs["forces"])
    assert torch.equal(made["forces"], pred["forces"][[0, 2, 3]])
    assert torch.equal(wanted["forces"], targets["forces"][[0, 2, 3]])
    assert made["energy"] is pred["energy"]
    targets["energy"][:] = float("nan")
    pred["energy"].requires_grad_()
    made, wanted = OnlyLabelled()(pred, targets, outputs["energy"])
    loss = (made["energy"] - wanted["energy"]).square().mean()
    assert loss.item() == 0
    loss.backward()
    assert pred["energy"].grad.tolist() == [0.0, 0.0]


def test_arguments_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="train_sampler_cls is 'x', expected None: give weights="):
        ZarrDataModule({}, cutoff=CUTOFF, train_sampler_cls="x")
    for dtype in ("int64", "floaty", torch.int32):
        with pytest.raises(ValueError, match="expected 'float32' or 'float64'"):
            ZarrDataModule({}, cutoff=CUTOFF, dtype=dtype)
    data = ZarrDataModule(store_of(molecules(40)), cutoff=CUTOFF, split=(0.8, 0.2, 0.0))
    task = task_of(network(stress=True), targets=("stress",), constraints=[OnlyLabelled()])
    with pytest.raises(FieldError, match=r"have no 'stress'.*has\(stress\) or has\(virial\)"):
        trainer(tmp_path, max_steps=1).fit(task, data)


@pytest.mark.slow
def test_its_task_trains_resumes_and_keeps_the_offsets_of_a_store_that_grows(tmp_path):
    store = store_of(molecules(60), tmp_path / "molecules.zarr")
    offsets = {"remove_mean": True, "remove_atomrefs": True}

    def data():
        return ZarrDataModule(
            store, cutoff=CUTOFF, batch_size=8, seed=1, split=(0.8, 0.2, 0.0), **offsets
        )

    def task():
        add = AddOffsets("energy", add_mean=True, add_atomrefs=True, estimate_atomref=True)
        return task_of(network(postprocessors=[CastTo64(), add]))

    keep = pl.callbacks.ModelCheckpoint(
        tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}"
    )
    monitor = DataMonitor()
    first, whole = (
        task(),
        trainer(tmp_path, max_steps=8, callbacks=[keep, monitor], enable_checkpointing=True),
    )
    whole.fit(first, data())
    assert monitor.total.batches == 8
    old = first.model.postprocessors[1].atomref.clone()
    second = task()
    trainer(tmp_path, max_steps=8).fit(
        second, data(), ckpt_path=tmp_path / "step=4.ckpt", weights_only=False
    )
    for mine, other in zip(second.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
    store_of([atoms for atoms in molecules(80, seed=9) if len(atoms) > 3], store)
    grown, third = data(), task()
    fit = trainer(tmp_path, max_epochs=3)
    fit.fit(third, grown, ckpt_path=tmp_path / "step=4.ckpt", weights_only=False)
    assert torch.equal(third.model.postprocessors[1].atomref, old.to(torch.float64))
    whole = ZarrDataModule(store, cutoff=CUTOFF, batch_size=8, split=(0.8, 0.2, 0.0))
    whole.setup("fit")
    assert not torch.equal(whole.get_atomrefs("energy", True)["energy"], old)
    add = third.model.postprocessors[1]
    for batch, plain in zip(grown.val_dataloader(), whole.val_dataloader(), strict=True):
        torch.testing.assert_close(add(batch)["energy"].float(), plain["energy"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_spktrain_trains_from_a_store(tmp_path):
    """The command of the page, with the configuration of the repository."""
    store_of(molecules(60), tmp_path / "molecules.zarr")
    command = Path(sys.executable).with_name("spktrain")
    assert command.exists()
    shutil.copytree(ROOT / "configs" / "schnetpack", tmp_path / "configs")
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            command,
            "--config-dir=configs",
            "experiment=zarr",
            "run.id=first",
            f"data.store={tmp_path}/molecules.zarr",
            "data.split=[0.7,0.15,0.15]",
            "trainer.max_epochs=2",
            "trainer.accelerator=cpu",
            "model.representation.n_atom_basis=8",
            "logger=csv",
        ],
        cwd=tmp_path,
        check=True,
        timeout=600,
        env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
    )
    (best,) = tmp_path.rglob("best_model")
    model = torch.load(best, weights_only=False)
    inputs = to_schnetpack(NeighborList(5.0)(from_ase(molecules(4))))
    energies = model(inputs)["energy"].detach()
    expected = torch.tensor([atoms.get_potential_energy() for atoms in molecules(4)])
    assert (energies - expected).abs().max() < 20


@pytest.mark.slow
def test_losses_are_those_of_its_own_loader(tmp_path):
    both = bench.pair(tmp_path, 50)
    assert len(both.ours.losses) == len(both.theirs.losses) == 50
    assert both.difference < 1e-10
    assert np.mean(both.ours.losses[-10:]) < np.mean(both.ours.losses[:10])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_code_of_the_page_runs(tmp_path, monkeypatch):
    store_of(molecules(60), tmp_path / "labelled.zarr")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "trainers" / "schnetpack.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    names = {"__name__": "page"}
    for block in blocks:
        exec(block, names)
    assert names["trainer"].global_step > 0
    assert (tmp_path / "runs/schnetpack/model").exists()
