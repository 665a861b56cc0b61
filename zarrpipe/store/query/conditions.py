"""Conditions on samples as text: a small part of Python's expressions.

Nothing is executed. A text is parsed into a tree in which only the nodes listed here are allowed;
`zarrpipe.store.query.evaluation` evaluates the tree with one array per column.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.store.query.elements import atomic_number


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
_OF_TEXTS = (ast.Eq, ast.NotEq, ast.In, ast.NotIn)
_PARTS = (
    "comparisons, and, or, not, in (1, 2), + - * / %, abs(), numbers, fields that have one "
    "number for each sample, num_atoms, num_edges, max_force, energy_per_atom, volume, density, "
    "formula == 'H2O', has(field) and has_element('Cu')"
)
_CALLS = "expected has(field), abs(number) or has_element('Cu')"
_TEXT_ALONE = (
    "a string can only be compared with a column of strings, by ==, !=, in or not in, as in "
    "formula == 'H2O' or formula in ('H2O', 'CH4')"
)
_DEEPEST = 50
_SPACES = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|\s+""")
"""A text in quotes, which is kept as it is, or spaces."""


class TextComparison(NamedTuple):
    """A column that is compared with texts, given with their nodes: is it, or not, one of them."""

    column: ast.Name
    texts: dict[str, ast.expr]
    negated: bool


@dataclass(frozen=True)
class Condition:
    """A parsed condition, or number of samples; see `ZarrDataset.where` for the syntax.

    `values`, `texts` and `presences` have the columns whose numbers or texts it needs, and those in
    ``has()``, each with the node that mentions it first. `argument` is its name in messages.
    """

    text: str
    tree: ast.expr
    argument: str
    values: dict[str, ast.AST]
    texts: dict[str, ast.AST]
    presences: dict[str, ast.AST]

    @classmethod
    def of(cls, text: str, argument: str = "where", example: str = "round >= 3") -> "Condition":
        """Parse a condition.

        Raises `ArgumentTypeError` for another type than str, and `ArgumentError` for a part that is
        not allowed.

        Examples
        --------
        >>> condition = Condition.of("3 <= round < 7 and has(forces) and formula != 'H2O'")
        >>> list(condition.values), list(condition.texts), list(condition.presences)
        (['round'], ['formula'], ['forces'])
        """
        if not isinstance(text, str):
            raise ArgumentTypeError(f"{argument} is {text!r}, expected a text such as {example!r}")
        text = _SPACES.sub(lambda found: found[1] or " ", text).strip()
        if not text:
            raise ArgumentError(f"{argument} is empty, expected a text such as {example!r}")
        try:
            condition = cls(text, ast.parse(text, mode="eval").body, argument, {}, {}, {})
        except SyntaxError as error:
            raise ArgumentError(
                f"{argument}={text!r} is no expression, {_place_of(error, text)}; it may have "
                f"{_PARTS}"
            ) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise ArgumentError(f"{argument}={text[:80]!r} cannot be read: {error}") from error
        condition._read(condition.tree, 0)
        return condition

    def fail(self, node: ast.AST, what: str, error: type[Exception] = ArgumentError) -> NoReturn:
        """Raise an error that names the place of a node in the text."""
        part = ast.get_source_segment(self.text, node) or self.text
        before = self.text.encode()[: getattr(node, "col_offset", 0)].decode()
        place = f"at {part!r} (character {len(before) + 1})"
        raise error(f"{self.argument}={self.text!r}, {place}: {what}")

    def _read(self, node: ast.AST, depth: int) -> None:
        """Collect the names in a node; refuse nodes that are not allowed."""
        if depth > _DEEPEST:
            self.fail(node, f"stands more than {_DEEPEST} levels deep: write it with fewer")
        if isinstance(node, ast.Name):
            self.values.setdefault(node.id, node)
        elif isinstance(node, ast.Call):
            self._read_call(node, depth)
        elif isinstance(node, ast.Compare) and (text := _first_text(node)) is not None:
            compared = text_comparison(node)
            if compared is None:
                self.fail(text, _listed_hint(node, text) or _TEXT_ALONE)
            self.texts.setdefault(compared.column.id, compared.column)
        else:
            self._check(node)
            for child in _operands(node):
                self._read(child, depth + 1)

    def _read_call(self, node: ast.Call, depth: int) -> None:
        match node:
            case ast.Call(func=ast.Name(id="abs"), args=[argument], keywords=[]):
                self._read(argument, depth + 1)
            case ast.Call(func=ast.Name(id="has"), args=[argument], keywords=[]):
                if not isinstance(argument, ast.Name):
                    self.fail(argument, "expected the name of a field in has()")
                self.presences.setdefault(argument.id, argument)
            case ast.Call(func=ast.Name(id="has_element"), args=[argument], keywords=[]):
                symbol = _text(argument)
                if symbol is None:
                    self.fail(argument, "expected a symbol in quotes, as in has_element('Cu')")
                try:
                    atomic_number(symbol)
                except ArgumentError as error:
                    self.fail(argument, str(error))
            case _:
                self.fail(node, _CALLS)

    def _check(self, node: ast.AST) -> None:
        match node:
            case ast.Constant(value=str()):
                self.fail(node, _TEXT_ALONE)
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
            meant = _meant(node)
            instead = f"expected {meant}" if meant else f"it may have {_PARTS}"
            self.fail(node, f"is not allowed in a condition; {instead}")


def _meant(node: ast.AST) -> str | None:
    """What Python's and pandas's users write otherwise, as it is written in a condition."""
    match node:
        case ast.BinOp(op=ast.BitAnd()):
            return "'and' for '&'"
        case ast.BinOp(op=ast.BitOr()):
            return "'or' for '|'"
        case ast.UnaryOp(op=ast.Invert()):
            return "'not' for '~'"
        case ast.Constant(value=None):
            return "has(field), or not has(field), to ask which samples have a value"
    return None


def _listed_hint(node: ast.Compare, text: ast.expr) -> str | None:
    """What to write where the one string of `in` stands without a list."""
    match node:
        case ast.Compare(left=ast.Name(id=name), ops=[ast.In() | ast.NotIn()], comparators=[one]):
            if one is text:
                return f"'in' needs a list, as in {name} in ({_text(text)!r},)"
    return None


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


def text_comparison(node: ast.Compare) -> TextComparison | None:
    """The comparison of a column with texts; None if it has another part."""
    match node:
        case ast.Compare(left=ast.Name() as column, ops=[op], comparators=[other]):
            pass
        case ast.Compare(left=other, ops=[op], comparators=[ast.Name() as column]):
            if isinstance(op, ast.In | ast.NotIn):
                return None
        case _:
            return None
    items = _items(other) if isinstance(op, ast.In | ast.NotIn) else [other]
    texts = {text: one for one in items if (text := _text(one)) is not None}
    if not texts or None in map(_text, items) or type(op) not in _OF_TEXTS:
        return None
    return TextComparison(column, texts, isinstance(op, ast.NotEq | ast.NotIn))


def _first_text(node: ast.Compare) -> ast.expr | None:
    """The first operand of a comparison, or item of an operand, that is a text."""
    operands = [part for one in (node.left, *node.comparators) for part in (one, *_items(one))]
    return next((one for one in operands if _text(one) is not None), None)


def _text(node: ast.AST) -> str | None:
    """The text that a node is."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _items(node: ast.AST) -> list[ast.expr]:
    """Nodes of a list, a tuple or a set; none of another node."""
    return node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else []


def _operands(node: ast.AST) -> Iterator[ast.AST]:
    """Children of a node, except the lists of `in`."""
    if isinstance(node, ast.Compare):
        yield node.left
        for op, other in zip(node.ops, node.comparators, strict=True):
            if not isinstance(op, ast.In | ast.NotIn):
                yield other
    else:
        yield from (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
