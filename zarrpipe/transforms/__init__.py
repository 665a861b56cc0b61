"""Transforms of each batch on its way to training: augmentation, neighbour lists, units.

A transform is called with a `zarrpipe.Batch` and returns the one to use; those of this package do
not change the tensors that they get. `ZarrDataset` and `ZarrDataModule` take any such function or
object, or several in a list.

A random transform has ``random = True`` and takes one more argument: ``keys [B] uint64``, one for
each sample, a mixture of seed, epoch and the id of its structure. If all its random numbers follow
from the keys, then a sample is treated alike in any batch, by any number of workers or ranks and
after a resume, and differently in another epoch. `uniform` and `normal` draw such numbers; a
transform that draws twice gets the keys of each draw from `child_keys`.
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
