"""Which candidates are worth a label: by a committee's deviation, by distance, or at random."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zarrpipe.data.batch import Batch
from zarrpipe.data.validate import check_count
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, UnknownFieldError
from zarrpipe.ml.quotas import OTHER, Room, apportioned, capped, check_quotas

RULES = ("deviation", "diverse", "farthest", "random")
_BLOCK = 4096

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Choice of the candidates that are labelled next.

    Equal arguments give equal choices. Of candidates that are equally good the earlier one is
    taken. A candidate whose deviation is not finite is never chosen where the deviation counts.

    Parameters
    ----------
    rule : {"deviation", "diverse", "farthest", "random"}
        "deviation" takes those on which the committee disagrees most. "farthest" takes, one after
        the other, the one whose features are farthest from those of all that are known or chosen.
        "diverse" does so for the deviation times that distance. "random" draws with equal
        probability.
    count : int
        Number of candidates to choose.
    band : (float, float), optional
        Trust band: only candidates with a deviation in eV/Angstrom above the first and below the
        second number are chosen, by every rule. Below, there is little to learn; above, the
        structure is not to be trusted.
    quotas : mapping of str to float, optional
        Shares of `count` by the values of the field `quota_field`; ``"other"`` is the share of all
        values that are not named. They sum to 1. The numbers are exact (rounded by largest
        remainder); what a value lacks goes to the others, with a warning.
    quota_field : str
        Field of strings that `quotas` are about.
    seed : int
        Seed of "random".

    Raises
    ------
    ArgumentError
        If an argument is not as above.

    Examples
    --------
    >>> import torch, zarrpipe as zp
    >>> candidates = zp.Batch(
    ...     {"positions": torch.zeros(4, 3), "atomic_numbers": torch.ones(4, dtype=torch.int64)},
    ...     torch.arange(5),
    ... )
    >>> candidates = candidates.add_field("deviation", torch.tensor([0.1, 0.4, 2.0, 0.2]), "system")
    >>> Selection("deviation", 2, band=(0.05, 1.0)).choose(candidates).tolist()
    [1, 3]
    """

    rule: Literal["deviation", "diverse", "farthest", "random"] = "deviation"
    count: int = 50
    band: tuple[float, float] | None = None
    quotas: Mapping[str, float] | None = None
    quota_field: str = "source"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ArgumentError(f"rule={self.rule!r}, expected one of {', '.join(RULES)}")
        check_count("count", self.count, 1)
        check_count("seed", self.seed, 0)
        if self.band is not None:
            _check_band(self.band)
        if self.quotas is not None:
            check_quotas(self.quotas)

    @property
    def needs_features(self) -> bool:
        """Whether `choose` wants the features of the candidates."""
        return self.rule in ("diverse", "farthest")

    @property
    def needs_deviation(self) -> bool:
        """Whether `choose` wants the deviation of the candidates."""
        return self.rule in ("deviation", "diverse") or self.band is not None

    def choose(
        self,
        candidates: Batch | ZarrDataset,
        *,
        deviation: Tensor | npt.ArrayLike | None = None,
        features: Tensor | npt.ArrayLike | None = None,
        known: Tensor | npt.ArrayLike | None = None,
    ) -> Tensor:
        """Indices of the chosen candidates, [k] int64, the best first; k is at most `count`.

        Warns if the band is empty, if a named value of the quotas has too few candidates, and if
        there are fewer candidates than `count`.

        Parameters
        ----------
        candidates : Batch or ZarrDataset
            B structures.
        deviation : array [B], optional
            Their deviations in eV/Angstrom; by default the field ``deviation``.
        features : array [B, D], optional
            Their features, as `ForceField.features` gives them; needed by "diverse" and "farthest".
        known : array [K, D], optional
            Features of what is labelled already, from which the choice keeps away. Without any,
            "farthest" begins with the candidate nearest to the mean of all, "diverse" with the one
            of the largest deviation.

        Raises
        ------
        ArgumentError
            If something that the rule needs is missing or has another length.
        """
        total = candidates.num_graphs if isinstance(candidates, Batch) else len(candidates)
        worth = np.ones(total)
        open_ = np.ones(total, dtype=bool)
        if self.needs_deviation:
            worth = _deviation(candidates, deviation, total)
            open_ = np.isfinite(worth)
        if self.band is not None:
            open_ = self._in_band(worth)
        room = self._room(candidates, open_)
        if room.quotas.sum() < self.count and total:
            warnings.warn(
                f"{int(room.quotas.sum())} of {self.count} are chosen, as {int(open_.sum())} of "
                f"{total} candidates can be: simulate longer, or widen the band",
                stacklevel=2,
            )
        if not self.needs_features:
            key = np.random.default_rng(self.seed).permutation(total)
            order = np.argsort(key if self.rule == "random" else -worth, kind="stable")
            return torch.from_numpy(room.first(order))
        mine, others = _checked_features(self.rule, features, known, total)
        weight = worth if self.rule == "diverse" else None
        return torch.from_numpy(_greedy(mine, others, weight, room))

    def _in_band(self, deviation: Floats) -> Bools:
        """Which deviations [B] the band has; warns if it has none."""
        assert self.band is not None
        low, high = self.band
        inside: Bools = (deviation > low) & (deviation < high)
        if len(deviation) and not inside.any():
            below = int((deviation <= low).sum())
            finite = deviation[np.isfinite(deviation)]
            span = f"{finite.min():.3g} to {finite.max():.3g}" if len(finite) else "not finite"
            warnings.warn(
                f"no candidate is in the band ({low:g}, {high:g}) eV/Angstrom: {below} of "
                f"{len(deviation)} are below, and deviations are {span}",
                stacklevel=3,
            )
        return inside

    def _room(self, candidates: Batch | ZarrDataset, open_: Bools) -> Room:
        """Groups of the candidates and how many of each are chosen."""
        if self.quotas is None:
            groups = np.where(open_, 0, -1)
            return Room(groups, np.array([min(self.count, int(open_.sum()))]))
        names = [name for name in self.quotas if name != OTHER]
        shares = np.array([*(self.quotas[name] for name in names), self.quotas.get(OTHER, 0.0)])
        places = {name: place for place, name in enumerate(names)}
        strings = _strings(candidates, self.quota_field)
        groups = np.array([places.get(str(one), len(names)) for one in strings], dtype=np.int64)
        groups[~open_] = -1
        there = np.bincount(groups[open_], minlength=len(shares))
        wanted = apportioned(self.count, shares)
        lacks = {
            name: f"{there[place]} of {wanted[place]}"
            for place, name in enumerate([*names, OTHER])
            if there[place] < wanted[place]
        }
        if lacks:
            listed = ", ".join(f"{name!r} {number}" for name, number in lacks.items())
            warnings.warn(
                f"values of {self.quota_field!r} have fewer candidates than their quota: {listed}; "
                "the other values get the rest",
                stacklevel=3,
            )
        return Room(groups, capped(self.count, shares, there))


def _greedy(features: Floats, known: Floats, worth: Floats | None, room: Room) -> Integers:
    """Take the candidate with the largest worth times distance, one after the other."""
    groups, left = room.groups, room.quotas.copy()
    chosen: list[int] = []
    distance = _nearest(features, known)  # infinite where nothing is known
    open_ = (groups >= 0) & (left[groups] > 0)
    for _ in range(int(left.sum())):
        if np.isfinite(distance).all():
            score = distance if worth is None else worth * distance
        elif worth is None:
            score = -np.linalg.norm(features - features.mean(0), axis=1)
        else:
            score = worth
        best = int(np.argmax(np.where(open_, score, -np.inf)))
        chosen.append(best)
        open_[best] = False
        left[groups[best]] -= 1
        if not left[groups[best]]:
            open_ &= groups != groups[best]
        distance = np.minimum(distance, np.linalg.norm(features - features[best], axis=1))
    return np.array(chosen, dtype=np.int64)


def _nearest(features: Floats, known: Floats) -> Floats:
    """Distance [B] of each to the nearest known one."""
    mine, nearest = torch.from_numpy(features), torch.full((len(features),), torch.inf).double()
    for first in range(0, len(known), _BLOCK):
        block = torch.from_numpy(known[first : first + _BLOCK])
        found = torch.cdist(mine, block, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = torch.minimum(nearest, found.amin(1))
    return nearest.numpy()


def _deviation(candidates: Batch | ZarrDataset, given: Any, total: int) -> Floats:
    """Deviations [B] in float64."""
    if given is None:
        if isinstance(candidates, Batch) and "deviation" in candidates:
            given = candidates["deviation"]
        elif isinstance(candidates, ZarrDataset) and "deviation" in candidates.schema:
            given = candidates.system_field("deviation")
        else:
            raise ArgumentError(
                "the candidates have no field 'deviation': give deviation=, as "
                "zarrpipe.ml.Committee.deviation(batch) computes it, or use rule='random'"
            )
    values = _array(given).reshape(-1)
    if len(values) != total:
        raise ArgumentError(f"deviation has {len(values)} values for {total} candidates")
    return values


def _strings(candidates: Batch | ZarrDataset, name: str) -> list[str | None]:
    """Strings [B] of a field."""
    try:
        return candidates.strings(name)
    except UnknownFieldError as error:
        raise ArgumentError(
            f"quotas are shares by the field {name!r}, and the candidates have none: add it, or "
            "name another quota_field"
        ) from error


def _checked_features(rule: str, given: Any, known: Any, total: int) -> tuple[Floats, Floats]:
    """Features [B, D] of the candidates and [K, D] of what is known, in float64."""
    if given is None:
        raise ArgumentError(
            f"rule={rule!r} needs features=, as ForceField.features(batch) gives them: give them, "
            "or use rule='deviation'"
        )
    mine = _array(given)
    if mine.ndim != 2 or len(mine) != total:
        raise ArgumentError(f"features have shape {mine.shape}, expected ({total}, D)")
    others = np.zeros((0, mine.shape[1])) if known is None else _array(known)
    if others.ndim != 2 or others.shape[1] != mine.shape[1]:
        raise ArgumentError(
            f"known has shape {others.shape}, expected (K, {mine.shape[1]}): features of one model"
        )
    if not (np.isfinite(mine).all() and np.isfinite(others).all()):
        raise ArgumentError("features are not finite: leave such structures out of the candidates")
    return mine, others


def _array(values: Any) -> Floats:
    """An array on the CPU in float64."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _check_band(band: Any) -> None:
    try:
        low, high = (float(one) for one in band)
    except (TypeError, ValueError):
        low = high = np.nan
    if not low < high:
        raise ArgumentError(
            f"band={band!r}, expected two numbers of eV/Angstrom that rise, such as (0.1, 0.5)"
        )
