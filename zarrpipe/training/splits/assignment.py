"""Which samples of a dataset are on which side, decided once and kept while it grows."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.fields import Level
from zarrpipe.data.schema import Field
from zarrpipe.dataset.index_map import SampleIndexMap
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, ArgumentTypeError, SchemaError
from zarrpipe.training.epoch.plans import IndexArray, index_dtype
from zarrpipe.training.splits.hashing import check_fractions, group_keys, hash_split
from zarrpipe.training.splits.index_files import IdTable, described, read_ids

SIDES = ("train", "val", "test")
_UNUSED = -1
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Split:
    """How samples are given to sides: those of index files first, the others by shares.

    Parameters
    ----------
    shares : tuple of float
        Shares of training, validation, test and of no side, which sum to 1.
    files : mapping of str to path or array
        Index file of each side that has one.
    by : str
        "id", or the name of a field at system level that keeps samples together.
    """

    shares: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    files: Mapping[str, Any] = field(default_factory=dict)
    by: str = "id"

    @classmethod
    def of(cls, split: object, by: str, apart: Collection[str] = ()) -> "Split":
        """Split that arguments of the data module say; sides that are `apart` have own stores."""
        if not isinstance(by, str):
            raise ArgumentTypeError(f"split_by is {by!r}, expected 'id' or the name of a field")
        if isinstance(split, Mapping):
            return cls._of_mapping(split, by, apart)
        if isinstance(split, str | bytes) or not isinstance(split, Sequence | np.ndarray):
            raise ArgumentTypeError(
                f"split is {split!r}, expected shares of {', '.join(SIDES)} or a mapping of sides "
                "to index files"
            )
        shares = check_fractions(list(split))
        if len(shares) != len(SIDES):
            raise ArgumentError(f"split is {shares}, expected shares of {', '.join(SIDES)}")
        kept = [0.0 if side in apart else own for side, own in zip(SIDES, shares, strict=True)]
        left = [own for side, own in zip(SIDES, shares, strict=True) if side in apart]
        return cls((sum(left, kept[0]), *kept[1:], 0.0), by=by)

    @classmethod
    def _of_mapping(cls, split: Mapping[Any, Any], by: str, apart: Collection[str]) -> "Split":
        for side in split:
            if side not in SIDES or side in apart:
                why = "which has stores of its own" if side in apart else "which is no side"
                raise ArgumentError(f"split names {side!r}, {why}: expected some of {SIDES}")
        shares = {side: float(own) for side, own in split.items() if _is_share(own)}
        files = {s: own for s, own in split.items() if s not in shares and own is not None}
        rest = 1.0 - sum(shares.values())
        rest = 0.0 if abs(rest) <= 1e-9 else rest
        if not all(share >= 0 for share in [*shares.values(), rest]):  # NaN too
            raise ArgumentError(
                f"split has the shares {shares}, expected each of 0 or more and in all at most 1"
            )
        open_sides = [side for side in SIDES if side not in split and side not in apart]
        if "train" in open_sides:
            open_sides = ["train"]
        if len(open_sides) > 1 and rest > 0:
            raise ArgumentError(
                f"split names {list(split)}, so that {' or '.join(open_sides)} could have the "
                "other samples: name one of them too (null for none)"
            )
        if files and by != "id":
            raise ArgumentError(f"split_by is {by!r}, expected 'id' where index files split")
        shares[open_sides[0] if open_sides else "none"] = rest
        return cls(tuple(shares.get(side, 0.0) for side in (*SIDES, "none")), files, by)

    @property
    def by_hash_of_id(self) -> bool:
        """Whether a sample's id and the shares alone decide its side."""
        return self.by == "id" and not self.files

    def __str__(self) -> str:
        if not self.files:
            return str(self.shares[:3])
        own = {side: described(source) for side, source in self.files.items()}
        rest = {side: share for side, share in zip(SIDES, self.shares, strict=False) if share}
        return f"{{{', '.join(f'{side!r}: {what}' for side, what in {**own, **rest}.items())}}}"

    @cached_property
    def table(self) -> IdTable:
        """Ids of the index files; they are read where it is asked for first."""
        ids = {
            SIDES.index(side): read_ids(source, f"split[{side!r}]")
            for side, source in self.files.items()
        }
        return IdTable(ids, SIDES)

    def side_of(self, dataset: ZarrDataset, samples: Int64Array) -> npt.NDArray[np.int8]:
        """Side of each of some samples; -1 for those that are on none."""
        if not len(samples):
            return np.zeros(0, dtype=np.int8)
        if self.by != "id":
            keys = group_keys(_groups(dataset, self.by, samples))
        elif self.files or max(self.shares) < 1.0:
            keys = dataset.ids_of(samples)
        else:
            keys = np.zeros(len(samples), dtype=np.uint64)  # all are on one side
        # Without a share of none, no rounding of a sum may leave a sample there.
        sides = hash_split(keys, self.shares if self.shares[-1] else self.shares[:-1])
        sides[sides == len(SIDES)] = _UNUSED
        if self.files:
            named = self.table.look_up(keys)
            sides = np.where(named >= 0, named, sides)
        return sides


class SplitAssignment:
    """The side of each sample of a dataset that may grow: what is known is not decided again.

    Parameters
    ----------
    split : Split
        How samples are given to sides.
    where : str, optional
        Condition that a sample has to meet to be on any side; see `ZarrDataset.where`.
    schema : callable, optional
        What gives the fields of all stores that the condition is for.
    """

    def __init__(
        self,
        split: Split,
        where: str | None = None,
        schema: Callable[[], Mapping[str, Field]] = dict,
    ) -> None:
        self.split, self.where, self._schema = split, where, schema
        self._arrivals = SampleIndexMap(())
        self._sides = np.zeros(0, dtype=np.int8)
        self._rows: dict[str, IndexArray] = {}

    def rows(self, dataset: ZarrDataset) -> Mapping[str, IndexArray]:
        """Positions in `dataset` on each side, ascending."""
        arrivals = SampleIndexMap(dataset.state_dict()["arrivals"])
        if not arrivals.continues(self._arrivals):
            self._sides, self._rows = self._sides[:0], {}
        known, count = len(self._sides), len(dataset)
        if known != count or not self._rows:
            new = [
                self._sides_of(dataset, np.arange(start, min(start + _BLOCK, count)))
                for start in range(known, count, _BLOCK)
            ]
            self._sides = np.concatenate([self._sides, *new])
            self._rows = {name: _places(self._sides == side) for side, name in enumerate(SIDES)}
        self._arrivals = arrivals
        return self._rows

    def check(self, dataset: ZarrDataset, *, warn: bool = True) -> None:
        """Look whether the ids of index files are in the stores.

        Some may be missing without harm: their samples were deleted, or are still to come.
        """
        if self.split.files:
            self.rows(dataset)
        for side, source in self.split.files.items():
            unmet, ids = self.split.table.unmet(SIDES.index(side))
            told = f"split[{side!r}], {described(source)}"
            if ids and unmet == ids:
                raise ArgumentError(
                    f"none of the {ids} ids of {told} is in the stores: give the index file that "
                    "was written for these stores"
                )
            if unmet and warn:
                warnings.warn(
                    f"{unmet} of the {ids} ids of {told} are not in the stores; where they come "
                    f"later they are on that side ({side})",
                    stacklevel=3,
                )

    def _sides_of(self, dataset: ZarrDataset, samples: Int64Array) -> npt.NDArray[np.int8]:
        """Side of each of some samples that follow each other."""
        if self.where is None:
            return self.split.side_of(dataset, samples)
        chosen = dataset.where(self.where, samples, beside=self._schema())
        sides = np.full(len(samples), _UNUSED, dtype=np.int8)
        if self.split.files:  # ids of samples that are left out are there all the same
            chosen, every = chosen - samples[0], self.split.side_of(dataset, samples)
            sides[chosen] = every[chosen]
        else:
            sides[chosen - samples[0]] = self.split.side_of(dataset, chosen)
        return sides


def _is_share(value: object) -> bool:
    """Whether it is a number, as text too: no index file is called so."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
        return True
    return isinstance(value, int | float) and not isinstance(value, bool)


def _groups(dataset: ZarrDataset, name: str, samples: Int64Array) -> npt.NDArray[Any]:
    """Values [K, ...] of the field by which samples are kept together."""
    known = dataset.schema.get(name)
    if known is not None and known.level is not Level.SYSTEM:
        raise SchemaError(
            f"split_by is {name!r}, a field at level {known.level.value!r}: expected 'id' or a "
            "field at system level, which has one value for each sample"
        )
    lacking = samples[~dataset.present(name, samples)]
    if len(lacking):
        raise SchemaError(
            f"{len(lacking)} samples, the first of them {lacking[0]}, have no field {name!r}, by "
            f"which the split is made: leave them out with where='has({name})', or give it to them"
        )
    return dataset.system_field(name, samples)


def _places(mask: npt.NDArray[np.bool_]) -> IndexArray:
    """Where a mask is True, in as few bits as do; by blocks, as it may be long."""
    places = np.empty(np.count_nonzero(mask), dtype=index_dtype(len(mask)))
    end = 0
    for start in range(0, len(mask), _BLOCK):
        here = np.flatnonzero(mask[start : start + _BLOCK])
        places[end : end + len(here)] = here + start
        end += len(here)
    return places
