"""The elements: symbols, standard masses, and formulas in ASE's order."""

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from zarrpipe.data.categories import SYMBOLS
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.ids import UInt64Array, mix
from zarrpipe.errors import ArgumentError

__all__ = [
    "MASSES",
    "NUMBERS",
    "SYMBOLS",
    "as_elements",
    "atomic_number",
    "composition_codes",
    "formula_code",
    "formulas",
]

_STANDARD_MASSES = """
1.008 4.002602 6.94 9.0121831 10.81 12.011 14.007 15.999 18.99840316 20.1797 22.98976928
24.305 26.9815385 28.085 30.973762 32.06 35.45 39.948 39.0983 40.078 44.955908 47.867
50.9415 51.9961 54.938044 55.845 58.933194 58.6934 63.546 65.38 69.723 72.63 74.921595
78.971 79.904 83.798 85.4678 87.62 88.90584 91.224 92.90637 95.95 97.90721 101.07 102.9055
106.42 107.8682 112.414 114.818 118.71 121.76 127.6 126.90447 131.293 132.905452 137.327
138.90547 140.116 140.90766 144.242 144.91276 150.36 151.964 157.25 158.92535 162.5
164.93033 167.259 168.93422 173.054 174.9668 178.49 180.94788 183.84 186.207 190.23 192.217
195.084 196.966569 200.592 204.38 207.2 208.9804 208.98243 209.98715 222.01758 223.01974
226.02541 227.02775 232.0377 231.03588 238.02891 237.04817 244.06421 243.06138 247.07035
247.07031 251.07959 252.083 257.09511 258.09843 259.101 262.11 267.122 268.126 271.134
270.133 269.1338 278.156 281.165 281.166 285.177 286.182 289.19 289.194 293.204 293.208
294.214
""".split()  # noqa: SIM905  one a line is too long
MASSES = np.array([np.nan, *map(float, _STANDARD_MASSES)])
"""Standard mass in amu by atomic number (IUPAC 2016, as in ASE); NaN for X."""

NUMBERS: Mapping[str, int] = MappingProxyType({symbol: z for z, symbol in enumerate(SYMBOLS)})
"""Atomic number by symbol."""

_HILL = np.array([NUMBERS[symbol] for symbol in ("C", "H", *sorted({*SYMBOLS} - {"C", "H"}))])
"""Atomic numbers in the order of a formula: carbon, hydrogen, then by symbol."""
_CODES = mix(np.arange(1, len(SYMBOLS) + 1, dtype=np.uint64))
_PART = re.compile(r"([A-Z][a-z]?)(\d*)")


def atomic_number(symbol: str) -> int:
    """Atomic number of an element.

    Raises
    ------
    ValueError
        If there is no such symbol.
    """
    if symbol not in NUMBERS:
        near = [symbol.capitalize()] if symbol.capitalize() in NUMBERS else []
        near = near or difflib.get_close_matches(symbol, SYMBOLS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ArgumentError(f"{symbol!r} is no symbol of an element{hint}, expected one as 'Cu'")
    return NUMBERS[symbol]


def as_elements(numbers: AnyArray) -> Int64Array:
    """Atomic numbers [V] int64 in which 0 (X) stands for every number that is no element."""
    found = numbers.astype(np.int64, copy=False)
    outside = found.view(np.uint64) >= len(SYMBOLS)
    return np.where(outside, 0, found) if outside.any() else found


def composition_codes(numbers: AnyArray, ptr: Int64Array) -> UInt64Array:
    """Code [B] uint64 of the composition of each system, with the pointers `ptr` [B+1]."""
    codes: UInt64Array = np.add.reduceat(_CODES[as_elements(numbers)], ptr[:-1])
    return codes


def formula_code(formula: str) -> int:
    """Code of the composition of a formula, whatever the order of its elements.

    Raises
    ------
    ValueError
        If it is no formula of symbols and counts.

    Examples
    --------
    >>> formula_code("H2O") == formula_code("OHH")
    True
    """
    parts = _PART.findall(formula)
    if not parts or "".join(map("".join, parts)) != formula:
        raise ArgumentError(
            f"{formula!r} is no formula, expected symbols and counts without brackets, as 'C2H6O'"
        )
    counts = [(atomic_number(symbol), int(count or 1)) for symbol, count in parts]
    return sum(int(_CODES[number]) * count for number, count in counts) % (1 << 64)


def formulas(numbers: AnyArray, ptr: Int64Array) -> list[str]:
    """Formula of each system, carbon and hydrogen first, as `ase.Atoms.get_chemical_formula`.

    It takes 1 kB of memory a system.

    Examples
    --------
    >>> formulas(np.array([8, 1, 1, 6]), np.array([0, 3, 4]))
    ['H2O', 'C']
    """
    systems, kinds = len(ptr) - 1, len(SYMBOLS)
    cells = np.repeat(np.arange(systems) * kinds, np.diff(ptr)) + as_elements(numbers)
    counts = np.bincount(cells, minlength=systems * kinds).reshape(systems, kinds)[:, _HILL]
    here, texts = np.nonzero(counts), [""] * systems
    parts = (axis.tolist() for axis in (here[0], _HILL[here[1]], counts[here]))
    for system, number, count in zip(*parts, strict=True):
        texts[system] += SYMBOLS[number] + (str(count) if count > 1 else "")
    return texts
