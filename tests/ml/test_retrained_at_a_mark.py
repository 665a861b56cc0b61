"""A model that is trained at a mark again is the same to the bit, also once the store has grown."""

import lightning
import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.ml import ForceField

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support:UserWarning"),
]


def molecules(seed, count):
    rng = np.random.default_rng(seed)
    numbers = [6, 6, 8, 1, 1, 1, 1, 1, 1]
    return zp.Batch.from_data_list(
        zp.AtomicData(
            rng.normal(scale=1.5, size=(9, 3)).astype("f4"),
            numbers,
            energy=float(rng.normal()),
            forces=rng.normal(size=(9, 3)).astype("f4"),
        )
        for _ in range(count)
    )


def trained(store, at):
    """Weights after two epochs, and the ids of the samples in the order of training."""
    lightning.seed_everything(0, verbose=False)
    data = zp.ZarrDataModule(store, at=at, batch_size=16, split=(0.7, 0.2, 0.1), seed=3)
    seen = []
    model = ForceField("schnet", energy_weight=1.0, forces_weight=1.0)
    model.register_forward_pre_hook(lambda _, args: seen.extend(args[0].ids.tolist()))
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    return {name: value.clone() for name, value in model.state_dict().items()}, seen


def test_a_store_that_has_grown_tenfold(tmp_path):
    store = tmp_path / "store.zarr"
    with zp.ZarrData(store) as sink:
        sink.write(molecules(0, 120))
        sink.mark("round-0")
    _, order = trained(store, None)
    weights, at_mark = trained(store, "round-0")
    with zp.ZarrData(store) as sink:
        for seed in range(1, 10):
            sink.write(molecules(seed, 120))
    again, later = trained(store, "round-0")
    assert len(zp.ZarrDataset(store)) == 1200
    assert order == at_mark == later
    assert weights.keys() == again.keys()
    for name, value in weights.items():
        assert value.numpy().tobytes() == again[name].numpy().tobytes(), name
