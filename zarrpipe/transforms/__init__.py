"""What is done to each batch on its way to training: augmentation, neighbour lists, units.

A transform is called with a `zarrpipe.Batch` and gives the one to use; those of this package leave
the tensors that they get as they are. `ZarrDataset` and `ZarrDataModule` take any function or
object of that kind, or several in a list.

A random one has ``random = True`` and takes one more argument: ``keys [B] uint64``, one for each
sample, a mixture of seed, epoch and the id of its structure. If all that it draws follows from
the keys, then the same sample is treated alike in any batch, by any number of workers or ranks
and after a resume, and otherwise in another epoch. `uniform` and `normal` draw so; a transform that
draws twice asks `child_keys` for the keys of each.
"""

from zarrpipe.transforms.compose import Compose, RandomTransform, Transform
from zarrpipe.transforms.neighbors import NeighborList
from zarrpipe.transforms.noise import GaussianNoise
from zarrpipe.transforms.random_numbers import child_keys, normal, sample_keys, uniform
from zarrpipe.transforms.rotation import RandomRotation
from zarrpipe.transforms.units import ConvertUnits

__all__ = [
    "Compose",
    "ConvertUnits",
    "GaussianNoise",
    "NeighborList",
    "RandomRotation",
    "RandomTransform",
    "Transform",
    "child_keys",
    "normal",
    "sample_keys",
    "uniform",
]
