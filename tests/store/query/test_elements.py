"""Symbols, masses and formulas, beside ASE's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe.data.csr import pointers
from zarrpipe.errors import ArgumentError
from zarrpipe.store.query.elements import (
    MASSES,
    NUMBERS,
    SYMBOLS,
    as_elements,
    atomic_number,
    composition_codes,
    formula_code,
    formulas,
)

ase = pytest.importorskip("ase")


def test_symbols_and_masses_are_those_of_ase():
    assert ase.data.chemical_symbols == SYMBOLS
    assert np.allclose(MASSES[1:], ase.data.atomic_masses[1:], rtol=1e-9)
    assert np.isnan(MASSES[0])
    assert all(NUMBERS[symbol] == z for z, symbol in enumerate(ase.data.chemical_symbols))


@given(st.lists(st.lists(st.integers(0, 118), min_size=1, max_size=8), min_size=1, max_size=5))
def test_formulas_are_those_of_ase_and_their_codes_those_of_the_atoms(systems):
    numbers = np.concatenate([np.array(one) for one in systems])
    ptr = pointers(np.array([len(one) for one in systems]))
    expected = [ase.Atoms(one).get_chemical_formula() for one in systems]
    assert formulas(numbers, ptr) == expected
    assert [formula_code(text) for text in expected] == composition_codes(numbers, ptr).tolist()


def test_a_code_is_of_the_composition_alone():
    assert formula_code("OH2") == formula_code("H2O") == formula_code("HOH")
    codes = [formula_code(text) for text in ("H2O", "HO2", "H2O2", "CO", "Co", "H12", "H2")]
    assert len(set(codes)) == len(codes)


def test_a_number_that_is_no_element_counts_as_x():
    numbers = np.array([-1, 119, 1, 2**40, 0])
    assert as_elements(numbers).tolist() == [0, 0, 1, 0, 0]
    assert formulas(numbers, np.array([0, 5])) == ["HX4"]
    assert composition_codes(numbers, np.array([0, 5])).tolist() == [formula_code("HX4")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("H2(OH)", "no formula"),
        ("", "no formula"),
        ("2H", "no formula"),
        ("h2o", "no formula"),
        ("Hx2", r"'Hx' is no symbol of an element"),
    ],
)
def test_what_is_no_formula_is_refused(text, message):
    with pytest.raises(ArgumentError, match=message):
        formula_code(text)


def test_a_symbol_that_is_nearly_one_is_proposed():
    with pytest.raises(ArgumentError, match=r"'cu' is no symbol.* mean 'Cu'"):
        atomic_number("cu")
    assert atomic_number("Cu") == 29
