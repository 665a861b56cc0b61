"""Marks of a parent: a name for what all of its parts had at a moment.

A mark is a group ``mark-<name>`` of the parent, put only if it does not exist, with the number of
samples of each part and the generation of the part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from zarr.buffer import default_buffer_prototype

from zarrpipe.compat import sync
from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    StoreEmptyError,
    StoreFormatError,
    StoreReadOnlyError,
)
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.backend.parts import member_names
from zarrpipe.store.format.metadata import check_mark_name
from zarrpipe.store.read.part_views import PartViews
from zarrpipe.store.read.view import StoreView

_PREFIX, _DOCUMENT = "mark-", "zarr.json"


@dataclass(frozen=True)
class PartMark:
    """What one part had: written samples, how many of them were deleted, and its generation."""

    samples: int
    deleted: int
    generation: str

    @classmethod
    def of(cls, view: StoreView) -> Self:
        """What a part has now."""
        attributes = view.snapshot.attributes
        return cls(view.snapshot.extent.samples, attributes.deleted, attributes.generation)

    def count_in(self, view: StoreView, what: str) -> int:
        """Number of samples that it names; raises StoreFormatError if they are not all there."""
        now = PartMark.of(view)
        if (now.generation, now.deleted) != (self.generation, self.deleted):
            raise StoreFormatError(
                f"{what} was emptied or rewritten, or samples of it were deleted, since the mark "
                "was made, so the samples that it named are not all there: take another mark, or a "
                "copy of the store from before"
            )
        if now.samples < self.samples:
            raise StoreFormatError(
                f"{what} had {self.samples} samples when the mark was made, and has {now.samples}: "
                "samples were lost; see zarrpipe check"
            )
        return self.samples - self.deleted


@dataclass(frozen=True)
class ParentMark:
    """The samples that the parts of a parent had at some moment; see `mark`.

    Parameters
    ----------
    parts : mapping of str to PartMark
        What each part had that had samples.
    time : float
        When it was made, in seconds since 1970.
    note : str, optional
        Text of the one who made it.
    """

    parts: Mapping[str, PartMark]
    time: float
    note: str | None = None

    @property
    def count(self) -> int:
        """Number of samples, without deleted ones."""
        return sum(one.samples - one.deleted for one in self.parts.values())

    @classmethod
    def read(cls, parent: StoreLike, name: str) -> Self | None:
        """The mark of a parent with a name; None if it has none."""
        root = Root.of(parent)
        found = sync((root.path / _document_of(name)).get(default_buffer_prototype()))
        if found is None:
            return None
        try:
            content = json.loads(found.to_bytes())["attributes"]["zarrpipe"]["mark"]
            parts = {part: PartMark(**one) for part, one in content["parts"].items()}
            return cls(parts, float(content["time"]), content["note"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreFormatError(
                f"{root} has a mark {name!r} that cannot be read ({error!r}): it is damaged, or of "
                "a later zarrpipe"
            ) from error

    def document(self) -> bytes:
        """Metadata document of the group that is the mark."""
        own = {
            "parts": {name: asdict(one) for name, one in self.parts.items()},
            "time": self.time,
            "note": self.note,
        }
        attributes: dict[str, Any] = {"zarrpipe": {"mark": own}}
        content = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
        return json.dumps(content, indent=2).encode()


def _document_of(name: str) -> str:
    return f"{_PREFIX}{name}/{_DOCUMENT}"


def mark(store: StoreLike, name: str, note: str | None = None) -> int:
    """Name the samples that all parts of a parent have now, to read them by that name later.

    ``ZarrDataset(store, at=name)`` and ``ZarrDataModule(store, at=name)`` have exactly these
    samples, whatever is appended since and whichever parts are added. The parts are looked at one
    after the other, and their sinks may go on; what waits in a buffer or a stage is not counted.
    Where the samples of a part are deleted, rewritten (`compact`) or removed later, ``at=`` raises.

    Parameters
    ----------
    store : StoreLike
        A parent of parts; see ``ZarrData(..., part=)``. A store without parts is marked by
        `ZarrData.mark`.
    name : str
        Letters, digits and ``._-``, at most 100 characters, such as "round-3".
    note : str, optional
        Text that is kept with it.

    Returns
    -------
    int
        Number of samples that have the name.

    Raises
    ------
    ArgumentError
        If it is no name, the parent has given it to other samples, or the place has no parts. A
        name that these samples have already is no error, so that a call can be repeated.
    StoreEmptyError
        If no part has a sample.
    StoreNotFoundError
        If there is neither a store nor a parent.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> run = {}
    >>> sinks = [zp.ZarrData(run, part=name) for name in "ab"]
    >>> for sink in sinks:
    ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [8]))
    >>> zp.mark(run, "round-0")
    2
    >>> sinks[0].write(zp.AtomicData([[0.0, 0.0, 0.0]], [1]))
    >>> len(zp.ZarrDataset(run, at="round-0")), len(zp.ZarrDataset(run))
    (2, 3)
    """
    check_mark_name(name)
    if note is not None and not isinstance(note, str):
        raise ArgumentTypeError(f"note={note!r}, expected a text")
    root, views = Root.of(store), PartViews(store)
    if not views.is_parent:
        raise ArgumentError(
            f"{root} is a store without parts: mark it by its sink, with ZarrData(store).mark(name)"
        )
    if root.read_only:
        raise StoreReadOnlyError(f"{root} was opened read-only: open it for writing")
    found = {str(part): PartMark.of(view) for part, view in views.found().items()}
    parts = {part: one for part, one in found.items() if one.samples}
    if not parts:
        raise StoreEmptyError(f"no part of {root} has samples, so there is nothing to mark")
    made = ParentMark(parts, time.time(), note)
    place = (root if root.directory is None else root.for_writing()).path / _document_of(name)
    buffer = default_buffer_prototype().buffer
    sync(place.set_if_not_exists(buffer.from_bytes(made.document())))
    known = ParentMark.read(store, name)
    if known is None:
        raise StoreFormatError(f"{root} was removed while it was marked: try again")
    if known.parts != made.parts:
        raise ArgumentError(
            f"{root} has a mark {name!r} of {known.count} samples in {len(known.parts)} parts, and "
            f"now it has {made.count} in {len(parts)}: give another name"
        )
    return known.count


def parent_marks(store: StoreLike) -> dict[str, ParentMark]:
    """Marks of a parent, by name, in the order in which they were made."""
    found = {name: ParentMark.read(store, name) for name in member_names(Root.of(store), _PREFIX)}
    marks = {name: one for name, one in found.items() if one is not None}
    return dict(sorted(marks.items(), key=lambda item: (item[1].time, item[0])))
