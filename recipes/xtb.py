"""The oracle: energies, forces and trajectories of ethanol at GFN2-xTB, by tblite.

A label takes 5 ms and a step of dynamics 2.5 ms on one core. This module imports neither torch nor
Lightning, so that a worker process starts in a fraction of a second.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from multiprocessing import connection, parent_process
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin
from numpy.typing import NDArray

# ruff: noqa: PLC0415  tblite is imported after the number of its threads is set

Array = NDArray[np.float64]


class Frames(NamedTuple):
    """F labelled geometries of one molecule.

    Attributes
    ----------
    numbers : [n] int
        Atomic numbers.
    positions : [F, n, 3]
        In Angstrom.
    energies : [F]
        In eV.
    forces : [F, n, 3]
        In eV/Angstrom.
    """

    numbers: NDArray[np.int64]
    positions: Array
    energies: Array
    forces: Array


def ethanol() -> Atoms:
    """Ethanol, from ASE's collection."""
    return molecule("CH3CH2OH")


def start_worker() -> None:
    """Prepare a worker process: one thread, and no life after its parent's death."""
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def trajectory(
    temperature: float, frames: int, seed: int, stride: int = 20, burn_in: int = 400
) -> Frames:
    """First frames of a `walk`.

    Parameters
    ----------
    temperature
        In K.
    frames
        Number of frames F.
    seed
        Seed of the velocities and of the thermostat.
    stride, burn_in
        Steps of 0.5 fs between frames and before the first.
    """
    return gather(islice(walk(temperature, seed, stride, burn_in), frames))


def walk(
    temperature: float, seed: int, stride: int = 20, burn_in: int = 400
) -> Iterator[tuple[Array, float, Array]]:
    """Langevin dynamics of ethanol on xTB's own forces, without end; see `trajectory`.

    Yields
    ------
    tuple
        Positions [n, 3] in Angstrom, energy in eV, and forces [n, 3] in eV/Angstrom.
    """
    from tblite.ase import TBLite

    rng = np.random.default_rng(seed)
    atoms = ethanol()
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    spread = np.sqrt(atoms.get_masses() * units.kB * temperature)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=temperature,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(burn_in)
    while True:
        dynamics.run(stride)
        yield atoms.get_positions(), atoms.get_potential_energy(), atoms.get_forces()


def gather(found: Iterable[tuple[Array, float, Array]]) -> Frames:
    """Frames of what a `walk` yields."""
    positions, energies, forces = (np.array(column) for column in zip(*found, strict=True))
    return Frames(ethanol().numbers.astype(np.int64), positions, energies, forces)
