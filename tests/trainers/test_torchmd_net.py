"""TorchMD-Net on a store: its batches by value, its own module and trainer, equal losses."""

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

import zarrpipe as zp
from zarrpipe.adapters import from_ase, from_pyg, to_torchmd_net
from zarrpipe.errors import FieldError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyG, when it is imported
    pytest.importorskip("torchmdnet.module")

from ase import Atoms
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torchmdnet.data import DataModule
from torchmdnet.models.model import create_prior_models, load_model
from torchmdnet.models.utils import OptimizedDistance
from torchmdnet.module import LNNP
from torchmdnet.scripts.train import get_argparse

from benchmarks.trainers.structures import crystals, molecules
from benchmarks.trainers.torchmd_net import Mapped, hparams, pair, written

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`"),
]
CONFIG = Path(__file__).parents[2] / "configs" / "torchmd_net.yaml"
CUTOFF = 3.0


def check(ours, theirs):
    """Every attribute of the library's own batch, with its dtype and shape."""
    assert ours.num_graphs == theirs.num_graphs
    assert set(theirs.keys()) <= set(ours.keys())
    for key in theirs.keys():  # noqa: SIM118  of PyG
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0, msg=key)


def test_batches_of_its_own_data_set_by_value(tmp_path):
    structures = molecules(20)
    own, store = Mapped(tmp_path / "own", structures), written(tmp_path / "store", structures)
    for chosen in ([3, 0, 19, 3], [7]):
        (theirs,) = DataLoader(own, batch_sampler=[chosen])
        ours = to_torchmd_net(zp.ZarrDataset(store).read(chosen))
        check(ours, theirs)
        assert set(ours.keys()) == {"z", "pos", "y", "neg_dy", "batch", "ptr"}


def test_boxes_charges_and_own_fields_by_value():
    """As its WaterBox makes Data with boxes, its Ace charges, and Coulomb partial charges."""
    rng, given, systems = np.random.default_rng(7), [], []
    for number in range(4):
        box, atoms = np.tril(rng.normal(size=(3, 3))) * 0.3 + 9 * np.eye(3), number + 2
        parts = {
            "pos": torch.from_numpy(rng.normal(size=(atoms, 3))),
            "z": torch.from_numpy(rng.integers(1, 90, size=atoms)),
            "partial_charges": torch.from_numpy(rng.normal(size=atoms)),
        }
        own = {"tag": torch.arange(atoms), "temperature": torch.rand(1, 1)}
        box = torch.from_numpy(box)
        given.append(
            Data(box=box[None], q=torch.tensor(float(number)), s=torch.tensor(1.0), **parts, **own)
        )
        systems.append(
            zp.AtomicData(
                parts["pos"],
                parts["z"],
                charges=parts["partial_charges"],
                charge=float(number),
                spin=1.0,
                cell=box,
                pbc=[True] * 3,
                velocities=torch.zeros(atoms, 3, dtype=torch.float64),
                atom={"tag": own["tag"]},
                system={"temperature": own["temperature"]},
            )
        )
    (theirs,) = DataLoader(given, batch_size=4)
    theirs.q, theirs.s = theirs.q.double(), theirs.s.double()
    ours = to_torchmd_net(zp.Batch.from_data_list(systems), cutoff=CUTOFF)
    check(ours, theirs)
    assert "velocities" not in ours


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_stays_on_the_device(tmp_path):
    batch = zp.ZarrDataset(written(tmp_path / "store", molecules(5))).read(range(5))
    there = to_torchmd_net(batch.to("cuda"), cutoff=CUTOFF)
    assert {there[key].device.type for key in there.keys()} == {"cuda"}  # noqa: SIM118  of PyG
    check(there.cpu(), to_torchmd_net(batch))


def test_back_again(tmp_path):
    batch = zp.ZarrDataset(written(tmp_path / "store", molecules(5))).read(range(5))
    back = from_pyg(to_torchmd_net(batch))
    for name in ("positions", "atomic_numbers", "energy", "forces"):
        assert torch.equal(back[name], batch[name]), name


def test_a_molecule_beside_a_crystal_has_no_images():
    """Neighbours by TorchMD-Net's own routine in one batch, as in a batch of each alone."""
    crystal = Atoms("Cu2", [[0.1, 0, 0], [6.9, 0.3, 0]], cell=[7.0, 7, 7], pbc=True)
    molecule = Atoms("CO", [[0.1, 0, 0], [6.9, 0.3, 0]])
    distances = OptimizedDistance(0.0, CUTOFF, max_num_pairs=-8)

    def edges(atoms):
        data = to_torchmd_net(from_ase(atoms), cutoff=CUTOFF)
        index, lengths, _ = distances(data.pos, data.batch, data.get("box"))
        return sorted(zip(index.T.tolist(), lengths.tolist(), strict=True))

    assert edges([molecule]) == []
    assert [pair for pair, _ in edges([crystal])] == [[0, 1], [1, 0]]
    assert edges([crystal])[0][1] == pytest.approx(np.hypot(0.2, 0.3))
    assert edges([crystal, molecule]) == edges([crystal])


def test_a_label_that_some_lack_is_refused():
    one = {"positions": [[0.0] * 3], "atomic_numbers": [1]}
    batch = zp.Batch.from_data_list(
        [zp.AtomicData(**one, energy=-1.0), zp.AtomicData(**one, forces=[[0.0] * 3])]
    )
    with pytest.raises(FieldError, match=r"'energy' is missing in 1 of the 2 .*has\(energy\)"):
        to_torchmd_net(batch)
    lone = to_torchmd_net(batch[[1]])
    assert "y" not in lone
    assert lone.neg_dy.tolist() == [[0.0] * 3]


@pytest.mark.parametrize(
    ("cell", "pbc", "match"),
    [
        ([9.0, 9, 9], [True, True, False], "system 1 of the batch is periodic in some directions"),
        ([[9.0, 1, 0], [0, 9, 0], [0, 0, 9]], True, "not lower triangular and reduced"),
        ([[9.0, 0, 0], [5, 9, 0], [0, 0, 9]], True, "not lower triangular and reduced"),
        ([9.0, 9, -9], True, "not lower triangular and reduced"),
        ([9.0, 5.9, 9], True, r"narrower than twice the cutoff of 3\.0"),
    ],
)
def test_boxes_that_it_would_read_wrong_are_refused(cell, pbc, match):
    good = Atoms("H", cell=[6.0, 6, 6], pbc=True)
    with pytest.raises(FieldError, match=match):
        to_torchmd_net(from_ase([good, Atoms("H", cell=cell, pbc=pbc)]), cutoff=CUTOFF)
    assert to_torchmd_net(from_ase([good, good]), cutoff=CUTOFF).box.shape == (2, 3, 3)


def test_a_cutoff_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="cutoff is -1, expected a positive number"):
        zp.torchmd_net.ZarrDataModule({}, cutoff=-1)
    with pytest.raises(ValueError, match="cutoff is 0, expected a positive number"):
        to_torchmd_net(from_ase(Atoms("H")), cutoff=0)


@pytest.mark.parametrize("prior", [None, "Atomref"])
def test_moments_are_those_of_its_own_module(tmp_path, prior):
    """Of the training energies, as a whole or after the reference energies."""
    structures = molecules(60)
    data = zp.torchmd_net.ZarrDataModule(
        written(tmp_path / "store", structures),
        standardize=True,
        prior_model=prior,
        split=(1.0, 0.0, 0.0),
    )
    data.setup("fit")
    own = Mapped(tmp_path / "own", structures)
    own.get_atomref = data.get_atomref
    settings = hparams(
        standardize=True,
        prior_model=prior,
        train_size=60,
        val_size=0,
        test_size=0,
        log_dir=str(tmp_path),
        inference_batch_size=16,
        num_workers=0,
    )
    theirs = DataModule(settings, own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # standardize is deprecated, and there is no GPU to pin for
        theirs.setup("fit")
    assert data.mean.item() == pytest.approx(theirs.mean.item(), rel=1e-12)
    assert data.std.item() == pytest.approx(theirs.std.item(), rel=1e-12)
    plain = zp.torchmd_net.ZarrDataModule(data.store)
    plain.setup("fit")
    assert plain.mean is None
    assert plain.std is None


def test_moments_are_kept_until_the_next_setup():
    store, settings = {}, {"standardize": True, "split": (1.0, 0.0, 0.0)}
    atoms = [zp.AtomicData([[0.0] * 3], [1], energy=energy) for energy in (-1.0, -3.0, -8.0)]
    with zp.ZarrData(store) as sink:
        sink.write(zp.Batch.from_data_list(atoms[:2]))
        data = zp.torchmd_net.ZarrDataModule(store, **settings)
        data.setup("fit")
        assert data.mean == -2.0
        sink.write(atoms[2])
        data.refresh()
        assert data.mean == -2.0
        data.setup("fit")
        assert data.mean == -4.0


def test_energies_are_needed_to_standardize():
    store = {}
    with zp.ZarrData(store) as sink:
        sink.write(from_ase([Atoms("H")]))
    data = zp.torchmd_net.ZarrDataModule(store, standardize=True, split=(1.0, 0.0, 0.0))
    data.setup("fit")
    with pytest.raises(FieldError, match="standardize=True needs energies"):
        _ = data.mean


def test_priors_take_what_they_need_from_the_module(tmp_path):
    data = zp.torchmd_net.ZarrDataModule(written(tmp_path / "store", molecules(60)))
    data.setup("fit")
    near = {"cutoff_distance": 4.0, "max_num_neighbors": 16}
    zbl, atomref = create_prior_models({"prior_model": [{"ZBL": near}, "Atomref"]}, data)
    energies = data.statistics.reference_energies
    for number in (1, 6, 8):
        assert atomref.initial_atomref[number].item() == energies[number]
    assert zbl.atomic_number.tolist() == list(range(119))
    # Two protons at 0.5 Angstrom: ZBL, 14.3996 eV Angstrom / r times the screening function.
    screened = 0.5 / (0.8854 * 0.529177 / 2)
    phi = sum(
        a * np.exp(-b * screened)
        for a, b in ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4029), (0.02817, 0.2016))
    )
    smooth = 0.5 * (np.cos(np.pi * 0.5 / 4.0) + 1)
    hydrogen = to_torchmd_net(from_ase(Atoms("H2", [[0, 0, 0], [0, 0, 0.5]])))
    found = zbl.post_reduce(
        torch.zeros(1, 1, dtype=torch.float64), hydrogen.z, hydrogen.pos, hydrogen.batch
    )
    assert found.item() == pytest.approx(14.3996 / 0.5 * phi * smooth, rel=1e-4)


def fit(data, model, tmp_path, **settings):
    monitor = zp.DataMonitor()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[monitor],
        inference_mode=False,
        enable_checkpointing=False,
        **quiet,
        **settings,
    )
    trainer.fit(model, data)
    return trainer, monitor


def test_its_module_trains_validates_and_tests(tmp_path):
    """By the example configuration, made smaller; energies are total ones, far from zero."""
    structures = molecules(80)
    for one in structures:
        one.calc.results["energy"] -= 30.0 * one.numbers.sum()
    store = written(tmp_path / "store", structures)
    args = vars(get_argparse().parse_args(["--conf", str(CONFIG)]))
    args |= {"model": "graph-network", "embedding_dimension": 16, "num_rbf": 8}
    data = zp.torchmd_net.ZarrDataModule(
        store, batch_size=8, cutoff=args["cutoff_upper"], split=(0.7, 0.2, 0.1)
    )
    data.setup("fit")
    priors = create_prior_models(args, data)
    args["prior_args"] = [prior.get_init_args() for prior in priors]
    torch.manual_seed(0)
    model = LNNP(args, prior_model=priors, mean=data.mean, std=data.std)
    trainer, monitor = fit(data, model, tmp_path, max_epochs=args["num_epochs"])
    figures = trainer.callback_metrics
    assert all(np.isfinite(value.item()) for value in figures.values())
    assert monitor.total.samples == args["num_epochs"] * len(data.train_dataset)
    assert 0 < figures["val_y_l1_loss"] < 5  # of some hundred eV
    (tested,) = trainer.test(model, data, verbose=False)
    assert np.isfinite(tested["test_total_l1_loss"])


def test_crystals_train_on_boxes(tmp_path):
    """Box vectors reach the model: the forces of the images of a repeated cell are equal."""
    store = tmp_path / "store"
    large = []
    for one in crystals(12):
        cell = one.cell.array
        rotated = np.linalg.cholesky(cell @ cell.T)
        one.set_cell(rotated, scale_atoms=True)  # lower triangular
        widths = np.diag(rotated)
        large.append(one.repeat([int(np.ceil(7.0 / width)) for width in widths]))
    with zp.ZarrData(store) as sink:
        sink.write(from_ase(large))
    data = zp.torchmd_net.ZarrDataModule(store, batch_size=3, cutoff=CUTOFF, split=(1.0, 0.0, 0.0))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.box.shape == (3, 3, 3)
    model = LNNP(
        hparams(model="graph-network", cutoff_upper=CUTOFF, embedding_dimension=16)
    ).model.eval()
    energies, forces = model(batch.z, batch.pos.clone(), batch=batch.batch, box=batch.box)
    torch.testing.assert_close(
        forces.new_zeros(3, 3).index_add(0, batch.batch, forces), forces.new_zeros(3, 3)
    )
    moved, still = model(
        batch.z,
        batch.pos + (batch.box[:, 0] * torch.tensor([[2], [-1], [1]]))[batch.batch],
        batch=batch.batch,
        box=batch.box,
    )
    torch.testing.assert_close(moved, energies)
    torch.testing.assert_close(still, forces)
    open_ended, _ = model(batch.z, batch.pos.detach().clone(), batch=batch.batch)
    assert (open_ended - energies).abs().min() > 1e-6


@pytest.mark.slow
def test_losses_are_those_of_its_own_loader(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Warp and PyG
        run = pair(tmp_path, 50)
    assert len(run.ours.losses) == 50
    assert run.difference <= 1e-12
    assert np.mean(run.ours.losses[-10:]) < 0.8 * np.mean(run.ours.losses[:10])
    assert run.ours.wait < 0.1


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory")
@pytest.mark.filterwarnings("ignore:Lightning automatically.*:UserWarning")
def test_code_of_the_page_runs(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "guides" / "trainers" / "torchmd_net.md"
    (block,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    shutil.copy(CONFIG, tmp_path)
    written(tmp_path / "labelled.zarr", molecules(100))
    namespace = {"__name__": "torchmd_net"}
    exec(compile(block, page.name, "exec"), namespace)
    trainer = namespace["trainer"]
    assert np.isfinite(trainer.callback_metrics["test_total_l1_loss"].item())
    (monitor,) = (one for one in trainer.callbacks if isinstance(one, zp.DataMonitor))
    assert 0 < monitor.total.wait < 1
    (path,) = tmp_path.rglob("*.ckpt")
    data = to_torchmd_net(from_ase(molecules(3), dtype=torch.float32))
    loaded = load_model(str(path), derivative=True).eval()
    expected = namespace["model"].model.eval()(data.z, data.pos.clone(), batch=data.batch)
    found = loaded(data.z, data.pos.clone(), batch=data.batch)
    torch.testing.assert_close(found, expected)
