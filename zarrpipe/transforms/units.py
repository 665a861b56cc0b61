"""Conversion of all fields from ASE's units to others."""

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.errors import ArgumentError, FieldError


class Unit(NamedTuple):
    """A unit: `value` times a product of eV, Angstrom, amu and e to the given `powers`."""

    value: float
    powers: tuple[float, ...]

    def times(self, other: "Unit", power: float) -> "Unit":
        """Product with a power of another unit."""
        pairs = zip(self.powers, other.powers, strict=True)
        return Unit(self.value * other.value**power, tuple(one + power * two for one, two in pairs))


_BASE = ("energy", "length", "mass", "charge")
_ONE = Unit(1.0, (0.0, 0.0, 0.0, 0.0))
_FACTOR = re.compile(r"([*/]?)(?:sqrt\(([^()]*)\)|([A-Za-z]+))(?:\^(-?\d+))?")


class ConvertUnits:
    """Convert every field that has a unit, from ASE's units to others that fit each other.

    Units are products, quotients and powers of names: eV, meV, Hartree, Rydberg, J, kJ, kcal;
    Angstrom, Bohr, nm, pm, m; amu, g, kg, me; e, C; Debye; Pa, GPa, bar, kbar; fs, ps, s; mol. For
    example "kcal/mol", "eV/Angstrom^3" or "sqrt(eV/amu)". Constants are those of CODATA 2014, as
    in ASE.

    Parameters
    ----------
    energy, length, mass, charge : str
        Units that all fields follow: forces in energy / length, velocities in
        sqrt(energy / mass), and so on.
    fields : mapping of str to str, optional
        Units of single fields instead, for example ``{"stress": "GPa"}``.
    own : mapping of str to str, optional
        Units that a user's own fields come in, "" for none.

    Attributes
    ----------
    factors : mapping of str to float
        Factor of each field, to convert predictions back.

    Raises
    ------
    ValueError
        If a unit is not known, or is of another kind than its field.
    FieldError
        When a batch has own floats whose unit `own` does not say.

    Examples
    --------
    >>> convert = ConvertUnits(energy="kcal/mol", fields={"stress": "GPa"})
    >>> {name: round(convert.factors[name], 3) for name in ("energy", "forces", "stress")}
    {'energy': 23.061, 'forces': 23.061, 'stress': 160.218}
    """

    def __init__(
        self,
        *,
        energy: str = "eV",
        length: str = "Angstrom",
        mass: str = "amu",
        charge: str = "e",
        fields: Mapping[str, str] | None = None,
        own: Mapping[str, str] | None = None,
    ) -> None:
        self.units = {"energy": energy, "length": length, "mass": mass, "charge": charge}
        self.fields, self.own = dict(fields or {}), dict(own or {})
        base = [parse(text) for text in self.units.values()]
        for axis, (unit, (what, text)) in enumerate(zip(base, self.units.items(), strict=True)):
            _check_kind(what, text, unit, _axis(axis))
        come = {name: spec.unit for name, spec in CORE_FIELDS.items()}
        for name in self.own:
            if name in come:
                raise ArgumentError(
                    f"own has {name!r}, which the registry has in {come[name]!r}: leave it out"
                )
        come |= self.own
        for name in self.fields:
            if name not in come:
                raise ArgumentError(
                    f"fields has {name!r}, which is not in the registry: give the unit in which it "
                    f"comes by own={{{name!r}: ...}}"
                )
        self.factors = {name: self._factor(name, parse(text), base) for name, text in come.items()}

    def _factor(self, name: str, unit: Unit, base: list[Unit]) -> float:
        """Factor from a unit to that of the field."""
        if name in self.fields:
            target = parse(self.fields[name])
            _check_kind(name, self.fields[name], target, unit.powers)
        else:
            target = _ONE
            for power, one in zip(unit.powers, base, strict=True):
                target = target.times(one, power)
        return unit.value / target.value

    def __call__(self, batch: Batch) -> Batch:
        """The batch in the new units."""
        converted = {}
        for name, value in batch.fields.items():
            factor = self.factors.get(name, 1.0)
            if name not in self.factors and value.is_floating_point():
                raise FieldError(
                    f"field {name!r} is not in the registry, so its unit is not known: give "
                    f"ConvertUnits(own={{{name!r}: ...}}), '' for none, or leave the field out"
                )
            if factor != 1.0:
                converted[name] = value * factor
        return batch._replace(converted)

    def __repr__(self) -> str:
        said = {**self.units, "fields": self.fields, "own": self.own}
        return f"ConvertUnits({', '.join(f'{name}={value!r}' for name, value in said.items())})"


def parse(text: str) -> Unit:
    """Unit of a text such as "eV/Angstrom^3" or "sqrt(eV/amu)"; "" is a plain number.

    Examples
    --------
    >>> parse("eV/Angstrom^2").powers, round(parse("Bohr").value, 4)
    ((1.0, -2.0, 0.0, 0.0), 0.5292)
    """
    unit, place = _ONE, 0
    while place < len(text):
        found = _FACTOR.match(text, place)
        if found is None or bool(place) is not bool(found[1]):
            raise ArgumentError(f"{text!r} is no unit from {text[place:]!r} on, {_EXPECTED}")
        if found[3] is None:
            factor, power = parse(found[2]), 0.5
        elif found[3] in _units():
            factor, power = _units()[found[3]], 1.0
        else:
            raise ArgumentError(f"{found[3]!r} of {text!r} is not a known unit, {_EXPECTED}")
        power *= int(found[4] or 1)
        unit = unit.times(factor, -power if found[1] == "/" else power)
        place = found.end()
    return unit


_EXPECTED = (
    "expected products, quotients and powers such as 'kcal/mol', 'eV/Angstrom^3', 'sqrt(eV/amu)'"
)


def _axis(axis: int) -> tuple[float, ...]:
    return tuple(float(place == axis) for place in range(len(_BASE)))


def _check_kind(what: str, text: str, unit: Unit, powers: tuple[float, ...]) -> None:
    if unit.powers != powers:
        raise ArgumentError(
            f"the unit of {what} is {text!r}, which is {_kind(unit.powers)}, expected one of "
            f"{_kind(powers)}"
        )


def _kind(powers: tuple[float, ...]) -> str:
    """Dimension in words."""
    parts = [
        base if power == 1 else f"{base}^{power:g}"
        for base, power in zip(_BASE, powers, strict=True)
        if power
    ]
    return "*".join(parts) or "a number"


@functools.cache
def _units() -> Mapping[str, Unit]:
    """Units by name, by the constants of CODATA 2014."""
    electron, avogadro, dalton = 1.6021766208e-19, 6.022140857e23, 1.660539040e-27
    joule, kilogram, metre = 1 / electron, 1 / dalton, 1e10
    pascal = joule / metre**3
    second = metre * (kilogram / joule) ** 0.5
    hartree, bohr = 27.211386024367243, 0.5291772105638411
    energy, length, mass, charge = map(_axis, range(4))
    pressure, time, dipole = (1.0, -3.0, 0.0, 0.0), (-0.5, 1.0, 0.5, 0.0), (0.0, 1.0, 0.0, 1.0)
    return {
        "eV": Unit(1.0, energy),
        "meV": Unit(1e-3, energy),
        "Hartree": Unit(hartree, energy),
        "Rydberg": Unit(hartree / 2, energy),
        "J": Unit(joule, energy),
        "kJ": Unit(1e3 * joule, energy),
        "kcal": Unit(4184.0 * joule, energy),
        "Angstrom": Unit(1.0, length),
        "Bohr": Unit(bohr, length),
        "nm": Unit(10.0, length),
        "pm": Unit(0.01, length),
        "m": Unit(metre, length),
        "amu": Unit(1.0, mass),
        "me": Unit(9.10938356e-31 * kilogram, mass),
        "g": Unit(1e-3 * kilogram, mass),
        "kg": Unit(kilogram, mass),
        "e": Unit(1.0, charge),
        "C": Unit(1 / electron, charge),
        "Debye": Unit(1e-21 / 299792458.0 / electron * metre, dipole),
        "Pa": Unit(pascal, pressure),
        "GPa": Unit(1e9 * pascal, pressure),
        "bar": Unit(1e5 * pascal, pressure),
        "kbar": Unit(1e8 * pascal, pressure),
        "s": Unit(second, time),
        "ps": Unit(1e-12 * second, time),
        "fs": Unit(1e-15 * second, time),
        "mol": Unit(avogadro, _ONE.powers),
    }
