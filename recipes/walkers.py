"""Molecular dynamics on a committee's mean forces, batched by torch-sim.

The committee is a `zarrpipe.ml.TorchSimModel`, which keeps by how much its members deviate.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch_sim as ts
from ase import units
from ase.data import atomic_masses
from torch import Tensor
from torch_sim.integrators.md import MDState

import zarrpipe as zp
from zarrpipe.ml import TorchSimModel


def batch_of_state(state: ts.SimState) -> zp.Batch:
    """The molecules of a torch-sim state as a batch that shares its positions."""
    atoms = torch.bincount(state.system_idx, minlength=state.n_systems)
    return zp.Batch(
        {"positions": state.positions, "atomic_numbers": state.atomic_numbers},
        torch.nn.functional.pad(atoms.cumsum(0), (1, 0)),
    )


class Band(NamedTuple):
    """Trust levels of the committee's deviation in eV/Angstrom.

    Below `low` a frame teaches nothing, above `high` its forces are not to be trusted.
    """

    low: float
    high: float

    def mask(self, deviation: Tensor) -> Tensor:
        """Which systems lie between the levels, [B] bool."""
        return (deviation > self.low) & (deviation < self.high)


@dataclass(frozen=True)
class Walkers:
    """W copies of one molecule, each with a temperature of its own.

    Attributes
    ----------
    numbers : Tensor [n] int64
        Atomic numbers of the molecule.
    positions, momenta : Tensor [W, n, 3]
        In Angstrom and in ASE's unit of momentum.
    temperatures : Tensor [W]
        In K.
    age : Tensor [W] int64
        Steps since the walker was started or restarted.
    """

    numbers: Tensor
    positions: Tensor
    momenta: Tensor
    temperatures: Tensor
    age: Tensor

    @classmethod
    def start(cls, numbers: Tensor, pool: Tensor, temperatures: Tensor, seed: int) -> "Walkers":
        """Walkers at random frames of `pool` [F, n, 3], with thermal momenta."""
        generator = torch.Generator().manual_seed(seed)
        count = len(temperatures)
        chosen = torch.randint(len(pool), (count,), generator=generator)
        momenta = torch.randn(count, *pool.shape[1:], generator=generator)
        scale = (masses_of(numbers)[:, None] * units.kB * temperatures[:, None, None]).sqrt()
        age = torch.zeros(count, dtype=torch.int64)
        return cls(numbers, pool[chosen].float(), (momenta * scale).float(), temperatures, age)

    def state(self, committee: TorchSimModel) -> MDState:
        """The walkers as a torch-sim state, with the committee's forces."""
        count, atoms = self.positions.shape[:2]
        numbers = self.numbers.repeat(count)
        plain = ts.SimState(
            positions=self.positions.reshape(-1, 3).clone(),
            masses=masses_of(numbers),
            cell=torch.eye(3).repeat(count, 1, 1),
            pbc=False,
            atomic_numbers=numbers,
            system_idx=torch.arange(count).repeat_interleave(atoms),
        )
        result = committee(plain)
        return MDState(
            **{name: getattr(plain, name) for name in _PLAIN},
            momenta=self.momenta.reshape(-1, 3).clone(),
            energy=result["energy"],
            forces=result["forces"],
        )

    def moved(self, state: MDState, age: Tensor) -> "Walkers":
        """The walkers where `state` has them."""
        shape = self.positions.shape
        return replace(
            self,
            positions=state.positions.reshape(shape).clone(),
            momenta=state.momenta.reshape(shape).clone(),
            age=age,
        )


_PLAIN = ("positions", "masses", "cell", "pbc", "atomic_numbers", "system_idx")


def masses_of(numbers: Tensor) -> Tensor:
    """Atomic masses in amu, float32, shaped as `numbers`."""
    return torch.tensor(atomic_masses)[numbers].float()


@dataclass(frozen=True)
class Exploration:
    """What a stretch of dynamics did.

    Attributes
    ----------
    walkers
        Where it ended.
    visited, selected, restarts
        Number of frames that were looked at and that the mask let through, and of walkers that
        left the trusted region.
    """

    walkers: Walkers
    visited: int = 0
    selected: int = 0
    restarts: int = 0

    def __add__(self, later: "Exploration") -> "Exploration":
        """Sum of a stretch and of the one that went on from where it ended."""
        return Exploration(
            later.walkers,
            self.visited + later.visited,
            self.selected + later.selected,
            self.restarts + later.restarts,
        )


def explore(
    committee: TorchSimModel,
    walkers: Walkers,
    sink: zp.ZarrData,
    band: Band,
    pool: Tensor,
    *,
    snapshots: int,
    stride: int,
    seed: int,
    timestep: float = 0.5,
) -> Exploration:
    """Run Langevin dynamics and write every frame inside of `band` into `sink`.

    A walker whose deviation passes ``band.high`` at any step is stopped there and restarted from a
    random frame of `pool` [F, n, 3]; it is not looked at again for `stride` steps.

    Parameters
    ----------
    snapshots, stride
        Number of times the walkers are looked at, and steps of `timestep` fs between them.
    seed
        Seed of the thermostat and of the restarts: equal arguments give equal frames.
    """
    state, age, visited, selected, restarts = walkers.state(committee), walkers.age.clone(), 0, 0, 0
    with dynamics(committee, walkers.temperatures, seed, timestep) as step:
        for moment in range(1, snapshots * stride + 1):
            state = step(state)
            age += 1
            lost = ~(committee.deviation <= band.high)  # true for NaN as well
            if lost.any():
                fresh = Walkers.start(walkers.numbers, pool, walkers.temperatures, seed + moment)
                state = restart(committee, walkers.moved(state, age), fresh, lost)
                age[lost] = 0
                restarts += int(lost.sum())
            if moment % stride == 0:
                mask = band.mask(committee.deviation) & (age >= stride)
                sink.write(batch_of_state(state), mask)
                visited, selected = visited + len(mask), selected + int(mask.sum())
    return Exploration(walkers.moved(state, age), visited, selected, restarts)


def restart(committee: TorchSimModel, now: Walkers, fresh: Walkers, lost: Tensor) -> MDState:
    """State in which the `lost` [W] of the walkers are replaced by fresh ones."""
    return replace(
        now,
        positions=torch.where(lost[:, None, None], fresh.positions, now.positions),
        momenta=torch.where(lost[:, None, None], fresh.momenta, now.momenta),
    ).state(committee)


@contextlib.contextmanager
def dynamics(
    committee: TorchSimModel, temperatures: Tensor, seed: int, timestep: float
) -> Iterator[Callable[[MDState], MDState]]:
    """torch-sim's Langevin step (BAOAB, friction 0.02 / fs) at a temperature for each system.

    Before release 0.6 torch-sim draws its noise from torch's global generator, which is put back
    afterwards, and from that of the state since.
    """
    settings = {
        "dt": torch.tensor(timestep * units.fs),
        "kT": temperatures * units.kB,
        "gamma": torch.tensor(0.02 / units.fs),
    }
    if hasattr(ts, "nvt_langevin_step"):
        update = partial(ts.nvt_langevin_step, model=committee, **settings)
    else:  # torch-sim 0.3
        _, update = ts.nvt_langevin(committee, **settings)
    generator = torch.Generator().manual_seed(seed)

    def step(state: MDState) -> MDState:
        if hasattr(ts.SimState, "rng"):
            state.rng = generator
        return update(state)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield step
