"""MACE on a store: its batches by value, its own loop, its model files."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import from_ase, from_mace, to_mace
from zarrpipe.errors import ArgumentError, FieldError, NonFiniteLossError
from zarrpipe.mace import EpochLoader, MACEDataModule, mace_model
from zarrpipe.ml import ForceField
from zarrpipe.transforms import NeighborList

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mace-torch and e3nn, when they are imported
    pytest.importorskip("mace.data")
    pytest.importorskip("mace.tools")
    pytest.importorskip("mace.modules")

import mace.tools
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from lightning.pytorch import LightningModule, Trainer
from mace import data as mace_data
from mace import modules
from mace.calculators import MACECalculator
from mace.modules.models import o3
from mace.tools import AtomicNumberTable, CheckpointHandler, MetricsLogger
from mace.tools.torch_geometric import DataLoader

from benchmarks.trainers.mace import pair
from benchmarks.trainers.structures import crystals

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "trainers" / "mace.md"
RECIPE = ROOT / "recipes" / "mace_own_loop.py"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support:UserWarning"),
]

TABLE = AtomicNumberTable([1, 8, 29])
R_MAX = 4.5
SYSTEM = ("energy", "stress", "virials", "dipole", "polarizability", "total_charge", "total_spin")
KEYS = mace_data.KeySpecification(
    info_keys={name: name for name in (*SYSTEM, "elec_temp", "head")},
    arrays_keys={name: name for name in ("forces", "charges")},
)
OURS = {"virials": "virial", "total_charge": "charge", "total_spin": "spin"}
OF_SYSTEM = {name: OURS.get(name, name) for name in (*SYSTEM, "elec_temp")}


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    """Torch's default dtype, in which MACE makes its batches."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.fixture
def structures():
    """A molecule, a cell smaller than the cutoff, slabs and a chain, each with other labels."""
    rng = np.random.default_rng(0)
    water, copper, slab = molecule("H2O"), bulk("Cu"), fcc111("Cu", (1, 1, 2), vacuum=3.0)
    water.info |= {"energy": -14.0, "dipole": rng.normal(size=3), "total_charge": 1.0}
    water.arrays |= {"forces": rng.normal(size=(3, 3)), "charges": rng.normal(size=3)}
    copper.info |= {"energy": -3.5, "stress": rng.normal(size=6), "config_energy_weight": 0.3}
    copper.info |= {"total_spin": 2.0, "polarizability": rng.normal(size=(3, 3))}
    slab.pbc = (True, True, False)
    slab.info |= {"virials": rng.normal(size=(3, 3)), "config_type": "slab", "config_weight": 0.5}
    slab.arrays["forces"] = rng.normal(size=(2, 3))
    flat = fcc111("Cu", (1, 1, 2))  # whose third vector is zero
    flat.info |= {"energy": 2.0, "config_type": "unknown", "elec_temp": 0.2}
    chain = Atoms("HO", [[0.3, 0, 0], [0, 0, 0.8]], cell=[0, 0, 2.0], pbc=(0, 0, 1))
    return [water, copper, slab, flat, chain]


@pytest.fixture
def batch(structures):
    """The same as a batch of ours, with its edges."""
    names = {name for atoms in structures for name in atoms.info} - {"adsorbate_info"}
    info = {name: OF_SYSTEM.get(name, name) for name in names}
    made = from_ase(structures, info=info, arrays={"forces": "forces", "charges": "charges"})
    return NeighborList(R_MAX)(made)


def own(structures, weights=None):
    """MACE's batch of MACE's own data."""
    made = [
        mace_data.AtomicData.from_config(
            mace_data.config_from_atoms(atoms, KEYS, weights), z_table=TABLE, cutoff=R_MAX
        )
        for atoms in structures
    ]
    return next(iter(DataLoader(made, batch_size=len(made))))


def edge_order(batch):
    edges = torch.cat([batch.edge_index.t(), batch.unit_shifts.to(torch.int64)], 1)
    return np.lexsort(edges.numpy().T[::-1])


def assert_equal(ours, theirs):
    """Every tensor alike, but for the order of edges."""
    assert set(ours.keys) == set(theirs.keys)
    order, other = edge_order(ours), edge_order(theirs)
    for name in theirs.keys:
        found, expected = ours[name], theirs[name]
        if name == "edge_index":
            found, expected = found[:, order], expected[:, other]
        elif name in ("shifts", "unit_shifts"):
            found, expected = found[order], expected[other]
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_a_batch_is_what_mace_makes_of_the_same_atoms(structures, batch, dtype):
    weights = {"slab": 3.0, "Default": 2.0}
    theirs = own(structures, weights)
    ours = to_mace(batch, TABLE, R_MAX, config_type_weights=weights)
    assert type(ours) is type(theirs)
    assert ours.positions.dtype == dtype
    assert ours.num_graphs == theirs.num_graphs == 5
    assert ours.num_nodes == theirs.num_nodes == 10
    assert theirs.weight.tolist() == [2.0, 2.0, 1.5, 1.0, 2.0]
    assert theirs.energy_weight.tolist()[:3] == pytest.approx([1.0, 0.3, 0.0])
    assert_equal(ours, theirs)


def test_tensors_of_the_batch_are_not_changed_by_a_model_that_asks_for_gradients(batch):
    made = to_mace(batch, TABLE, R_MAX, dtype=torch.float64)
    assert made.positions.data_ptr() == batch.positions.data_ptr()
    made.positions.requires_grad_(True)
    assert not batch.positions.requires_grad


def test_what_mace_got_comes_back(batch):
    back = from_mace(to_mace(batch, TABLE, R_MAX, dtype=torch.float64), z_table=TABLE)
    for name in ("energy", "forces", "stress", "virial", "dipole", "polarizability"):
        assert torch.equal(back.present(name), batch.present(name)), name
        torch.testing.assert_close(back[name], batch[name], equal_nan=True)
    torch.testing.assert_close(back.neighbor_list, batch.neighbor_list)
    assert back.atomic_numbers.tolist() == batch.atomic_numbers.tolist()


def test_a_batch_without_cells_labels_and_shifts():
    molecule = zp.AtomicData(
        [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [8, 1], neighbor_list=[[0, 1], [1, 0]]
    )
    made = to_mace(zp.Batch.from_data_list([molecule] * 2), TABLE.zs, 3.0, dtype=torch.float64)
    expected = own([Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])] * 2)
    assert made.cell.tolist() == torch.kron(torch.ones(2, 1), torch.eye(3) * 30.0).tolist()
    assert made.shifts.tolist() == [[0.0] * 3] * 4
    assert made.edge_index.tolist() == [[0, 1, 2, 3], [1, 0, 3, 2]]
    for name in ("energy_weight", "forces_weight", "stress", "forces", "node_attrs"):
        assert made[name].tolist() == expected[name].tolist(), name


def test_heads_by_name_and_the_last_for_others():
    systems = [Atoms("H", info={"head": name} if name else {}) for name in ("b", "a", "c", None)]
    batch = NeighborList(2.0)(from_ase(systems, info=["head"]))
    assert to_mace(batch, [1], 2.0, heads=["a", "b"]).head.tolist() == [1, 0, 1, 1]
    unnamed = batch.without("head")
    assert to_mace(unnamed, [1], 2.0).head.tolist() == [0] * 4
    assert to_mace(unnamed, [1], 2.0, heads=["pt_head", "Default"]).head.tolist() == [1] * 4


def test_further_fields_have_the_shapes_of_mace_s_loader():
    systems = [molecule("H2O", info={"temperature": 300.0 + i, "code": i}) for i in range(2)]
    for atoms in systems:
        atoms.arrays["tag"] = np.arange(3.0)
    keys = mace_data.KeySpecification(
        info_keys={"temperature": "temperature", "code": "code"}, arrays_keys={"tag": "tag"}
    )
    configs = [mace_data.config_from_atoms(atoms, keys) for atoms in systems]
    made = [mace_data.AtomicData.from_config(one, z_table=TABLE, cutoff=2.0) for one in configs]
    theirs = next(iter(DataLoader(made, batch_size=2)))
    batch = NeighborList(2.0)(from_ase(systems, info=["temperature", "code"], arrays=["tag"]))
    ours = to_mace(batch, TABLE, 2.0, fields=["temperature", "code", "tag"])
    for name in ("temperature", "code", "tag"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_what_cannot_be_converted_is_said(batch):
    with pytest.raises(FieldError, match=r"transform=zarrpipe.transforms.NeighborList\(4.5\)"):
        to_mace(batch.without("neighbor_list"), TABLE, R_MAX)
    with pytest.raises(FieldError, match=r"elements \[8, 29\] are not in z_table=\[1, 6\]"):
        to_mace(batch, [1, 6], R_MAX)
    with pytest.raises(FieldError, match=r"lack field 'config_weight'.*where='has\(config_weight"):
        to_mace(batch, TABLE, R_MAX, fields=["config_weight"])
    wrong = batch.without("polarizability").add_field("polarizability", torch.zeros(5, 6), "system")
    with pytest.raises(FieldError, match=r"'polarizability' has shape \(5, 6\).*\(5, 3, 3\)"):
        to_mace(wrong, TABLE, R_MAX)


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def metals():
    """Labelled crystals of copper, silver and gold."""
    return crystals(48, seed=1)


@pytest.fixture
def store(metals):
    place = {}
    with zp.ZarrData(place) as sink:
        sink.write(metals)
    return place


def module(store, **settings):
    """Data module whose samples are all trained on."""
    data = MACEDataModule(store, 4.0, **({"split": (1.0, 0.0, 0.0), "batch_size": 8} | settings))
    data.setup("fit")
    return data


def network(data, **options):
    """The smallest MACE."""
    torch.manual_seed(1)
    blocks = modules.interaction_classes
    return modules.ScaleShiftMACE(
        **data.model_arguments(),
        num_bessel=4,
        num_polynomial_cutoff=5,
        max_ell=1,
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
        num_interactions=2,
        hidden_irreps=o3.Irreps("4x0e"),
        MLP_irreps=o3.Irreps("4x0e"),
        correlation=1,
        gate=torch.nn.functional.silu,
        radial_MLP=[8],
        **options,
    )


def predicted(model, atoms):
    """Energy, forces and stress by a MACE on our batch of one structure."""
    elements, r_max = model.atomic_numbers.tolist(), model.r_max.item()
    batch = to_mace(NeighborList(r_max)(from_ase(atoms)), elements, r_max)
    return model(batch.to_dict(), compute_stress=True)


def check_calculator(path, atoms, expected):
    """MACE's own calculator of a model file, by value."""
    atoms = atoms.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the variable that MACE sets, and conftest unsets
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        atoms.calc = MACECalculator(str(path), default_dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(expected["energy"].item(), rel=1e-9)
    forces, stress = expected["forces"].detach().numpy(), expected["stress"][0].detach().numpy()
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, rtol=1e-6, atol=1e-9)


def load_recipe():
    spec = importlib.util.spec_from_file_location("mace_own_loop", RECIPE)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    return recipe


def train(data, model, path, *, epochs, start=0, loss=None, **settings):
    """MACE's own loop, as mace_run_train calls it; gives the records of its log."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    logger = MetricsLogger(directory=str(path), tag="run")
    mace.tools.train(
        model=model,
        loss_fn=loss or modules.WeightedEnergyForcesStressLoss(1.0, 10.0, 1.0),
        **data.loop_arguments(),
        optimizer=optimizer,
        lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
        checkpoint_handler=CheckpointHandler(directory=str(path), tag="run"),
        logger=logger,
        start_epoch=start,
        max_num_epochs=epochs,
        patience=100,
        eval_interval=1,
        output_args={"forces": True, "virials": False, "stress": True},
        device=torch.device("cpu"),
        log_errors="PerAtomRMSE",
        **settings,
    )
    return [json.loads(line) for line in (path / "run.txt").read_text().splitlines()]


@pytest.mark.usefixtures("float64")
def test_the_loop_of_mace_trains_on_a_store(store, tmp_path):
    data = module(store, split=(0.75, 0.25, 0.0), seed=2)
    records = train(data, network(data), tmp_path, epochs=6)
    losses = [record["loss"] for record in records if record["mode"] == "eval"]
    assert len(losses) == 7
    assert losses[-1] < 0.85 * losses[0]
    steps = [record for record in records if record["mode"] == "opt"]
    assert len(steps) == 6 * len(data.train_dataloader())
    loop = data.loop_arguments()
    assert loop["train_sampler"] is loop["train_loader"]
    assert loop["train_loader"].waited > 0
    assert [*loop["valid_loaders"]] == ["Default"]


def test_the_loop_of_mace_needs_validation_samples(store):
    with pytest.raises(ArgumentError, match=r"no validation sample.*split.*val_store"):
        module(store).loop_arguments()


@pytest.mark.usefixtures("float64")
def test_epochs_of_the_loop_have_all_samples_in_orders_that_follow_from_seed_and_number(store):
    def energies(loader):
        return [energy for batch in loader for energy in batch.energy.tolist()]

    loader = EpochLoader(module(store, seed=2))
    assert len(loader) == 6
    first, second = energies(loader), energies(loader)
    assert sorted(first) == sorted(second)
    assert first != second
    again = EpochLoader(module(store, seed=2))
    again.set_epoch(1)
    assert energies(again) == second


def test_the_next_epoch_of_the_loop_has_what_was_written_meanwhile(store, metals):
    loader = EpochLoader(module(store, elements=["Cu", "Ag", "Au"]))
    sizes = []
    for _ in range(2):
        sizes.append(sum(batch.num_graphs for batch in loader))
        with zp.ZarrData(store) as sink:
            sink.write(crystals(5, seed=9))
    assert sizes == [48, 53]


@pytest.mark.usefixtures("float64")
def test_arguments_of_a_model_are_what_mace_computes_from_batches(store):
    data = module(store)
    found = data.model_arguments(neighbor_samples=1000)
    assert found["atomic_numbers"] == [29, 47, 79] == list(data.z_table)
    assert found["num_elements"] == 3
    assert found["atomic_inter_shift"] == 0
    loader = EpochLoader(data)
    neighbors, mean, rms = modules.compute_statistics(loader, found["atomic_energies"][None])
    assert found["avg_num_neighbors"] == pytest.approx(neighbors)
    assert found["atomic_inter_scale"] == pytest.approx(rms.item())
    assert data.statistics.energy_per_atom_mean == pytest.approx(mean.item())
    configs = [
        mace_data.Configuration(
            atoms.numbers, atoms.positions, {"energy": atoms.get_potential_energy()}, {}
        )
        for atoms in crystals(48, seed=1)
    ]
    own = mace_data.compute_average_E0s(configs, AtomicNumberTable([29, 47, 79]))
    assert found["atomic_energies"].tolist() == pytest.approx([own[z] for z in (29, 47, 79)])


def test_elements_of_validation_that_training_lacks_are_said_before_a_fit(store):
    others = {}
    with zp.ZarrData(others) as sink:
        sink.write([bulk("Al", cubic=True).repeat((n, 1, 1)) for n in range(1, 11)])
    with pytest.raises(ArgumentError, match=r"10 of 10 .*have Al, and .* are Cu, Ag, Au"):
        module(store, val_store=others)
    assert module(store, val_store=others, elements=["Al", "Cu", "Ag", "Au"]).z_table[0] == 13


def test_energies_and_elements_may_be_given(store):
    data = module(
        store,
        elements=[47, "Cu", "Au", 1],
        atomic_energies={"Cu": -1.0, 47: -2.0, 79: -3.0, "H": -13.6},
    )
    assert data.z_table == (1, 29, 47, 79)
    assert data.model_arguments()["atomic_energies"].tolist() == [-13.6, -1.0, -2.0, -3.0]
    (batch, *_) = data.train_dataloader()
    assert batch.node_attrs.shape[1] == 4
    with pytest.raises(ArgumentError, match="atomic_energies has no energy of Au"):
        module(store, atomic_energies={"Cu": -1.0, "Ag": -2.0}).model_arguments()
    with pytest.raises(ArgumentError, match="'copper' is no symbol"):
        module(store, elements=["copper"])
    with pytest.raises(ArgumentError, match=r"heads is .*together: call this for a data module of"):
        module(store, heads=["pbe", "r2scan"]).model_arguments()


@pytest.fixture
def trained(store, tmp_path):
    """A MACE after some steps of zarrpipe's own training, in float64."""
    field = ForceField("mace", {"channels": 4, "cutoff": 4.0}, seed=1)
    trainer = Trainer(max_steps=3, accelerator="cpu", barebones=True)
    trainer.fit(field, zp.ZarrDataModule(store, batch_size=8, split=(0.75, 0.25, 0.0)))
    return field.double()


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_model_trained_here_is_one_of_mace_and_fine_tuned_from_there(
    trained, store, metals, tmp_path
):
    model, path = mace_model(trained), tmp_path / "ours.model"
    torch.save(model, path)
    assert model.scale_shift.scale.item() == pytest.approx(trained.scale.item()) != 1.0
    for atoms in metals[:3]:
        energy, forces, stress = trained.predict(from_ase(atoms), stress=True)
        check_calculator(path, atoms, {"energy": energy, "forces": forces, "stress": stress})

    place = tmp_path / "metals.zarr"
    zp.copy(store, place)
    recipe = load_recipe()
    given = ["--name=x", "--train_file", str(place), "--loss=stress", "--valid_fraction=0.25"]
    args, _ = mace.tools.check_args(mace.tools.build_default_arg_parser().parse_args(given))
    args.r_max = model.r_max.item()
    tuned, output = recipe.build(args, recipe.dataset(args), model)
    assert output["stress"]
    for atoms in metals[:3]:
        expected, found = predicted(model, atoms), predicted(tuned, atoms)
        for name in ("interaction_energy", "forces", "stress"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9)


def test_only_a_trained_mace_becomes_a_model_of_mace():
    with pytest.raises(ArgumentError, match="is SchNetPotential, expected a MACEPotential"):
        mace_model(ForceField("schnet", {"cutoff": 4.0}))
    with pytest.raises(ArgumentError, match="is NoneType, expected a MACEPotential: train with"):
        mace_model(ForceField("mace"))
    options = {"cutoff": 4.0, "elements": ["Cu"], "mean_neighbors": 8.0}
    with pytest.raises(ArgumentError, match="was not trained: fit it"):
        mace_model(ForceField("mace", options))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_the_recipe_trains_and_goes_on_from_its_model(store, metals, tmp_path):
    zp.copy(store, tmp_path / "metals.zarr")
    options = ["--train_file", "metals.zarr", "--loss=stress", "--r_max=4.0", "--max_ell=1"]
    options += ["--num_channels=4", "--max_L=0", "--correlation=1", "--valid_fraction=0.25"]
    options += ["--batch_size=8", "--max_num_epochs=3", "--ema", "--test_file=test.zarr"]
    with zp.ZarrData(tmp_path / "test.zarr") as sink:
        sink.write(crystals(10, seed=5))

    def run(*more):
        command = [sys.executable, "-W", "ignore", str(RECIPE), *options, *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        losses = [float(one) for one in re.findall(r"Default, loss=([\d.]+)", done.stdout)]
        assert len(losses) == 4
        table = re.findall(r"\| *(train|valid|test) *\| *([\d.]+)", done.stdout)
        assert [name for name, _ in table] == ["train", "valid", "test"]
        assert all(float(error) > 0 for _, error in table)
        return losses

    first = run("--name=first")
    second = run("--name=second", "--foundation_model=first.model", "--lr=0.001")
    assert min(first[1:]) < 0.9 * first[0]
    assert second[0] == pytest.approx(min(first), rel=0.1)
    foundation = torch.load(tmp_path / "second.model", weights_only=False)
    check_calculator(tmp_path / "second.model", metals[0], predicted(foundation, metals[0]))


def test_the_recipe_takes_reference_energies_of_isolated_atoms_and_does_not_train_on_them(
    store, tmp_path
):
    recipe = load_recipe()
    with zp.ZarrData(tmp_path / "metals.zarr") as sink:
        sink.write(zp.ZarrDataset(store).read(range(48)))
        for number, energy in ((29, -1.0), (47, -2.0), (79, -3.0)):
            atom = Atoms(numbers=[number], info={"config_type": "IsolatedAtom", "e": energy})
            sink.write(from_ase(atom, info={"config_type": "config_type", "e": "energy"}))
    given = ["--name=x", "--train_file", str(tmp_path / "metals.zarr"), "--valid_fraction=0.25"]
    args, _ = mace.tools.check_args(mace.tools.build_default_arg_parser().parse_args(given))
    data = recipe.dataset(args)
    assert data.atomic_energies == {29: -1.0, 47: -2.0, 79: -3.0}
    assert len(data.train_dataset) + len(data.val_dataset) == 48
    args.E0s = "{29: 0.5, 47: 0.25, 79: 0.0}"
    assert recipe.given_energies(args) == {29: 0.5, 47: 0.25, 79: 0.0}


def test_the_recipe_refuses_options_that_it_does_not_have(capsys):
    recipe = load_recipe()
    for given, said in (
        (["--name=x"], "--train_file is needed"),
        (["--name=x", "--train_file=y", "--lora=True"], "--lora is an option of mace_run_train"),
    ):
        with pytest.raises(SystemExit):
            recipe.main(given)
        assert said in capsys.readouterr().err


def test_the_recipe_stops_where_the_loss_is_not_finite(store):
    loss = load_recipe().Finite(modules.WeightedEnergyForcesLoss(1.0, 10.0))
    batch = next(iter(module(store).train_dataloader()))
    right = {"energy": batch.energy, "forces": batch.forces}
    assert loss(pred=right, ref=batch).item() == 0
    with pytest.raises(NonFiniteLossError, match="the loss is nan: the model has diverged"):
        loss(pred=right | {"forces": batch.forces * torch.nan}, ref=batch)
    batch.energy[0] = torch.inf
    with pytest.raises(NonFiniteLossError, match=r"labels \['energy'\] are not finite"):
        loss(pred=right, ref=batch)


RANK = """
import json, sys, torch, zarrpipe.mace
from mace import modules, tools
from e3nn import o3
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
data = zarrpipe.mace.MACEDataModule("metals.zarr", 4.0, batch_size=8, split=(0.7, 0.3, 0.0))
data.setup("fit")
torch.manual_seed(0)
kinds = modules.interaction_classes
model = modules.ScaleShiftMACE(
    **data.model_arguments(), num_bessel=4, num_polynomial_cutoff=5, max_ell=1, num_interactions=2,
    interaction_cls=kinds["RealAgnosticResidualInteractionBlock"], correlation=1,
    interaction_cls_first=kinds["RealAgnosticInteractionBlock"], gate=torch.nn.functional.silu,
    hidden_irreps=o3.Irreps("4x0e"), MLP_irreps=o3.Irreps("4x0e"), radial_MLP=[8],
)
seen = []
class Loss(modules.WeightedEnergyForcesLoss):
    def forward(self, pred, ref, ddp=None):
        if next(model.parameters()).requires_grad:  # not while it validates
            seen.extend(ref.energy.tolist())
        return super().forward(pred=pred, ref=ref, ddp=ddp)
optimizer, rank = torch.optim.Adam(model.parameters(), lr=0.01), torch.distributed.get_rank()
tools.train(
    model=model, loss_fn=Loss(1.0, 10.0), **data.loop_arguments(), optimizer=optimizer,
    lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), patience=9, eval_interval=1,
    checkpoint_handler=tools.CheckpointHandler(directory="run", tag="r"), start_epoch=0,
    logger=tools.MetricsLogger(directory="run", tag="r"), max_num_epochs=1, log_errors="TotalMAE",
    output_args={"forces": True, "virials": False, "stress": False}, device=torch.device("cpu"),
    distributed=True, distributed_model=torch.nn.parallel.DistributedDataParallel(model), rank=rank,
)
energies = data.train_dataset.read(range(len(data.train_dataset))).energy.flatten().tolist()
total = [float(p.detach().sum()) for p in model.parameters()]
json.dump([seen, energies, total], open(f"rank{rank}.json", "w"))
"""


@pytest.mark.slow
def test_two_processes_share_each_epoch_of_mace_s_loop(store, tmp_path):
    zp.copy(store, tmp_path / "metals.zarr")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK],
            cwd=tmp_path,
            env={**os.environ, **place, "RANK": str(rank), "PYTHONPATH": str(ROOT)},
        )
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    (seen, energies, weights), (others, _, same) = (
        json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)
    )
    assert len(seen) == pytest.approx(len(others), abs=1)
    assert sorted(seen + others) == sorted(energies)
    assert weights == same


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_the_code_of_the_page_runs(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    found = {}
    with caplog.at_level("INFO"):
        exec(compile(code, PAGE.name, "exec"), found)
    errors = [float(one) for one in re.findall(r"RMSE_F= *([\d.]+) meV", caplog.text)]
    assert len(errors) == 6
    assert errors[-1] < 0.5 * errors[0]
    atoms, expected = found["atoms"], predicted(found["model"], found["atoms"])
    check_calculator("copper.model", atoms, expected)


@pytest.mark.slow
def test_the_same_order_of_batches_gives_the_losses_of_mace_s_own_loader(tmp_path):
    before = torch.get_default_dtype()
    try:
        found = pair(tmp_path, 50)
    finally:
        torch.set_default_dtype(before)
    assert len(found.ours.losses) == 50
    assert found.ours.losses[-1] < 0.2 * found.ours.losses[0]
    assert found.difference < 1e-10


class Lit(LightningModule):
    """Trains a MACE on the batches of a data module."""

    def __init__(self, model):
        super().__init__()
        self.model, self.losses = model, []
        self.loss = modules.WeightedEnergyForcesLoss(1.0, 10.0)

    def training_step(self, batch, _):
        loss = self.loss(pred=self.model(batch.to_dict(), training=True), ref=batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_lightning_trains_on_the_same_batches(store, tmp_path, workers):
    place = tmp_path / "metals.zarr"
    zp.copy(store, place)
    split = {"seed": 2, "split": (0.75, 0.25, 0.0)}
    data = module(place, num_workers=workers, **split)
    lit, monitor = Lit(network(data)), zp.DataMonitor(every_n_steps=2)
    own = network(data)
    trainer = Trainer(
        max_epochs=1,
        callbacks=[monitor],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(lit, data)
    assert monitor.total.samples == len(data.train_dataset)
    records = train(
        module(place, **split),
        own,
        tmp_path,
        epochs=1,
        loss=modules.WeightedEnergyForcesLoss(1.0, 10.0),
        max_grad_norm=None,
    )
    steps = [record["loss"] for record in records if record["mode"] == "opt"]
    assert lit.losses == pytest.approx(steps, rel=1e-9)


@pytest.mark.filterwarnings("ignore")  # jsonargparse's own deprecations, which LightningCLI uses
def test_a_configuration_file_has_the_settings_of_the_data_module(store, tmp_path):
    jsonargparse = pytest.importorskip("jsonargparse")
    zp.copy(store, tmp_path / "metals.zarr")
    settings = {"r_max": 4.0, "elements": ["Cu", 47, "Au"], "batch_size": 16}
    settings |= {"store": str(tmp_path / "metals.zarr"), "where": "has(energy)"}
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(MACEDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": settings})).data
    assert data.z_table == (29, 47, 79)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).num_graphs == 16
    with pytest.raises(jsonargparse.ArgumentError, match="batch_sise"):
        parser.parse_object({"data": settings | {"batch_sise": 3}})
