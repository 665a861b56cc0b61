"""Statistics as plain types."""

import dataclasses
from typing import Any

from zarrpipe.store.query.elements import SYMBOLS
from zarrpipe.training.statistics import Statistics


def facts_of(found: Statistics) -> dict[str, Any]:
    """Statistics as plain types, elements by symbol."""
    facts = {item.name: getattr(found, item.name) for item in dataclasses.fields(found)}
    for name in ("element_counts", "reference_energies"):
        facts[name] = {SYMBOLS[number]: value for number, value in facts[name].items()}
    return {**facts, "size_histogram": dict(found.size_histogram)}
