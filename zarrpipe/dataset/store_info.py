"""What `zarrpipe.info` says of a store."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from zarrpipe.data.tables import Table, html_tables
from zarrpipe.store.check.report import FieldFacts, shape_text
from zarrpipe.store.format.metadata import Mark

_FIRST = 12
_NONE: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True)
class FieldInfo(FieldFacts):
    """A stored field and its array.

    Parameters
    ----------
    name, level, dtype, unit : str
        As the field is stored; "" for no unit.
    shape : tuple of int
        Shape of a row.
    present : int
        Samples that have the field, without deleted ones.
    chunk_rows, shard_rows : int
        Rows of a chunk, and of a shard; 0 without shards.
    codec : str
        Names of Zarr's codecs, "" for plain bytes.
    bytes_stored : int or None
        Bytes that its chunks take; None where counting them would ask an object store for each.
    """

    chunk_rows: int = 0
    shard_rows: int = 0
    codec: str = ""
    bytes_stored: int | None = None


@dataclass(frozen=True)
class Spread:
    """The smallest, the median and the largest of some numbers; NaN if there are none.

    `count` values are finite, `not_finite` are not, and `looked_at` samples were read of the
    `samples` that there are.
    """

    unit: str
    smallest: float
    median: float
    largest: float
    count: int
    not_finite: int
    looked_at: int
    samples: int

    @property
    def estimated(self) -> bool:
        """Whether only some samples were read, so that there may be smaller and larger values."""
        return self.looked_at < self.samples


@dataclass(frozen=True)
class StoreInfo:
    """What a store has; `print` it to read it.

    Parameters
    ----------
    store : str
        Place of the store.
    samples, deleted, atoms, edges : int
        Numbers without deleted samples, and that of deleted ones, which still take up space.
    allocated : int
        Samples for which the arrays have room without a change of their metadata.
    generation : str
        Name that changes when samples are moved or removed; "" if another library wrote the store.
    writer : str
        Process that the lock names, "" for none.
    writing : bool
        Whether that process may be alive; otherwise it was killed.
    bytes_stored : int or None
        Bytes of all files; None where counting them would ask an object store for each.
    fields : tuple of FieldInfo
        The stored fields.
    levels : mapping of str to str
        Kinds of levels of a user's own, by name.
    elements : mapping of str to int
        Number of atoms by symbol, the most frequent first.
    atoms_per_sample, edges_per_sample : Spread
        Sizes of the samples.
    labels : mapping of str to Spread
        Of ``energy_per_atom``, ``max_force`` (the largest norm of the forces of a sample) and
        ``max_stress`` (its largest component, without sign), where the store has them.
    repeated : int or None
        Samples whose structure an earlier sample has too, by the ids; None if the store has none.
    rounds : mapping of int to int
        Number of samples by the value of the field ``round``, ascending.
    categories : mapping of str to mapping of str to int
        Number of samples by string, the most frequent first, by field of strings.
    imports : tuple
        What imports have recorded in the attributes of the store.
    marks : mapping of str to Mark
        Marks of the store, by name; see `ZarrData.mark`.
    """

    store: str
    samples: int
    deleted: int
    atoms: int
    edges: int
    allocated: int
    generation: str
    writer: str
    writing: bool
    bytes_stored: int | None
    fields: tuple[FieldInfo, ...]
    levels: Mapping[str, str]
    elements: Mapping[str, int]
    atoms_per_sample: Spread
    edges_per_sample: Spread
    labels: Mapping[str, Spread]
    repeated: int | None
    rounds: Mapping[int, int] = field(default_factory=lambda: _NONE)
    categories: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: _NONE)
    imports: tuple[Any, ...] = ()
    marks: Mapping[str, Mark] = field(default_factory=lambda: _NONE)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types, for JSON; the keys are the names of the parameters."""
        return {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}

    def tables(self) -> list[Table]:
        """Facts, fields and labels as tables of text; without rows there is no table."""
        facts = Table((), tuple(self._facts()), title=self.store)
        tables = [facts, self._fields_table(), self._labels_table()]
        return [table for table in tables if table.rows]

    def __str__(self) -> str:
        return "\n".join(map(str, self.tables()))

    def _repr_html_(self) -> str:
        """The same tables for notebooks."""
        return html_tables(self.tables())

    def _facts(self) -> Iterable[tuple[str, str]]:
        """Names and values of what is one line."""
        yield "samples", f"{self.samples:,} ({self.deleted:,} deleted)"
        yield "atoms", f"{self.atoms:,}{_per_sample(self.atoms_per_sample)}"
        yield "edges", f"{self.edges:,}{_per_sample(self.edges_per_sample)}"
        yield "elements", _listed(self.elements, "elements") or "none"
        if self.repeated is None:
            yield "repeated", "not known: the store has no ids"
        else:
            yield "repeated", f"{self.repeated:,} samples have the structure of an earlier one"
        if self.rounds:
            yield "round", _listed(self.rounds, "rounds")
        for name, counts in self.categories.items():
            yield name, _listed(counts, "strings") or "no strings"
        for name, kind in self.levels.items():
            yield f"level {name}", kind
        for one in self.imports:
            yield "import", _import_text(one)
        for name, mark in self.marks.items():
            yield f"mark {name}", _mark_text(mark, self.deleted)
        yield "stored", self._stored()
        yield "generation", self.generation or "none: another library wrote the store"
        yield "writer", self._lock()

    def _stored(self) -> str:
        held = "bytes not counted" if self.bytes_stored is None else f"{self.bytes_stored:,} bytes"
        room = f", arrays have room for {self.allocated:,} samples"
        return held + (room if self.allocated > self.samples + self.deleted else "")

    def _lock(self) -> str:
        if not self.writer:
            return "none"
        return self.writer if self.writing else f"none: {self.writer} did not close the store"

    def _fields_table(self) -> Table:
        header = ("field", "level", "dtype", "row", "unit", "samples", "chunk rows", "codec")
        rows = (
            (
                *(item.name, str(item.level), item.dtype, shape_text(item.shape)),
                *(item.unit or "-", f"{item.present:,}"),
                f"{item.chunk_rows:,}" + (f" of {item.shard_rows:,}" if item.shard_rows else ""),
                item.codec or "-",
                "-" if item.bytes_stored is None else f"{item.bytes_stored:,}",
            )
            for item in self.fields
        )
        return Table((*header, "bytes"), tuple(rows), (5, 6, 8), "fields:")

    def _labels_table(self) -> Table:
        header = ("label", "unit", "smallest", "median", "largest", "samples", "not finite", "of")
        rows = (
            (
                *(name, spread.unit or "-"),
                *(number_text(one) for one in (spread.smallest, spread.median, spread.largest)),
                *(f"{spread.count:,}", f"{spread.not_finite:,}"),
                f"{spread.looked_at:,} looked at" if spread.estimated else "all",
            )
            for name, spread in self.labels.items()
        )
        return Table(header, tuple(rows), (2, 3, 4, 5, 6), "labels:")


def number_text(value: float) -> str:
    """Number with six figures for people.

    >>> number_text(-3.25), number_text(1234567.0), number_text(float("nan"))
    ('-3.25', '1.23457e+06', 'nan')
    """
    return f"{value:.6g}"


def _per_sample(spread: Spread) -> str:
    """Sizes of the samples, for people."""
    if not spread.count or not spread.largest:
        return ""
    return (
        f", {number_text(spread.smallest)} to {number_text(spread.largest)} a sample, "
        f"median {number_text(spread.median)}"
    )


def _listed(counts: Mapping[Any, int], what: str) -> str:
    """The first counts, and how many more there are."""
    shown = ", ".join(f"{key}: {count:,}" for key, count in [*counts.items()][:_FIRST])
    more = len(counts) - _FIRST
    return f"{shown} and {more:,} more {what}" if more > 0 else shown


def _import_text(record: Any) -> str:
    """Sources of an import and what it read as which label; anything else as JSON."""
    try:
        first, *others = record["sources"]
        frames = sum(source["frames"] for source in record["sources"])
        text = f"{frames:,} frames of {first['path']}"
        text += f" and {len(others):,} more sources" if others else ""
        fields = (
            f"{name} from {', '.join(item['keys'])}{' in ' if item['unit'] else ''}{item['unit']}"
            for name, item in record.get("fields", {}).items()
        )
        text = "; ".join([text, *fields])
        return text if record.get("complete", True) else f"{text}; not complete"
    except (KeyError, TypeError, ValueError):
        return json.dumps(record, ensure_ascii=False)


def _mark_text(mark: Mark, deleted: int) -> str:
    """Number of samples of a mark, its time and note."""
    when = datetime.fromtimestamp(mark.time, UTC)
    text = f"{mark.count:,} samples, {when:%Y-%m-%d %H:%M:%S} UTC"
    if mark.deleted != deleted:
        text += f", of which {deleted - mark.deleted:,} were deleted since"
    return text if mark.note is None else f"{text}: {mark.note}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mark):
        return vars(value)
    if isinstance(value, Spread):
        return {**vars(value), "estimated": value.estimated}
    if isinstance(value, FieldInfo):
        return {**vars(value), "level": str(value.level), "shape": list(value.shape)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value
