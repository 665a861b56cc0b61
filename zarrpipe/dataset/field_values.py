"""Which samples of a store meet a condition, evaluated over arrays of field values.

A field that a sample lacks has no value, so a comparison of it is neither true nor false for that
sample: ``round < 3`` and ``not round < 3`` both leave it out, while ``has(energy) or round < 3``
takes it if it has an energy.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import CORE_FIELDS, COUNTS
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.dataset.conditions import ARITHMETIC, COMPARISONS, Condition, listed
from zarrpipe.errors import SchemaError
from zarrpipe.store.read.view import StoreView

BoolArray = npt.NDArray[np.bool_]


class FieldValues(Protocol):
    """Field values of the K samples that a condition is evaluated for."""

    def values(self, name: str) -> AnyArray:
        """Value of each sample, [K]; arbitrary where the sample has none."""

    def present(self, name: str) -> BoolArray | None:
        """Which samples have a field, [K]; None for all of them."""


class StoreFieldValues:
    """Field values of some samples [K] int64 of a store, which may lack fields of a schema."""

    def __init__(self, view: StoreView, samples: Int64Array, schema: Mapping[str, Field]) -> None:
        self._view, self._samples, self._schema = view, samples, schema

    def values(self, name: str) -> AnyArray:
        """Value of each sample, [K]."""
        if name in COUNTS:
            return self._view.counts_of(COUNTS[name], self._samples)
        if name not in self._view.schema:
            return np.zeros(len(self._samples), dtype=_dtype_of(name, self._schema))
        return self._view.system_field(name, self._samples).reshape(len(self._samples))

    def present(self, name: str) -> BoolArray | None:
        """Which samples have a field, [K]; None for all of them."""
        if name in COUNTS:
            return None
        if name not in self._view.schema:
            return np.zeros(len(self._samples), dtype=bool)
        mask: BoolArray = self._view.present(name, self._samples)
        return None if mask.all() else mask


class _Samples:
    """Field values of no samples, with the dtypes of a schema."""

    def __init__(self, schema: Mapping[str, Field]) -> None:
        self._schema = schema

    def values(self, name: str) -> AnyArray:
        return np.zeros(0, dtype=_dtype_of(name, self._schema))

    def present(self, name: str) -> BoolArray | None:
        return None


def _dtype_of(name: str, schema: Mapping[str, Field]) -> Any:
    if name in schema:
        return schema[name].dtype
    return np.int64 if name in COUNTS else np.float64


def check(condition: Condition, schema: Mapping[str, Field]) -> None:
    """Refuse a condition that does not fit the fields of the schema and the registry.

    Raises `SchemaError` for an unknown field, or a value that is not one number for each sample,
    and ValueError for a number in place of a truth value.
    """
    for name, node in {**condition.presences, **condition.values}.items():
        if name not in schema and name not in CORE_FIELDS and name not in COUNTS:
            have = sorted([*schema, *COUNTS])
            condition.fail(node, f"no store has a field {name!r}, they have {have}", SchemaError)
    for name, node in condition.values.items():
        known = schema.get(name, CORE_FIELDS.get(name))
        if name in COUNTS or known is None:
            continue
        if known.level is not Level.SYSTEM or math.prod(known.shape or ()) != 1:
            condition.fail(
                node,
                f"field {name!r} at level {known.level!r} with rows of shape {known.shape} "
                f"has not one number for each sample; has({name}) says which samples have it",
                SchemaError,
            )
    meets(condition, _Samples(schema), 0)


def meets(condition: Condition, values: FieldValues, count: int) -> BoolArray:
    """Which of `count` samples meet a condition, [count] bool.

    Raises ValueError if a number stands in place of a truth value.
    """
    with np.errstate(all="ignore"):
        term = _Evaluation(condition, values).truth(condition.tree)
    return np.broadcast_to(np.asarray(term.true(), dtype=np.bool_), (count,))


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

    def __init__(self, condition: Condition, values: FieldValues) -> None:
        self._condition, self._values = condition, values

    def truth(self, node: ast.expr) -> _Term:
        """Truth of a node for each sample."""
        term = self._term(node)
        if np.asarray(term.values).dtype != np.bool_:
            self._condition.fail(node, "is a number, expected what is true or false")
        return term

    def _number(self, node: ast.expr) -> _Term:
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
                term = _Term(self._values.values(name), self._values.present(name))
            case ast.Call():
                term = self._called(node)
            case ast.BoolOp(op=ast.And(), values=parts):
                term = _all_of([self.truth(part) for part in parts])
            case ast.BoolOp(values=parts):
                term = _all_of([self.truth(part).negated() for part in parts]).negated()
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                term = self.truth(operand).negated()
            case ast.UnaryOp(op=sign, operand=operand):
                term = self._number(operand)
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
                mask = self._values.present(name)
                return _Term(True if mask is None else mask)
        term = self._number(node.args[0])
        return _Term(abs(term.values), term.known)

    def _calculated(self, node: ast.BinOp) -> _Term:
        left, right = self._number(node.left), self._number(node.right)
        known = _both(left.known, right.known)
        if isinstance(node.op, ast.Div | ast.Mod):
            if isinstance(right.values, np.ndarray):
                known = _both(known, right.values != 0)  # there is no such number
            elif right.values == 0:
                self._condition.fail(node, "divides by zero")
        try:
            return _Term(ARITHMETIC[type(node.op)](left.values, right.values), known)
        except OverflowError:
            self._condition.fail(node, "has a number that no field can have")

    def _compared(self, node: ast.Compare) -> _Term:
        left, terms = self._number(node.left), []
        for op, other in zip(node.ops, node.comparators, strict=True):
            inside = isinstance(op, ast.In | ast.NotIn)
            right = _Term(listed(other)) if inside else self._number(other)
            values = COMPARISONS[type(op)](left.values, right.values)
            terms.append(_Term(values, _both(left.known, right.known)))
            left = right
        return _all_of(terms)


def _all_of(terms: Sequence[_Term]) -> _Term:
    """True where all terms are, false where one is, and otherwise neither."""
    if all(term.known is None for term in terms):
        return _Term(reduce(np.logical_and, (term.values for term in terms)))
    true = reduce(np.logical_and, (term.true() for term in terms))
    false = reduce(np.logical_or, (term.negated().true() for term in terms))
    return _Term(true, true | false)


def _both(one: BoolArray | None, other: BoolArray | None) -> BoolArray | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other
