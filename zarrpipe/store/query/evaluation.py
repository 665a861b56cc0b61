"""Which samples of a store meet a condition, evaluated over arrays of field values.

A field that a sample lacks has no value, so a comparison of it is neither true nor false for that
sample: ``round < 3`` and ``not round < 3`` both leave it out, while ``has(energy) or round < 3``
takes it if it has an energy.
"""

import ast
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, Protocol

import numpy as np

from zarrpipe.data.csr import AnyArray
from zarrpipe.data.fields import CORE_FIELDS, COUNTS
from zarrpipe.data.schema import Field
from zarrpipe.errors import ArgumentError, SchemaError
from zarrpipe.store.query.columns import (
    NoColumns,
    StoreColumns,
    both,
    close_match,
    is_number,
    is_text,
)
from zarrpipe.store.query.conditions import (
    ARITHMETIC,
    COMPARISONS,
    Condition,
    TextComparison,
    listed,
    text_comparison,
)
from zarrpipe.store.query.derived import DERIVED, BoolArray
from zarrpipe.store.query.elements import atomic_number
from zarrpipe.store.read.view import StoreView

BLOCK = 1 << 18
"""Samples for which a condition is evaluated at once."""


class Columns(Protocol):
    """Columns of the K samples that a condition is evaluated for; see `columns.StoreColumns`."""

    def values(self, name: str) -> AnyArray:
        """Value of each sample, [K]; arbitrary where the sample has none."""

    def present(self, name: str) -> BoolArray | None:
        """Which samples have a field or column, [K]; None for all of them."""

    def code(self, name: str, text: str) -> int | None:
        """Value that stands for a text in a column of texts; None if no sample has the text."""

    def has_element(self, number: int) -> BoolArray:
        """Which samples have an atom of an element, [K]."""


def check(condition: Condition, schema: Mapping[str, Field], *, number: bool = False) -> None:
    """Refuse a condition, or a number, that does not fit the fields of the schema and the registry.

    Raises `SchemaError` for an unknown column, or one that has not one number or text for each
    sample as its place needs, and ValueError for a number in place of a truth value.
    """
    for name, node in {**condition.presences, **condition.values, **condition.texts}.items():
        if name not in schema and name not in CORE_FIELDS and not _is_made(name):
            quotes = ""
            if name in condition.values and any(is_text(one, schema) for one in condition.values):
                quotes = f"; a string is put in quotes: {name!r}"
            condition.fail(
                node, f"no store has a field {unknown_column(name, schema)}{quotes}", SchemaError
            )
    for name, node in condition.texts.items():
        if not is_text(name, schema):
            condition.fail(node, f"{name!r} has no strings: compare it with numbers", SchemaError)
    for name, node in condition.values.items():
        if is_text(name, schema):
            condition.fail(
                node,
                f"{name!r} has strings: compare it with one, as in {_example(name, schema)}",
                SchemaError,
            )
        known = schema.get(name, CORE_FIELDS.get(name))
        if name not in COUNTS and known is not None and not is_number(known):
            condition.fail(
                node,
                f"field {name!r} at level {known.level!r} with rows of shape {known.shape} "
                f"has not one number for each sample; {_instead(name)}",
                SchemaError,
            )
    if number:
        numbers(condition, NoColumns(schema), 0)
    else:
        meets(condition, NoColumns(schema), 0)


def unknown_column(name: str, schema: Mapping[str, Field]) -> str:
    """A name that no column has, those that there are, and the closest of them, for a message."""
    have = [*schema, *COUNTS, *(one for one in DERIVED if one not in schema)]
    stored, derived = sorted({*schema, *COUNTS}), sorted(DERIVED)
    return f"{name!r}{close_match(name, have)}, they have {stored} and {derived}"


def _example(name: str, schema: Mapping[str, Field]) -> str:
    """A condition on a column of strings, for messages."""
    strings = schema[name].categories if name in schema else None
    return f"{name} == {strings[0] if strings else 'H2O'!r}"


def _instead(name: str) -> str:
    """What a condition can have in place of a field without a number for each sample."""
    if name == "forces":
        return "max_force is the largest norm of each, has(forces) says which samples have them"
    return f"has({name}) says which samples have it"


def _is_made(name: str) -> bool:
    """Whether a column is made of what every store has."""
    return name in COUNTS or name in DERIVED


def meets(condition: Condition, columns: Columns, count: int) -> BoolArray:
    """Which of `count` samples meet a condition, [count] bool.

    Raises ValueError if a number stands in place of a truth value.
    """
    with np.errstate(all="ignore"):
        term = _Evaluation(condition, columns).truth(condition.tree)
    return np.broadcast_to(np.asarray(term.true(), dtype=np.bool_), (count,))


def which_meet(
    condition: Condition, view: StoreView, schema: Mapping[str, Field], count: int
) -> BoolArray:
    """Which of the first `count` samples of a store meet a condition, read block by block."""
    mask = np.zeros(count, dtype=bool)
    for start in range(0, count, BLOCK):
        samples = np.arange(start, min(start + BLOCK, count))
        mask[samples] = meets(condition, StoreColumns(view, samples, schema), len(samples))
    return mask


def numbers(condition: Condition, columns: Columns, count: int) -> tuple[AnyArray, BoolArray]:
    """Number of each of `count` samples, and which samples have one that is not NaN; [count]."""
    with np.errstate(all="ignore"):
        term = _Evaluation(condition, columns).number(condition.tree)
    values = np.broadcast_to(np.asarray(term.values), (count,))
    known = both(term.known, ~np.isnan(values))
    return values, np.ones(count, dtype=bool) if known is None else known


class _Term(NamedTuple):
    """Values of samples, [K] or one for all, and which samples have one; None for all."""

    values: Any
    known: BoolArray | None = None

    def true(self) -> Any:
        return self.values if self.known is None else self.values & self.known

    def negated(self) -> "_Term":
        return _Term(np.logical_not(self.values), self.known)


class _Evaluation:
    """A condition, evaluated for some samples."""

    def __init__(self, condition: Condition, columns: Columns) -> None:
        self._condition, self._columns = condition, columns

    def truth(self, node: ast.expr) -> _Term:
        """Truth of a node for each sample."""
        term = self._term(node)
        if np.asarray(term.values).dtype != np.bool_:
            self._condition.fail(node, "is a number, expected what is true or false")
        return term

    def number(self, node: ast.expr) -> _Term:
        """Value of a node for each sample; truth counts as 1 or 0."""
        term = self._term(node)
        if np.asarray(term.values).dtype.kind in "biu" and isinstance(term.values, np.ndarray):
            return _Term(term.values.astype(np.int64, copy=False), term.known)
        return term

    def _term(self, node: ast.expr) -> _Term:
        match node:
            case ast.Constant(value=value):
                term = _Term(value)
            case ast.Name(id=name):
                term = _Term(self._columns.values(name), self._columns.present(name))
            case ast.Call():
                term = self._called(node)
            case ast.BoolOp(op=ast.And(), values=parts):
                term = _all_of([self.truth(part) for part in parts])
            case ast.BoolOp(values=parts):
                term = _all_of([self.truth(part).negated() for part in parts]).negated()
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                term = self.truth(operand).negated()
            case ast.UnaryOp(op=sign, operand=operand):
                term = self.number(operand)
                term = _Term(-term.values, term.known) if isinstance(sign, ast.USub) else term
            case ast.BinOp():
                term = self._calculated(node)
            case ast.Compare():
                term = self._compared(node)
            case _:
                raise AssertionError(ast.dump(node))  # `Condition` has refused it
        return term

    def _called(self, node: ast.Call) -> _Term:
        match node:
            case ast.Call(func=ast.Name(id="has"), args=[ast.Name(id=name)]):
                mask = self._columns.present(name)
                return _Term(True if mask is None else mask)
            case ast.Call(func=ast.Name(id="has_element"), args=[ast.Constant(value=str(symbol))]):
                return _Term(self._columns.has_element(atomic_number(symbol)))
        term = self.number(node.args[0])
        return _Term(abs(term.values), term.known)

    def _calculated(self, node: ast.BinOp) -> _Term:
        left, right = self.number(node.left), self.number(node.right)
        known = both(left.known, right.known)
        if isinstance(node.op, ast.Div | ast.Mod):
            if isinstance(right.values, np.ndarray):
                known = both(known, right.values != 0)  # there is no such number
            elif right.values == 0:
                self._condition.fail(node, "divides by zero")
        try:
            return _Term(ARITHMETIC[type(node.op)](left.values, right.values), known)
        except OverflowError:
            self._condition.fail(node, "has a number that no field can have")

    def _compared(self, node: ast.Compare) -> _Term:
        compared = text_comparison(node)
        if compared is not None:
            return self._compared_texts(compared)
        left, terms = self.number(node.left), []
        for op, other in zip(node.ops, node.comparators, strict=True):
            inside = isinstance(op, ast.In | ast.NotIn)
            right = _Term(listed(other)) if inside else self.number(other)
            values = COMPARISONS[type(op)](left.values, right.values)
            terms.append(_Term(values, both(left.known, right.known)))
            left = right
        return _all_of(terms)

    def _compared_texts(self, compared: TextComparison) -> _Term:
        """Compare the codes of a column of texts with those of the texts."""
        name, codes = compared.column.id, []
        for text, node in compared.texts.items():
            try:
                code = self._columns.code(name, text)
            except ArgumentError as error:
                self._condition.fail(node, str(error))
            codes += [] if code is None else [code]
        values = self._columns.values(name)
        found = np.isin(values, np.array(codes, dtype=values.dtype), kind="sort")
        return _Term(~found if compared.negated else found, self._columns.present(name))


def _all_of(terms: Sequence[_Term]) -> _Term:
    """True where all terms are, false where one is, and otherwise neither."""
    if all(term.known is None for term in terms):
        return _Term(reduce(np.logical_and, (term.values for term in terms)))
    true = reduce(np.logical_and, (term.true() for term in terms))
    false = reduce(np.logical_or, (term.negated().true() for term in terms))
    return _Term(true, true | false)
