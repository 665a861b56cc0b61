"""MACE on a store: its batches by value, its own loop, its model files."""

import warnings

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import from_ase, from_mace, to_mace
from zarrpipe.errors import FieldError
from zarrpipe.transforms import NeighborList

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mace-torch and e3nn, when they are imported
    pytest.importorskip("mace.data")
    pytest.importorskip("mace.tools")

from ase import Atoms
from ase.build import bulk, fcc111, molecule
from mace import data as mace_data
from mace.tools import AtomicNumberTable
from mace.tools.torch_geometric import DataLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
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
