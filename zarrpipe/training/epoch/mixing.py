"""Weights of an epoch: shares of stores, a field of weights, or shares by the values of a field."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.data.validate import check_count
from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.training.epoch.batch_plan import IndexArray
from zarrpipe.training.epoch.weighted_draws import Expected, draw

OTHER = "other"
"""Key of the share of all values without a share of their own."""

Weights = Sequence[float] | Mapping[str, Mapping[Any, float]] | str
"""Shares by store, shares by the values of a field, or the name of a field of weights."""

_Groups = npt.NDArray[np.signedinteger[Any]]


class _Rule(Protocol):
    """Gives the expected number of copies of samples."""

    def expected(self, data: Any, samples: IndexArray, total: int) -> Expected: ...

    def plain(self) -> Any: ...


@dataclass(frozen=True)
class Mixture:
    """How an epoch is drawn: by a rule, None for equal weights, and its number of samples."""

    state_names: ClassVar = ("weights", "samples_per_epoch")

    rule: _Rule | None
    samples_per_epoch: int | None

    @classmethod
    def of(cls, weights: Any, samples_per_epoch: Any) -> "Mixture | None":
        """Mixture of a sampler's arguments; None if every sample comes once."""
        if samples_per_epoch is not None:
            samples_per_epoch = check_count("samples_per_epoch", samples_per_epoch, 1)
        if weights is None and samples_per_epoch is None:
            return None
        return cls(None if weights is None else _rule(weights), samples_per_epoch)

    def total(self, count: int) -> int:
        """Number of samples in an epoch of `count` different ones."""
        return 0 if count == 0 else self.samples_per_epoch or count

    def expected(self, data: Any, samples: IndexArray) -> Expected:
        """Expected number of copies of samples."""
        total = self.total(len(samples))
        if self.rule is None:
            return Expected(np.full(len(samples), total / len(samples)))
        return self.rule.expected(data, samples, total)

    def counts(self, expected: Expected, seed: int, epoch: int) -> Int64Array:
        """Number [n] of copies of each sample in an epoch."""
        return draw(seed, epoch, expected, self.total(len(expected.counts)))

    def state_dict(self) -> dict[str, Any]:
        """Settings of the draw, as plain types."""
        rule = None if self.rule is None else self.rule.plain()
        return {"weights": json.dumps(rule), "samples_per_epoch": self.samples_per_epoch or 0}


@dataclass(frozen=True)
class _ByStore:
    """Shares of the epoch by store."""

    shares: tuple[float, ...]

    def expected(self, data: Any, samples: IndexArray, total: int) -> Expected:
        if not hasattr(data, "num_stores"):
            raise ArgumentTypeError(
                f"weights are shares of stores, and {type(data).__name__} has none: expected a "
                "ZarrDataset"
            )
        if len(self.shares) != data.num_stores:
            stores = "1 store" if len(self.shares) == 1 else f"{len(self.shares)} stores"
            raise ArgumentError(
                f"weights are shares of {stores}, and the dataset has "
                f"{data.num_stores}: expected one share for each store"
            )
        return _of_groups(data.store_of(samples), self.shares, total)

    def plain(self) -> Any:
        return self.shares


@dataclass(frozen=True)
class _ByValue:
    """Shares of the epoch by the values of a field, in ascending order."""

    field: str
    values: tuple[float, ...]
    shares: tuple[float, ...]
    other: float | None

    def expected(self, data: Any, samples: IndexArray, total: int) -> Expected:
        values, has = _scalars(data, self.field, samples)
        keys = np.array(self.values, dtype=values.dtype if values.dtype.kind == "f" else None)
        groups = np.searchsorted(keys, values)
        groups[groups == len(keys)] = 0
        groups[(keys[groups] != values) | ~has] = len(keys)
        if self.other is None and groups.max() == len(keys):
            place = int(np.argmax(groups))
            raise ArgumentError(
                f"sample {samples[place]} has {_found(self.field, values, has, place)}, and "
                f"weights name {list(self.values)}: name it too, or give the rest a share as "
                f"{OTHER!r}"
            )
        return _of_groups(groups, (*self.shares, self.other or 0.0), total)

    def plain(self) -> Any:
        named: list[tuple[Any, float]] = list(zip(self.values, self.shares, strict=True))
        return {self.field: [*named, *([] if self.other is None else [(OTHER, self.other)])]}


@dataclass(frozen=True)
class _ByField:
    """The weight of each sample is the value of a field."""

    field: str

    def expected(self, data: Any, samples: IndexArray, total: int) -> Expected:
        values, has = _scalars(data, self.field, samples)
        weights = values.astype(np.float64)
        wrong = ~(has & (weights >= 0) & (weights < np.inf))  # NaN too
        if wrong.any():
            place = int(np.argmax(wrong))
            raise ArgumentError(
                f"sample {samples[place]} has {_found(self.field, values, has, place)}, expected a "
                "weight of 0 or more"
            )
        if not weights.max() > 0:
            raise ArgumentError(f"field {self.field!r} gives all samples the weight 0")
        weights /= weights.max()  # so that their sum cannot overflow
        weights *= total / weights.sum()
        return Expected(weights)

    def plain(self) -> Any:
        return self.field


def _rule(weights: Any) -> _Rule:
    """Rule of the argument `weights`."""
    if isinstance(weights, str):
        return _ByField(weights)
    if isinstance(weights, Mapping):
        return _by_value(weights)
    if isinstance(weights, Sequence | np.ndarray):
        return _ByStore(_shares(list(weights), "weights"))
    raise ArgumentTypeError(
        f"weights is {weights!r}, expected a share for each store, the name of a field, or a "
        "mapping of a field to shares by value"
    )


def _by_value(weights: Mapping[Any, Any]) -> _ByValue:
    named_by = list(weights.values())
    if len(named_by) != 1 or not isinstance(named_by[0], Mapping) or not {*named_by[0]} - {OTHER}:
        raise ArgumentError(
            f"weights is {dict(weights)!r}, expected one field and its shares by value, such as "
            "{'round': {0: 0.2, 1: 0.8}}"
        )
    ((field, by_value),) = weights.items()
    _shares(list(by_value.values()), f"weights of field {field!r}")
    named = {_number(key, field): float(by_value[key]) for key in by_value if key != OTHER}
    if len(named) + (OTHER in by_value) != len(by_value):
        raise ArgumentError(f"weights of field {field!r} name a value twice: {list(by_value)}")
    values = tuple(sorted(named))
    other = float(by_value[OTHER]) if OTHER in by_value else None
    return _ByValue(str(field), values, tuple(named[value] for value in values), other)


def _shares(given: list[Any], name: str) -> tuple[float, ...]:
    """Shares as floats; refuses negative ones and a sum of 0."""
    for share in given:
        if isinstance(share, bool) or not isinstance(share, int | float | np.number):
            raise ArgumentTypeError(f"{name} are {given!r}, expected numbers of 0 or more")
    shares = tuple(float(share) for share in given)
    if not all(0 <= share < math.inf for share in shares) or not sum(shares) > 0:
        raise ArgumentError(f"{name} are {given!r}, expected numbers of 0 or more, not all 0")
    return shares


def _number(key: Any, field: Any) -> float:
    """Number of a key, which a configuration file may have as text."""
    try:
        number = float(key)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ArgumentError(
            f"weights of field {field!r} have the key {key!r}, expected a number or {OTHER!r}"
        )
    return int(number) if number.is_integer() else number


def _of_groups(groups: _Groups, shares: Sequence[float], total: int) -> Expected:
    """Spread shares of groups over their samples; an empty group's share goes to the others."""
    if len(shares) < np.iinfo(np.int16).max:
        groups = groups.astype(np.int16, copy=False)  # NumPy sorts short integers faster
    members = np.bincount(groups, minlength=len(shares))
    there = np.where(members > 0, np.asarray(shares, dtype=np.float64), 0.0)
    if not there.max() > 0:
        raise ArgumentError(
            f"weights are {list(shares)}, and every sample has the share 0: give a share to a "
            "store or value that has samples"
        )
    there /= there.max()
    each = total * there / there.sum() / np.maximum(members, 1)
    return Expected(each[groups], groups)


def _scalars(data: Any, name: str, samples: IndexArray) -> tuple[AnyArray, npt.NDArray[np.bool_]]:
    """Values [n] of a field, and which samples have it."""
    if not hasattr(data, "system_field"):
        raise ArgumentTypeError(
            f"weights are by field {name!r}, and {type(data).__name__} has no fields: expected a "
            "ZarrDataset"
        )
    known_fields: Mapping[str, Field] = getattr(data, "schema", {})
    if name in known_fields and known_fields[name].level is not Level.SYSTEM:
        raise ArgumentError(
            f"weights are by field {name!r}, which is at level {known_fields[name].level!r}: "
            f"expected one with a number for each sample, such as {_of_systems(known_fields)}"
        )
    has: npt.NDArray[np.bool_] = data.present(name, samples)
    if not has.any():
        return np.zeros(len(samples)), has
    everywhere = bool(has.all())
    known: AnyArray = data.system_field(name, samples if everywhere else samples[has])
    if math.prod(known.shape[1:]) != 1:
        raise ArgumentError(
            f"weights are by field {name!r}, which has rows of shape {known.shape[1:]}: expected "
            "one with a number for each sample"
        )
    if everywhere:
        return known.reshape(-1), has
    values = np.zeros(len(samples), dtype=known.dtype)
    values[has] = known.reshape(-1)
    return values, has


def _of_systems(schema: Mapping[str, Field]) -> list[str]:
    """Names of fields with one number per sample."""
    own = (name for name, field in schema.items() if field.level is Level.SYSTEM)
    return sorted(name for name in own if math.prod(schema[name].shape or ()) == 1)


def _found(name: str, values: AnyArray, has: npt.NDArray[np.bool_], place: int) -> str:
    return f"{name} = {values[place]}" if has[place] else f"no field {name!r}"
