"""The record of an import in its store, by which it goes on after a kill without doubles.

The record is published before the first sample, and again before samples that follow a frame that
could not be read. So the number of samples in the store tells which frame comes next.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zarrpipe.errors import ArgumentError
from zarrpipe.formats.read.frames import Failure, Part
from zarrpipe.formats.read.import_plan import ImportPlan

_LONGEST = 200
"""Letters of a reason that are kept."""


@dataclass
class ImportRecord:
    """Sources and options of an import, its first sample, and the frames that failed so far.

    `failed` is by a source's place in the list and a frame's number.
    """

    plan: dict[str, Any]
    first: int
    failed: dict[tuple[int, int], Failure] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def begin(cls, plan: ImportPlan, options: Mapping[str, Any], first: int) -> "ImportRecord":
        """Record of an import that begins behind the `first` samples of a store."""
        return cls(_content(plan, options), first)

    @classmethod
    def resume(
        cls, imports: Sequence[Mapping[str, Any]], plan: ImportPlan, options: Mapping[str, Any]
    ) -> "ImportRecord | None":
        """The last record of a store; None if there is none.

        Raises ArgumentError if it is of other sources or options, or its samples have moved.
        """
        if not imports:
            return None
        content, last = _content(plan, options), imports[-1]
        for name, ours in content.items():
            if last.get(name) != ours:
                before, now = _differing(last.get(name), ours)
                raise ArgumentError(
                    f"the last import of this store had {name} {before!r}, and this one "
                    f"has {now!r}: resume needs the same, since frames are counted; import what "
                    "is new with if_exists='append'"
                )
        if "first" not in last:
            raise ArgumentError(
                "the store was merged or compacted since its last import, so that its samples are "
                "at other places: import into another store"
            )
        failed = {
            (int(source), int(frame)): Failure(content["sources"][source]["path"], frame, line, why)
            for source, frame, line, why in last["failed"]
        }
        return cls(content, int(last["first"]), failed, bool(last.get("complete")))

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in the attributes of the store."""
        failed = [[*place, one.line, one.reason] for place, one in sorted(self.failed.items())]
        return {**self.plan, "first": self.first, "failed": failed, "complete": self.complete}

    def add(self, source: int, failures: Sequence[Failure]) -> bool:
        """Add failed frames of a source; whether there was one that it did not have."""
        before = len(self.failed)
        for failure in failures:
            short = failure._replace(reason=failure.reason[:_LONGEST])
            self.failed[source, failure.frame] = short
        return len(self.failed) > before

    def next_part(self, parts: Sequence[tuple[int, Part]], stored: int) -> tuple[int, int]:
        """Place of the first part to read after `stored` samples, and how many of it are stored.

        `parts` are those of all sources, each with the place of its source.
        """
        failed: dict[int, list[int]] = {}
        for source, frame in sorted(self.failed):
            failed.setdefault(source, []).append(frame)
        for place, (source, part) in enumerate(parts):
            frames, ends = failed.get(source, []), (part.first, part.first + part.num_frames)
            first, last = (bisect_left(frames, end) for end in ends)
            samples = part.num_frames - (last - first)
            if stored < samples or (stored == samples == 0):
                return place, stored
            stored -= samples
        return len(parts), stored


def _differing(before: Any, now: Any) -> tuple[Any, Any]:
    """What differs of two mappings; other values as they are."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return before, now
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    first, second = ({name: one[name] for name in names if name in one} for one in (before, now))
    return first, second


def _content(plan: ImportPlan, options: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for an import to go on."""
    described = plan.to_dict()
    sizes = [source.nbytes for source, _ in plan.sources]
    sources = [
        {**source, "bytes": size} for source, size in zip(described["sources"], sizes, strict=True)
    ]
    return {"sources": sources, "fields": described["fields"], "options": dict(options)}
