"""Sums over labelled samples, kept apart by bucket, that can be extended, merged and taken back.

Energies are summed as what is left after a first guess of the reference energies, since total
energies are thousands of times larger than what differs between samples.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.store.statistics.compositions import Contents, Groups
from zarrpipe.store.statistics.label_rows import NUM_ELEMENTS, LabelRows
from zarrpipe.store.statistics.triangles import FloatArray, fit, packed, tallied, unpacked

COLUMNS = (
    *("samples", "edges", "without_element", "energies", "energies_not_finite"),
    *("square", "square_per_atom", "largest", "per_atom"),
    *("force_components", "forces_not_finite", "force_square"),
    *("most", "most_per_atom", "most_force"),
)
_AT = {name: place for place, name in enumerate(COLUMNS)}
_SQUARES = [_AT[name] for name in ("square", "square_per_atom", "force_square")]
_MOST = [_AT[name] for name in ("most", "most_per_atom", "most_force")]

_MOST_LOST, _ROUNDING, _AGREEMENT = 1e-9, 1e-9, 1e-7
_MOST_TAKEN = 1e-6
_SIZE_BITS = 40


def _zeros(*shape: int) -> FloatArray:
    return np.zeros(shape, dtype=np.float64)


@dataclass
class LabelSums:
    """Sums of the samples of each of B buckets, over E elements.

    With a sample's composition ``a`` [E], atoms ``n`` and energy ``r`` that is left after
    ``origin``, weighted sums have 1 [0] and 1/n^2 [1] as weights. Labels that are not finite, and
    samples with numbers that are no elements, are counted and in no other sum.

    Parameters
    ----------
    table : array [B, K]
        Sums by the names in `COLUMNS`: of samples, edges, r^2, r/n and squared force components;
        "largest" is of what squares went through when the origin was moved, "most" and its like of
        what they were before samples were taken back.
    elements : array [E] int64
        Atomic numbers, ascending.
    origin : array [E]
        First guess of the reference energies, the same for all buckets, eV.
    counts, fraction : array [B, E]
        Of a over all samples, and of a/n over those with an energy.
    moment : array [B, 2, E]
        Of r a.
    gram : array [B, 2, E (E + 1) / 2]
        Upper triangle of a a^T.
    sizes, size_counts : array [S] int64
        ``bucket * 2^40 + atoms``, ascending, and how many samples there are of it.
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
        """Sums that change apart from these."""
        return replace(self, **{name: getattr(self, name).copy() for name in _ARRAYS})

    def total(self, name: str) -> float:
        """Sum over all buckets of a column."""
        return float(self.table[:, _AT[name]].sum())

    @property
    def finite(self) -> bool:
        """Whether no sum has overflown."""
        return all(bool(np.isfinite(getattr(self, name)).all()) for name in _ARRAYS)

    def of_buckets(self, first: int, stop: int) -> "LabelSums":
        """Sums over a range of buckets, as one bucket."""
        chosen = slice(first, stop)
        summed = {name: getattr(self, name)[chosen].sum(0)[None] for name in _BY_BUCKET}
        bucket, size = self.sizes >> _SIZE_BITS, self.sizes & ((1 << _SIZE_BITS) - 1)
        here = (bucket >= first) & (bucket < stop)
        sizes, counts = tallied(size[here], self.size_counts[here])
        return replace(self, **summed, sizes=sizes, size_counts=counts)

    def add(self, rows: LabelRows, sign: int = 1) -> Self:
        """Add samples, or take them back with -1; these must have been added before."""
        with np.errstate(over="ignore", invalid="ignore"):  # such sums are not kept
            self._add(rows, sign)
        return self

    def _add(self, rows: LabelRows, sign: int) -> None:
        self._sum("samples", rows.buckets, None, sign)
        numbers = rows.numbers
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < NUM_ELEMENTS:
            wrong = np.logical_or.reduceat((numbers < 0) | (numbers >= NUM_ELEMENTS), rows.ptr[:-1])
            self._sum("without_element", rows.buckets[wrong], None, sign)
            rows = rows.take(np.flatnonzero(~wrong))
        if not len(rows):
            return
        self._sum("edges", rows.buckets, rows.edges, sign)
        groups = Groups.find(rows)
        self._accept(groups.elements)
        at = np.searchsorted(self.elements, groups.elements)
        contents = replace(groups.contents, places=at[groups.contents.places])
        self.sizes, self.size_counts = tallied(
            np.concatenate([self.sizes, (groups.buckets << _SIZE_BITS) + groups.atoms]),
            np.concatenate([self.size_counts, sign * groups.number]),
        )
        counts = contents.atoms * groups.number[contents.samples]
        self._spread(self.counts, groups, contents, counts, sign)
        if rows.energy is not None:
            self._add_energies(rows, rows.energy.astype(np.float64), groups, contents, sign)
        if rows.forces is not None:
            self._add_forces(rows, rows.forces, sign)

    def _sum(self, name: str, buckets: Int64Array, values: AnyArray | None, sign: int) -> None:
        found = np.bincount(buckets, values, minlength=len(self.table))
        self.table[:, _AT[name]] += sign * found

    def _spread(
        self,
        target: FloatArray,
        groups: Groups,
        contents: Contents,
        values: FloatArray,
        sign: int,
    ) -> None:
        """Add a value for each entry of the contents of groups to a target [B, ...]."""
        size = target.shape[-1]
        cell = groups.buckets[contents.samples] * size + contents.places
        target += sign * np.bincount(cell, values, target.size).reshape(target.shape)

    def _accept(self, elements: Int64Array) -> None:
        """Make room for elements."""
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
        self,
        rows: LabelRows,
        energy: FloatArray,
        groups: Groups,
        contents: Contents,
        sign: int,
    ) -> None:
        finite = np.isfinite(energy)
        has = np.ones(len(rows), bool) if rows.has_energy is None else rows.has_energy
        self._sum("energies_not_finite", rows.buckets[has & ~finite], None, sign)
        has = has & finite
        of, energy, total = groups.of[has], energy[has], len(groups.number)
        if not len(of):
            return
        number = np.bincount(of, minlength=total)
        if not number.all():
            contents = contents.of(number > 0)
        pairs = contents.pairs(len(self.elements))
        if sign > 0:
            rest = energy - contents.weighted(self.origin, total)[of]
            left = np.bincount(of, rest, total).astype(np.float64, copy=False)
            self._fit_origin(contents, pairs, number, left)
        rest = energy - contents.weighted(self.origin, total)[of]
        summed, squared = (np.bincount(of, rest**power, total) for power in (1, 2))
        per_atom = 1.0 / groups.atoms
        self._sum("energies", groups.buckets, number, sign)
        self._sum("per_atom", groups.buckets, summed * per_atom, sign)
        shares = contents.atoms * (number * per_atom)[contents.samples]
        self._spread(self.fraction, groups, contents, shares, sign)
        for place, (name, scale) in enumerate(
            (("square", np.ones(total)), ("square_per_atom", per_atom**2))
        ):
            self._sum(name, groups.buckets, squared * scale, sign)
            values = contents.atoms * (summed * scale)[contents.samples]
            self._spread(self.moment[:, place], groups, contents, values, sign)
            values = pairs.atoms * (number * scale)[pairs.samples]
            self._spread(self.gram[:, place], groups, pairs, values, sign)

    def _fit_origin(
        self, contents: Contents, pairs: Contents, number: Int64Array, rest: FloatArray
    ) -> None:
        """Fit the origin where there is a new element, or twice as many energies as for the last.

        A poor guess would leave large energies, of whose squares little is left in the end.
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
        """Count energies from another origin [E]."""
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

    def _add_forces(self, rows: LabelRows, forces: AnyArray, sign: int) -> None:
        ptr, components = rows.ptr[:-1] * forces.shape[1], np.diff(rows.ptr) * forces.shape[1]
        values = forces.reshape(-1)
        square = np.add.reduceat(np.square(values, dtype=np.float64), ptr)
        has = np.ones(len(rows), bool) if rows.has_forces is None else rows.has_forces
        bad = np.zeros(len(rows), dtype=np.int64)
        if not np.isfinite(square[has]).all():
            bad = np.add.reduceat(~np.isfinite(values), ptr, dtype=np.int64)
            self._sum("forces_not_finite", rows.buckets[has], bad[has], sign)
        has = has & (bad == 0)
        self._sum("force_components", rows.buckets[has], components[has], sign)
        self._sum("force_square", rows.buckets[has], square[has], sign)

    def take_back(self, rows: LabelRows) -> bool:
        """Take samples back; whether what is left is as exact as if they had never been added."""
        self.table[:, _MOST] = np.maximum(self.table[:, _MOST], self.table[:, _SQUARES])
        self.add(rows, -1)
        for name, column in (("energies", slice(0, 2)), ("force_components", slice(2, 3))):
            gone = self.table[:, _AT[name]] == 0
            self.table[np.ix_(gone, _SQUARES[column] + _MOST[column])] = 0
            if name == "energies":
                self.table[gone, _AT["per_atom"]] = 0
                self.fraction[gone] = self.moment[gone] = self.gram[gone] = 0
        return bool((self.table[:, _SQUARES] >= _MOST_TAKEN * self.table[:, _MOST]).all())

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

    def agrees(self, other: "LabelSums") -> bool:
        """Whether sums are of the same samples, as far as counts and squares can tell."""
        ours, theirs = self.copy(), other.copy()
        ours._accept(theirs.elements)
        theirs._accept(ours.elements)
        theirs.move_origin(ours.origin)
        same = np.array_equal(ours.counts, theirs.counts) and np.array_equal(
            (ours.sizes, ours.size_counts), (theirs.sizes, theirs.size_counts)
        )
        noise = _ROUNDING * float(np.abs(self.origin).max(initial=0.0))
        floor = np.zeros(len(COLUMNS))
        floor[[_AT["square"], _AT["square_per_atom"]]] = noise**2
        floor[_AT["per_atom"]] = noise
        floor *= self.total("energies")
        apart = np.abs(ours.table - theirs.table).max(0)
        apart[[_AT["largest"], *_MOST]] = 0.0
        return same and bool((apart <= floor + _AGREEMENT * np.abs(ours.table).max(0)).all())

    @property
    def exact(self) -> bool:
        """Whether the spread of energies is not lost beside what the origin leaves of them."""
        number = self.total("energies")
        largest = self.total("square_per_atom") + self.total("largest")
        noise = _ROUNDING * float(np.abs(self.origin).max(initial=0.0))
        lost = self.left() < _MOST_LOST * largest and largest > number * noise**2
        return self.finite and not lost

    def fitted_energies(self) -> FloatArray:
        """Reference energies [E] that fit best, eV."""
        gram = unpacked(self.gram[:, 0].sum(0), len(self.elements))
        return fit(gram, self.moment[:, 0].sum(0), self.origin)

    def left(self) -> float:
        """Sum of the squared energies per atom that are left after the reference energies."""
        change = self.fitted_energies() - self.origin
        pull = unpacked(self.gram[:, 1].sum(0), len(change)) @ change
        pull -= 2 * self.moment[:, 1].sum(0)
        return self.total("square_per_atom") + float(pull @ change)


_BY_BUCKET = ("table", "counts", "fraction", "moment", "gram")
_ARRAYS = (*_BY_BUCKET, "elements", "origin", "sizes", "size_counts")
