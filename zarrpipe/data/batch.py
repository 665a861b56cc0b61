"""Many systems as one: each field is one tensor in which the systems follow each other (CSR)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from zarrpipe.data.buffers import Bytes, moved, owned
from zarrpipe.data.categories import checked_vocabulary
from zarrpipe.data.collate import PackedTensors, Parts, concatenated, one_system, selected
from zarrpipe.data.container import FieldTensors, check_index_of
from zarrpipe.data.csr import position_of, positions_of
from zarrpipe.data.fields import REQUIRED_FIELDS, Role
from zarrpipe.data.levels import Level
from zarrpipe.data.system import AtomicData
from zarrpipe.data.validate import check_indices, check_presence, checked_pointers
from zarrpipe.errors import ArgumentTypeError, FieldError, UnknownFieldError

Index = torch.Tensor | Sequence[int] | slice


class Batch(FieldTensors):
    """B systems with V atoms and E edges in all, one tensor per field.

    Parameters
    ----------
    fields : mapping of str to torch.Tensor
        ``[V, ...]``, ``[E, ...]`` or ``[B, ...]`` by level; ``positions`` and ``atomic_numbers``
        are needed. ``neighbor_list [E, 2]`` counts the atoms of the whole batch.
    batch_ptr : torch.Tensor [B+1] int64
        System b owns the atoms ``batch_ptr[b]:batch_ptr[b+1]``.
    edge_ptr : torch.Tensor [B+1] int64, optional
        The same for edges; needed when there is a field at edge level.
    levels : mapping of str to Level or str, optional
        Levels of fields that are not in the registry.
    level_ptrs : mapping of Level or str to torch.Tensor [B+1] int64, optional
        The same as `edge_ptr` for levels of the user's own; a name means a segmented level. Those
        of a product level count all pairs by default.
    index_of : mapping of str to Level or str, optional
        For fields of the user's own that are row numbers, the level whose rows in the batch they
        count.
    categories : mapping of str to sequence of str, optional
        For fields of strings, the vocabulary in which the values ``[B]`` int32 are places; by
        default, `fields` may have the strings themselves.
    present : mapping of str to torch.Tensor [B] bool, optional
        For each field that some system lacks, which systems have it. A row of a field that is
        absent holds NaN (0 for integers, False for bools).

    Raises
    ------
    FieldError
        If pointers fall, an empty system is among them, a field does not have the rows that the
        pointers say, or an edge leaves its system.

    Examples
    --------
    >>> hydrogen = AtomicData(positions=[[0.0, 0.0, 0.0], [0.0, 0.0, 0.74]], atomic_numbers=[1, 1])
    >>> helium = AtomicData(positions=[[0.0, 0.0, 0.0]], atomic_numbers=[2])
    >>> batch = Batch.from_data_list([hydrogen, helium])
    >>> batch.num_graphs, batch.num_nodes, batch.batch_ptr.tolist(), batch.batch_idx.tolist()
    (2, 3, [0, 2, 3], [0, 0, 1])
    """

    __slots__ = ("_batch_idx", "_buffer", "_bytes", "_pointers", "_present")

    _also: ClassVar[tuple[str, ...]] = ("batch_idx", "batch_ptr", "edge_ptr")
    _pointers: dict[Level, torch.Tensor]
    _present: dict[str, torch.Tensor]
    _batch_idx: torch.Tensor | None
    _buffer: Bytes | torch.Tensor | None
    _bytes: PackedTensors | None

    def __init__(
        self,
        fields: Mapping[str, torch.Tensor],
        batch_ptr: torch.Tensor,
        edge_ptr: torch.Tensor | None = None,
        *,
        levels: Mapping[str, Level | str] | None = None,
        level_ptrs: Mapping[Level | str, torch.Tensor] | None = None,
        index_of: Mapping[str, Level | str] | None = None,
        categories: Mapping[str, Sequence[str]] | None = None,
        present: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        for what, given in (
            ("fields", fields),
            ("levels", levels or {}),
            ("level_ptrs", level_ptrs or {}),
            ("index_of", index_of or {}),
            ("categories", categories or {}),
            ("present", present or {}),
        ):
            if not isinstance(given, Mapping):
                raise ArgumentTypeError(
                    f"{what} is a {type(given).__name__}, expected a mapping of field names"
                )
        for name in REQUIRED_FIELDS:
            if name not in fields:
                raise FieldError(f"a batch needs the field {name!r}; it has {sorted(fields)}")
        self._fields, self._roles, self._present = {}, {}, {}
        self._batch_idx = self._buffer = self._bytes = None
        check_index_of(index_of or {}, fields)
        own = _own_pointers(levels or {}, level_ptrs or {})
        self._pointers = checked_pointers({Level.ATOM: batch_ptr, Level.EDGE: edge_ptr, **own})
        self._fields["positions"] = fields["positions"]
        for name, value in fields.items():
            counted = (index_of or {}).get(name)
            self.add_field(name, value, (levels or {}).get(name), index_of=counted)
        for name, strings in (categories or {}).items():
            vocabulary = checked_vocabulary(name, strings)
            self._roles[name] = replace(self._role_for(name, None), categories=vocabulary)
            self._check_categories(name, self._roles[name], self._field(name))
        for name, mask in (present or {}).items():
            if name not in self._fields or name in REQUIRED_FIELDS:
                raise FieldError(
                    f"presence is given for {name!r}; the fields are {sorted(self._fields)}"
                )
            check_presence(name, mask, self.num_graphs)
            if not bool(mask.all()):
                self._present[name] = mask.to(batch_ptr.device)

    @classmethod
    def _trusted(
        cls,
        fields: dict[str, torch.Tensor],
        roles: dict[str, Role],
        pointers: dict[Level, torch.Tensor],
        present: dict[str, torch.Tensor],
        *,
        buffer: Bytes | torch.Tensor | None = None,
    ) -> Self:
        """Wrap tensors that are known to fit, without checking or copying.

        Most of them are views of `buffer`, which a transfer copies in one piece.
        """
        batch = cls.__new__(cls)
        batch._put(fields, roles, pointers, present, buffer)
        return batch

    def _put(
        self,
        fields: dict[str, torch.Tensor],
        roles: dict[str, Role],
        pointers: dict[Level, torch.Tensor],
        present: dict[str, torch.Tensor],
        buffer: Bytes | torch.Tensor | None,
    ) -> None:
        """Fill the slots."""
        put = object.__setattr__  # the class's own looks for fields, which costs more than all this
        put(self, "_fields", fields)
        put(self, "_roles", roles)
        put(self, "_pointers", pointers)
        put(self, "_present", present)
        put(self, "_batch_idx", None)
        put(self, "_buffer", buffer)
        put(self, "_bytes", None)

    @classmethod
    def _of_bytes(cls, packed: PackedTensors) -> Self:
        """Batch that makes its tensors, as views of the bytes, at the first access."""
        batch = cls.__new__(cls)
        put = object.__setattr__
        put(batch, "_bytes", packed)
        put(batch, "_buffer", packed.buffer)
        return batch

    def _unset(self, name: str) -> Any:
        """Make the tensors of a batch that has only bytes so far, and return the named slot."""
        if name not in _MADE_LATER:
            raise AttributeError(name)
        packed = self._bytes
        if packed is not None:
            self._put(*packed.parts(), packed.buffer)
        return object.__getattribute__(self, name)

    @classmethod
    def from_data_list(
        cls, data_list: Sequence[AtomicData], device: torch.device | str | None = None
    ) -> Self:
        """Concatenate systems; a field that some of them lack is filled and marked absent.

        Parameters
        ----------
        data_list : sequence of AtomicData
            At least one system.
        device : torch.device or str, optional
            Where the batch is to be; by default where the systems are.

        Raises
        ------
        FieldError
            If the list is empty, or two systems have a field at different levels, dtypes or
            trailing shapes.
        """
        batch = cls.concatenate(data_list)
        return batch if device is None else batch.to(device)

    @classmethod
    def concatenate(cls, parts: Sequence[AtomicData | Batch]) -> Self:
        """One batch of the systems of several batches or single systems, in order.

        Raises
        ------
        FieldError
            As `from_data_list`.
        """
        parts = list(parts)
        for part in parts:
            if not isinstance(part, FieldTensors):
                raise FieldError(
                    f"a batch is made of AtomicData or Batch objects, not of a "
                    f"{type(part).__name__}: zarrpipe.adapters.as_batch converts what it knows"
                )
        if not parts:
            raise FieldError("an empty list makes no batch: expected at least one system")
        return cls._trusted(*concatenated(parts))

    @property
    def num_graphs(self) -> int:
        """Number of systems B."""
        return self._pointers[Level.ATOM].shape[0] - 1

    @property
    def num_edges(self) -> int:
        """Number of edges E of the whole batch."""
        for name, role in self._roles.items():
            if role.level is Level.EDGE:
                return self._fields[name].shape[0]
        return self.num_rows(Level.EDGE)

    @property
    def batch_ptr(self) -> torch.Tensor:
        """Pointers to the atoms of each system, [B+1] int64."""
        return self._pointers[Level.ATOM]

    @property
    def edge_ptr(self) -> torch.Tensor:
        """Pointers to the edges of each system, [B+1] int64."""
        return self._pointers[Level.EDGE]

    def level_ptr(self, level: str) -> torch.Tensor:
        """Pointers to the rows that each system has at a level, [B+1] int64.

        Raises
        ------
        FieldError
            If the batch has no such level.
        """
        ptr = self._pointers.get(level)  # type: ignore[call-overload]
        if ptr is not None:
            return cast("torch.Tensor", ptr)
        self._check_level(str(level) if isinstance(level, Level) else level)
        return torch.arange(self.num_graphs + 1, device=self.batch_ptr.device)

    @property
    def pointer_levels(self) -> tuple[Level, ...]:
        """Levels whose systems may have any number of rows: atoms, edges and a user's own."""
        return tuple(self._pointers)

    @property
    def batch_idx(self) -> torch.Tensor:
        """System of each atom, [V] int64."""
        if self._batch_idx is None:
            ptr = self.batch_ptr
            self._batch_idx = torch.repeat_interleave(
                torch.arange(self.num_graphs, device=ptr.device),
                ptr.diff(),
                output_size=self.num_nodes,
            )
        return self._batch_idx

    @property
    def num_nodes_per_graph(self) -> torch.Tensor:
        """Number of atoms of each system, [B] int64."""
        return self.batch_ptr.diff()

    @property
    def num_edges_per_graph(self) -> torch.Tensor:
        """Number of edges of each system, [B] int64."""
        return self.edge_ptr.diff()

    @property
    def num_nodes_list(self) -> list[int]:
        """Number of atoms of each system."""
        return [int(n) for n in self.num_nodes_per_graph.tolist()]

    @property
    def num_edges_list(self) -> list[int]:
        """Number of edges of each system."""
        return [int(n) for n in self.num_edges_per_graph.tolist()]

    @property
    def partly_present(self) -> frozenset[str]:
        """Names of the fields that some system lacks; `present` says which."""
        return frozenset(self._present)

    def present(self, name: str) -> torch.Tensor:
        """Which systems have the field, [B] bool, so that a loss leaves the others out.

        Rows of the others hold NaN, which stays NaN times zero: select rows, do not weight them.
        It is known wherever a batch comes from, a store, a loader or a list of systems, and moves
        with it.

        Raises
        ------
        UnknownFieldError
            If no system of the batch has the field.

        Examples
        --------
        A loss of energies and forces, of which the second system has no energy:

        >>> batch = Batch.from_data_list(
        ...     [
        ...         AtomicData([[0.0, 0.0, 0.0]], [1], energy=-13.5, forces=[[0.0, 0.0, 0.1]]),
        ...         AtomicData([[0.0, 0.0, 0.0]], [2], forces=[[0.3, 0.0, 0.0]]),
        ...     ]
        ... )
        >>> energy = torch.tensor([[-13.0], [-79.0]], dtype=torch.float64, requires_grad=True)
        >>> forces = torch.zeros(2, 3, requires_grad=True)
        >>> labelled = batch.present("energy")
        >>> loss = (energy - batch.energy)[labelled].square().mean()
        >>> atoms = batch.present("forces")[batch.batch_idx]
        >>> loss = loss + (forces - batch.forces)[atoms].square().mean()
        >>> labelled.tolist(), round(loss.item(), 4)
        ([True, False], 0.2667)
        >>> loss.backward()
        >>> energy.grad.flatten().tolist()
        [1.0, 0.0]
        """
        if name not in self._fields:
            raise UnknownFieldError(
                f"no system of the batch has field {name!r}; it has {', '.join(self._fields)}"
            )
        return self.has(name)

    def has(self, name: str) -> torch.Tensor:
        """Which systems have the field, [B] bool; none where it is not here."""
        mask = self._present.get(name)
        if mask is not None:
            return mask
        return torch.full((self.num_graphs,), name in self._fields, device=self.batch_ptr.device)

    def rows_per_graph(self, level: str) -> torch.Tensor:
        """Number of rows that a field of `level` has in each system, [B] int64.

        None where the batch lacks the level.
        """
        ptr = self._pointers.get(level)  # type: ignore[call-overload]
        if ptr is not None:
            return cast("torch.Tensor", ptr.diff())
        self._check_level(level)
        lacks = isinstance(level, Level) and level.has_pointers
        return (torch.zeros_like if lacks else torch.ones_like)(self.batch_ptr[1:])

    def num_rows(self, level: str) -> int:
        """Number of rows that a field of `level` has here."""
        ptr = self._pointers.get(level)  # type: ignore[call-overload]
        if ptr is not None:
            return int(ptr[-1])
        self._check_level(level)
        return 0 if isinstance(level, Level) and level.has_pointers else self.num_graphs

    def add_field(
        self,
        name: str,
        value: Any,
        level: Level | str | None = None,
        *,
        index_of: Level | str | None = None,
    ) -> Self:
        """Set a field for every system; see `FieldTensors.add_field`.

        Row numbers count the rows of the whole batch, and must stay inside their system, as an edge
        of a ``neighbor_list``. A new level of the user's own with any number of rows is given
        to the constructor, by `level_ptrs`.
        """
        role = self._role_for(name, level, index_of)
        if role.level.has_pointers and role.level not in self._pointers:
            raise FieldError(
                f"field {name!r} is at level {role.level!r}, whose rows the batch does not "
                f"know: give Batch(..., level_ptrs={{level: pointers}})"
            )
        if role.index_of is not None:
            value = self._as_tensor(name, value)
            own, target = self.level_ptr(role.level), self.level_ptr(role.index_of)
            check_indices(name, value, own, target, (role.level, role.index_of))
        super().add_field(name, value, level, index_of=index_of)
        self._present.pop(name, None)
        return self

    def without(self, *names: str) -> Self:
        """Batch that shares the tensors but lacks the named fields.

        Raises
        ------
        FieldError
            If a name is not among the fields or is needed.
        """
        for name in names:
            if name not in self._fields or name in REQUIRED_FIELDS:
                raise FieldError(f"field {name!r} cannot be left out of {sorted(self._fields)}")
        return self._trusted(
            {name: value for name, value in self._fields.items() if name not in names},
            {name: role for name, role in self._roles.items() if name not in names},
            self._pointers,
            {name: mask for name, mask in self._present.items() if name not in names},
        )

    def _replace(self, fields: Mapping[str, torch.Tensor]) -> Self:
        """Batch with other tensors for some of its fields; all else is shared."""
        return self._trusted(
            {**self._fields, **fields},
            dict(self._roles),
            self._pointers,
            dict(self._present),
            buffer=self._buffer,
        )

    def get_data(self, index: int) -> AtomicData:
        """System `index` with the fields that it has; its tensors share memory with the batch.

        Raises
        ------
        SampleIndexError
            If there is no such system.
        """
        index = position_of(index, self.num_graphs, "system", "a batch")
        return AtomicData._trusted(*one_system(self._parts, index))

    def view(self, index: int = 0, viewer: str | None = None) -> Any:
        """Widget that shows a system in a notebook; see `AtomicData.view`.

        Parameters
        ----------
        index : int
            Which system.
        viewer : {"chemiscope", "py3dmol", "ase"}, optional
            Library that draws it.

        Raises
        ------
        SampleIndexError
            If there is no such system.
        """
        return self.get_data(index)._view(viewer, f"system {index % self.num_graphs}")

    @property
    def _parts(self) -> Parts:
        return self._fields, self._roles, self._pointers, self._present

    def to_data_list(self) -> list[AtomicData]:
        """Every system, as `get_data` gives it."""
        return [self.get_data(index) for index in range(self.num_graphs)]

    def index_select(self, index: Index) -> Self:
        """Batch of the systems at `index`, in that order; repeats are allowed.

        Parameters
        ----------
        index : tensor, sequence or slice
            Integers counted from either end, a bool mask [B], or a slice.

        Raises
        ------
        SampleIndexError
            If an index is outside of the batch, a mask has another length, or it is neither.
        """
        rows = positions_of(index, self.num_graphs, "system", "a batch")
        chosen = torch.from_numpy(rows).to(self.batch_ptr.device)
        return self._trusted(*selected(self._parts, chosen))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        return self._trusted(
            {name: function(value) for name, value in self._fields.items()},
            dict(self._roles),
            {level: function(ptr) for level, ptr in self._pointers.items()},
            {name: function(mask) for name, mask in self._present.items()},
        )

    def _transfer(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Copy of the batch, in one piece if it is views of one buffer."""
        if self._bytes is not None:
            return self._of_bytes(self._bytes.transferred(copy))
        if self._buffer is None:
            return self._map(copy)
        tensors = {("field", name): value for name, value in self._fields.items()}
        tensors |= {("present", name): mask for name, mask in self._present.items()}
        tensors |= {("pointers", str(level)): ptr for level, ptr in self._pointers.items()}
        buffer, copied = moved(torch.as_tensor(self._buffer), tensors, copy)
        return self._trusted(
            {name: copied["field", name] for name in self._fields},
            dict(self._roles),
            {level: copied["pointers", str(level)] for level in self._pointers},
            {name: copied["present", name] for name in self._present},
            buffer=buffer,
        )

    def __getstate__(self) -> tuple[None, dict[str, Any]]:
        own = self._map(owned)
        state = {name: getattr(own, name) for name in (*FieldTensors.__slots__, *self.__slots__)}
        return None, state

    def __len__(self) -> int:
        return self.num_graphs

    def __getitem__(self, key: str | int | Index) -> Any:
        if isinstance(key, str):
            return self._field(key)
        return self.get_data(key) if isinstance(key, int) else self.index_select(key)

    def __repr__(self) -> str:
        sizes = f"num_graphs={self.num_graphs}, num_nodes={self.num_nodes}"
        return f"Batch({sizes}, num_edges={self.num_edges}, {', '.join(self._fields)})"


def collate(samples: Sequence[AtomicData | Batch] | Batch, **_: Any) -> Batch:
    """Batch of a list of samples; a `Batch` is passed through.

    torch's ``default_collate`` finds it for both types, so that a DataLoader needs none by hand.

    Raises
    ------
    FieldError
        If the list is empty or its samples do not fit each other.
    """
    return samples if isinstance(samples, Batch) else Batch.concatenate(samples)


default_collate_fn_map[AtomicData] = collate
default_collate_fn_map[Batch] = collate


def _own_pointers(
    levels: Mapping[str, Level | str], pointers: Mapping[Level | str, torch.Tensor]
) -> dict[Level, torch.Tensor | None]:
    """Pointers of the levels of a user's own in the arguments of a batch; None where not given."""
    found: dict[Level, torch.Tensor | None] = {
        level if isinstance(level, Level) else Level.segmented(level): ptr
        for level, ptr in pointers.items()
    }
    for level in levels.values():
        if isinstance(level, Level) and level.has_pointers and not level.built_in:
            found.setdefault(level, None)
    return found


_MADE_LATER = ("_fields", "_roles", "_batch_idx", "_pointers", "_present")
