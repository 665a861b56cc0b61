"""What the workers of ``closed_loop_parsl.py`` do: sample, label, train.

The functions are pure: equal arguments (and equal labels in the store) give equal results in any
worker, so that a task whose worker was killed is done again and nothing changes. They import what
they need themselves, as a worker that labels needs no torch.
"""

import faulthandler
import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ruff: noqa: PLC0415

Key = tuple[int, int, int]
"""Round, walker and frame."""

Floats = NDArray[np.float64]


def sample(task: dict[str, Any]) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Structures of one walker of one round.

    Without checkpoints the structures are rattled; else the walker runs Langevin dynamics on the
    committee's mean forces until its deviation passes ``trust``.

    Parameters
    ----------
    task
        ``molecule``, ``checkpoints``, ``seed`` (of numpy), ``frames``, ``stride`` (steps of 0.5
        fs), ``temperature`` (K) and ``trust`` (eV/Angstrom).

    Returns
    -------
    tuple
        Atomic numbers [n], positions [F, n, 3] in Angstrom, rounded to the float32 that the store
        has, and deviations [F] in eV/Angstrom.
    """
    from ase import units
    from ase.build import molecule
    from ase.md.langevin import Langevin

    rng = np.random.default_rng(task["seed"])
    atoms = molecule(task["molecule"])
    atoms.positions += rng.normal(scale=0.04, size=atoms.positions.shape)
    if not task["checkpoints"]:
        steps = rng.normal(scale=0.04, size=(task["frames"], len(atoms), 3))
        found = (atoms.positions + steps).astype(np.float32).astype(np.float64)
        return atoms.numbers.astype(np.int64), found, np.zeros(task["frames"])

    import torch

    from zarrpipe.ml import ForceFieldCalculator

    torch.set_num_threads(1)
    atoms.calc = ForceFieldCalculator(task["checkpoints"])
    spread = np.sqrt(atoms.get_masses() * units.kB * task["temperature"])[:, None]
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread)
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=task["temperature"],
        friction=0.02 / units.fs,
        fixcm=False,
        rng=rng,
    )
    positions, deviations = [], []
    for _ in range(task["frames"]):
        dynamics.run(task["stride"])
        deviation = float(atoms.calc.results["forces_std"].max())
        if not deviation <= task["trust"]:
            break
        positions.append(atoms.get_positions())
        deviations.append(deviation)
    found = np.array(positions, np.float32).reshape(-1, len(atoms), 3).astype(np.float64)
    return atoms.numbers.astype(np.int64), found, np.array(deviations)


def label(
    calculator: str,
    options: dict[str, Any],
    numbers: NDArray[np.int64],
    positions: Floats,
    walltime: float,
) -> tuple[str, float, Floats]:
    """Label of one structure by a calculator of ASE.

    Parameters
    ----------
    calculator, options
        Import path of its class, and its arguments.
    numbers, positions
        Of the structure: [n], and [n, 3] in Angstrom.
    walltime
        Seconds after which Parsl raises its ``AppTimeout`` here. Code outside of Python does not
        notice that: after twice the time the process ends, and Parsl starts another one.

    Returns
    -------
    tuple
        "ok" or why there is no label, energy in eV and forces [n, 3] in eV/Angstrom.
    """
    from ase import Atoms
    from ase.calculators.calculator import CalculationFailed, InputError

    module, _, name = calculator.rpartition(".")
    atoms = Atoms(numbers, positions)
    faulthandler.dump_traceback_later(2 * walltime, exit=True)
    try:
        atoms.calc = getattr(importlib.import_module(module), name)(**options)
        energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces())
    except (CalculationFailed, InputError):
        energy, forces = np.nan, np.full(positions.shape, np.nan)
    finally:
        faulthandler.cancel_dump_traceback_later()
    finite = np.isfinite(energy) and np.isfinite(forces).all()
    return "ok" if finite else "no convergence", energy, forces


def train(
    store: str,
    directory: str,
    number: int,
    members: int,
    steps: int,
    batch_size: int,
    seed: int,
    before: Any = None,
) -> tuple[float, float]:
    """Train the committee of a round on the labels of all rounds up to it, in a live store.

    Each member goes on from the round before, whose task Parsl waits for where it is given as
    `before`. A member whose checkpoint is there is not trained.

    Returns
    -------
    tuple
        Seconds of training, and seconds of them that it waited for batches.
    """
    started, waited = time.perf_counter(), 0.0
    import lightning.pytorch as pl
    import torch
    from ase.data import chemical_symbols
    from lightning.pytorch.loggers import CSVLogger

    import zarrpipe as zp
    from zarrpipe.ml import ForceField

    class Sorted(zp.ZarrDataModule):
        """Takes samples in the order of their ids: tasks end, and are stored, in any order."""

        def train_dataloader(self) -> Any:
            loader = super().train_dataloader()
            loader.sampler.resample(order)
            loader.sampler.set_epoch(loader.sampler.epoch)
            return loader

    torch.set_num_threads(1)
    where = f"round <= {number}"
    dataset = zp.ZarrDataset(store, where=where)
    known = dataset.__getitems__(range(len(dataset)))
    keys = [known[name].flatten().numpy() for name in ("frame", "walker", "round")]
    order = np.lexsort(keys)
    mean = float(known.energy.flatten().numpy()[order].mean()) / (known.num_nodes / len(order))
    for member in range(members):
        path = checkpoint(directory, number, member)
        if path.exists():
            continue
        if number == 0:
            symbols = sorted({chemical_symbols[one] for one in known.atomic_numbers.tolist()})
            field = ForceField(
                "schnet",
                {"cutoff": 4.0, "features": 16, "interactions": 1},
                scale=1.0,
                reference=dict.fromkeys(symbols, mean),
                seed=seed + member,
            )
        else:
            field = ForceField.load_from_checkpoint(checkpoint(directory, number - 1, member))
        run = path.parent / f"member-{member}" / f"round-{number}"
        monitor = zp.DataMonitor()
        trainer = pl.Trainer(
            max_steps=steps,
            accelerator="auto",
            devices=1,
            limit_val_batches=0,
            logger=CSVLogger(run.parent, name="", version=run.name),
            callbacks=[monitor],
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = Sorted(
            store,
            batch_size=batch_size,
            split=(1.0, 0.0, 0.0),
            where=where,
            seed=seed + 1000 * number + member,
        )
        trainer.fit(field, datamodule=data)
        trainer.save_checkpoint(path.with_suffix(".partial"), weights_only=True)
        path.with_suffix(".partial").replace(path)
        waited += monitor.total.waited
    return time.perf_counter() - started, waited


def checkpoint(directory: str | Path, number: int, member: int) -> Path:
    """Where a member of the committee of a round is."""
    return Path(directory) / f"round-{number}-member-{member}.ckpt"
