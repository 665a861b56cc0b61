"""Whether labels can be in ASE's units, by sizes that energies, forces and stresses have.

The total energy of atoms lies between those of free atoms with all their electrons and some tens
of eV an atom above zero. Medians are compared, so that a few broken frames change nothing.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.batch import Batch

FloatArray = npt.NDArray[np.float64]

_HARTREE, _KCAL, _KJ = 27.211386, 0.0433641, 0.01036427
# fmt: off
_ATOMS = (
    0.0, -0.5, -2.9, -7.478, -14.667, -24.65, -37.85, -54.59, -75.07, -99.73, -128.94, -162.25,
    -200.05, -242.35, -289.36, -341.26, -398.11, -460.15, -527.54, -599.9, -677.5, -760.6, -849.3,
    -943.8, -1044.3, -1150.9, -1263.6, -1382.6, -1508.2, -1640.4, -1779.4, -1924.6, -2076.9,
    -2235.8, -2401.0, -2574.0, -2753.6,
)
# fmt: on
"""Energies of free atoms with all electrons, Hartree, by atomic number up to krypton."""
_UNITS = {"Hartree": 1.0, "kcal/mol": _HARTREE / _KCAL, "kJ/mol": _HARTREE / _KJ}
"""Size of a Hartree in units in which energies are given."""
_CLOSE = 0.02
"""By how much of it the energy of a structure differs from that of its free atoms at most."""
_LARGEST_FORCE = 20.0
"""Largest plausible median of the root mean square force of a structure, eV/Angstrom."""
_LARGEST_STRESS = 0.6
"""Largest plausible median of the largest stress of a structure, eV/Angstrom^3: about 100 GPa."""
_STRESS_UNITS = (("bar", 160.2, 6.242e-7), ("kbar", 16.0, 6.242e-4), ("GPa", 0.0, 6.242e-3))
"""Units of stress with the median from which they are likely, and their size in eV/Angstrom^3."""


def doubts(batch: Batch) -> dict[str, str]:
    """What is not plausible about the labels of a batch, in ASE's units, with a way out."""
    energies = list(_of_energies(batch))  # the unit of energies is that of forces too
    found = {"energy": energies, "forces": [] if energies else list(_of_forces(batch))}
    found["stress"] = list(_of_stresses(batch))
    return {name: texts[0] for name, texts in found.items() if texts}


def _of_energies(batch: Batch) -> Iterator[str]:
    energies = _known(batch, "energy")
    if energies is None or not len(energies[0]):
        return
    values, kept = energies
    numbers = batch.atomic_numbers.numpy()
    table = np.full(int(numbers.max(initial=0)) + 1, np.nan)
    table[: len(_ATOMS)] = _ATOMS[: len(table)]
    starts = batch.batch_ptr.numpy()
    free = np.add.reduceat(table[numbers], starts[:-1])[kept]
    per_atom = float(np.median(values.reshape(-1) / np.diff(starts)[kept]))
    ratios = values.reshape(-1)[np.isfinite(free)] / free[np.isfinite(free)]
    ratio = float(np.median(ratios)) if len(ratios) else float("nan")
    for unit, size in (
        ("Hartree", 1.0),
        ("kcal/mol", _HARTREE / _KCAL),
        ("kJ/mol", _HARTREE / _KJ),
    ):
        if abs(ratio / size - 1) < _CLOSE:
            yield (
                f"energies look like {unit}: {per_atom:.6g} an atom is the energy of free atoms "
                f"with all electrons in {unit}; give units={{'energy': {unit!r}}} "
                f"(--units energy={unit})"
            )
            return
    if ratio > _HARTREE * (1 + _CLOSE) or per_atom > 1000:
        yield (
            f"energies of {per_atom:.6g} eV an atom cannot be: give their unit, as "
            "units={'energy': 'kcal/mol'} (--units energy=kcal/mol)"
        )


def _of_forces(batch: Batch) -> Iterator[str]:
    found = _known(batch, "forces")
    if found is None:
        return
    starts = batch.batch_ptr.numpy()
    squares = np.add.reduceat((found[0] ** 2).mean(axis=1), starts[:-1])
    sizes = np.sqrt(squares / np.diff(starts))[found[1]]
    typical = float(np.nanmedian(sizes)) if np.isfinite(sizes).any() else 0.0
    if typical > _LARGEST_FORCE:
        yield (
            f"forces of typically {typical:.3g} eV/Angstrom are very large, and look like "
            "kcal/mol/Angstrom or kJ/mol/Angstrom: give units={'forces': 'kcal/mol/Angstrom'} "
            "(--units forces=kcal/mol/Angstrom)"
        )


def _of_stresses(batch: Batch) -> Iterator[str]:
    found = _known(batch, "stress")
    if found is None:
        return
    values, kept = found
    largest = np.abs(values).reshape(len(values), -1).max(axis=1, initial=0.0)
    typical = float(np.nanmedian(largest)) if np.isfinite(largest).any() else 0.0
    if typical > _LARGEST_STRESS:
        unit = next(name for name, least, _ in _STRESS_UNITS if typical > least)
        yield (
            f"stresses of typically {typical:.3g} eV/Angstrom^3 ({typical * 160.2:.0f} GPa) look "
            f"like {unit}: give units={{'stress': {unit!r}}} (--units stress={unit})"
        )
    yield from _against_virial(batch, values, kept)


def _against_virial(batch: Batch, stress: FloatArray, kept: npt.NDArray[np.bool_]) -> Iterator[str]:
    """Whether the virial is minus the volume times the stress, where a batch has both."""
    found = _known(batch, "virial")
    if found is None or "cell" not in batch.fields:
        return
    volumes = np.abs(np.linalg.det(batch.cell.numpy().astype(np.float64)))
    both = kept & found[1] & (volumes > 0)
    if not both.any():
        return
    expected = -batch.virial.numpy()[both] / volumes[both, None, None]
    given = batch.stress.numpy()[both]
    size = float(np.sum(given * given))
    ratio = float(np.sum(expected * given)) / size if size else float("nan")
    if abs(ratio + 1) < _CLOSE:
        yield (
            "the stress has the sign of a pressure, by the virial beside it: give "
            "stress_sign='pressure' (--stress-sign pressure)"
        )
    for unit, _, factor in _STRESS_UNITS:
        if abs(abs(ratio) / factor - 1) < _CLOSE:
            sign = ", and has the sign of a pressure" if ratio < 0 else ""
            yield (
                f"the stress is in {unit}, by the virial beside it{sign}: give "
                f"units={{'stress': {unit!r}}} (--units stress={unit})"
            )


def _known(batch: Batch, name: str) -> tuple[FloatArray, Any] | None:
    """Values of a field in the systems that have it, and which [B] those are."""
    if name not in batch.fields:
        return None
    kept = batch.present(name).numpy()
    if not kept.any():
        return None
    values = batch[name].numpy().astype(np.float64)
    return (values[kept] if len(values) == len(kept) else values), kept
