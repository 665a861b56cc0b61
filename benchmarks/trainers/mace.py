"""MACE: its own step on batches of a store, and on those of its own loader."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zarrpipe as zp
from benchmarks.trainers.run import Pair, take_turns
from benchmarks.trainers.structures import crystals
from zarrpipe.adapters import from_ase, to_mace
from zarrpipe.transforms import NeighborList

ELEMENTS, R_MAX, BATCH = (29, 47, 79), 5.0, 8
