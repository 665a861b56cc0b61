"""MatGL on a store: its tuple by value, the checks before training, its trainers, equal losses."""

import math
import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import zarrpipe as zp
from zarrpipe.adapters import from_ase, to_matgl
from zarrpipe.errors import FieldError
from zarrpipe.transforms import NeighborList

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries that it imports
    pytest.importorskip("matgl")

import matgl
from ase import Atoms
from matgl.apps.pes import Potential
from matgl.ext.ase import Atoms2Graph
from matgl.graph.data import collate_fn_pes
from matgl.models import M3GNet, TensorNet
from matgl.utils.constants import EV_PER_ANG3_TO_GPA
from matgl.utils.training import MGLPotentialTrainer, PotentialLightningModule

from benchmarks.trainers.matgl import pair
from benchmarks.trainers.structures import crystals, molecules
from zarrpipe.matgl import ZarrDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`"),
]
ROOT = Path(__file__).parents[2]
CUTOFF = 4.0
METALS = ("Cu", "Ag", "Au")


@pytest.fixture
def double():
    """MatGL and torch in float64, and as before afterwards."""
    matgl.set_default_dtype("float", 64)
    yield
    matgl.set_default_dtype("float", 32)


def batch_of(structures, cutoff=CUTOFF):
    return NeighborList(cutoff)(from_ase(structures))


def own(structures, elements):
    """MatGL's own tuple of structures."""
    items = []
    for atoms in structures:
        graph, lattice, state = Atoms2Graph(elements, CUTOFF).get_graph(atoms)
        results = atoms.calc.results
        labels = {"energies": results["energy"], "forces": torch.tensor(results["forces"])}
        if "stress" in results:
            stress = atoms.get_stress(voigt=False) * EV_PER_ANG3_TO_GPA
            labels["stresses"] = torch.tensor(stress)
        items.append((graph, lattice, torch.tensor(state), labels))
    return collate_fn_pes(items, include_stress="stresses" in items[0][-1])


def edges(graph):
    return sorted(map(tuple, torch.cat([graph.edge_index.t(), graph.pbc_offset], 1).tolist()))


def network(elements=METALS, **given):
    settings = {"units": 8, "num_rbf": 4, "cutoff": CUTOFF, "is_intensive": False} | given
    torch.manual_seed(1)
    return TensorNet(element_types=elements, use_warp=False, **settings)


def module_of(data, model=None, **settings):
    model = network(data.element_types) if model is None else model
    return PotentialLightningModule(model, **({"lr": 0.01} | data.normalization | settings))


def trainer(tmp_path, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(
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


@pytest.mark.parametrize(
    ("structures", "elements"),
    [
        (crystals(5), METALS),
        (crystals(1), METALS),
        (molecules(6), ("N", "C", "H", "O")),
    ],
    ids=["crystals", "one", "molecules"],
)
def test_the_tuple_is_that_of_its_own_loader(double, structures, elements):
    theirs = own(structures, elements)
    ours = to_matgl(batch_of(structures), elements)
    assert set(theirs[0].keys()) == set(ours[0].keys())
    for key in ("edge_index", "pbc_offset", "node_type", "frac_coords", "batch", "ptr"):
        assert ours[0][key].dtype == theirs[0][key].dtype, key
    for key in ("node_type", "batch", "ptr"):
        assert torch.equal(ours[0][key], theirs[0][key]), key
    torch.testing.assert_close(ours[0].frac_coords, theirs[0].frac_coords, rtol=0, atol=1e-14)
    assert edges(ours[0]) == edges(theirs[0])
    assert ours[0].num_graphs == theirs[0].num_graphs == len(structures)
    assert torch.equal(ours[1], theirs[1].reshape(-1, 3, 3))
    for mine, other in zip(ours[2:5], theirs[2:5], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    if elements is METALS:
        torch.testing.assert_close(ours[5], theirs[5], rtol=0, atol=1e-13)
    else:
        assert ours[5].tolist() == [0.0]
    assert len(ours) == len(theirs) == 6


def test_floats_are_in_the_dtype_of_matgl():
    graph, *rest = to_matgl(batch_of(crystals(2)), METALS)
    assert {value.dtype for value in rest} == {torch.float32}
    assert graph.frac_coords.dtype == graph.pbc_offset.dtype == torch.float32
    assert to_matgl(batch_of(crystals(2)), METALS, dtype=torch.float64)[2].dtype == torch.float64


def test_stress_has_the_unit_and_sign_of_its_potentials(double):
    """Against the derivative of the potential's own energy by strain, in eV/Angstrom^3."""
    potential = Potential(network(dtype=torch.float64), calc_stresses=True).double().eval()
    (atoms,) = crystals(1, seed=4)

    def energy(strained):
        return float(potential(*to_matgl(batch_of([strained]), METALS)[:2])[0].detach())

    stress, step = np.zeros((3, 3)), 1e-4
    for i, j in np.ndindex(3, 3):
        ends = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step
            moved = atoms.copy()
            moved.set_cell(atoms.cell @ strain, scale_atoms=True)
            moved.calc = atoms.calc
            moved.calc.atoms = moved.copy()
            ends.append(energy(moved))
        stress[i, j] = (ends[0] - ends[1]) / (2 * step) / atoms.get_volume()
    stress = (stress + stress.T) / 2
    assert abs(stress).max() > 1e-6
    atoms.calc.atoms = atoms.copy()
    batch = batch_of([atoms])
    labelled = batch.add_field("stress", torch.tensor(stress)[None])
    graph, lattice, _, _, _, stresses = to_matgl(labelled, METALS)
    predicted = potential(graph, lattice)[2]
    torch.testing.assert_close(stresses, (predicted + predicted.T) / 2, rtol=1e-4, atol=1e-8)
    virial = labelled.without("stress").add_field(
        "virial", torch.tensor(-stress * atoms.get_volume())[None]
    )
    torch.testing.assert_close(to_matgl(virial, METALS)[5], stresses, rtol=1e-12, atol=0)


def test_a_virial_takes_the_place_of_a_missing_stress(double):
    first, second, third = (from_ase([atoms]) for atoms in crystals(3))
    expected = to_matgl(batch_of(crystals(3)), METALS)[5].reshape(3, 3, 3)
    second.add_field("virial", -second.stress * float(torch.linalg.det(second.cell)))
    given = [second.without("stress"), third.without("stress"), first]
    made = to_matgl(NeighborList(CUTOFF)(zp.Batch.concatenate(given)), METALS)[5]
    made = made.reshape(3, 3, 3)
    torch.testing.assert_close(made[0], expected[1], rtol=1e-12, atol=1e-14)
    assert made[1].isnan().all()
    assert torch.equal(made[2], expected[0])


def test_a_slab_whose_third_vector_is_zero(double):
    slab = Atoms("CuAg2", [[0, 0, 0], [1.5, 0.2, 0.1], [0.4, 1.9, 2.0]], pbc=(True, True, False))
    slab.cell = [[3.0, 0.2, 0.0], [0.0, 3.5, 0.3], [0, 0, 0]]
    wire = slab.copy()
    wire.cell, wire.pbc = [[0, 0, 0], [0.0, 3.5, 0.3], [0, 0, 0]], (False, True, False)
    for atoms, along in ((slab, [2]), (wire, [0, 2])):
        labelled = from_ase([atoms]).add_field("energy", torch.zeros(1, 1))
        labelled = labelled.add_field("forces", torch.zeros(3, 3))
        graph, lattice, *_ = to_matgl(NeighborList(CUTOFF)(labelled), METALS)
        across = lattice[0, along]
        torch.testing.assert_close(across @ across.T, torch.eye(len(along)))
        torch.testing.assert_close(lattice[0] @ across.T, torch.eye(3)[:, along])
        kept = [row for row in range(3) if row not in along]
        assert torch.equal(lattice[0, kept], torch.tensor(atoms.cell[kept]))
        torch.testing.assert_close(graph.frac_coords @ lattice[0], labelled.positions)
        assert graph.pbc_offset[:, along].abs().max() == 0 < graph.pbc_offset[:, kept].abs().max()


def test_edges_of_a_store_are_sorted_for_three_body_terms(double):
    structures = crystals(2)
    batch = batch_of(structures)
    turned = torch.cat([torch.arange(a, b).flip(0) for a, b in batch.edge_ptr.unfold(0, 2, 1)])
    other = batch._replace(
        {name: batch[name][turned] for name in ("neighbor_list", "neighbor_list_shifts")}
    )
    graph = to_matgl(other, METALS)[0]
    assert not bool((graph.edge_index[0].diff() < 0).any())
    assert edges(graph) == edges(to_matgl(batch, METALS)[0])


def test_state_attributes_and_labels_of_atoms():
    batch = batch_of(crystals(3))
    count = batch.num_nodes
    batch = batch.add_field("level", torch.tensor([[0], [2], [1]]), "system")
    batch = batch.add_field("fraction", torch.rand(3, 2), "system")
    batch = batch.add_field("magmoms", torch.arange(count, dtype=torch.float32), "atom")
    batch = batch.add_field("charges", torch.arange(count, dtype=torch.float32))
    made = to_matgl(batch, METALS, state_attr="level", include_magmom=True)
    assert made[2].tolist() == [0, 2, 1]
    assert made[2].dtype == torch.int64
    assert made[6].tolist() == [[float(n)] for n in range(count)]
    made = to_matgl(batch, METALS, state_attr="fraction", include_charge=True, include_stress=False)
    assert torch.equal(made[2], batch.fraction)
    assert made[5].tolist() == [0.0]
    assert made[6].tolist() == list(range(count))


def test_what_cannot_be_made_is_refused():
    batch = batch_of(crystals(3))
    with pytest.raises(FieldError, match=r'atoms of Au are in the batch .*has_element\("Au"\)'):
        to_matgl(batch, ("Cu", "H"))
    with pytest.raises(FieldError, match="no 'neighbor_list'"):
        to_matgl(from_ase(crystals(1)), METALS)
    with pytest.raises(FieldError, match="no system of the batch has 'magmoms'"):
        to_matgl(batch, METALS, include_magmom=True)


def test_elements_and_normalization_follow_from_the_store():
    structures = molecules(60)
    data = ZarrDataModule(store_of(structures), cutoff=CUTOFF, split=(0.8, 0.1, 0.1))
    data.setup("fit")
    assert data.element_types == ("H", "C", "N", "O")
    settings = data.normalization
    facts = data.statistics
    assert settings["element_refs"].tolist() == [facts.reference_energies[z] for z in (1, 6, 7, 8)]
    assert settings["data_std"] == facts.forces_rms > 0
    assert settings["data_mean"] == 0.0
    given = ZarrDataModule(
        store_of(structures), cutoff=CUTOFF, element_types=["O", "Xe", "H"], split=(0.8, 0.1, 0.1)
    )
    given.setup("fit")
    refs = given.normalization["element_refs"].tolist()
    assert [refs[0], refs[2]] == [given.statistics.reference_energies[z] for z in (8, 1)]
    assert refs[1] == 0.0
    with pytest.raises(ValueError, match="'Xx' is no symbol"):
        ZarrDataModule({}, cutoff=CUTOFF, element_types=["Xx"])


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        ({"elements": ("Ag", "Cu", "Au")}, {}, "element_types of the data module is"),
        ({"cutoff": 3.0}, {}, "cutoff of the data module is 4.0, and that of the model is 3.0"),
        ({}, {"include_line_graph": True}, "include_line_graph=True, and batches have no"),
        ({}, {"magmom_weight": 1.0}, "have no 'magmoms'.*magmom_weight=0"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_before_training(tmp_path, made, settings, message):
    store = store_of(crystals(40))
    data = ZarrDataModule(store, cutoff=CUTOFF, element_types=METALS, split=(0.8, 0.2, 0.0))
    data.setup("fit")
    module = module_of(data, network(**made), **settings)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_steps=1).fit(module, data)


def partly(count, label):
    """Structures of which every second lacks a label."""
    each = [from_ase([atoms]) for atoms in crystals(count)]
    return zp.Batch.concatenate(
        [one.without(label) if place % 2 else one for place, one in enumerate(each)]
    )


@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_missing_labels_are_refused_unless_the_module_leaves_them_out(tmp_path, label):
    data = ZarrDataModule(
        store_of(partly(40, label)), cutoff=CUTOFF, batch_size=8, split=(0.8, 0.2, 0.0)
    )
    data.setup("fit")
    module = module_of(data, stress_weight=0.01)
    expected = rf"samples have no '{label}', and MatGL's loss would be NaN: .*where='has\({label}\)"
    with pytest.raises(FieldError, match=expected):
        trainer(tmp_path, max_steps=1).fit(module, data)
    module = module_of(data, stress_weight=0.01, allow_missing_labels=True)
    fit = trainer(tmp_path, max_steps=8)
    fit.fit(module, data)
    assert math.isfinite(fit.callback_metrics["train_Total_Loss"])
    assert all(bool(value.isfinite().all()) for value in module.parameters())


def test_stress_is_handed_over_only_where_it_is_asked_for(tmp_path):
    """MatGL 4.1.2 raises where it masks stresses that its potential does not compute."""
    data = ZarrDataModule(store_of(crystals(40)), cutoff=CUTOFF, batch_size=8)
    data.setup("fit")
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(module_of(data, allow_missing_labels=True), data)
    assert fit.global_step == 2


def test_a_batch_without_any_label_ends_training_with_a_way_out(tmp_path):
    data = ZarrDataModule(
        store_of(partly(40, "energy")), cutoff=CUTOFF, batch_size=1, split=(1.0, 0.0, 0.0)
    )
    data.setup("fit")
    module = module_of(data, allow_missing_labels=True)
    with pytest.raises(FieldError, match=r"1 of 1 samples have no 'energy'.*larger batches"):
        trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, data)


@pytest.mark.slow
@pytest.mark.parametrize("network_of", [network, None], ids=["tensornet", "m3gnet"])
def test_its_module_trains_and_resumes(tmp_path, network_of):
    store = store_of(crystals(60, seed=2), tmp_path / "crystals.zarr")

    def data():
        return ZarrDataModule(store, cutoff=CUTOFF, batch_size=8, seed=1, num_workers=1)

    made = data()
    made.setup("fit")
    if network_of is None:
        small = {"units": 8, "dim_node_embedding": 8, "dim_edge_embedding": 8, "nblocks": 1}
        shape = {"cutoff": CUTOFF, "threebody_cutoff": 3.0, "is_intensive": False}
        torch.manual_seed(1)
        start = M3GNet(element_types=made.element_types, **small, **shape).state_dict()

        def network_of(elements):
            model = M3GNet(element_types=elements, **small, **shape)
            model.load_state_dict(start)
            return model

    def module():
        return module_of(made, network_of(made.element_types), stress_weight=0.01)

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=10, save_top_k=-1, filename="{step}")
    monitor = zp.DataMonitor()
    whole = trainer(tmp_path, max_steps=20, callbacks=[keep, monitor], enable_checkpointing=True)
    first = module()
    before = [value.clone() for value in first.parameters()]
    whole.fit(first, data())
    assert monitor.total.batches == 20
    assert any(not torch.equal(a, b) for a, b in zip(before, first.parameters(), strict=True))
    second = module()
    trainer(tmp_path, max_steps=20).fit(second, data(), ckpt_path=tmp_path / "step=10.ckpt")
    for mine, other in zip(second.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)
    (result,) = trainer(tmp_path).test(first, data(), verbose=False)
    assert 0 < result["test_Stress_MAE"] < 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*experimental")
def test_its_own_trainer_takes_the_splits_as_datasets(tmp_path):
    """`MGLPotentialTrainer` makes loaders of its own, of datasets that give whole batches."""
    data = ZarrDataModule(store_of(crystals(60)), cutoff=CUTOFF, split=(0.8, 0.1, 0.1))
    data.setup("fit")
    collate = partial(to_matgl, element_types=data.element_types, include_stress=True)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    own_trainer = MGLPotentialTrainer(
        network(data.element_types),
        stress_weight=0.01,
        data_std=data.normalization["data_std"],
        batch_size=8,
        max_epochs=2,
        accelerator="cpu",
        trainer_kwargs={**quiet, "enable_checkpointing": False, "default_root_dir": tmp_path},
        loader_kwargs={"collate_fn": collate, "num_workers": 0},
    )
    splits = {"train": data.train_dataset, "valid": data.val_dataset, "test": data.test_dataset}
    potential = own_trainer.fit(splits, atomrefs=data.normalization["element_refs"])
    assert own_trainer.trainer.global_step == 2 * math.ceil(len(data.train_dataset) / 8)
    energies = potential(*to_matgl(batch_of(crystals(2)), data.element_types)[:2])[0]
    assert (energies / torch.tensor([float(len(one)) for one in crystals(2)])).abs().max() < 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_losses_are_those_of_its_own_loader(tmp_path, double):
    both = pair(tmp_path, 50)
    assert len(both.ours.losses) == len(both.theirs.losses) == 50
    assert both.difference < 1e-8
    assert np.mean(both.ours.losses[-10:]) < 0.5 * np.mean(both.ours.losses[:10])
    assert re.fullmatch(r"\d+\.\d+\.\d+", both.release)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_code_of_the_page_runs(tmp_path, monkeypatch):
    store_of(crystals(60), tmp_path / "labelled.zarr")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "guides" / "trainers" / "matgl.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    names = {"__name__": "page"}
    for block in blocks:
        exec(block, names)
    assert names["trainer"].trainer.global_step > 0
    assert (tmp_path / "runs/matgl/potential").exists()
