"""Predictions as a store: what is written, for whom, and what a failure leaves."""

import lightning
import pytest
import torch

import zarrpipe as zp
from zarrpipe.ml import Committee, CommitteePredictor, ForceField, Prediction, PredictionWriter
from zarrpipe.ml.predictions import with_predictions
from zarrpipe.transforms import NeighborList

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


def systems(count, seed=0):
    """Dimers, each second one in a cell, and each third one with an energy."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        fields = {"forces": torch.randn(2, 3, generator=random)}
        if number % 2:
            fields |= {"cell": torch.eye(3)[None] * 5.0, "pbc": torch.ones(1, 3, dtype=torch.bool)}
        if number % 3 == 0:
            fields["energy"] = -float(number)
        positions = torch.rand(2, 3, generator=random) + torch.tensor([[0.0] * 3, [1.5, 0.0, 0.0]])
        made.append(zp.AtomicData(positions, [6, 8], **fields))
    return made


@pytest.fixture
def store(tmp_path):
    with zp.ZarrData(tmp_path / "source.zarr") as sink:
        sink.write(zp.Batch.from_data_list(systems(11)))
    return tmp_path / "source.zarr"


def field(seed=0):
    options = {"cutoff": 3.0, "features": 8, "interactions": 1, "gaussians": 4}
    made = ForceField("schnet", options, reference={"C": -1.0, "O": -2.0}, scale=1.0, seed=seed)
    return made.eval()


def predict(model, store, path, **data):
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[PredictionWriter(path)],
    )
    module = zp.ZarrDataModule(store, batch_size=4, **data)
    trainer.predict(model, datamodule=module, return_predictions=False)
    return zp.ZarrDataset(path)


def test_each_sample_keeps_its_id_and_fields_and_has_a_prediction(store, tmp_path):
    found, source = predict(field(), store, tmp_path / "out.zarr"), zp.ZarrDataset(store)
    assert found.ids.tolist() == source.ids.tolist()
    written, given = found.read(range(11)), source.read(range(11))
    for name, value in given.fields.items():
        assert torch.equal(written[name].nan_to_num(9.0), value.nan_to_num(9.0)), name
        assert torch.equal(written.present(name), given.present(name)), name
    expected = field().predict(given, stress=True)
    torch.testing.assert_close(written["predicted_energy"], expected.energy)
    torch.testing.assert_close(written["predicted_forces"], expected.forces)
    torch.testing.assert_close(written["predicted_stress"], expected.stress, equal_nan=True)
    assert written.present("predicted_stress").tolist() == [False, True] * 5 + [False]
    assert set(found.schema) - set(source.schema) == {
        "predicted_energy",
        "predicted_forces",
        "predicted_stress",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "source.zarr"]


def test_a_committee_has_a_deviation(store, tmp_path):
    members = [field(seed) for seed in range(3)]
    found = predict(CommitteePredictor(Committee(members)), store, tmp_path / "out.zarr")
    written, given = found.read(range(11)), zp.ZarrDataset(store).read(range(11))
    every = [member.predict(given) for member in members]
    energies, forces = (torch.stack([one[place] for one in every]) for place in (0, 1))
    torch.testing.assert_close(written["predicted_energy"], energies.mean(0))
    torch.testing.assert_close(written["energy_std"], energies.std(0, correction=0))
    spread = (forces - forces.mean(0)).square().mean(0).sum(-1).sqrt()
    torch.testing.assert_close(written["forces_std"], spread)
    assert float(written["energy_std"].min()) > 0


def test_neighbour_lists_of_a_transform_are_not_written(store, tmp_path):
    found = predict(field(), store, tmp_path / "out.zarr", transform=NeighborList(3.0))
    assert "neighbor_list" not in found.schema
    expected = field().predict(zp.ZarrDataset(store).read(range(11)))
    torch.testing.assert_close(found.read(range(11))["predicted_energy"], expected.energy)


def test_what_is_there_is_neither_written_over_nor_added_to(store, tmp_path):
    predict(field(), store, tmp_path / "out.zarr")
    with pytest.raises(FileExistsError, match=r"out\.zarr is there already"):
        PredictionWriter(tmp_path / "out.zarr")
    assert len(zp.ZarrDataset(tmp_path / "out.zarr")) == 11


def test_a_failure_leaves_nothing(store, tmp_path, monkeypatch):
    model, predicted = field(), ForceField.predict_step

    def fail(self, batch, batch_idx):
        if batch_idx == 2:
            raise RuntimeError("no more")
        return predicted(self, batch, batch_idx)

    monkeypatch.setattr(ForceField, "predict_step", fail)
    with pytest.raises(RuntimeError, match="no more"):
        predict(model, store, tmp_path / "out.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["source.zarr"]


def test_a_loop_keeps_its_own_batch_as_it_was(store):
    batch = zp.ZarrDataset(store).read(range(4))
    before = set(batch.fields)
    written = with_predictions(batch, field().predict(batch, stress=True))
    assert set(batch.fields) == before
    assert set(written.fields) > before


def test_other_outputs_and_batches_are_refused(store, tmp_path):
    batch = zp.ZarrDataset(store).read(range(4))
    with pytest.raises(TypeError, match=r"predicts a dict, expected a zarrpipe\.ml\.Prediction"):
        with_predictions(batch, {"energy": 0.0})
    assert isinstance(field().predict_step(batch, 0), Prediction)

    class Converted(lightning.LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch

    with pytest.raises(TypeError, match=r"is a tuple, expected a zarrpipe\.Batch"):
        predict(Converted(), store, tmp_path / "out.zarr", convert=lambda one: (one.positions,))
