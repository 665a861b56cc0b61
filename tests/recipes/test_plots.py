"""What the figures of a run show; how they look was seen by eye."""

import numpy as np
import pytest
import torch

import plots
import zarrpipe as zp
from zarrpipe.errors import ArgumentError
from zarrpipe.ml import Committee, ForceField

PNG = b"\x89PNG"


def test_metrics_are_read_by_name_where_they_are(tmp_path):
    text = "a,step,train/loss\n,9,3.0\n7.5,9,\n,19,2.0\n"
    (tmp_path / "metrics.csv").write_text(text)
    found = plots.read_metrics(tmp_path / "metrics.csv")
    assert {name: [one.tolist() for one in points] for name, points in found.items()} == {
        "train/loss": [[9.0, 19.0], [3.0, 2.0]],
        "a": [[9.0], [7.5]],
    }
    with pytest.raises(ArgumentError, match=r"no .*none\.csv"):
        plots.read_metrics(tmp_path / "none.csv")


def test_epochs_that_were_cut_short_are_no_points():
    steps, values = np.array([9.0, 19.0, 22.0, 32.0, 33.0]), np.arange(5.0)
    kept, left = plots._whole_epochs(steps, values)
    assert (kept.tolist(), left.tolist()) == ([9.0, 19.0, 32.0], [0.0, 1.0, 3.0])


def rows(labels):
    """A metrics.csv of three validations."""
    names = [
        f"{part}/{name}_{kind}"
        for part in ("train", "val")
        for name in labels
        for kind in (f"mae_{plots.LABELS[name].metric}", f"rmse_{plots.LABELS[name].metric}")
    ]
    head = ["step", "train/loss", "lr-AdamW", *names]
    lines = [[step, 1 / step, 1e-3, *([10.0 / step] * len(names))] for step in (10, 20, 30)]
    return "\n".join(",".join(map(str, line)) for line in [head, *lines]) + "\n"


@pytest.mark.parametrize("labels", [["energy", "forces"], ["energy", "forces", "stress"]])
def test_learning_curves_of_the_labels_that_are_there(tmp_path, labels):
    (tmp_path / "metrics.csv").write_text(rows(labels))
    plots.learning_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


def test_a_run_that_logged_no_loss_has_no_curves(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,lr-AdamW\n9,0.1\n")
    with pytest.raises(ArgumentError, match=r"no train/loss yet.*log_every_n_steps"):
        plots.learning_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")


def labelled():
    """Four dimers of carbon monoxide, some of them with a label of each kind."""
    cell = {"cell": torch.eye(3)[None] * 6.0, "pbc": torch.ones(1, 3, dtype=torch.bool)}
    made = []
    for number in range(4):
        fields = dict(cell)
        if number % 2:
            fields["energy"] = -float(number)
        if number > 1:
            fields["forces"] = torch.full((2, 3), float(number))
        if number == 3:
            fields["stress"] = torch.eye(3)[None] * 0.25
        made.append(zp.AtomicData([[0.0] * 3, [1.1 + 0.1 * number, 0.0, 0.0]], [6, 8], **fields))
    return zp.Batch.from_data_list(made)


def test_labels_are_compared_with_predictions_where_they_are():
    options = {"cutoff": 3.0, "features": 8, "interactions": 1, "gaussians": 4}
    field = ForceField("schnet", options, reference={"C": -1.0, "O": -2.0}, scale=1.0)
    batch = labelled()
    found = plots.compare([batch[:2], batch[2:]], Committee([field]))
    energy, forces, stress = field.predict(batch, stress=True)
    for name, label, prediction in (
        ("energy", [-0.5, -1.5], energy[[1, 3]] / 2),
        ("forces", [2.0] * 6 + [3.0] * 6, forces[4:]),
        ("stress", torch.eye(3).ravel() / 4, stress[3]),
    ):
        labels, predicted = found[name].arrays()
        np.testing.assert_allclose(labels, label)
        np.testing.assert_allclose(predicted, prediction.ravel(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("count", [10, plots.SHADED])
def test_parity_is_drawn_of_few_points_and_of_many(tmp_path, count):
    random = np.random.default_rng(0)
    pairs = plots.Pairs([random.normal(size=count)], [random.normal(size=count)])
    plots.parity({"forces": pairs}, tmp_path / "parity.png", "samples")
    assert (tmp_path / "parity.png").read_bytes().startswith(PNG)


def test_without_labels_there_is_nothing_to_compare(tmp_path):
    with pytest.raises(ArgumentError, match=r"no sample of here\.zarr has a label"):
        plots.parity({}, tmp_path / "parity.png", "here.zarr")
    assert list(tmp_path.iterdir()) == []
