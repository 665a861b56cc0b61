"""Conditions on samples as text: a small part of Python's expressions.

Nothing is executed. A text is parsed into a tree in which only the nodes listed here are allowed;
`zarrpipe.dataset.field_values` evaluates the tree with one array per field.
"""

import ast
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from zarrpipe.errors import ArgumentError, ArgumentTypeError


def _is_among(values: Any, among: list[int | float]) -> Any:
    """Which values are among some numbers, compared in the precision of the values."""
    floats = isinstance(values, np.ndarray) and values.dtype.kind == "f"
    return np.isin(values, np.array(among, dtype=values.dtype if floats else None))


def _is_not_among(values: Any, among: list[int | float]) -> Any:
    return ~_is_among(values, among)


ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: _is_among,
    ast.NotIn: _is_not_among,
}
_PARTS = (
    "comparisons, and, or, not, in (1, 2), + - * / %, abs(), numbers, fields that have one "
    "number for each sample, num_atoms, num_edges and has(field)"
)
_DEEPEST = 50


@dataclass(frozen=True)
class Condition:
    """A parsed condition; see `ZarrDataset.where` for the syntax.

    `values` and `presences` have the fields whose values it needs, and those in ``has()``, each
    with the node that mentions it first.
    """

    text: str
    tree: ast.expr
    values: dict[str, ast.AST]
    presences: dict[str, ast.AST]

    @classmethod
    def of(cls, text: str) -> "Condition":
        """Parse a condition; raise TypeError for other types and ValueError for other syntax.

        Examples
        --------
        >>> condition = Condition.of("3 <= round < 7 and has(forces)")
        >>> list(condition.values), list(condition.presences)
        (['round'], ['forces'])
        """
        if not isinstance(text, str):
            raise ArgumentTypeError(f"where is {text!r}, expected a text such as 'round >= 3'")
        text = " ".join(text.split())
        if not text:
            raise ArgumentError("where is empty, expected a condition such as 'round >= 3'")
        try:
            condition = cls(text, ast.parse(text, mode="eval").body, {}, {})
        except SyntaxError as error:
            raise ArgumentError(
                f"where={text!r} is no expression, {_place_of(error, text)}; it may have {_PARTS}"
            ) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise ArgumentError(f"where={text[:80]!r} cannot be read: {error}") from error
        condition._read(condition.tree, 0)
        return condition

    def fail(self, node: ast.AST, what: str, error: type[Exception] = ArgumentError) -> NoReturn:
        """Raise an error that names the place of a node in the text."""
        part = ast.get_source_segment(self.text, node) or self.text
        before = self.text.encode()[: getattr(node, "col_offset", 0)].decode()
        raise error(f"where={self.text!r}, at {part!r} (character {len(before) + 1}): {what}")

    def _read(self, node: ast.AST, depth: int) -> None:
        """Collect the names in a node; refuse nodes that are not allowed."""
        if depth > _DEEPEST:
            self.fail(node, f"stands more than {_DEEPEST} levels deep: write it with fewer")
        if isinstance(node, ast.Name):
            self.values.setdefault(node.id, node)
        elif isinstance(node, ast.Call):
            self._read_call(node, depth)
        else:
            self._check(node)
            for child in _operands(node):
                self._read(child, depth + 1)

    def _read_call(self, node: ast.Call, depth: int) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name not in ("has", "abs") or len(node.args) != 1 or node.keywords:
            self.fail(node, "expected has(field) or abs(number)")
        argument = node.args[0]
        if name == "abs":
            self._read(argument, depth + 1)
        elif isinstance(argument, ast.Name):
            self.presences.setdefault(argument.id, argument)
        else:
            self.fail(argument, "expected the name of a field in has()")

    def _check(self, node: ast.AST) -> None:
        match node:
            case ast.Constant(value=str() | bytes()):
                self.fail(node, f"text is not allowed in a condition; it may have {_PARTS}")
            case ast.Constant(value=value):
                known = type(value) in (int, float, bool)
            case ast.BinOp(op=op):
                known = type(op) in ARITHMETIC
            case ast.UnaryOp(op=op):
                known = isinstance(op, ast.Not | ast.USub | ast.UAdd)
            case ast.Compare(ops=ops, comparators=others):
                known = all(type(op) in COMPARISONS for op in ops)
                for way, other in zip(ops, others, strict=True):
                    if isinstance(way, ast.In | ast.NotIn) and listed(other) is None:
                        self.fail(other, "expected numbers to be in, such as (1, 2)")
            case _:
                known = isinstance(node, ast.BoolOp)
        if not known:
            self.fail(node, f"is not allowed in a condition; it may have {_PARTS}")


_MEANT = {"=": "==", "&": "and", "|": "or", "!": "not", "AND": "and", "OR": "or", "NOT": "not"}


def _place_of(error: SyntaxError, text: str) -> str:
    """Place and reason of a syntax error."""
    start = (error.offset or len(text) + 1) - 1  # without a place the text ends too early
    rest = text[start:]
    if not rest:
        return f"it ends after {text[-20:]!r} (character {len(text)}), where more has to follow"
    place = f"at {rest[:20]!r} (character {start + 1})"
    for sign, meant in _MEANT.items():
        if rest.startswith(sign):
            return f"{place}: expected {meant!r} for {sign!r}"
    return f"{place}: {error.msg}"


def listed(node: ast.expr) -> list[int | float] | None:
    """Numbers of a list; None if it is no list of numbers."""
    if not isinstance(node, ast.Tuple | ast.List | ast.Set):
        return None
    try:
        values = ast.literal_eval(node)
    except ValueError:
        return None
    return list(values) if all(type(one) in (int, float, bool) for one in values) else None


def _operands(node: ast.AST) -> Iterator[ast.AST]:
    """Children of a node, except the lists of `in`."""
    if isinstance(node, ast.Compare):
        yield node.left
        for op, other in zip(node.ops, node.comparators, strict=True):
            if not isinstance(op, ast.In | ast.NotIn):
                yield other
    else:
        yield from (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
