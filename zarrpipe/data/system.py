"""One atomic system: a molecule or a crystal, with its labels."""

from __future__ import annotations

import importlib
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

from zarrpipe.data.categories import are_strings
from zarrpipe.data.container import FieldTensors, check_index_of
from zarrpipe.data.fields import CORE_FIELDS, Role, level_of
from zarrpipe.data.levels import BUILT_IN, Level
from zarrpipe.errors import ArgumentTypeError, FieldError


class AtomicData(FieldTensors):
    """One atomic system.

    Parameters
    ----------
    positions : array_like [n, 3]
        Cartesian coordinates in Angstrom, float32 or float64; at least one atom.
    atomic_numbers : array_like [n]
        Atomic numbers.
    atom, edge, system : mapping of str to array_like, optional
        Fields of the user's own by level: ``[n, ...]``, ``[e, ...]`` and ``[1, ...]``. A single
        number of a system becomes ``[1, 1]``, a row of shape ``(1,)`` as the energy is one;
        ``[number]`` is a row of shape ``()``, and a store keeps to the one that it begins with.
    other_levels : mapping of Level or str to mapping of str to array_like, optional
        Fields at levels of the user's own, ``[rows, ...]``; a name means a segmented level, as
        ``{"bond": {"bond_order": [1.0, 2.0]}}``. A field of a product level is ``[n, m, ...]`` or
        ``[n * m, ...]`` for the n and m rows of its parents, and is kept as the latter.
    index_of : mapping of str to Level or str, optional
        For fields of the user's own that are row numbers, the level whose rows in this system they
        count, as ``{"bond_atoms": "atom"}``.
    **fields : array_like, optional
        Fields of the registry, for example ``energy [1, 1]`` in eV, ``forces [n, 3]`` in
        eV/Angstrom, ``cell [1, 3, 3]`` with lattice vectors as rows, ``pbc [1, 3]``,
        ``stress [1, 3, 3]`` in eV/Angstrom^3, tensile positive, ``neighbor_list [e, 2]`` (pairs
        i, j of atoms of this system) and ``neighbor_list_shifts [e, 3]``, so that the vector of an
        edge is ``positions[j] + shift @ cell - positions[i]``. None is left out. A field
        at system level of the registry may come without its leading 1, and a single number where
        the row is ``(1,)``. Arrays keep their dtype; lists take that of the positions (float32 if
        those are a list too), and a single Python number is kept in float64.

    Raises
    ------
    FieldError
        If a field does not fit: its first length is not the number of atoms or edges, an edge
        points outside of the system, or a trailing shape, dtype or device is wrong.

    Examples
    --------
    >>> water = AtomicData(
    ...     positions=[[0.0, 0.0, 0.12], [0.0, 0.76, -0.48], [0.0, -0.76, -0.48]],
    ...     atomic_numbers=[8, 1, 1],
    ...     energy=-14.2,
    ...     system={"temperature": [300.0]},
    ... )
    >>> water.num_nodes, tuple(water.energy.shape), sorted(water.keys["system"])
    (3, (1, 1), ['energy', 'temperature'])
    """

    __slots__ = ("_rows",)

    _rows: dict[Level, int]

    def __init__(
        self,
        positions: Any,
        atomic_numbers: Any,
        *,
        atom: Mapping[str, Any] | None = None,
        edge: Mapping[str, Any] | None = None,
        system: Mapping[str, Any] | None = None,
        other_levels: Mapping[Level | str, Mapping[str, Any]] | None = None,
        index_of: Mapping[str, Level | str] | None = None,
        **fields: Any,
    ) -> None:
        self._fields, self._roles, self._rows = {}, {}, {Level.ATOM: 0, Level.EDGE: 0}
        coordinates = self._as_tensor("positions", positions)
        if coordinates.ndim != 2 or coordinates.shape[1] != 3 or coordinates.shape[0] == 0:
            raise FieldError(
                f"field 'positions' has shape {tuple(coordinates.shape)}, expected (n, 3) with "
                "at least one atom: an empty system cannot be stored"
            )
        self._fields["positions"] = coordinates
        self._rows[Level.ATOM] = coordinates.shape[0]
        self.add_field("positions", coordinates)
        self.add_field("atomic_numbers", atomic_numbers)
        groups = [(Level.ATOM, atom), (Level.EDGE, edge), (Level.SYSTEM, system)]
        groups += _mapping("other_levels", other_levels).items()
        counted = _mapping("index_of", index_of)
        named = {"positions", "atomic_numbers", *fields}
        check_index_of(counted, named.union(*(_mapping(level, group) for level, group in groups)))
        given = [
            (name, value, level if level is None else _own_level(level))
            for level, group in ((None, fields), *groups)
            for name, value in _mapping(level, group).items()
            if value is not None
        ]
        for name, value, level in sorted(given, key=lambda item: _order(item[0], item[2], counted)):
            self.add_field(name, value, level, index_of=counted.get(name))

    @classmethod
    def _trusted(
        cls, fields: dict[str, torch.Tensor], roles: dict[str, Role], rows: dict[Level, int]
    ) -> Self:
        """Wrap tensors that are known to fit, without checking or copying."""
        data = cls.__new__(cls)
        data._fields, data._roles, data._rows = fields, roles, rows
        return data

    @property
    def num_edges(self) -> int:
        """Number of edges; 0 without a neighbour list."""
        return self._rows[Level.EDGE]

    @property
    def num_graphs(self) -> int:
        """Always 1."""
        return 1

    @property
    def pointer_levels(self) -> tuple[Level, ...]:
        """Levels whose systems may have any number of rows: atoms, edges and a user's own."""
        return tuple(self._rows)

    def num_rows(self, level: str) -> int:
        """Number of rows that a field of `level` has here; 0 where the system lacks the level."""
        self._check_level(level)
        lacks = isinstance(level, Level) and level.has_pointers
        return self._rows.get(level, 0 if lacks else 1)  # type: ignore[call-overload,no-any-return]

    def rows_per_graph(self, level: str) -> torch.Tensor:
        """Number of rows that a field of `level` has here, [1] int64."""
        return torch.tensor([self.num_rows(level)])

    def has(self, name: str) -> torch.Tensor:
        """Whether the system has the field, [1] bool."""
        return torch.full((1,), name in self._fields, device=self.device)

    def add_field(
        self,
        name: str,
        value: Any,
        level: Level | str | None = None,
        *,
        index_of: Level | str | None = None,
    ) -> Self:
        """Set a field; see `FieldTensors.add_field`.

        The first field at edge level decides the number of edges, and so at segmented levels of the
        user's own.
        """
        role = self._role_for(name, level, index_of)
        at = role.level
        if name not in CORE_FIELDS and are_strings(value):
            return super().add_field(name, value, at, index_of=index_of)
        if not at.has_pointers:
            value = _with_leading_one(name, self._as_tensor(name, value), value)
        elif at != Level.ATOM:
            value = self._as_tensor(name, value)
            if at.parents:
                value = self._as_pairs(name, value, at)
            if role.index_of is not None:
                self._check_indices(name, value, role.index_of)
            if value.ndim == 0 and name not in CORE_FIELDS:
                raise FieldError(
                    f"field {name!r} is a single number, expected a list with a row for each {at}"
                )
            if value.ndim and not self.keys.get(at, set()) - {name}:
                return self._count_rows_by(name, value, role)
        elif role.index_of is not None:
            value = self._as_tensor(name, value)
            self._check_indices(name, value, role.index_of)
        return super().add_field(name, value, at, index_of=index_of)

    def _as_pairs(self, name: str, value: torch.Tensor, level: Level) -> torch.Tensor:
        """Rows [n * m, ...] of a field at a product level that may be given as [n, m, ...]."""
        n, m = (self.num_rows(parent) for parent in level.parents)
        if value.shape[:2] == (n, m):
            return value.flatten(0, 1)
        if value.shape[:1] == (n * m,):
            return value
        left, right = level.parents
        raise FieldError(
            f"field {name!r} has shape {tuple(value.shape)}, expected ({n}, {m}, ...) or "
            f"({n * m}, ...): one row for each pair of {left}s and {right}s"
        )

    def _count_rows_by(self, name: str, value: torch.Tensor, role: Role) -> Self:
        """Set the only field of its level; its length becomes the level's number of rows."""
        before = self._rows.get(role.level)
        self._rows[role.level] = int(value.shape[0])
        try:
            return super().add_field(name, value, role.level, index_of=role.index_of)
        except FieldError:
            if before is None:
                del self._rows[role.level]
            else:
                self._rows[role.level] = before
            raise

    def _check_indices(self, name: str, values: torch.Tensor, counted: Level) -> None:
        """Refuse row numbers outside of this system."""
        if values.numel() == 0 or values.is_floating_point():
            return
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= self.num_rows(counted):
            raise FieldError(
                f"field {name!r} has indices from {low} to {high}, expected 0 to "
                f"{self.num_rows(counted) - 1}: they count the {counted}s of this system alone"
            )

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        fields = {name: function(value) for name, value in self._fields.items()}
        return self._trusted(fields, dict(self._roles), dict(self._rows))

    def view(self, viewer: str | None = None) -> Any:
        """Widget that shows the structure, as the last line of a notebook's cell.

        Parameters
        ----------
        viewer : {"chemiscope", "py3dmol", "ase"}, optional
            Library that draws it; by default the first of these that is installed
            (``pip install 'zarrpipe[report]'``). Chemiscope also shows the forces, as arrows, and
            needs no network; browsers fetch the scripts of the others. Outside of a notebook ASE
            opens a window of its own.

        Returns
        -------
        object
            Widget of chemiscope, view of py3Dmol, or HTML of ASE.

        Raises
        ------
        ArgumentError
            If `viewer` is none of the three, or ASE finds no display for its window.
        MissingLibraryError
            If the library is not installed, or none is.
        """
        return self._view(viewer)

    def _view(self, viewer: str | None, name: str = "") -> Any:
        """Widget of the structure, with a name in its title."""
        # A room above this one, which is imported for this call alone.
        return importlib.import_module("zarrpipe.adapters.viewers").view(self, viewer, name)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._field(name)

    def __repr__(self) -> str:
        names = ", ".join(self._fields)
        return f"AtomicData(num_nodes={self.num_nodes}, num_edges={self.num_edges}, {names})"


def _mapping(what: str | None, given: Any) -> Mapping[Any, Any]:
    """Argument that must be a mapping; an empty one for None."""
    if given is not None and not isinstance(given, Mapping):
        kind = "of your own fields to their values" if what != "index_of" else "of fields to levels"
        raise ArgumentTypeError(
            f"{what} is a {type(given).__name__}, expected a mapping of the names {kind}"
        )
    return given or {}


def _own_level(level: Level | str) -> Level:
    """Level of a group of fields; a name that is not built in means a segmented level."""
    if isinstance(level, Level):
        return level
    return BUILT_IN.get(level) or Level.segmented(level)


def _order(
    name: str, level: Level | None, index_of: Mapping[str, Level | str]
) -> tuple[bool, bool, bool]:
    """Place of a field among those to set: pairs last, and row numbers after what they count."""
    at = level_of(name, level)
    counted = index_of.get(name, CORE_FIELDS[name].index_of if name in CORE_FIELDS else None)
    return bool(at.parents), counted not in (None, Level.ATOM), counted is None


def _with_leading_one(name: str, value: torch.Tensor, given: Any) -> torch.Tensor:
    """Add the leading 1 that a row of a system-level field may lack, or refuse its shape.

    A field that is not in the registry must have it; the message shows the value as `given`.
    """
    spec = CORE_FIELDS.get(name)
    row = None if spec is None else spec.shape
    if value.ndim == 0 and row in (None, (1,)):
        return value.reshape(1, 1)
    if row is None and value.shape[:1] != (1,):
        listed = isinstance(given, list | tuple)
        way = f": {reprlib.repr([given])}" if listed else ", as by [None]"
        raise FieldError(
            f"field {name!r} has shape {tuple(value.shape)}, expected one row for the one system: "
            f"give shape {(1, *value.shape)}{way}"
        )
    if row is None or tuple(value.shape) == (1, *row):
        return value
    if tuple(value.shape) == row:
        return value.unsqueeze(0)
    raise FieldError(
        f"field {name!r} has shape {tuple(value.shape)}, expected {(1, *row)} or {row} for a system"
    )
