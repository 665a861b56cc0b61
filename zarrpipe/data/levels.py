"""Levels: what a row of a field belongs to, and where a store keeps the rows of each.

`Level` is the table of levels. Everything that loops over levels, or asks for the pointers, the
mask or the rows of one, asks here. Names and kinds are those of nvalchemi 0.3.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import ClassVar, Literal, Self

from zarrpipe.errors import FieldError

Kind = Literal["uniform", "segmented", "product"]

_PEER_NAMES = {"atom": "atoms", "edge": "edges", "system": "system"}
_RESERVED = frozenset({"atom", "atoms", "node", "nodes", "edge", "edges", "system", "graph"})
_LONGEST_NAME = 200


class Level(str):
    """A level of fields: ``Level.ATOM``, ``Level.EDGE``, ``Level.SYSTEM``, or one of a user's own.

    A level is its name, and compares and hashes as that. Each system has one row at a *uniform*
    level, any number of rows at a *segmented* one, and at a *product* level one row for each pair
    of rows of two segmented levels (pair ``(i, j)`` is row ``i * right + j``), or none.

    Examples
    --------
    >>> bond = Level.segmented("bond")
    >>> bond.kind, bond.pointers, bond == "bond"
    ('segmented', 'meta/level_ptrs/bond', True)
    >>> Level.product("atom_pair", Level.ATOM, Level.ATOM).parents
    ('atom', 'atom')
    """

    ATOM: ClassVar["Level"]
    EDGE: ClassVar["Level"]
    SYSTEM: ClassVar["Level"]

    kind: Kind
    parents: tuple["Level", ...]
    """The two levels of a product; none for others."""

    def __new__(cls, name: str) -> "Level":
        """The built-in level of a name, or the level itself."""
        if isinstance(name, Level):
            return name
        if isinstance(name, str) and name in BUILT_IN:
            return BUILT_IN[name]
        raise FieldError(
            f"{name!r} is no level: expected {level_names()}, or a level of your own, as "
            "Level.segmented('bond')"
        )

    @classmethod
    def _made(cls, name: str, kind: Kind, *parents: "Level") -> Self:
        level = str.__new__(cls, name)
        level.kind, level.parents = kind, parents
        return level

    @classmethod
    def segmented(cls, name: str) -> Self:
        """Level of the user's own with any number of rows in a system, as bonds or angles."""
        _check_name(name)
        return cls._made(name, "segmented")

    @classmethod
    def uniform(cls, name: str) -> Self:
        """Level of the user's own with one row for each system."""
        _check_name(name)
        return cls._made(name, "uniform")

    @classmethod
    def product(cls, name: str, left: str, right: str) -> Self:
        """Level of the user's own with a row for each pair of rows of two levels.

        Parameters
        ----------
        name
            Its name.
        left, right
            ``"atom"``, ``"edge"``, or segmented levels of the user's own.

        Raises
        ------
        FieldError
            If the name cannot be that of a level, or a parent is not segmented.
        """
        _check_name(name)
        parents = Level(left), Level(right)
        for parent in parents:
            if parent.kind != "segmented":
                raise FieldError(
                    f"level {name!r} is a product of {parent!r}, which is {parent.kind}: expected "
                    "segmented levels, as 'atom'"
                )
        return cls._made(name, "product", *parents)

    @property
    def built_in(self) -> bool:
        """Whether every store has the level."""
        return self in BUILT_IN

    @property
    def has_pointers(self) -> bool:
        """Whether systems have more or fewer rows than one."""
        return self.kind != "uniform"

    @cached_property
    def pointers(self) -> str:
        """Path of the pointers [N + 1] int64 in a store, of a level that has them."""
        return f"meta/{self}s_ptr" if self.built_in else f"meta/level_ptrs/{self}"

    @cached_property
    def mask(self) -> str | None:
        """Path of the mask of rows that were not deleted; None for levels of a user's own."""
        return f"meta/{'sample' if self == 'system' else self}s_mask" if self.built_in else None

    @property
    def batch_pointers(self) -> str:
        """Name of the pointers [B + 1] in a batch, for messages."""
        return {"atom": "batch_ptr", "edge": "edge_ptr"}.get(self, f"level_ptr({str(self)!r})")

    @property
    def counted_by(self) -> str:
        """What fixes the number of rows of a batch, for messages."""
        known = {"system": "batch pointers", "atom": "positions"}
        known["edge"] = "edge pointers or the neighbor_list"
        return known.get(self, f"pointers or the first field of {self}s")

    @property
    def least(self) -> int:
        """Fewest rows of a system."""
        return 1 if self == "atom" or self.kind == "uniform" else 0

    @property
    def expected(self) -> int:
        """Rows of a system that the sizes of chunks are made for."""
        if self.kind == "product":
            return min(64 * 64, self.parents[0].expected * self.parents[1].expected)
        return {"system": 1, "atom": 64, "edge": 64 * 32}.get(
            self, 1 if self.kind == "uniform" else 64
        )

    @property
    def definition(self) -> dict[str, str]:
        """Definition of a level of the user's own in the attributes of a store."""
        parents = [_PEER_NAMES.get(parent, str(parent)) for parent in self.parents]
        return {"kind": self.kind, **dict(zip(("left", "right"), parents, strict=False))}

    def same_as(self, other: "Level") -> bool:
        """Whether two levels of one name are defined alike."""
        return (self, self.kind, self.parents) == (other, other.kind, other.parents)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _restored, (str(self), self.kind, *self.parents)


def _restored(name: str, kind: Kind, *parents: Level) -> Level:
    return BUILT_IN.get(name) or Level._made(name, kind, *parents)


BUILT_IN: Mapping[str, Level] = {
    "system": Level._made("system", "uniform"),
    "atom": Level._made("atom", "segmented"),
    "edge": Level._made("edge", "segmented"),
}
"""The levels that every store has, by name."""

Level.SYSTEM, Level.ATOM, Level.EDGE = BUILT_IN.values()


def level_names() -> str:
    """The built-in levels, for messages."""
    *others, last = (repr(str(name)) for name in BUILT_IN)
    return f"{', '.join(others)} or {last}"


def pointer_levels(levels: Iterable[Level]) -> tuple[Level, ...]:
    """Levels with pointers in the order of their numbers: atoms, edges, then those of `levels`.

    A product comes after its parents, which are added where they are missing.

    Examples
    --------
    >>> angle, pair = Level.segmented("angle"), Level.product("pair", "atom", "atom")
    >>> pointer_levels([Level.SYSTEM, pair, Level.EDGE, angle])
    ('atom', 'edge', 'pair', 'angle')
    """
    found = {Level.ATOM: None, Level.EDGE: None}
    for level in levels:
        for one in (*level.parents, level):
            if one.has_pointers:
                found[one] = None
    return tuple(found)


def united(known: Iterable[Level], new: Iterable[Level]) -> tuple[Level, ...]:
    """Levels of a user's own of both, in order; refuses two of one name that differ."""
    levels: dict[str, Level] = {}
    for level in (*known, *new):
        for one in (*level.parents, level):
            if one.built_in:
                continue
            other = levels.setdefault(str(one), one)
            if not other.same_as(one):
                raise FieldError(
                    f"level {one!r} is {described(one)} here and {described(other)} there: "
                    "use another name for one of them"
                )
    return tuple(levels.values())


def described(level: Level) -> str:
    """Kind of a level, for messages."""
    if level.kind != "product":
        return level.kind
    return f"the product of {' and '.join(map(repr, map(str, level.parents)))}"


def defined(definitions: Mapping[str, Mapping[str, str]]) -> dict[str, Level]:
    """Levels of the definitions of a store, by name.

    Raises FieldError for a definition that cannot be understood; parents come before their product.
    """
    levels: dict[str, Level] = {}
    by_peer_name = {peer: BUILT_IN[name] for name, peer in _PEER_NAMES.items()}
    for name, definition in definitions.items():
        kind = definition.get("kind")
        if kind == "product":
            known = {**by_peer_name, **levels}
            parents = [known.get(str(definition.get(side))) for side in ("left", "right")]
            if None in parents:
                raise FieldError(
                    f"level {name!r} is a product of {definition.get('left')!r} and "
                    f"{definition.get('right')!r}, which are not defined before it"
                )
            levels[name] = Level.product(name, *parents)  # type: ignore[arg-type]
        elif kind in ("uniform", "segmented"):
            levels[name] = getattr(Level, kind)(name)
        else:
            raise FieldError(
                f"level {name!r} is of kind {kind!r}; expected 'uniform', 'segmented' or 'product'"
            )
    return levels


def _check_name(name: object) -> None:
    """Refuse a name that cannot be that of a group of a store, or that means another level."""
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise FieldError(
            f"level name {name!r} must be a Python identifier without a leading underscore: it "
            "becomes the name of a Zarr group"
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise FieldError(
            f"level name {name[:20]!r}... has {len(name.encode())} bytes, expected at most "
            f"{_LONGEST_NAME}"
        )
    if name in _RESERVED:
        raise FieldError(
            f"level name {name!r} means a level that every store has: use another, as 'bond'"
        )
