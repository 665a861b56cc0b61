"""Whether labels can be in ASE's units, by sizes that energies, forces and stresses have.

The energy of a structure with all its electrons is that of its free atoms and some binding. Every
other total energy, as with pseudopotentials or after subtraction of references, is above that. All
batches that are looked at are judged together, by medians, so that a few broken frames change
nothing.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.formats.read.frames import BoolArray, FloatArray
from zarrpipe.transforms.units import parse

_ENERGY_UNITS = ("Hartree", "kcal/mol", "kJ/mol")
_STRESS_UNITS = {"bar": 160.2, "kbar": 16.0, "GPa": 0.0}
"""Units in which stresses are given, and from which size in eV/Angstrom^3 one is likely."""

# fmt: off
_ATOMS = np.array([
    0.0, -0.5, -2.9, -7.478, -14.667, -24.65, -37.85, -54.59, -75.07, -99.73, -128.94, -162.25,
    -200.05, -242.35, -289.36, -341.26, -398.11, -460.15, -527.54, -599.9, -677.5, -760.6, -849.3,
    -943.8, -1044.3, -1150.9, -1263.6, -1382.6, -1508.2, -1640.4, -1779.4, -1924.6, -2076.9,
    -2235.8, -2401.0, -2574.0, -2753.6,
])
# fmt: on
"""Energies of free atoms with all electrons, Hartree, by atomic number up to krypton."""

_INACCURACY = 0.01
_BINDING, _BINDING_OF_HYDROGEN = 0.35, 0.1
"""Largest binding of an atom, Hartree."""

_LARGEST_FORCE = 20.0
"""Largest plausible median of the root mean square force of a structure, eV/Angstrom."""
LARGEST_STRESS, USUAL_DENSITY = 0.6, 0.1
"""Largest plausible stress, eV/Angstrom^3, up to this number of atoms for each Angstrom^3.

It rises with the square of the density, as in hydrogen at 500 GPa.
"""
_CLOSE = 0.02


def doubts(batches: Sequence[Batch]) -> dict[str, str]:
    """What is not plausible about labels in ASE's units, by label, with a way out."""
    found = {"energy": _of_energies(batches)}
    if found["energy"] is None:  # the unit of energies is that of forces too
        found["forces"] = _of_forces(batches)
    found["stress"], found["virial"] = _of_stresses(batches), _of_virials(batches)
    return {name: text for name, text in found.items() if text is not None}


def _joined(batches: Sequence[Batch], values: Callable[[Batch], FloatArray | None]) -> FloatArray:
    """Finite rows [K, ...] that a function gives for each batch, or None for nothing."""
    parts = [part for batch in batches if (part := values(batch)) is not None]
    if not parts:
        return np.empty(0)
    rows = np.concatenate(parts)
    return rows[np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))]


def _of_energies(batches: Sequence[Batch]) -> str | None:
    rows = _joined(batches, _energies)  # [K, 4]: energy, atoms, and its least and largest
    if not len(rows):
        return None
    energies, atoms, least, most = rows.T
    per_atom = float(np.median(energies / atoms))
    for unit in _ENERGY_UNITS:
        hartrees = energies * (parse(unit).value / parse("Hartree").value)
        if np.median((least < hartrees) & (hartrees < most)) > 0:
            return (
                f"energies look like {unit}: {per_atom:.6g} an atom is the energy of atoms with "
                f"all electrons in {unit}; give units={{'energy': {unit!r}}} "
                f"(--units energy={unit})"
            )
    if np.median(energies / parse("Hartree").value < least) > 0 or per_atom > 1000:
        return (
            f"energies of {per_atom:.6g} eV an atom cannot be: give their unit, as "
            "units={'energy': 'kcal/mol'} (--units energy=kcal/mol)"
        )
    return None


def _energies(batch: Batch) -> FloatArray | None:
    """Energy, number of atoms, and least and largest energy with all electrons in Hartree."""
    kept = _kept(batch, "energy")
    if kept is None:
        return None
    starts, numbers = batch.batch_ptr.numpy(), batch.atomic_numbers.numpy()
    known = (numbers > 0) & (numbers < len(_ATOMS))
    free = np.where(known, _ATOMS[np.where(known, numbers, 0)], np.nan)
    binding = np.where(numbers == 1, _BINDING_OF_HYDROGEN, _BINDING)
    least = np.add.reduceat(free * (1 + _INACCURACY) - binding, starts[:-1])
    most = np.add.reduceat(free * (1 - _INACCURACY), starts[:-1])
    energies = batch.energy.numpy().astype(np.float64).reshape(-1)
    unknown = np.isnan(least)
    bounds = [np.where(unknown, -1e300, least), np.where(unknown, -1e300, most)]
    return np.stack([energies, np.diff(starts), *bounds], axis=1)[kept]


def _of_forces(batches: Sequence[Batch]) -> str | None:
    sizes = _joined(batches, _force_sizes)
    typical = float(np.median(sizes)) if len(sizes) else 0.0
    if typical <= _LARGEST_FORCE:
        return None
    return (
        f"forces of typically {typical:.3g} eV/Angstrom are very large, and look like "
        "kcal/mol/Angstrom or kJ/mol/Angstrom: give units={'forces': 'kcal/mol/Angstrom'} "
        "(--units forces=kcal/mol/Angstrom)"
    )


def _force_sizes(batch: Batch) -> FloatArray | None:
    """Root mean square force [K] of the structures that have forces."""
    kept = _kept(batch, "forces")
    if kept is None:
        return None
    starts = batch.batch_ptr.numpy()
    squares = (batch.forces.numpy().astype(np.float64) ** 2).mean(axis=1)
    sizes: FloatArray = np.sqrt(np.add.reduceat(squares, starts[:-1]) / np.diff(starts))[kept]
    return sizes


def _of_stresses(batches: Sequence[Batch]) -> str | None:
    rows = _joined(batches, _stress_sizes)  # [K, 2]: largest entry, and what it may be
    if len(rows) and np.median(rows[:, 0] / rows[:, 1]) > 1:
        typical = float(np.median(rows[:, 0]))
        likely = [name for name, least in _STRESS_UNITS.items() if typical > least]
        options = " or ".join(f"units={{'stress': {name!r}}}" for name in likely)
        return (
            f"stresses of typically {typical:.3g} eV/Angstrom^3 ({typical * 160.2:.0f} GPa) look "
            f"like {' or '.join(likely)}: give {options} (--units stress={likely[0]}, ...)"
        )
    return next(_against_virials(_joined(batches, _virial_stresses)), None)


def _of_virials(batches: Sequence[Batch]) -> str | None:
    rows = _joined(batches, _virial_sizes)
    if not len(rows) or np.median(rows[:, 0] / rows[:, 1]) <= 1:
        return None
    typical = float(np.median(rows[:, 0]))
    return (
        f"virials are those of stresses of typically {typical:.3g} eV/Angstrom^3 "
        f"({typical * 160.2:.0f} GPa), and look like kcal/mol or kJ/mol: give "
        "units={'virial': 'kcal/mol'} (--units virial=kcal/mol)"
    )


def _stress_sizes(batch: Batch) -> FloatArray | None:
    """Largest entry of each stress, and the largest that is plausible at the density."""
    kept = _kept(batch, "stress")
    return None if kept is None else _beside_limits(batch, batch.stress.numpy())[kept]


def _virial_sizes(batch: Batch) -> FloatArray | None:
    """The same of the stresses that virials are those of, in cells."""
    kept, volumes = _kept(batch, "virial"), _volumes(batch)
    if kept is None:
        return None
    periodic = volumes > 0
    stresses = batch.virial.numpy() / np.where(periodic, volumes, 1.0)[:, None, None]
    return _beside_limits(batch, stresses)[kept & periodic]


def _beside_limits(batch: Batch, stresses: FloatArray) -> FloatArray:
    """Largest entry of each stress [B, 3, 3], and the largest that is plausible, [B, 2]."""
    values = np.abs(stresses.astype(np.float64)).reshape(batch.num_graphs, -1).max(axis=1)
    volumes = _volumes(batch)
    density = np.diff(batch.batch_ptr.numpy()) / np.where(volumes > 0, volumes, np.inf)
    limits = LARGEST_STRESS * np.maximum(1.0, density / USUAL_DENSITY) ** 2
    return np.stack([values, limits], axis=1)


def _against_virials(rows: FloatArray) -> Iterator[str]:
    """Whether virials are minus the volume times the stresses, of [K, 2, 9] of both."""
    size = float(np.sum(rows[:, 1] ** 2)) if len(rows) else 0.0
    if not size:
        return
    ratio = float(np.sum(rows[:, 0] * rows[:, 1])) / size
    if abs(ratio + 1) < _CLOSE:
        yield (
            "the stress has the sign of a pressure, by the virial beside it: give "
            "stress_sign='pressure' (--stress-sign pressure)"
        )
    for unit in _STRESS_UNITS:
        if abs(abs(ratio) / parse(unit).value - 1) < _CLOSE:
            sign = ", and has the sign of a pressure" if ratio < 0 else ""
            yield (
                f"the stress is in {unit}, by the virial beside it{sign}: give "
                f"units={{'stress': {unit!r}}} (--units stress={unit})"
            )


def _virial_stresses(batch: Batch) -> FloatArray | None:
    """The stress that each virial gives, and the stress beside it, [K, 2, 9]."""
    stress, virial = _kept(batch, "stress"), _kept(batch, "virial")
    if stress is None or virial is None:
        return None
    volumes = _volumes(batch)
    both = stress & virial & (volumes > 0)
    expected = -batch.virial.numpy()[both] / volumes[both, None, None]
    return np.stack([expected, batch.stress.numpy()[both]], axis=1).reshape(-1, 2, 9)


def _volumes(batch: Batch) -> FloatArray:
    """Volume [B] of each cell, Angstrom^3; 0 without one."""
    if "cell" not in batch.fields:
        return np.zeros(batch.num_graphs)
    with np.errstate(invalid="ignore"):  # of systems that lack theirs
        volumes: FloatArray = np.abs(np.linalg.det(batch.cell.numpy().astype(np.float64)))
    return volumes


def _kept(batch: Batch, name: str) -> BoolArray | None:
    """Which systems [B] have a field; None if none has it."""
    if name not in batch.fields:
        return None
    kept: BoolArray = batch.present(name).numpy()
    return kept if kept.any() else None
