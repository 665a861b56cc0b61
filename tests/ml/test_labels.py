"""The loss and the errors count the labels that are there, and nothing else."""

import pytest
import torch

import zarrpipe as zp
from zarrpipe.ml.labels import Loss, Prediction, errors_of, stress_of
from zarrpipe.ml.metrics import LabelErrors

CELL = torch.eye(3) * 2.0  # 8 Angstrom^3


def sample(atoms=2, **labels):
    return zp.AtomicData(torch.zeros(atoms, 3), [1] * atoms, cell=CELL, pbc=[True] * 3, **labels)


def batch():
    return zp.Batch.from_data_list(
        [
            sample(energy=1.0, forces=torch.ones(2, 3), stress=torch.eye(3)),
            sample(3, forces=torch.full((3, 3), 2.0), virial=-16.0 * torch.eye(3)),
            sample(energy=5.0),
        ]
    )


def prediction():
    return Prediction(
        torch.tensor([[2.0], [100.0], [1.0]], dtype=torch.float64),
        torch.zeros(7, 3),
        torch.zeros(3, 3, 3),
    )


def test_a_virial_is_minus_volume_times_stress():
    stress, known = stress_of(batch())
    assert known.tolist() == [True, True, False]
    torch.testing.assert_close(stress[0], torch.eye(3).double())
    torch.testing.assert_close(stress[1], 2.0 * torch.eye(3).double())


def test_a_system_without_volume_has_no_stress():
    molecule = zp.AtomicData(torch.zeros(1, 3), [1], virial=torch.eye(3), cell=torch.zeros(3, 3))
    assert stress_of(zp.Batch.from_data_list([molecule]))[1].tolist() == [False]


def test_errors_are_those_of_the_labels_that_are_there():
    errors = errors_of(prediction(), batch())
    torch.testing.assert_close(errors["energy"].flatten().float(), torch.tensor([0.5, -2.0]))
    assert errors["forces"].flatten().tolist() == [-1.0] * 6 + [-2.0] * 9
    assert errors["stress"].shape == (2, 3, 3)
    assert errors_of(Prediction(*prediction()[:2]), batch()).keys() == {"energy", "forces"}


@pytest.mark.parametrize("kind", ["mae", "mse", "huber"])
def test_loss_is_the_weighted_sum_of_means_over_labels(kind):
    sizes = {
        "energy": torch.tensor([0.5, 2.0]),
        "forces": torch.tensor([3.0**0.5] * 2 + [12.0**0.5] * 3),
        "stress": torch.tensor([3.0**0.5, 12.0**0.5]),
    }
    weights = {"energy": 0.3, "forces": 2.0, "stress": 0.7}
    delta = 1.0
    change = {
        "mae": lambda size: size,
        "mse": lambda size: size**2,
        "huber": lambda size: torch.where(
            size < delta, 0.5 * size**2, delta * (size - 0.5 * delta)
        ),
    }[kind]
    expected = sum(weights[label] * change(size).mean() for label, size in sizes.items())
    loss = Loss(weights, kind, delta)(errors_of(prediction(), batch()))
    torch.testing.assert_close(loss, expected)


def test_missing_labels_add_neither_loss_nor_gradient():
    forces = torch.zeros(7, 3, requires_grad=True)
    energy = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    loss = Loss({"energy": 1.0, "forces": 1.0})(errors_of(Prediction(energy, forces), batch()))
    loss.backward()
    assert loss.isfinite()
    assert energy.grad.flatten().tolist() == [-0.25, 0.0, -0.25]
    assert forces.grad[5:].tolist() == [[0.0] * 3] * 2
    assert forces.grad.isfinite().all()


def test_a_batch_without_labels_has_no_loss():
    bare = zp.Batch.from_data_list([sample()])
    errors = errors_of(Prediction(torch.zeros(1, 1), torch.zeros(2, 3)), bare)
    loss = Loss({"energy": 1.0})(errors)
    assert (float(loss), loss.requires_grad) == (0.0, False)


def test_errors_by_label_over_batches():
    errors = LabelErrors()
    errors.update(torch.tensor([[1.0, -2.0]]))
    errors.update(torch.zeros(0, 2))
    errors.update(torch.tensor([[4.0, 1.0]]))
    found = {name: float(value) for name, value in errors.named("val", "forces").items()}
    assert found == {
        "val/forces_mae_meV_A": 2000.0,
        "val/forces_rmse_meV_A": pytest.approx(1000.0 * 5.5**0.5),
        "val/forces_max_meV_A": 4000.0,
    }
    errors.reset()
    errors.update(torch.zeros(0, 2))
    assert all(value.isnan() for value in errors.compute().values())
