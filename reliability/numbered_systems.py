"""Small systems whose values say where they come from."""

from threading import Barrier

import torch

from zarrpipe import AtomicData, Batch, ZarrData, ZarrDataset
from zarrpipe.store.parts.sink_recipe import SinkRecipe


def system(number: int) -> AtomicData:
    """System of one to three atoms, with energy and forces that follow from a number."""
    atoms = number % 3 + 1
    positions = torch.arange(3.0 * atoms).reshape(atoms, 3) + number
    forces = torch.full((atoms, 3), float(number))
    numbers = [1 + (number + place) % 8 for place in range(atoms)]
    return AtomicData(positions, numbers, energy=-float(number), forces=forces)


def batch(*numbers: int) -> Batch:
    """Batch of some of these systems."""
    return Batch.from_data_list([system(number) for number in numbers])


def numbers_of(dataset: ZarrDataset) -> list[int]:
    """Number of each system of a dataset, after a check of its values."""
    if not len(dataset):
        return []
    found = dataset.read(slice(None))
    numbers = [-round(energy) for energy in found.energy.reshape(-1).tolist()]
    expected = batch(*numbers)
    for name in ("positions", "atomic_numbers", "forces"):
        assert torch.equal(found.fields[name], expected.fields[name].to(found.fields[name].dtype))
    return numbers


def write_numbers(
    recipe: SinkRecipe[ZarrData], numbers: list[int], gate: Barrier | None = None
) -> None:
    """Write these systems as one batch into a part, at a gate with other processes if given."""
    if gate is not None:
        gate.wait(240)
    with recipe.open() as sink:
        sink.write(batch(*numbers))
