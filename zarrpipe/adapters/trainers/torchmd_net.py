"""TorchMD-Net: the batches that its `LNNP` module trains on."""

from typing import TYPE_CHECKING, Any

import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.levels import Level
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.libraries import require

if TYPE_CHECKING:
    from torch_geometric.data import Batch as PygBatch

_LABELS = {
    "energy": "y",
    "forces": "neg_dy",
    "charge": "q",
    "spin": "s",
    "charges": "partial_charges",
}
_NO_IMAGE = 1e6
"""Box in Angstrom of a system that is not periodic, in which no image of an atom is near."""
_TOLERANCE = 1e-6


def to_torchmd_net(batch: Batch, *, cutoff: float | None = None) -> "PygBatch":
    """PyG ``Batch`` with the attributes that TorchMD-Net 3.1 reads, on the device of the batch.

    positions and atomic_numbers become ``pos [V, 3]`` and ``z [V]``, energy, forces, charge,
    spin and charges become ``y [B, 1]``, ``neg_dy [V, 3]``, ``q [B]``, ``s [B]`` and
    ``partial_charges [V]``, and the cells of periodic systems ``box [B, 3, 3]``. Fields of a user's
    own at atom and system level keep their names, for priors, which get them as ``extra_args``. The
    other fields of the registry are left out: TorchMD-Net finds its neighbours itself and has no
    loss of stress. Units stay eV and Angstrom, dtypes stay (LNNP casts to its precision), and
    tensors are shared with `batch`.

    TorchMD-Net has no mask of labels: its loss leaves out a label that a whole batch lacks, which
    is left out here, and takes each other value as it is.

    Parameters
    ----------
    batch
        In Angstrom and eV.
    cutoff
        ``cutoff_upper`` of the model, Angstrom; with it, boxes are checked to be at least twice as
        wide, since TorchMD-Net sees one image of each atom.

    Raises
    ------
    FieldError
        If only some systems have one of these labels, or a box is none that TorchMD-Net takes: it
        has to be periodic in all directions or in none, and its vectors a, b, c have to be
        reduced, with ``a[1] = a[2] = b[2] = 0``.
    ArgumentError
        If `cutoff` is not positive.
    MissingLibraryError
        If torch_geometric is not installed.

    Examples
    --------
    The energies and forces that TorchMD-Net's model predicts for samples of a store::

        data = to_torchmd_net(dataset.read([0, 1, 2]), cutoff=5.0)
        energies, forces = model(data.z, data.pos, batch=data.batch)
    """
    library = require("torch_geometric.data", "pyg")
    values: dict[str, Any] = {"pos": batch.positions, "z": batch.atomic_numbers}
    for name, attribute in _LABELS.items():
        value = _label(batch, name)
        if value is not None:
            values[attribute] = value.reshape(-1) if name in ("charge", "spin") else value
    box = _boxes(batch, cutoff)
    if box is not None:
        values["box"] = box
    for name, level in batch.levels.items():
        if name not in CORE_FIELDS and level in (Level.ATOM, Level.SYSTEM):
            values[name] = batch[name]
    made = library.Batch(batch=batch.batch_idx, ptr=batch.batch_ptr, **values)
    made._num_graphs = batch.num_graphs
    return made


def _label(batch: Batch, name: str) -> torch.Tensor | None:
    """Values of a label, None if no system has it; refuses one that only some have."""
    if name not in batch:
        return None
    if name in batch.partly_present:
        present = batch.present(name)
        count = int(present.sum())
        if not count:
            return None
        if count < batch.num_graphs:
            raise FieldError(
                f"{name!r} is missing in {batch.num_graphs - count} of the {batch.num_graphs} "
                "systems of a batch, and TorchMD-Net's loss has no mask: leave those samples out "
                f"with where='has({name})', or the label with fields="
            )
    value: torch.Tensor = batch[name]
    return value


def _boxes(batch: Batch, cutoff: float | None) -> torch.Tensor | None:
    """Boxes [B, 3, 3], None if no system is periodic."""
    if cutoff is not None and not cutoff > 0:
        raise ArgumentError(f"cutoff is {cutoff!r}, expected a positive number of Angstrom")
    if "pbc" not in batch or not bool(batch.pbc.any()):
        return None
    if "cell" not in batch:
        raise FieldError("systems of the batch are periodic and it has no cell: add it to fields=")
    periodic, cell = batch.pbc.all(1), batch.cell
    _refuse(batch, batch.pbc.any(1) & ~periodic, "is periodic in some directions only")
    widths = cell.diagonal(dim1=1, dim2=2)
    size = _TOLERANCE * widths.abs().amax(1)
    upper = torch.stack([cell[:, 0, 1], cell[:, 0, 2], cell[:, 1, 2]], 1).abs().amax(1)
    lower = torch.stack([cell[:, 1, 0], cell[:, 2, 0], cell[:, 2, 1]], 1).abs()
    most = torch.stack([widths[:, 0], widths[:, 0], widths[:, 1]], 1) / 2
    bad = (upper > size) | (widths <= 0).any(1) | (lower > most + size[:, None]).any(1)
    _refuse(batch, periodic & bad, "has a cell that is not lower triangular and reduced")
    if cutoff is not None:
        small = (widths < 2 * cutoff - size[:, None]).any(1)
        _refuse(batch, periodic & small, f"has a cell narrower than twice the cutoff of {cutoff}")
    alone = _NO_IMAGE * torch.eye(3, dtype=cell.dtype, device=cell.device)
    return torch.where(periodic[:, None, None], cell, alone)


def _refuse(batch: Batch, bad: torch.Tensor, what: str) -> None:
    """Raise for the first system that is bad [B]."""
    if bool(bad.any()):
        system = int(bad.nonzero()[0, 0])
        raise FieldError(
            f"system {system} of the batch {what} (cell={batch.cell[system].tolist()}, "
            f"pbc={batch.pbc[system].tolist()}), and TorchMD-Net takes boxes that are periodic in "
            "all directions, lower triangular, reduced, and at least twice as wide as the cutoff: "
            "rotate, reduce or repeat the cell before it is written, or leave the sample out with "
            "where="
        )
