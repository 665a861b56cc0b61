"""What notebooks show of a store, from a bounded number of reads."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from zarr.storage import LocalStore, MemoryStore

from zarrpipe.data.schema import Field
from zarrpipe.data.tables import bytes_text, elements_text, html_table
from zarrpipe.store.query.columns import StoreColumns
from zarrpipe.store.query.elements import SYMBOLS, as_elements
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.statistics.stored_sums import valid_sums

_MOST_COUNTED, _BLOCK = 4096, 1 << 16


def element_counts(view: StoreView, most: int | None = None) -> tuple[Counter[str], int]:
    """Atoms by symbol, and how many of the first samples they are of.

    Counts come from the sums that the store keeps and from the samples after those, at most `most`.
    """
    stored, counts = valid_sums(view.snapshot), np.zeros(len(SYMBOLS), dtype=np.int64)
    known = 0
    if stored is not None:
        known = stored.samples
        counts[stored.sums.elements] += stored.sums.counts.sum(0).astype(np.int64)
    end = view.num_samples if most is None else min(view.num_samples, known + most)
    for start in range(known, end, _BLOCK):
        columns = StoreColumns(view, np.arange(start, min(start + _BLOCK, end)), view.schema)
        for _, batch in columns.batches():
            numbers = as_elements(batch.fields["atomic_numbers"].numpy())
            counts += np.bincount(numbers, minlength=len(SYMBOLS))
    found = Counter({SYMBOLS[z]: int(counts[z]) for z in np.flatnonzero(counts).tolist()})
    return found, max(known, end)


def facts_text(views: Iterable[StoreView]) -> str:
    """Atoms, elements, places and bytes on disk of stores, in a line."""
    opened = [*views]
    elements, counted, samples, atoms, held = Counter[str](), 0, 0, 0, 0
    for view in opened:
        near = isinstance(view.snapshot.root.path.store, LocalStore | MemoryStore)
        found, of = element_counts(view, _MOST_COUNTED if near else 0)
        elements, counted, samples = elements + found, counted + of, samples + view.num_samples
        atoms += int(view.num_atoms.sum())
        directory = view.snapshot.root.directory
        held += 0 if directory is None else bytes_on_disk(directory)
    part = "" if counted >= samples else f" (in {counted:,} of {samples:,} samples)"
    facts = [f"{atoms:,} atoms"]
    facts += [elements_text(elements) + part] if elements else []
    facts += [str(view.snapshot.root) for view in opened[:3]]
    facts += [f"and {len(opened) - 3} more stores"] if len(opened) > 3 else []
    facts += [bytes_text(held)] if held else []
    return "; ".join(facts)


def schema_table(
    title: str, schema: Mapping[str, Field], present: Mapping[str, int], facts: str
) -> str:
    """Table of fields for notebooks, with the number of samples that have each, under facts."""
    rows = [
        (
            name,
            item.level,
            item.dtype if item.categories is None else "string",
            item.shape,
            item.unit,
            f"{present[name]:,}",
        )
        for name, item in schema.items()
    ]
    header = ("field", "level", "dtype", "row shape", "unit", "samples with it")
    return html_table(title, header, rows, facts=facts, numbers={5})


def bytes_on_disk(directory: Path) -> int:
    """Bytes that the files in a directory take; those that are removed meanwhile do not count."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += 512 * os.lstat(os.path.join(folder, name)).st_blocks  # noqa: PTH118
            except FileNotFoundError:
                continue
    return total
