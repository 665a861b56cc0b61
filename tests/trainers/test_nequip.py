"""NequIP and Allegro: their batches, transforms, statistics and `nequip-train` on a store."""

import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import from_nequip, to_nequip
from zarrpipe.errors import ArgumentError, ArgumentTypeError, FieldError
from zarrpipe.transforms import ConvertUnits, NeighborList

data = pytest.importorskip("nequip.data")
transforms = pytest.importorskip("nequip.data.transforms")
datasets = pytest.importorskip("nequip.data.dataset")
pytest.importorskip("vesin")
ase = pytest.importorskip("ase")
pytest.importorskip("ase.io")
structures = importlib.import_module("benchmarks.trainers.structures")
ours = importlib.import_module("zarrpipe.nequip")

ROOT = Path(__file__).parents[2]
CUTOFF = 4.0
METALS, ORGANIC = ["Cu", "Ag", "Au"], ["H", "C", "N", "O"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing into .traj:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def of_commands():
    """What NequIP's commands set at their start: float64, in which its datasets read."""
    before = torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("nequip.utils.global_state").set_global_state()
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def crystals(tmp_path):
    """Structures with stresses, but for every third, as a store and as a file of ASE."""
    made = structures.crystals(24)
    for atoms in made[::3]:
        del atoms.calc.results["stress"]
    return stored(made, tmp_path)


def stored(made, place):
    with zp.ZarrData(place / "structures.zarr") as sink:
        sink.write(made)
    ase.io.write(place / "structures.traj", made)  # keeps every digit
    return place / "structures.zarr", str(place / "structures.traj")


def of_nequip(types=METALS):
    """NequIP's transforms as its configuration files have them."""
    return [
        transforms.ChemicalSpeciesToAtomTypeMapper(types),
        transforms.NeighborListTransform(CUTOFF),
        transforms.AddNaNStressTransform(),
    ]


def theirs(file, rows, own):
    """Batch of NequIP's own dataset and collation."""
    dataset = datasets.ASEDataset(file, own)
    return data.AtomicDataDict.batched_from_list(dataset.__getitems__(list(rows)))


def check_same(made, expected):
    assert set(made) == set(expected)
    for key, value in expected.items():
        assert made[key].dtype == value.dtype, key
        torch.testing.assert_close(made[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


def test_batches_are_those_of_nequips_own_dataset(crystals):
    store, file = crystals
    rows = [3, 1, 20, 6, 7]
    batch = ours.NequIPTransforms(of_nequip())(zp.ZarrDataset(store).read(rows))
    made = to_nequip(batch)
    check_same(made, theirs(file, rows, of_nequip()))
    assert made["stress"].isnan().flatten(1).all(1).tolist() == [True, False, False, True, False]


def test_a_batch_of_one_and_molecules_without_cells(tmp_path):
    store, file = stored(structures.molecules(5), tmp_path)
    for rows in ([2], [4, 0, 1]):
        batch = ours.NequIPTransforms(of_nequip(ORGANIC))(zp.ZarrDataset(store).read(rows))
        check_same(to_nequip(batch), theirs(file, rows, of_nequip(ORGANIC)))


def test_stress_has_the_sign_of_nequips_models(crystals):
    """Theirs is the derivative of the energy by the strain, over the volume, and so is ASE's."""
    bench = importlib.import_module("benchmarks.trainers.nequip")
    module = bench.module(SMALL)
    one = zp.ZarrDataset(crystals[0]).read([1])
    atoms = zp.adapters.to_ase(one)[0]
    convert = ours.NequIPTransforms(of_nequip())
    energies = []
    for strain in (-1e-4, 1e-4):
        moved = atoms.copy()
        moved.set_cell(atoms.cell @ np.diag([1 + strain, 1, 1]), scale_atoms=True)
        energies.append(module(to_nequip(convert(zp.adapters.from_ase([moved]))))["total_energy"])
    slope = (energies[1] - energies[0]).item() / 2e-4 / atoms.get_volume()
    made = to_nequip(convert(one))
    stress = module(dict(made))["stress"][0, 0, 0].item()
    assert abs(slope) > 1e-4
    assert stress == pytest.approx(slope, rel=1e-4)
    assert made["stress"][0].numpy() == pytest.approx(atoms.get_stress(voigt=False))


HELIUM = {
    "positions": [[0.0, 0.0, 1.0]],
    "atomic_numbers": [2],
    "energy": -79.0,
    "charges": [0.5],
    "charge": 1.0,
    "stress": torch.eye(3)[None],
    "virial": -8.0 * torch.eye(3)[None],
    "cell": 2.0 * torch.eye(3)[None],
    "pbc": [[True] * 3],
    "dipole": [[1.0, 2.0, 3.0]],
    "neighbor_list": [[0, 0]],
    "neighbor_list_shifts": [[1.0, 0.0, 0.0]],
}


def helium_and_hydrogen():
    helium = zp.AtomicData(**HELIUM, system={"free_energy": [-80.0], "name": "helium"})
    helium.add_field("magmoms", [0.25], "atom")
    apart = [[0.0] * 3, [0.0, 0.0, 0.7]]
    hydrogen = zp.AtomicData(apart, [1, 1], forces=[[0.0] * 3, [1.0] * 3])
    return zp.Batch.from_data_list([helium, hydrogen])


def test_labels_and_levels_by_value():
    made = to_nequip(helium_and_hydrogen().without("charge"))
    assert made["num_atoms"].tolist() == [1, 2]
    assert made["batch"].tolist() == [0, 1, 1]
    assert made["total_energy"][:, 0].tolist() == pytest.approx([-79.0, np.nan], nan_ok=True)
    assert made["forces"].isnan().any(1).tolist() == [True, False, False]
    assert made["stress"][0].equal(torch.eye(3))
    assert made["cell"].diagonal(dim1=1, dim2=2).tolist() == [[2.0] * 3, [0.0] * 3]
    assert made["pbc"].tolist() == [[True] * 3, [False] * 3]
    assert made["charges"].shape == made["magmoms"].shape == (3, 1)
    assert made["free_energy"][:, 0].tolist() == pytest.approx([-80.0, np.nan], nan_ok=True)
    assert made["edge_index"].tolist() == [[0], [0]]
    assert made["edge_cell_shift"].tolist() == [[1.0, 0.0, 0.0]]
    assert not {"dipole", "name"} & set(made)  # NequIP's dipole is one of each atom
    assert {made[key].dtype for key in ("pos", "cell", "stress", "charges")} == {torch.float64}
    single = to_nequip(helium_and_hydrogen().without("charge"), dtype=torch.float32)
    assert single["pos"].dtype == single["total_energy"].dtype == torch.float32


def test_keys_that_a_user_maps():
    batch = helium_and_hydrogen().without("charge", "energy")
    made = to_nequip(batch, key_mapping={"free_energy": "total_energy"})
    assert made["total_energy"][0] == -80.0
    assert "free_energy" not in made


def test_integers_that_some_system_lacks():
    whole = to_nequip(zp.Batch.from_data_list([zp.AtomicData(**HELIUM)]))
    assert whole["charge"].dtype == torch.int64
    assert whole["charge"].tolist() == [[1]]
    with pytest.raises(FieldError, match=r"'charge' has values that are not whole.*has\(charge\)"):
        to_nequip(helium_and_hydrogen())


def test_what_nequip_cannot_take_is_refused():
    batch = helium_and_hydrogen().without("charge")
    with pytest.raises(FieldError, match=r"another one both are 'total_energy'"):
        to_nequip(batch, key_mapping={"free_energy": "total_energy"})
    with pytest.raises(FieldError, match=r"'magmoms' is at level 'atom'.*it for each system"):
        to_nequip(batch, key_mapping={"magmoms": "total_energy"})
    with pytest.raises(FieldError, match=r"no such key.*register_fields"):
        to_nequip(batch, key_mapping={"magmoms": "of_my_own"})
    with pytest.raises(FieldError, match="without neighbor_list_shifts"):
        to_nequip(batch.without("neighbor_list_shifts"))
    with pytest.raises(FieldError, match="does not know the key 'of_my_own'"):
        from_nequip({**to_nequip(batch), "of_my_own": torch.zeros(3)})
    with pytest.raises(FieldError, match="no 'atomic_numbers'"):
        from_nequip({"pos": torch.zeros(1, 3)})


def test_back_from_nequip(crystals):
    store, file = crystals
    given = theirs(file, [0, 5, 2], of_nequip())
    batch = from_nequip(given)
    expected = NeighborList(CUTOFF)(zp.ZarrDataset(store).read([0, 5, 2]))
    for name in ("positions", "energy", "forces", "cell", "pbc", "atomic_numbers"):
        assert batch[name].equal(expected[name]), name
    assert batch.num_edges_list == expected.num_edges_list
    assert batch.atom_types.shape == (batch.num_nodes,)
    check_same(to_nequip(batch), given)
    (one,) = from_nequip(datasets.ASEDataset(file, of_nequip())[5]).to_data_list()
    assert one.neighbor_list.equal(batch.get_data(1).neighbor_list)
    charged = from_nequip(to_nequip(zp.Batch.from_data_list([zp.AtomicData(**HELIUM)])))
    assert charged.charge.tolist() == [[1.0]]
    assert charged.charges.tolist() == [0.5]


class Shifted:
    """A transform of a user's own, which works on one system."""

    def __call__(self, system):
        assert "batch" not in system
        assert system["edge_index"].max() < len(system["pos"])
        system["pos"] = system["pos"] + len(system["pos"])
        return system


def test_transforms_of_single_systems(crystals):
    store, file = crystals
    own = [*of_nequip(), Shifted(), transforms.DatasetIndexTransform(3)]
    batch = ours.NequIPTransforms(own)(zp.ZarrDataset(store).read([2, 9]))
    check_same(to_nequip(batch), theirs(file, [2, 9], own))


def test_pruned_and_sorted_neighbours(crystals):
    store, file = crystals
    cutoffs = {"Cu": 3.0, "Ag": {"Cu": 3.2, "Ag": 4.0, "Au": 3.1}, "Au": 3.5}
    pruned = transforms.NeighborListTransform(CUTOFF, cutoffs, METALS)
    own = [transforms.ChemicalSpeciesToAtomTypeMapper(METALS), pruned]
    made = to_nequip(ours.NequIPTransforms(own)(zp.ZarrDataset(store).read([1, 2])))
    check_same(made, theirs(file, [1, 2], own))
    every = to_nequip(ours.NequIPTransforms(of_nequip())(zp.ZarrDataset(store).read([1, 2])))
    assert 0 < made["edge_index"].shape[1] < every["edge_index"].shape[1]
    own[1] = transforms.SortedNeighborListTransform(CUTOFF)
    made = to_nequip(ours.NequIPTransforms(own)(zp.ZarrDataset(store).read([1, 2])))
    center, neighbor = made["edge_index"]
    back = made["edge_transpose_perm"]
    assert neighbor[back].equal(center)
    assert (center.diff() >= 0).all()


def module_of(store, **given):
    given = {"transforms": of_nequip(), "batch_size": 4, "split": (1.0, 0.0, 0.0)} | given
    return ours.ZarrDataModule(store, **given)


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_give_nequips_batches(crystals, workers):
    store, file = crystals
    module = module_of(store, num_workers=workers, seed=3)
    assert isinstance(module, importlib.import_module("nequip.data.datamodule").NequIPDataModule)
    module.setup("fit")
    loader, sampler = module.train_dataloader(), zp.GraphBatchSampler(range(24), 4, seed=3)
    rows = list(sampler)
    for made, expected in zip(loader, rows, strict=True):
        check_same(made, theirs(file, expected, of_nequip()))
    module.teardown("fit")


def test_a_configuration_is_made(crystals):
    kind = "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper"
    module = module_of(
        crystals[0],
        transform={"_target_": "zarrpipe.transforms.NeighborList", "cutoff": CUTOFF},
        train_transform=[{"_target_": "zarrpipe.transforms.RandomRotation"}],
        transforms=[{"_target_": kind, "model_type_names": METALS}],
    )
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["atom_types"].shape == batch["atomic_numbers"].shape
    numbers = torch.tensor([29, 47, 79])
    assert numbers[batch["atom_types"]].equal(batch["atomic_numbers"])
    assert batch["edge_index"].shape[1] == len(batch["edge_cell_shift"]) > 0


def test_what_models_cannot_do_without(crystals):
    mapper, neighbors, _ = of_nequip()
    with pytest.raises(ArgumentTypeError, match="transforms has 'cutoff'"):
        module_of(crystals[0], transforms=["cutoff"])
    for given, message in (([neighbors], "no atom types"), ([mapper], "no edges")):
        module = module_of(crystals[0], transforms=given)
        module.setup("fit")
        with pytest.raises(ArgumentError, match=message):
            next(iter(module.train_dataloader()))


def test_the_batch_size_that_nequips_commands_set(crystals):
    torchs = {"_target_": "torch.utils.data.DataLoader", "batch_size": 1}
    module = module_of(crystals[0], train_dataloader=torchs)
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["num_atoms"].shape == (1,)
    for other in ({"num_workers": 5}, {"_target_": "my.Loader"}):
        with pytest.raises(ArgumentError, match="expected batch_size alone"):
            module_of(crystals[0], train_dataloader=other)


def check_statistics(found, manager, file, own):
    """Whether all that NequIP counts in its own datasets was found."""
    every = datasets.ASEDataset(file, own)
    expected = manager.get_statistics([theirs(file, range(len(every)), own)])
    for name, value in expected.items():
        number = value.item() if isinstance(value, torch.Tensor) else value
        assert found[name] == pytest.approx(number, rel=1e-9), name


@pytest.mark.parametrize("name", ["CommonDataStatisticsManager", "EnergyOnlyDataStatisticsManager"])
def test_statistics_are_nequips(crystals, name):
    store, file = crystals
    manager = getattr(data, name)
    module = module_of(store, stats_manager={"_target_": f"nequip.data.{name}"} | TYPES)
    check_statistics(module.get_statistics(), manager(type_names=METALS), file, of_nequip())


TYPES = {"type_names": METALS}


def test_statistics_that_stores_keep(crystals, monkeypatch):
    store, file = crystals

    def count(*_):
        raise AssertionError("samples were read")

    monkeypatch.setattr("zarrpipe.training.statistics.count", count)
    found = module_of(store).get_statistics()
    names = ("num_neighbors_mean", "per_atom_energy_mean", "forces_rms")
    expected = data.CommonDataStatisticsManager(type_names=METALS)
    counted = expected.get_statistics([theirs(file, range(24), of_nequip())])
    assert {name: found[name] for name in names} == pytest.approx(
        {name: counted[name] for name in names}, rel=1e-9
    )
    energies = module_of(store).statistics.reference_energies
    assert found["reference_energies"] == {
        "Cu": energies[29],
        "Ag": energies[47],
        "Au": energies[79],
    }
    module = module_of(store, transforms=of_nequip([*METALS, "H"]))
    assert module.get_statistics()["reference_energies"]["H"] == 0.0


def test_statistics_of_labels_that_are_changed_are_counted(crystals):
    module = module_of(crystals[0], transform=ConvertUnits(energy="kcal/mol"))
    assert set(module.get_statistics()) == {"num_neighbors_mean"}
    mapped = module_of(crystals[0], key_mapping={"pbe_energy": "total_energy"})
    assert set(mapped.get_statistics()) == {"num_neighbors_mean"}
    manager = data.CommonDataStatisticsManager(type_names=METALS)
    found = module_of(
        crystals[0], transform=ConvertUnits(energy="kcal/mol"), stats_manager=manager
    ).get_statistics()
    plain = module_of(crystals[0]).get_statistics()
    ratio = found["per_atom_energy_mean"] / plain["per_atom_energy_mean"]
    assert ratio == pytest.approx(23.0605, rel=1e-4)


def test_statistics_leave_out_what_samples_lack(tmp_path):
    made = structures.crystals(24)
    del made[0].calc.results["forces"], made[1].calc.results["energy"]
    store, _ = stored(made, tmp_path)
    manager = data.CommonDataStatisticsManager(type_names=METALS)
    found = module_of(store, stats_manager=manager).get_statistics()
    forces = np.concatenate([atoms.get_forces() for atoms in made[1:]])
    energies = [atoms.get_potential_energy() / len(atoms) for atoms in made if atoms is not made[1]]
    assert found["forces_rms"] == pytest.approx(np.sqrt(np.mean(forces**2)))
    assert found["per_atom_energy_mean"] == pytest.approx(np.mean(energies))
    numbers = np.concatenate([atoms.numbers for atoms in made[1:]])
    copper = np.sqrt(np.mean(forces[numbers == 29] ** 2))
    assert found["per_type_forces_rms"]["Cu"] == pytest.approx(copper)


def test_statistics_of_types_that_no_sample_has(crystals):
    types = [*METALS, "H"]
    manager = data.CommonDataStatisticsManager(type_names=types)
    module = module_of(crystals[0], transforms=of_nequip(types), stats_manager=manager)
    with pytest.warns(UserWarning, match="'per_type_.*' is NaN for H, as no sample") as said:
        found = module.get_statistics()
    assert len(said) == 2
    assert np.isnan(found["per_type_forces_rms"]["H"])


SMALL = {
    "_target_": "nequip.model.NequIPGNNModel",
    "seed": 1,
    "model_dtype": "float64",
    "type_names": METALS,
    "r_max": CUTOFF,
    "l_max": 1,
    "num_layers": 1,
    "num_features": 2,
    "radial_mlp_width": 4,
    "avg_num_neighbors": 40.0,
    "per_type_energy_scales": 1.0,
    "per_type_energy_shifts": 0.0,
}


@pytest.mark.parametrize("vesin", [True, False])
def test_losses_are_those_of_nequips_own_loader(tmp_path, vesin):
    bench = importlib.import_module("benchmarks.trainers.nequip")
    pair = bench.pair(tmp_path, 8, samples=12, model=SMALL, vesin=vesin)
    assert len(set(pair.ours.losses)) == 8
    assert pair.difference <= (1e-10 if vesin else 0.0)


def test_a_batch_without_any_stress_logs_nan_and_trains(crystals):
    """NequIP's mean over no stress is NaN, without a gradient: the weights stay finite."""
    bench = importlib.import_module("benchmarks.trainers.nequip")
    module = bench.module(SMALL)
    batch = to_nequip(ours.NequIPTransforms(of_nequip())(zp.ZarrDataset(crystals[0]).read([0, 3])))
    loss = module.loss(module(dict(batch)), batch)
    assert loss["weighted_sum"].isnan()
    loss["weighted_sum"].backward()
    gradients = [one.grad for one in module.parameters() if one.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.slow
def test_fifty_losses_are_those_of_nequips_own_loader(tmp_path):
    bench = importlib.import_module("benchmarks.trainers.nequip")
    pair = bench.pair(tmp_path, 50)
    assert pair.difference < 1e-9
    assert pair.ours.losses[-1] < pair.ours.losses[0]


SPLIT = (0.5, 0.25, 0.25)
SMALLER = {
    "nequip": ("num_layers=1", "num_features=2", "radial_mlp_width=4"),
    "allegro": ("num_layers=1", "num_scalar_features=4", "num_tensor_features=2"),
}


def nequip_train(place, store, *overrides, name="nequip"):
    """Run `nequip-train` with one of the example configurations, made small."""
    model = "allegro" if name == "allegro" else "training_module.model"
    return python(
        *("-m", "nequip.scripts.train", "-cp", str(ROOT / "configs"), "-cn", name),
        *(f"data.store={store}", "elements=[Cu,Ag,Au]", f"cutoff_radius={CUTOFF}"),
        *(
            "data.batch_size=4",
            f"data.split={list(SPLIT)}",
            "trainer.log_every_n_steps=1",
            f"hydra.run.dir={place}",
        ),
        *(f"{model}.{size}" for size in SMALLER[name]),
        *overrides,
        cwd=place.parent,
    )


def python(*arguments, cwd):
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def metrics(place):
    """Columns of the metrics that a run logged, without empty entries."""
    (file,) = place.glob("lightning_logs/version_*/metrics.csv")
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    return {
        key: [float(row[key]) for row in rows if row[key]] for key in rows[0] if key is not None
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nequip", "allegro"])
def test_nequip_train_on_a_store(crystals, tmp_path, name):
    if name == "allegro":
        pytest.importorskip("allegro")
    run = nequip_train(tmp_path / "run", crystals[0], "trainer.max_epochs=3", name=name)
    assert run.returncode == 0, run.stderr
    found = metrics(tmp_path / "run")
    losses = found["train_loss_epoch/weighted_sum"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    for key in ("val0_epoch/stress_mae", "test0_epoch/stress_mae", "test0_epoch/forces_mae"):
        assert np.isfinite(found[key]).all(), key
    assert found["data/num_samples"][0] == len(module_of(crystals[0], split=SPLIT).train_dataset)
    packaged = tmp_path / "model.nequip.zip"
    best = str(tmp_path / "run" / "best.ckpt")
    run = python("-m", "nequip.scripts.package", "build", best, str(packaged), cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert packaged.exists()


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_at_its_batch(crystals, tmp_path):
    """Batches and weights are those of a run that nobody killed."""

    def train(name, *more, kill=None):
        record = f"{{_target_: nequip_jobs.Record, file: {tmp_path / name}.jsonl, kill_at: {kill}}}"
        last = (
            "{_target_: lightning.pytorch.callbacks.ModelCheckpoint, filename: last, "
            f"dirpath: {tmp_path / name}, every_n_train_steps: 2, enable_version_counter: false}}"
        )
        return nequip_train(
            tmp_path / name,
            crystals[0],
            "run=[train]",
            "trainer.max_epochs=3",
            "data.num_workers=1",
            "data.batch_size=2",
            f"trainer.callbacks=[{last},{record.replace('None', 'null')}]",
            *more,
        )

    def lines(name):
        return [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]

    whole = train("whole")
    assert whole.returncode == 0, whole.stderr
    killed = train("killed", kill=9)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert lines("killed")[-1][0] == 9
    resumed = train("resumed", f"+ckpt_path={tmp_path / 'killed' / 'last.ckpt'}")
    assert resumed.returncode == 0, resumed.stderr
    expected, after = lines("whole"), lines("resumed")
    (before, epoch, _), first = expected[7], after[0]
    assert (before, first[0], first[1]) == (8, 9, epoch)  # a checkpoint of the middle of an epoch
    assert after == expected[8:]
    weights = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=False)["state_dict"]
        for name in ("whole", "resumed")
    ]
    for name, value in weights[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, weights[1][name]), name


def test_the_configuration_of_the_page(crystals):
    omegaconf, hydra = pytest.importorskip("omegaconf"), pytest.importorskip("hydra.utils")
    page = (ROOT / "docs" / "guides" / "trainers" / "nequip.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    config = omegaconf.OmegaConf.create(block.replace("crystals.zarr", str(crystals[0])))
    config.update({"seed": 5, "cutoff_radius": CUTOFF, "model_type_names": METALS})
    given = omegaconf.OmegaConf.to_container(config.data, resolve=True)
    module = hydra.instantiate(given, _recursive_=False)  # as nequip-train does it
    module.setup("fit")
    assert module.seed == 5
    batch = next(iter(module.train_dataloader()))
    assert batch["num_atoms"].shape == (5,)
    assert batch["edge_index"].shape[1] > 0
