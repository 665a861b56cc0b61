"""Which samples of a dataset are in which split; a sample keeps its split while a store grows."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.ids import UInt64Array, mix, unit_places
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.dataset.stores import SampleIndexMap
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, ArgumentTypeError, SchemaError
from zarrpipe.training.epoch.batch_plan import IndexArray, index_dtype
from zarrpipe.training.splits.index_files import IdTable, described, read_ids

SPLITS = ("train", "val", "test")
_UNUSED = -1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 18


@dataclass(frozen=True)
class SplitRule:
    """Splits by index files first, and all other samples by shares.

    `shares` of training, validation, test and no split sum to 1. `by` is "id", or a field at system
    level whose equal values stay in one split.
    """

    shares: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    files: Mapping[str, Any] = field(default_factory=dict)
    by: str = "id"

    @classmethod
    def of(cls, split: object, by: str, apart: Collection[str] = ()) -> "SplitRule":
        """Rule of the data module's arguments; the splits in `apart` have stores of their own."""
        if not isinstance(by, str):
            raise ArgumentTypeError(f"split_by is {by!r}, expected 'id' or the name of a field")
        if isinstance(split, Mapping):
            return cls._of_mapping(split, by, apart)
        if isinstance(split, str | bytes) or not isinstance(split, Sequence | np.ndarray):
            raise ArgumentTypeError(
                f"split is {split!r}, expected shares of {', '.join(SPLITS)} or a mapping of "
                "splits to index files"
            )
        shares = check_fractions(list(split))
        if len(shares) != len(SPLITS):
            raise ArgumentError(f"split is {shares}, expected shares of {', '.join(SPLITS)}")
        kept = [0.0 if name in apart else own for name, own in zip(SPLITS, shares, strict=True)]
        left = [own for name, own in zip(SPLITS, shares, strict=True) if name in apart]
        return cls((sum(left, kept[0]), *kept[1:], 0.0), by=by)

    @classmethod
    def _of_mapping(cls, split: Mapping[Any, Any], by: str, apart: Collection[str]) -> "SplitRule":
        for name in split:
            if name not in SPLITS or name in apart:
                why = "which has stores of its own" if name in apart else "which is no split"
                raise ArgumentError(f"split names {name!r}, {why}: expected some of {SPLITS}")
        shares = {name: float(own) for name, own in split.items() if _is_share(own)}
        files = {s: own for s, own in split.items() if s not in shares and own is not None}
        rest = 1.0 - sum(shares.values())
        rest = 0.0 if abs(rest) <= 1e-9 else rest
        if not all(share >= 0 for share in [*shares.values(), rest]):  # NaN too
            raise ArgumentError(
                f"split has the shares {shares}, expected each of 0 or more and in all at most 1"
            )
        unnamed = [name for name in SPLITS if name not in split and name not in apart]
        if "train" in unnamed:
            unnamed = ["train"]
        if len(unnamed) > 1 and rest > 0:
            raise ArgumentError(
                f"split names {list(split)}, so that {' or '.join(unnamed)} could have the "
                "other samples: name one of them too (null for none)"
            )
        if files and by != "id":
            raise ArgumentError(f"split_by is {by!r}, expected 'id' where index files split")
        shares[unnamed[0] if unnamed else "none"] = rest
        return cls(tuple(shares.get(name, 0.0) for name in (*SPLITS, "none")), files, by)

    @property
    def by_hash_of_id(self) -> bool:
        """Whether the id of a sample and the shares alone decide its split."""
        return self.by == "id" and not self.files

    def __str__(self) -> str:
        if not self.files:
            return str(self.shares[:3])
        own = {name: described(source) for name, source in self.files.items()}
        rest = {name: share for name, share in zip(SPLITS, self.shares, strict=False) if share}
        return f"{{{', '.join(f'{name!r}: {what}' for name, what in {**own, **rest}.items())}}}"

    @cached_property
    def table(self) -> IdTable:
        """Ids of the index files, which are read at the first use."""
        ids = {
            SPLITS.index(name): read_ids(source, f"split[{name!r}]")
            for name, source in self.files.items()
        }
        return IdTable(ids, SPLITS)

    def split_of(self, dataset: ZarrDataset, samples: Int64Array) -> npt.NDArray[np.int8]:
        """Split [K] of each sample, -1 for none."""
        if not len(samples):
            return np.zeros(0, dtype=np.int8)
        if self.by != "id":
            keys = group_keys(_groups(dataset, self.by, samples))
        elif self.files or max(self.shares) < 1.0:
            keys = dataset.ids_of(samples)
        else:
            keys = np.zeros(len(samples), dtype=np.uint64)  # all are in one split
        # Without a share of none, rounding must not leave a sample out.
        splits = hash_split(keys, self.shares if self.shares[-1] else self.shares[:-1])
        splits[splits == len(SPLITS)] = _UNUSED
        if self.files:
            named = self.table.look_up(keys)
            splits = np.where(named >= 0, named, splits)
        return splits


class SplitAssignment:
    """The split of each sample of a dataset that may grow; only new samples are examined.

    Samples that do not meet `where` are in no split. `schema` returns the fields that the condition
    may name, those of all stores.
    """

    def __init__(
        self,
        split: SplitRule,
        where: str | None = None,
        schema: Callable[[], Mapping[str, Field]] = dict,
    ) -> None:
        self.split, self.where, self._schema = split, where, schema
        self._arrivals = SampleIndexMap(())
        self._splits = np.zeros(0, dtype=np.int8)
        self._rows: dict[str, IndexArray] = {}

    def rows(self, dataset: ZarrDataset) -> Mapping[str, IndexArray]:
        """Positions in `dataset` of each split, ascending."""
        arrivals = SampleIndexMap(dataset.state_dict()["arrivals"])
        if not arrivals.continues(self._arrivals):
            self._splits, self._rows = self._splits[:0], {}
        known, count = len(self._splits), len(dataset)
        if known != count or not self._rows:
            new = [
                self._splits_of(dataset, np.arange(start, min(start + _BLOCK, count)))
                for start in range(known, count, _BLOCK)
            ]
            self._splits = np.concatenate([self._splits, *new])
            self._rows = {name: _places(self._splits == n) for n, name in enumerate(SPLITS)}
        self._arrivals = arrivals
        return self._rows

    def check(self, dataset: ZarrDataset, *, warn: bool = True) -> None:
        """Refuse an index file none of whose ids is in the stores; warn of some that are not."""
        if self.split.files:
            self.rows(dataset)
        for name, source in self.split.files.items():
            missing, ids = self.split.table.missing(SPLITS.index(name))
            file = f"split[{name!r}], {described(source)}"
            if ids and missing == ids:
                raise ArgumentError(
                    f"none of the {ids} ids of {file} is in the stores: give the index file that "
                    "was written for these stores"
                )
            if missing and warn:
                warnings.warn(
                    f"{missing} of the {ids} ids of {file} are not in the stores; if they arrive "
                    f"later they join that split ({name})",
                    stacklevel=3,
                )

    def _splits_of(self, dataset: ZarrDataset, samples: Int64Array) -> npt.NDArray[np.int8]:
        """Split of each sample of a range."""
        if self.where is None:
            return self.split.split_of(dataset, samples)
        chosen = dataset.where(self.where, samples, beside=self._schema())
        splits = np.full(len(samples), _UNUSED, dtype=np.int8)
        if self.split.files:  # ids of samples that are left out count as found
            chosen, every = chosen - samples[0], self.split.split_of(dataset, samples)
            splits[chosen] = every[chosen]
        else:
            splits[chosen - samples[0]] = self.split.split_of(dataset, chosen)
        return splits


def _is_share(value: object) -> bool:
    """Whether a value is a number, or text that is one."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int | float) and not isinstance(value, bool)


def _groups(dataset: ZarrDataset, name: str, samples: Int64Array) -> npt.NDArray[Any]:
    """Values [K, ...] of the field that keeps samples together."""
    known = dataset.schema.get(name)
    if known is not None and known.level is not Level.SYSTEM:
        raise SchemaError(
            f"split_by is {name!r}, a field at level {known.level!r}: expected 'id' or a "
            "field at system level, which has one value for each sample"
        )
    missing = samples[~dataset.present(name, samples)]
    if len(missing):
        raise SchemaError(
            f"{len(missing)} samples, the first of them {missing[0]}, have no field {name!r}, by "
            f"which the split is made: leave them out with where='has({name})', or give it to them"
        )
    return dataset.system_field(name, samples)


def _places(mask: npt.NDArray[np.bool_]) -> IndexArray:
    """Positions where a mask is True, in the smallest dtype, block by block to save memory."""
    places = np.empty(np.count_nonzero(mask), dtype=index_dtype(len(mask)))
    end = 0
    for start in range(0, len(mask), _BLOCK):
        here = np.flatnonzero(mask[start : start + _BLOCK])
        places[end : end + len(here)] = here + start
        end += len(here)
    return places


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Fractions as floats; refuses negative ones and a sum other than 1.

    Examples
    --------
    >>> check_fractions([0.75, 0.25])
    (0.75, 0.25)
    """
    try:
        parts = tuple(float(part) for part in fractions)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"split fractions are {fractions!r}, expected numbers") from error
    if not parts or not min(parts) >= 0 or not abs(sum(parts) - 1.0) <= 1e-9:  # NaN too
        raise ArgumentError(
            f"split fractions are {parts}, expected parts of 0 or more that sum to 1"
        )
    return parts


def hash_split(
    keys: UInt64Array, fractions: Sequence[float], salt: int = 0
) -> npt.NDArray[np.int8]:
    """Split [N] int8 of each key: 0 for the first fraction, 1 for the second, and so on.

    It depends on the key and the salt alone, so equal keys are in one split.

    Examples
    --------
    >>> splits = hash_split(np.arange(1000, dtype=np.uint64), (0.9, 0.05, 0.05))
    >>> np.bincount(splits).tolist()
    [906, 51, 43]
    """
    ends = np.cumsum(check_fractions(fractions))[:-1]
    return np.searchsorted(ends, unit_places(keys, salt), side="right").astype(np.int8)


def group_keys(values: AnyArray) -> UInt64Array:
    """Key [N] uint64 of each row [N, ...] of a field: equal rows have equal keys.

    Rows are compared as int64 or float64, whatever width a store has; -0.0 equals 0.0 and NaN
    equals NaN.

    Examples
    --------
    >>> keys = group_keys(np.array([[1, 2], [3, 4], [1, 2]]))
    >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
    (True, False)
    """
    rows = values.reshape(len(values), -1)
    if rows.dtype.kind == "f":
        wide = rows.astype(np.float64) + 0.0
        wide[np.isnan(wide)] = np.nan
    else:
        wide = rows.astype(np.int64)
    keys = np.zeros(len(values), dtype=np.uint64)
    for words in np.ascontiguousarray(wide.T).view(np.uint64):
        keys = mix((keys ^ words) + _GOLDEN)
    return keys
