"""Fields of strings: a code for each system, and a vocabulary that only grows.

The values of such a field are places in its vocabulary, a tuple of distinct strings. Two fields
with different vocabularies are brought together by uniting these and translating the codes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import FieldError

Vocabulary = tuple[str, ...]
Int32Array = npt.NDArray[np.int32]

MOST_CATEGORIES = 100_000
"""Distinct strings of a field: every writer and reader of a store holds them in memory."""

CODE = torch.int32

SYMBOLS = """
X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As
Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd
Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am
Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
""".split()  # noqa: SIM905  one a line is too long
"""Symbol by atomic number, as in ASE; X stands for no element."""


def are_strings(value: Any) -> bool:
    """Whether a value is one string, or a list or an array of strings."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "UT" or (value.dtype.kind == "O" and are_strings([*value.flat]))
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(isinstance(item, str) for item in value)
    return isinstance(value, str)


def encoded(name: str, value: Any) -> tuple[torch.Tensor, Vocabulary]:
    """Codes [B] int32 of one or several strings, and their vocabulary in order of appearance.

    Examples
    --------
    >>> encoded("config_type", ["bulk", "surface", "bulk"])
    (tensor([0, 1, 0], dtype=torch.int32), ('bulk', 'surface'))
    """
    strings = [value] if isinstance(value, str) else [str(item) for item in np.ravel(value)]
    places: dict[str, int] = {}
    codes = [places.setdefault(string, len(places)) for string in strings]
    return torch.tensor(codes, dtype=CODE), checked_vocabulary(name, places)


def checked_vocabulary(name: str, strings: Iterable[Any]) -> Vocabulary:
    """Vocabulary of strings; raises FieldError if they are not distinct strings, or too many."""
    if isinstance(strings, str):
        raise FieldError(
            f"the categories of field {name!r} are {strings!r}, expected a list of strings"
        )
    vocabulary = tuple(strings)
    wrong = next((item for item in vocabulary if not isinstance(item, str)), None)
    if wrong is not None:
        raise FieldError(f"the categories of field {name!r} contain {wrong!r}, expected strings")
    if len(set(vocabulary)) < len(vocabulary):
        raise FieldError(f"the categories of field {name!r} are not distinct")
    if len(vocabulary) > MOST_CATEGORIES:
        raise FieldError(
            f"field {name!r} has {len(vocabulary):,} distinct strings, at most "
            f"{MOST_CATEGORIES:,} can be stored: what names each sample is a number of its own, "
            "or belongs beside the store with the ids of ZarrDataset.ids"
        )
    return vocabulary


def check_codes(name: str, codes: torch.Tensor, vocabulary: Vocabulary) -> None:
    """Refuse codes [B] that are not int32, or outside of their vocabulary."""
    if codes.dtype is not CODE or codes.ndim != 1:
        raise FieldError(
            f"field {name!r} has codes of dtype {codes.dtype} and shape {tuple(codes.shape)}, "
            "expected (B,) int32: or give its strings"
        )
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < max(len(vocabulary), 1):
        raise FieldError(_outside(name, int(codes.min()), int(codes.max()), len(vocabulary)))


def united_vocabulary(name: str, vocabularies: Iterable[Vocabulary]) -> Vocabulary:
    """All strings in the order of their first appearance; the first vocabulary keeps its codes."""
    first, *rest = dict.fromkeys(vocabularies)
    if not rest:
        return first
    places = dict.fromkeys(first)
    for vocabulary in rest:
        places.update(dict.fromkeys(vocabulary))
    return first if len(places) == len(first) else checked_vocabulary(name, places)


def translation(
    given: Vocabulary, wanted: Vocabulary
) -> np.ndarray[Any, np.dtype[np.int32]] | None:
    """Code in `wanted` of each code of `given`; None where all codes stay as they are."""
    if given == wanted[: len(given)]:
        return None
    places = {string: place for place, string in enumerate(wanted)}
    return np.array([places[string] for string in given], dtype=np.int32)


def translated(codes: torch.Tensor, given: Vocabulary, wanted: Vocabulary) -> torch.Tensor:
    """Codes [B] of one vocabulary in another that has all its strings."""
    table = translation(given, wanted)
    return codes if table is None else torch.from_numpy(table).to(codes.device)[codes.long()]


def looked_up(name: str, codes: AnyArray, table: Int32Array) -> Int32Array:
    """Codes [B] by a table of `translation`; raises FieldError if a code is not in the table."""
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < len(table):
        raise FieldError(_outside(name, int(codes.min()), int(codes.max()), len(table)))
    return table[codes]


def _outside(name: str, low: int, high: int, count: int) -> str:
    return (
        f"field {name!r} has codes from {low} to {high}, expected 0 to {count - 1}, places in its "
        "categories"
    )


def decoded(
    name: str, codes: Sequence[int], has: Sequence[bool], vocabulary: Vocabulary
) -> list[str | None]:
    """String of each system; None for those that lack the field.

    Raises FieldError if a code is no place in the vocabulary, as one that another writer appended.
    """
    used = [code for code, there in zip(codes, has, strict=True) if there]
    if used and not 0 <= min(used) <= max(used) < len(vocabulary):
        raise FieldError(_outside(name, min(used), max(used), len(vocabulary)))
    return [vocabulary[code] if there else None for code, there in zip(codes, has, strict=True)]
