"""Numbers, names and units as a page and a figure print them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from zarrpipe.data.tables import bytes_text

_SHOWN_ITEMS = 8  # of a long list


def words(name: str) -> str:
    """A name as in code, for people."""
    return name.replace("_", " ")


def symbols(unit: str) -> str:
    """A unit as it is printed: Å for Angstrom, ³ for ^3."""
    return unit.replace("Angstrom", "Å").replace("^2", "²").replace("^3", "³")


def text_of(value: Any) -> str:
    """A value for people: 1,234 or 0.00123, and a list with commas."""
    match value:
        case bool():
            text = "yes" if value else "no"
        case int() | np.integer():
            text = f"{value:,}"
        case float() | np.floating():
            text = "-" if np.isnan(value) else f"{value:,.4g}"
        case Mapping():
            text = ", ".join(f"{key} {text_of(one)}" for key, one in value.items())
        case list() | tuple():
            text = ", ".join(map(text_of, value))
        case _:
            text = "-" if value is None else str(value)
    return text


def fact_text(name: str, value: Any) -> str:
    """A fact of a store: bytes in a unit; of a long list, how many there are and the first."""
    if name == "bytes" and isinstance(value, int):
        return bytes_text(value)
    if isinstance(value, list | tuple) and len(value) > _SHOWN_ITEMS:
        return f"{len(value)}: {text_of(value[:_SHOWN_ITEMS])}, …"
    return text_of(value)
