"""One atomic system: a molecule or a crystal, with its labels."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

from zarrpipe.data.container import FieldTensors
from zarrpipe.data.fields import CORE_FIELDS, INDEX_FIELDS, SEGMENTED, Level, level_of
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
        **fields: Any,
    ) -> None:
        self._fields, self._levels, self._rows = {}, {}, dict.fromkeys(SEGMENTED, 0)
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
        own = ((Level.ATOM, atom), (Level.EDGE, edge), (Level.SYSTEM, system))
        for level, group in own:
            if group is not None and not isinstance(group, Mapping):
                raise ArgumentTypeError(
                    f"{level.value} is a {type(group).__name__}, expected a mapping of the names "
                    "of your own fields to their values"
                )
        given = [
            (name, value, level_of(name, level))
            for level, group in ((None, fields), *own)
            for name, value in (group or {}).items()
            if value is not None
        ]
        for name, value, level in sorted(given, key=lambda item: item[0] not in INDEX_FIELDS):
            self.add_field(name, value, level)

    @classmethod
    def _trusted(
        cls, fields: dict[str, torch.Tensor], levels: dict[str, Level], rows: dict[Level, int]
    ) -> Self:
        """Wrap tensors that are known to fit, without checking or copying."""
        data = cls.__new__(cls)
        data._fields, data._levels, data._rows = fields, levels, rows
        return data

    @property
    def num_edges(self) -> int:
        """Number of edges; 0 without a neighbour list."""
        return self._rows[Level.EDGE]

    @property
    def num_graphs(self) -> int:
        """Always 1."""
        return 1

    def rows(self, level: Level) -> int:
        """Number of rows that a field of `level` has here."""
        return self._rows.get(level, 1)

    def rows_per_graph(self, level: Level) -> torch.Tensor:
        """Number of rows that a field of `level` has here, [1] int64."""
        return torch.tensor([self.rows(level)])

    def has(self, name: str) -> torch.Tensor:
        """Whether the system has the field, [1] bool."""
        return torch.full((1,), name in self._fields, device=self.device)

    def add_field(self, name: str, value: Any, level: Level | str | None = None) -> Self:
        """Set a field; see `FieldTensors.add_field`.

        The first field at edge level decides the number of edges.
        """
        resolved = self._level_for(name, level)
        if resolved not in SEGMENTED:
            value = _with_leading_one(name, self._as_tensor(name, value), value)
        elif resolved is not Level.ATOM:
            value = self._as_tensor(name, value)
            if name in INDEX_FIELDS:
                self._check_indices(name, value)
            if value.ndim and not self.keys[resolved] - {name}:
                return self._count_rows_by(name, value, resolved)
        return super().add_field(name, value, level)

    def _count_rows_by(self, name: str, value: torch.Tensor, level: Level) -> Self:
        """Set the only field of its level; its length becomes the level's number of rows."""
        before, self._rows[level] = self._rows[level], int(value.shape[0])
        try:
            return super().add_field(name, value, level)
        except FieldError:
            self._rows[level] = before
            raise

    def _check_indices(self, name: str, values: torch.Tensor) -> None:
        """Refuse row numbers outside of this system."""
        if values.numel() == 0:
            return
        counted = INDEX_FIELDS[name]
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= self.rows(counted):
            raise FieldError(
                f"field {name!r} has indices from {low} to {high}, expected 0 to "
                f"{self.rows(counted) - 1}: they count the {counted.value}s of this system alone"
            )

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        fields = {name: function(value) for name, value in self._fields.items()}
        return self._trusted(fields, dict(self._levels), dict(self._rows))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._field(name)

    def __repr__(self) -> str:
        names = ", ".join(self._fields)
        return f"AtomicData(num_nodes={self.num_nodes}, num_edges={self.num_edges}, {names})"


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
