"""Blocks of frames as batches: units and signs converted, and labels put together."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.categories import encoded
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.fields import Kind as FieldKind
from zarrpipe.errors import ArgumentError, LabelError
from zarrpipe.formats.read.frames import (
    ATOM,
    EDGE,
    SYSTEM,
    AnyArray,
    BoolArray,
    Column,
    FrameBlock,
    Int64Array,
    Kind,
)
from zarrpipe.formats.read.labels import ISOLATED_ATOM, LabelPlan
from zarrpipe.transforms.units import ConvertUnits

StressSign = Literal["tension", "pressure"]

_BASES = ("energy", "length", "mass", "charge")
_WHOLE = 2.0**63
_SIGNS = ("tension", "pressure")
_VOIGT = [0, 5, 4, 5, 1, 3, 4, 3, 2]
"""Place in the order xx, yy, zz, yz, xz, xy of each entry of the matrix."""
_ALIASES: Mapping[str, str] = MappingProxyType(
    {"A": "Angstrom", "Ang": "Angstrom", "angstrom": "Angstrom", "Å": "Angstrom"}
    | {
        "kBar": "kbar",
        "Eh": "Hartree",
        "Ha": "Hartree",
        "hartree": "Hartree",
        "Ry": "Rydberg",
        "bohr": "Bohr",
        "a0": "Bohr",
    }
)


@dataclass(frozen=True)
class SourceUnits:
    """Units of a source, and the factors by which its values become those of ASE.

    `given` has units by label or by base (energy, length, mass, charge), as `read_into` takes them.
    """

    given: Mapping[str, str]
    factors: Mapping[str, float]
    stress_sign: StressSign = "tension"

    @classmethod
    def of(
        cls,
        given: Mapping[str, str],
        stress_sign: StressSign = "tension",
        stated: Mapping[str, str] = MappingProxyType({}),
    ) -> "SourceUnits":
        """Check units; raises ArgumentError for one that is not known or of another kind.

        Those that a source has `stated` of its labels say nothing about other labels.
        """
        if stress_sign not in _SIGNS:
            raise ArgumentError(f"stress_sign={stress_sign!r}, expected one of {', '.join(_SIGNS)}")
        texts = {name: normalized_unit(text) for name, text in given.items()}
        own = {name for name in texts if name not in CORE_FIELDS and name not in _BASES}
        bases = {name: text for name, text in texts.items() if name in _BASES}
        fields = {name: text for name, text in texts.items() if name not in {*own, *_BASES}}
        fields |= {
            name: normalized_unit(text) for name, text in stated.items() if name in CORE_FIELDS
        }
        to_source = ConvertUnits(**bases, fields=fields).factors  # type: ignore[arg-type]
        factors = {name: 1 / factor for name, factor in to_source.items() if factor != 1}
        if stress_sign == "pressure":
            factors["stress"] = -factors.get("stress", 1.0)
        return cls({**stated, **texts}, factors, stress_sign)

    @property
    def own(self) -> dict[str, str]:
        """Units of fields that the registry does not have, whose values stay as they are."""
        known = {*CORE_FIELDS, *_BASES}
        return {name: text for name, text in self.given.items() if name not in known}

    def unit(self, name: str) -> str:
        """Unit of a field in the source, where it is said or follows from what is said."""
        if name in self.given:
            return self.given[name]
        unit = CORE_FIELDS[name].unit if name in CORE_FIELDS else ""
        if name not in self.factors or abs(self.factors[name]) == 1:
            return unit
        ours = {"eV": "energy", "Angstrom": "length", "amu": "mass", "e": "charge"}
        words = (self.given.get(ours.get(word, ""), word) for word in re.split(r"(\W)", unit))
        return "".join(words)


def normalized_unit(unit: str) -> str:
    """Unit with the usual short names written out."""
    return "".join(
        _ALIASES.get(word, word) for word in re.split(r"([^\wÅ])", unit.strip().replace("**", "^"))
    )


def batch_of(
    block: FrameBlock, plan: LabelPlan, units: SourceUnits, *, dtype: torch.dtype, isolated: bool
) -> Batch:
    """Batch of the frames of a block, floats in `dtype`.

    With `isolated`, a field marks single atoms that are alone in space, or are called so.
    """
    length = units.factors.get("positions", 1.0)
    atoms, edges = _pointers(block.num_atoms), block.num_edges
    values: dict[str, torch.Tensor] = {
        "positions": torch.from_numpy(block.positions * length).to(dtype),
        "atomic_numbers": torch.from_numpy(block.atomic_numbers),
        "cell": torch.from_numpy(block.cell * length).to(dtype),
        "pbc": torch.from_numpy(block.pbc),
    }
    levels: dict[str, str] = {}
    present: dict[str, torch.Tensor] = {}
    categories: dict[str, tuple[str, ...]] = {}
    rows = {ATOM: block.num_atoms, EDGE: np.zeros_like(block.num_atoms) if edges is None else edges}
    for name in plan.fields:
        found = _combined(name, block, plan, rows)
        if found is None:
            continue
        levels[name] = plan.level(name)
        if not found.present.all():
            present[name] = torch.from_numpy(found.present)
        if found.values.dtype == object:
            filler = str(found.values[found.present.argmax()])
            strings = np.where(found.present, found.values, filler)
            values[name], categories[name] = encoded(name, list(strings))
            continue
        values[name] = _tensor(name, found.values, units.factors.get(name, 1.0), dtype)
    if "neighbor_list" in values and edges is not None:
        values["neighbor_list"] += torch.from_numpy(np.repeat(atoms[:-1], edges))[:, None]
    if isolated:
        levels[ISOLATED_ATOM] = "system"
        values[ISOLATED_ATOM] = torch.from_numpy(_isolated(block)[:, None])
    return Batch(
        values,
        torch.from_numpy(atoms),
        None if edges is None else torch.from_numpy(_pointers(edges)),
        levels=levels,
        categories=categories,
        present=present,
    )


def _pointers(counts: Int64Array) -> Int64Array:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _combined(
    name: str, block: FrameBlock, plan: LabelPlan, rows: Mapping[str, Int64Array]
) -> Column | None:
    """Values of a field: of each frame, those of the first of its entries that the frame has."""
    level, found = plan.level(name), None
    for entry in plan.fields[name]:
        column = block.columns.get(entry)
        if column is None or not column.present.any():
            continue
        ours = _of_rows(column.present, level, rows)
        what = f"{entry} of frame {block.frames[0]} or after"
        values = _shaped(name, level, _cast(what, column.values, plan.kinds[entry], ours))
        if found is None:
            found = Column(values, column.present)
            continue
        kept = _of_rows(found.present, level, rows).reshape(-1, *[1] * (values.ndim - 1))
        values = np.where(kept, found.values, values)
        found = Column(values, found.present | column.present)
    return found


def _of_rows(present: BoolArray, level: str, rows: Mapping[str, Int64Array]) -> BoolArray:
    """Presence of each row of a level, from that of each frame."""
    return np.repeat(present, rows[level]) if level in rows else present


def _cast(what: str, values: AnyArray, kind: Kind, present: BoolArray) -> AnyArray:
    """Values as the planned type, `present` or not; raises LabelError if some would change."""
    if kind.type == "str":
        return np.array([str(value) for value in values], dtype=object)
    if values.dtype == object or values.shape[1:] != kind.shape:
        raise LabelError(
            f"{what} has values of another type or shape than the frames that were looked at, "
            f"which have {kind.type} of shape {kind.shape}: leave it out by ignore"
        )
    if kind.type == "float":
        return values.astype(np.float64)
    if values.dtype.kind != "f":
        return values if kind.type == "bool" else values.astype(np.int64)
    whole = np.where(present.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)
    if not ((np.trunc(whole) == whole) & (np.abs(whole) < _WHOLE)).all():
        raise LabelError(
            f"{what} has fractions, NaN or numbers beyond 64 bits, and the frames that were looked "
            "at have whole numbers: leave it out by ignore, or import the file that has these first"
        )
    return whole.astype(np.int64)


def _shaped(name: str, level: str, values: AnyArray) -> AnyArray:
    """Rows of an entry in the shape of its field."""
    spec = CORE_FIELDS.get(name)
    if name in ("stress", "virial"):
        values = values[:, _VOIGT] if values.shape[1:] == (6,) else values
        return values.reshape(-1, 3, 3)
    scalar = values.ndim == 1 and values.dtype != object
    if scalar and (level == SYSTEM if spec is None else spec.shape == (1,)):
        return values[:, None]
    return values


def _tensor(name: str, values: AnyArray, factor: float, dtype: torch.dtype) -> torch.Tensor:
    """Rows of a field in its unit and sign."""
    spec = CORE_FIELDS.get(name)
    if values.dtype.kind == "f" and factor != 1.0:
        values = values * factor
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    registered = spec is not None and spec.kind is FieldKind.FLOAT
    return tensor.to(dtype) if tensor.is_floating_point() or registered else tensor


def _isolated(block: FrameBlock) -> BoolArray:
    """Which frames [N] are one atom that is alone in space, or that their config_type calls so."""
    called: BoolArray = np.zeros(len(block), dtype=bool)
    for entry, column in block.columns.items():
        if entry.key == "config_type" and column.values.dtype == object:
            words = [re.sub(r"\W|_", "", str(text)).lower() for text in column.values]
            called = called | np.array([word == "isolatedatom" for word in words], dtype=bool)
    alone = np.logical_not(block.pbc.any(axis=1))
    single: BoolArray = (block.num_atoms == 1) & (called | alone)
    return single
