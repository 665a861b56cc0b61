"""Sums over labelled samples by bucket, which can be extended and merged.

Energies are summed relative to a first guess of the reference energies, since total energies are
thousands of times larger than their differences between samples.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.store.statistics.label_rows import NUM_ELEMENTS, Contents, Groups, Label, LabelRows

FloatArray = npt.NDArray[np.float64]

COLUMNS = (
    *("samples", "edges", "without_element", "energies", "energies_not_finite"),
    *("square", "square_per_atom", "largest", "per_atom"),
    *("force_components", "forces_not_finite", "force_square"),
)
_AT = {name: place for place, name in enumerate(COLUMNS)}

_MOST_LOST, _ROUNDING, _AGREEMENT = 1e-9, 1e-9, 1e-7
_SIZE_BITS = 40
_RANK_TOLERANCE = 1e-10


def _zeros(*shape: int) -> FloatArray:
    return np.zeros(shape, dtype=np.float64)


@dataclass
class LabelSums:
    """Sums of the samples of each of B buckets, over E elements.

    A sample has the composition ``a`` [E], ``n`` atoms and the energy ``r`` relative to `origin`.
    Sums with two weights have 1 [0] and 1/n^2 [1]. Labels that are not finite, and samples with
    atomic numbers of no element, are counted but not summed.

    Parameters
    ----------
    table : array [B, K]
        Sums by the names in `COLUMNS`, among them of r^2, r^2/n^2, r/n and squared force
        components; "largest" sums the terms by which moves of the origin changed the squares.
    elements, origin : array [E]
        Ascending atomic numbers, and the first guess of their reference energies, eV.
    counts, fraction : array [B, E]
        Sums of a over all samples, and of a/n over those with an energy.
    moment, gram : array [B, 2, E], array [B, 2, E (E + 1) / 2]
        Sums of r a, and of the upper triangle of a a^T, with two weights.
    sizes, size_counts : array [S] int64
        ``bucket * 2^40 + atoms``, ascending, and the number of its samples.
    fitted : int
        Number of energies when `origin` was last fitted.
    """

    table: FloatArray = field(default_factory=lambda: _zeros(1, len(COLUMNS)))
    elements: Int64Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    origin: FloatArray = field(default_factory=lambda: _zeros(0))
    counts: FloatArray = field(default_factory=lambda: _zeros(1, 0))
    fraction: FloatArray = field(default_factory=lambda: _zeros(1, 0))
    moment: FloatArray = field(default_factory=lambda: _zeros(1, 2, 0))
    gram: FloatArray = field(default_factory=lambda: _zeros(1, 2, 0))
    sizes: Int64Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    size_counts: Int64Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    fitted: int = 0

    @classmethod
    def empty(cls, buckets: int) -> Self:
        """Sums of no samples."""
        return cls(
            table=_zeros(buckets, len(COLUMNS)),
            counts=_zeros(buckets, 0),
            fraction=_zeros(buckets, 0),
            moment=_zeros(buckets, 2, 0),
            gram=_zeros(buckets, 2, 0),
        )

    def copy(self) -> "LabelSums":
        """Copy all arrays."""
        return replace(self, **{name: getattr(self, name).copy() for name in _ARRAYS})

    def total(self, name: str) -> float:
        """Sum of a column over all buckets."""
        return float(self.table[:, _AT[name]].sum())

    @property
    def complete(self) -> bool:
        """Whether the sums suffice for statistics; see `without_fit`."""
        size = len(self.elements)
        return int(self.gram.shape[-1]) == size * (size + 1) // 2

    def without_fit(self) -> "LabelSums":
        """Only the sums that detect changed samples, without the many that fits need."""
        return replace(self, **{name: getattr(self, name)[..., :0] for name in _OF_FITS})

    @property
    def finite(self) -> bool:
        """Whether no sum has overflowed."""
        return all(bool(np.isfinite(getattr(self, name)).all()) for name in _ARRAYS)

    def of_buckets(self, first: int, stop: int) -> "LabelSums":
        """Sums over a range of buckets, as one bucket."""
        chosen = slice(first, stop)
        summed = {name: getattr(self, name)[chosen].sum(0)[None] for name in _BY_BUCKET}
        bucket, size = self.sizes >> _SIZE_BITS, self.sizes & ((1 << _SIZE_BITS) - 1)
        here = (bucket >= first) & (bucket < stop)
        sizes, counts = tallied(size[here], self.size_counts[here])
        return replace(self, **summed, sizes=sizes, size_counts=counts)

    def add(self, rows: LabelRows) -> Self:
        """Add samples."""
        with np.errstate(over="ignore", invalid="ignore"):  # sums that overflow are not stored
            self._add(rows)
        return self

    def _add(self, rows: LabelRows) -> None:
        self._sum("samples", rows.buckets)
        numbers = rows.numbers
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < NUM_ELEMENTS:
            wrong = np.logical_or.reduceat((numbers < 0) | (numbers >= NUM_ELEMENTS), rows.ptr[:-1])
            self._sum("without_element", rows.buckets[wrong])
            rows = rows.take(np.flatnonzero(~wrong))
        if not len(rows):
            return
        self._sum("edges", rows.buckets, rows.edges)
        groups = Groups.find(rows)
        self._accept(groups.elements)
        at = np.searchsorted(self.elements, groups.elements)
        contents = replace(groups.contents, places=at[groups.contents.places])
        self.sizes, self.size_counts = tallied(
            np.concatenate([self.sizes, (groups.buckets << _SIZE_BITS) + groups.atoms]),
            np.concatenate([self.size_counts, groups.number]),
        )
        counts = contents.atoms * groups.number[contents.samples]
        self._spread(self.counts, groups, contents, counts)
        if "energy" in rows.labels:
            self._add_energies(rows, rows.labels["energy"], groups, contents)
        if "forces" in rows.labels:
            self._add_forces(rows, rows.labels["forces"])

    def _sum(self, name: str, buckets: Int64Array, values: AnyArray | None = None) -> None:
        self.table[:, _AT[name]] += np.bincount(buckets, values, minlength=len(self.table))

    def _spread(
        self, target: FloatArray, groups: Groups, contents: Contents, values: FloatArray
    ) -> None:
        """Add the value of each entry of the contents of groups to a target [B, ...]."""
        size = target.shape[-1]
        cell = groups.buckets[contents.samples] * size + contents.places
        target += np.bincount(cell, values, target.size).reshape(target.shape)

    def _accept(self, elements: Int64Array) -> None:
        """Extend the sums to further elements."""
        known = np.union1d(self.elements, elements)
        if len(known) == len(self.elements):
            return
        at, size = np.searchsorted(known, self.elements), len(known)
        for name in ("origin", "counts", "fraction", "moment"):
            values = getattr(self, name)
            grown = _zeros(*values.shape[:-1], size)
            grown[..., at] = values
            setattr(self, name, grown)
        square = _zeros(*self.gram.shape[:-1], size, size)
        square[..., at[:, None], at] = unpacked(self.gram, len(at))
        self.elements, self.gram = known, packed(square)

    def _add_energies(
        self, rows: LabelRows, label: Label, groups: Groups, contents: Contents
    ) -> None:
        energy = label.values.reshape(-1).astype(np.float64)
        finite, has = np.isfinite(energy), label.among(len(rows))
        self._sum("energies_not_finite", rows.buckets[has & ~finite])
        has = has & finite
        members, energy, total = groups.members[has], energy[has], len(groups.number)
        if not len(members):
            return
        number = np.bincount(members, minlength=total)
        if not number.all():
            contents = contents.where(number > 0)
        pairs = contents.pairs(len(self.elements))
        rest = energy - contents.weighted(self.origin, total)[members]
        left = np.bincount(members, rest, total).astype(np.float64, copy=False)
        self._fit_origin(contents, pairs, number, left)
        rest = energy - contents.weighted(self.origin, total)[members]
        summed, squared = (np.bincount(members, rest**power, total) for power in (1, 2))
        per_atom = 1.0 / groups.atoms
        self._sum("energies", groups.buckets, number)
        self._sum("per_atom", groups.buckets, summed * per_atom)
        shares = contents.atoms * (number * per_atom)[contents.samples]
        self._spread(self.fraction, groups, contents, shares)
        for place, (name, scale) in enumerate(
            (("square", np.ones(total)), ("square_per_atom", per_atom**2))
        ):
            self._sum(name, groups.buckets, squared * scale)
            values = contents.atoms * (summed * scale)[contents.samples]
            self._spread(self.moment[:, place], groups, contents, values)
            values = pairs.atoms * (number * scale)[pairs.samples]
            self._spread(self.gram[:, place], groups, pairs, values)

    def _fit_origin(
        self, contents: Contents, pairs: Contents, number: Int64Array, rest: FloatArray
    ) -> None:
        """Fit the origin at a new element, and whenever the number of energies has doubled.

        With a poor guess, the difference of large squares would lose the spread of energies.
        """
        size, upper = len(self.elements), self.gram[:, 0].sum(0)
        energies = int(self.total("energies")) + int(number.sum())
        known = unpacked(upper, size).diagonal() > 0
        if energies < 2 * self.fitted and known[contents.places].all():
            return
        upper += np.bincount(pairs.places, pairs.atoms * number[pairs.samples], len(upper))
        left = contents.atoms * rest[contents.samples]
        moment = self.moment[:, 0].sum(0) + np.bincount(contents.places, left, size)
        self.move_origin(fit(unpacked(upper, size), moment, self.origin))
        self.fitted = energies

    def move_origin(self, origin: FloatArray) -> None:
        """Express the sums relative to another origin [E]."""
        shift = self.origin - origin
        if not shift.any():
            return
        pull = unpacked(self.gram, len(shift)) @ shift
        squares, largest = slice(_AT["square"], _AT["square_per_atom"] + 1), _AT["largest"]
        terms = self.table[:, squares], 2 * self.moment @ shift, pull @ shift
        self.table[:, largest] += sum(np.abs(term[:, 1]) for term in terms)
        self.table[:, squares] = sum(terms)
        self.table[:, _AT["per_atom"]] += self.fraction @ shift
        self.moment += pull
        self.origin = origin

    def _add_forces(self, rows: LabelRows, label: Label) -> None:
        forces, has = label.values, label.among(len(rows))
        ptr, components = rows.ptr[:-1] * forces.shape[1], np.diff(rows.ptr) * forces.shape[1]
        values = forces.reshape(-1)
        square = np.add.reduceat(np.square(values, dtype=np.float64), ptr)
        bad = np.zeros(len(rows), dtype=np.int64)
        if not np.isfinite(square[has]).all():
            bad = np.add.reduceat(~np.isfinite(values), ptr, dtype=np.int64)
            self._sum("forces_not_finite", rows.buckets[has], bad[has])
        has = has & (bad == 0)
        self._sum("force_components", rows.buckets[has], components[has])
        self._sum("force_square", rows.buckets[has], square[has])

    def merge(self, other: "LabelSums") -> Self:
        """Add the sums of other samples, bucket by bucket."""
        other = other.copy()
        self._accept(other.elements)
        other._accept(self.elements)
        first, second = (int(sums.total("energies")) for sums in (self, other))
        few, many = (self, other) if first < second else (other, self)
        known = unpacked(many.gram[:, 0].sum(0), len(many.elements)).diagonal() > 0
        origin = np.where(known, many.origin, few.origin)
        for sums in (self, other):
            sums.move_origin(origin)
        for name in _BY_BUCKET:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.sizes, self.size_counts = tallied(
            np.concatenate([self.sizes, other.sizes]),
            np.concatenate([self.size_counts, other.size_counts]),
        )
        self.move_origin(self.fitted_energies())
        self.fitted = first + second
        return self

    def agrees(self, counted: "LabelSums") -> bool:
        """Whether counts and squares equal those of a new count, up to rounding."""
        here = self.counts.any(axis=0)
        same = (
            np.array_equal(self.elements[here], counted.elements)
            and np.array_equal(self.counts[:, here], counted.counts)
            and np.array_equal(self.sizes, counted.sizes)
            and np.array_equal(self.size_counts, counted.size_counts)
        )
        if not same:
            return False
        counted = counted.copy()
        counted.move_origin(self.origin[here])
        noise = _ROUNDING * float(np.abs(self.origin).max(initial=0.0))
        floor = np.zeros(len(COLUMNS))
        floor[[_AT["square"], _AT["square_per_atom"]]] = noise**2
        floor[_AT["per_atom"]] = noise
        floor *= self.total("energies")
        apart = np.abs(self.table - counted.table).max(0)
        apart[_AT["largest"]] = 0.0
        return bool((apart <= floor + _AGREEMENT * np.abs(self.table).max(0)).all())

    @property
    def exact(self) -> bool:
        """Whether the spread of the energies exceeds the rounding errors."""
        number = self.total("energies")
        largest = self.total("square_per_atom") + self.total("largest")
        noise = _ROUNDING * float(np.abs(self.origin).max(initial=0.0))
        lost = self.left() < _MOST_LOST * largest and largest > number * noise**2
        return self.finite and not lost

    def fitted_energies(self) -> FloatArray:
        """Best fit of the reference energies [E], eV."""
        gram = unpacked(self.gram[:, 0].sum(0), len(self.elements))
        return fit(gram, self.moment[:, 0].sum(0), self.origin)

    def left(self) -> float:
        """Sum of the squared energies per atom relative to the fitted reference energies."""
        change = self.fitted_energies() - self.origin
        pull = unpacked(self.gram[:, 1].sum(0), len(change)) @ change
        pull -= 2 * self.moment[:, 1].sum(0)
        return self.total("square_per_atom") + float(pull @ change)


def packed(square: FloatArray) -> FloatArray:
    """Upper triangle [..., E (E + 1) / 2] of symmetric matrices [..., E, E]."""
    rows, columns = np.triu_indices(square.shape[-1])
    upper: FloatArray = square[..., rows, columns]
    return upper


def unpacked(upper: FloatArray, size: int) -> FloatArray:
    """Symmetric matrices [..., E, E] of upper triangles."""
    rows, columns = np.triu_indices(size)
    square = np.zeros((*upper.shape[:-1], size, size))
    square[..., rows, columns] = square[..., columns, rows] = upper
    return square


def tallied(keys: Int64Array, counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Unique keys, ascending, with the sums of their counts."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    return keys[starts], np.add.reduceat(counts, starts)


def fit(gram: FloatArray, moment: FloatArray, origin: FloatArray) -> FloatArray:
    """Least-squares solution of smallest norm, for a `moment` of energies relative to `origin`."""
    here = np.flatnonzero(gram.diagonal())
    solution = np.zeros_like(origin)
    if not len(here):
        return solution
    scale, axes = np.linalg.eigh(gram[np.ix_(here, here)])
    large = scale > scale[-1] * _RANK_TOLERANCE
    axes = axes[:, large]
    solution[here] = axes @ (axes.T @ origin[here] + (axes.T @ moment[here]) / scale[large])
    return solution


_OF_FITS = ("fraction", "moment", "gram")
_BY_BUCKET = ("table", "counts", *_OF_FITS)
_ARRAYS = (*_BY_BUCKET, "elements", "origin", "sizes", "size_counts")
