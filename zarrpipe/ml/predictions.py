"""Predictions as a store, written batch by batch while Lightning predicts."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.errors import ArgumentError, ArgumentTypeError, StoreExistsError
from zarrpipe.ml.committee import Committee
from zarrpipe.ml.labels import Prediction
from zarrpipe.sink import ZarrData


class PredictionWriter(pl.Callback):  # type: ignore[misc]  # lightning is not followed
    """Writes what a force field predicts into a new store, beside structures and labels.

    Each sample of the predict loader is written with the fields that it was read with, so that it
    keeps its id, and with

    - ``predicted_energy`` [B, 1] float64 in eV, ``predicted_forces`` [V, 3] in eV/Angstrom, and
      where it has a cell, ``predicted_stress`` [B, 3, 3] in eV/Angstrom^3;
    - for a committee (`CommitteePredictor`) ``energy_std`` [B, 1] in eV, the standard deviation of
      the members, and ``forces_std`` [V] in eV/Angstrom, the norm of that of a force.

    Batches are written one by one, so memory holds one of them. The store appears under its name
    when it is complete. Predict with ``return_predictions=False``, on one device.

    Parameters
    ----------
    path : str or Path
        Where nothing is yet.

    Raises
    ------
    StoreExistsError
        If something is at `path`.
    ValueError
        When a prediction begins, if the trainer has several devices.
    TypeError
        When a batch or an output is of another kind, as with a data module that converts.

    Examples
    --------
    >>> import lightning, zarrpipe as zp  # doctest: +SKIP
    >>> field = ForceField.load_from_checkpoint("best.ckpt")  # doctest: +SKIP
    >>> writer = PredictionWriter("predicted.zarr")  # doctest: +SKIP
    >>> trainer = lightning.Trainer(callbacks=[writer], logger=False)  # doctest: +SKIP
    >>> trainer.predict(field, datamodule=zp.ZarrDataModule("new.zarr"), return_predictions=False)
    ... # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._check_new()
        self._sink: ZarrData | None = None
        self._directory: Path | None = None

    def _check_new(self) -> None:
        if self.path.exists() or self.path.is_symlink():
            raise StoreExistsError(
                f"{self.path} is there already: give the predictions another place, or remove it"
            )

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a store beside the place of the new one."""
        if trainer.world_size > 1:
            raise ArgumentError(
                f"predictions are written as one store, and the trainer has {trainer.world_size} "
                "devices: expected devices=1"
            )
        self._check_new()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = f".{self.path.name}-"
        self._directory = Path(tempfile.mkdtemp(prefix=name, dir=self.path.parent))
        self._sink = ZarrData(self._directory / self.path.name)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        *_: int,
    ) -> None:
        """Write one batch."""
        assert self._sink is not None  # Lightning has called on_predict_start
        if not isinstance(batch, Batch):
            raise ArgumentTypeError(
                f"a batch of the predict loader is a {type(batch).__name__}, expected a "
                "zarrpipe.Batch: predict with a ZarrDataModule without convert"
            )
        made = _made_by_transforms(batch, trainer)
        self._sink.write(with_predictions(batch.without(*made), outputs))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the store its name."""
        assert self._sink is not None
        assert self._directory is not None
        self._sink.close()
        self._check_new()
        (self._directory / self.path.name).rename(self.path)
        self._remove()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove what was written."""
        if self._sink is not None:
            self._sink.close()
            self._remove()

    def _remove(self) -> None:
        """Remove the directory of the store that was being written."""
        if self._directory is not None:
            shutil.rmtree(self._directory)
        self._sink = self._directory = None


class CommitteePredictor(pl.LightningModule):  # type: ignore[misc]  # lightning is not followed
    """A `Committee` that a Lightning trainer predicts with: mean and deviation of each batch.

    Parameters
    ----------
    committee : Committee
        See `zarrpipe.ml.load`.
    """

    def __init__(self, committee: Committee) -> None:
        super().__init__()
        self.committee = committee

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Prediction, Prediction]:
        """Mean and standard deviation, of the stress where the batch has cells."""
        return self.committee.predict(batch, stress="cell" in batch)


def _made_by_transforms(batch: Batch, trainer: pl.Trainer) -> list[str]:
    """Fields that the stores of the trainer's data module lack, as neighbour lists."""
    dataset = getattr(trainer.datamodule, "dataset", None)
    return [] if dataset is None else [name for name in batch.fields if name not in dataset.schema]


def with_predictions(batch: Batch, outputs: Any) -> Batch:
    """Batch on the CPU with what was predicted of it as fields of its own.

    Parameters
    ----------
    batch : Batch
        What was predicted.
    outputs : Prediction, or tuple of two
        The prediction; or mean and standard deviation of a committee.
    """
    spread = None
    if isinstance(outputs, tuple) and not isinstance(outputs, Prediction):
        outputs, spread = outputs
    if not isinstance(outputs, Prediction):
        raise ArgumentTypeError(
            f"the model predicts a {type(outputs).__name__}, expected a zarrpipe.ml.Prediction as "
            "of a ForceField, or mean and deviation as of a CommitteePredictor"
        )
    fields: dict[str, tuple[Tensor, Level]] = {
        "predicted_energy": (outputs.energy, Level.SYSTEM),
        "predicted_forces": (outputs.forces, Level.ATOM),
    }
    if spread is not None:
        fields["energy_std"] = (spread.energy, Level.SYSTEM)
        fields["forces_std"] = (spread.forces.norm(dim=-1), Level.ATOM)
    filled = batch.to("cpu")  # another object, so that the loop's own stays as it is
    for name, (values, level) in fields.items():
        filled.add_field(name, values.cpu(), level)
    return filled if outputs.stress is None else _with_stress(filled, outputs.stress.cpu())


def _with_stress(batch: Batch, stress: Tensor) -> Batch:
    """Batch with a predicted stress for the systems that have a volume."""
    known = batch.cell.det().abs() > 0
    if not bool(known.any()):
        return batch
    filled = batch.without().add_field("predicted_stress", stress, Level.SYSTEM)
    if bool(known.all()):
        return filled
    changes = (torch.nonzero(known.diff()).flatten() + 1).tolist()
    runs = zip([0, *changes], [*changes, len(known)], strict=True)
    return Batch.concatenate(
        [(filled if known[start] else batch)[start:stop] for start, stop in runs]
    )
