"""From the objects of other libraries to a `zarrpipe.Batch`, and back.

`as_batch` finds the adapter by the name of an object's class, so that importing this package
imports none of the libraries; each is imported inside the function that has to build its objects.

What holds for every adapter: lengths in Angstrom, energies in eV, masses in amu, stress with
tension positive; ``cell`` has the lattice vectors as rows; the vector of an edge is
``positions[neighbor_list[:, 1]] + neighbor_list_shifts @ cell - positions[neighbor_list[:, 0]]``;
tensors stay on their device and keep their dtype, and gradients are not carried.
"""

from zarrpipe.adapters.ase import from_ase, to_ase
from zarrpipe.adapters.mace import from_mace
from zarrpipe.adapters.nvalchemi import from_nvalchemi, to_nvalchemi
from zarrpipe.adapters.nvalchemi_interfaces import (
    nvalchemi_dataset,
    nvalchemi_reader,
    nvalchemi_sink,
)
from zarrpipe.adapters.pyg import from_pyg, to_pyg
from zarrpipe.adapters.pymatgen import from_pymatgen, to_pymatgen
from zarrpipe.adapters.registry import as_batch, register
from zarrpipe.adapters.torch_sim import from_torch_sim, to_torch_sim
from zarrpipe.adapters.trainers.fairchem import to_fairchem
from zarrpipe.adapters.trainers.mace import to_mace
from zarrpipe.adapters.trainers.matgl import to_matgl
from zarrpipe.adapters.trainers.nequip import from_nequip, to_nequip
from zarrpipe.adapters.trainers.schnetpack import to_schnetpack
from zarrpipe.adapters.trainers.torchmd_net import to_torchmd_net

__all__ = [
    "as_batch",
    "from_ase",
    "from_mace",
    "from_nequip",
    "from_nvalchemi",
    "from_pyg",
    "from_pymatgen",
    "from_torch_sim",
    "nvalchemi_dataset",
    "nvalchemi_reader",
    "nvalchemi_sink",
    "register",
    "to_ase",
    "to_fairchem",
    "to_mace",
    "to_matgl",
    "to_nequip",
    "to_nvalchemi",
    "to_pyg",
    "to_pymatgen",
    "to_schnetpack",
    "to_torch_sim",
    "to_torchmd_net",
]
