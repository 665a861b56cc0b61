"""Stores of crystals: clean, and with six faults."""

import pytest

from .faulty import Faulty, write_crystals


@pytest.fixture(scope="session")
def clean() -> Faulty:
    """A store of 90 crystals without faults."""
    return write_crystals({}, {})


@pytest.fixture(scope="session")
def faulty() -> Faulty:
    """A store of 90 crystals of which some have the six faults of `faulty.FEW`."""
    return write_crystals({})
