"""Parts of files converted and written, each recorded so that a kill loses nothing."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.categories import MOST_CATEGORIES
from zarrpipe.data.ids import batch_ids
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, SourceError
from zarrpipe.formats.read.conversion import batch_of
from zarrpipe.formats.read.frames import Failure, FrameBlock, Kind, Part
from zarrpipe.formats.read.import_plan import (
    ImportPlan,
    ImportReport,
    check_units_beside,
    united_entries,
)
from zarrpipe.formats.read.labels import ISOLATED_ATOM
from zarrpipe.formats.read.processes import ReadParts, Task
from zarrpipe.formats.read.resume import ImportRecord
from zarrpipe.progress import progress_bar
from zarrpipe.sink import ZarrData

_MOVED = (
    "the frames of this import: something else was written or deleted since, or the files have "
    "changed; import them to another place"
)
_CHECKED = ("energy", "forces", "stress", "virial")


class Importer:
    """Converts and writes the parts of a plan."""

    def __init__(
        self,
        plan: ImportPlan,
        report: ImportReport,
        dtype: torch.dtype,
        *,
        source_fields: bool,
        strict: bool,
    ) -> None:
        self._plan, self._report, self._dtype = plan, report, dtype
        self._source_fields, self._strict = source_fields, strict
        self._labels, self._found = plan.labels, united_entries(scan for _, scan in plan.sources)

    def run(
        self,
        sink: ZarrData,
        record: ImportRecord | None,
        options: Mapping[str, Any],
        read_parts: ReadParts,
        *,
        progress: bool,
    ) -> None:
        """Read, convert and write all parts that are not stored."""
        parts = self._plan.parts()
        tasks = [(self._plan.sources[place].source.reader, part) for place, part in parts]
        record, new = self._begun(sink, record, options)
        self._report.num_before = len(sink) - record.first
        if self._report.num_before < 0:
            raise ArgumentError(f"the samples before this import are fewer than with {_MOVED}")
        self._report.failures += [*record.failed.values()]
        begin, stored = record.next_part(parts, self._report.num_before)
        if self._report.num_before:
            self._check_last(sink, tasks, begin, stored)
        if record.complete:
            return
        if new:
            sink._record_import(record.to_dict(), new=True)
        total, before = self._plan.num_frames, self._report.num_before
        with progress_bar(progress, "import", total, unit=" frames", initial=before) as done:
            blocks = read_parts(tasks[begin:])
            for (place, _), (part, block) in zip(parts[begin:], blocks, strict=True):
                if not isinstance(block, Batch) and block.failures:
                    self._record_failures(sink, record, place, block.failures)
                if len(block):
                    self._write(sink, part, block, stored)
                stored = 0
                done(part.num_frames)
        record.complete = True
        sink._record_import(record.to_dict(), new=False)

    def _begun(
        self, sink: ZarrData, record: ImportRecord | None, options: Mapping[str, Any]
    ) -> tuple[ImportRecord, bool]:
        """Record of this import, and whether it is not in the store yet.

        It takes the place of one of an import that ended before its first sample.
        """
        if record is not None:
            return record, False
        begun = ImportRecord.begin(self._plan, options, len(sink))
        last = sink._imports()[-1:]
        idle = bool(last) and not last[0].get("complete") and last[0].get("first") == begun.first
        if idle:
            sink._record_import(begun.to_dict(), new=False)
        return begun, not idle

    def _check_last(self, sink: ZarrData, tasks: list[Task], begin: int, stored: int) -> None:
        """Refuse to go on if the last samples of the store are not the frames before the next."""
        if begin == len(tasks) and stored:
            raise ArgumentError(f"the store has {stored} samples more than {_MOVED}")
        last = tasks[: begin + (stored > 0)]
        while last:
            reader, part = last.pop()
            block = reader.read(part)
            if len(block):
                break
        batch = self._batch(part, block)
        if stored:
            batch = batch.index_select(slice(0, stored))
        count = len(sink)
        theirs = ZarrDataset(sink.store).ids_of(np.arange(count - batch.num_graphs, count))
        if not np.array_equal(batch_ids(batch), theirs):
            raise ArgumentError(f"the last samples of the store are not {_MOVED}")

    def _record_failures(
        self, sink: ZarrData, record: ImportRecord, place: int, failures: tuple[Failure, ...]
    ) -> None:
        """Record frames that could not be read, before those after them are written."""
        if self._strict:
            raise SourceError(f"{failures[0]} (strict)")
        if record.add(place, failures):
            sink._record_import(record.to_dict(), new=False)
        self._report.failures += failures

    def _write(
        self,
        sink: ZarrData,
        part: Part,
        block: FrameBlock | Batch,
        stored: int,
    ) -> None:
        """Write the frames of a part but the first `stored`, which the store has."""
        batch = self._batch(part, block)
        if stored:
            batch = batch.index_select(slice(stored, None))
        batch = self._within_vocabularies(sink, batch)
        sink.write(batch)
        self._report.num_samples += batch.num_graphs
        for name in _CHECKED:
            if name in batch.fields:
                count = _not_finite(batch, name)
                if count:
                    self._report.not_finite[name] = self._report.not_finite.get(name, 0) + count

    def _batch(self, part: Part, block: FrameBlock | Batch) -> Batch:
        """Batch of a part, with the fields of its source if these are asked for."""
        if isinstance(block, Batch):
            batch, frames = block, np.arange(part.first, part.first + part.num_frames)
        else:
            if not self._labels.entries.issuperset(block.columns):
                self._extend_labels(block)
            check_units_beside(block, self._plan)
            plan, frames = self._plan, block.frames
            self._note_left_out(part, block)
            single = plan.isolated or bool((block.num_atoms == 1).any())
            single = single and ISOLATED_ATOM not in self._labels.fields
            batch = batch_of(block, self._labels, plan.units, dtype=self._dtype, isolated=single)
        if self._source_fields:
            batch.add_field("source", [part.path] * len(frames), "system")
            batch.add_field("source_index", torch.from_numpy(frames)[:, None], "system")
        return batch

    def _note_left_out(self, part: Part, block: FrameBlock) -> None:
        """Record what is left out of a block, and not of all frames as the plan says."""
        for entry in block.left_out.keys() - self._plan.left_out.keys():
            frames = f"frames {block.frames[0]} to {block.frames[-1]} of {part.path}"
            self._report.left_out.setdefault(entry, f"{block.left_out[entry]} ({frames})")

    def _extend_labels(self, block: FrameBlock) -> None:
        """Plan entries that no frame had that was looked at before."""
        names = {"f": "float", "i": "int", "b": "bool", "O": "str"}
        for entry, column in block.columns.items():
            kind = Kind(names[column.values.dtype.kind], column.values.shape[1:])
            self._found.setdefault(entry, frozenset({kind}))
        self._labels = self._labels.extended(self._found)

    def _within_vocabularies(self, sink: ZarrData, batch: Batch) -> Batch:
        """Batch without the fields of strings of which the store would have too many."""
        schema, over = sink._schema(), []
        for name, role in batch.roles.items():
            strings = role.categories or ()
            known = (schema[name].categories if name in schema else None) or ()
            near = len(known) + len(strings) > MOST_CATEGORIES
            if near and len({*known, *strings}) > MOST_CATEGORIES:
                over.append(name)
        for name in over:
            self._report.cut[name] = self._report.cut.get(name, 0) + batch.num_graphs
        return batch.without(*over) if over else batch


def _not_finite(batch: Batch, name: str) -> int:
    """Number of systems that have a label, and NaN or infinity in it."""
    wrong = ~torch.isfinite(batch[name].reshape(len(batch[name]), -1)).all(dim=1)
    if len(wrong) == batch.num_graphs:
        return int((wrong & batch.present(name)).sum())
    counts = torch.zeros(batch.num_graphs, dtype=torch.int64)
    counts.index_add_(0, batch.batch_idx, wrong.long())
    return int(((counts > 0) & batch.present(name)).sum())
