"""`check`: examine a store from its attributes to its last sample, and repair it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import zarr

from zarrpipe.data.levels import Level
from zarrpipe.errors import (
    StoreFormatError,
    StoreNotFoundError,
    StorePartsError,
    StoreReadOnlyError,
)
from zarrpipe.progress import progress_bar
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.backend.lock import WriterLock, holder_of
from zarrpipe.store.backend.parts import parts
from zarrpipe.store.check.check_samples import SampleFindings
from zarrpipe.store.check.check_statistics import StatisticsCheck
from zarrpipe.store.check.checked_store import (
    CheckedStore,
    SampleBlock,
    open_fields,
    sample_blocks,
)
from zarrpipe.store.check.nvalchemi_edges import describe_relative_edges, find_edge_shifts
from zarrpipe.store.check.pointers import (
    CheckedCounts,
    committed_samples,
    count_committed,
    report_lengths,
    report_masks,
    report_number,
    report_pointers,
    report_presence,
)
from zarrpipe.store.check.repair import Examination, repair_store
from zarrpipe.store.check.report import FieldFacts, Finding, Report, Severity, worst_first
from zarrpipe.store.check.stray_files import (
    holder_lives,
    report_chunk_files,
    report_leftovers,
    report_lock,
    report_strays,
)
from zarrpipe.store.format.layout import ATOMS_PTR
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.format.validate import translate_zarr_errors

FILL = "fill these chunks and delete the samples with rows in them"
_ATTEMPTS, _REPAIRS = 3, 2
_EXPLAINED_BY_A_WRITER = {
    *("uncommitted", "not-closed", "num-samples", "deleted", "row-masks"),
    *("leftover", "length", "sums"),
}


def check(
    store: StoreLike, *, repair: bool = False, drop: bool = False, progress: bool | None = None
) -> Report:
    """Check a store for damage, and repair it on request.

    Every array is read from its first to its last committed row, a few megabytes at a time, and
    every encoded chunk is decoded. Lengths, pointers, masks and attributes must agree with each
    other, edges with their samples, and structures with their stored ids. A damaged array is a
    finding and does not end the check. A writer may go on writing the store: the check covers the
    samples that are committed when it begins.

    Without `repair`, nothing is written and nothing is locked.

    Parameters
    ----------
    store : StoreLike
        A store that zarrpipe or nvalchemi wrote, or a parent of parts, each of which is checked.
    repair : bool
        Whether to remove leftovers of killed writers, rewrite metadata, and shift the indices
        of neighbour lists that count from their batch. No committed sample is lost.
    drop : bool
        With `repair`, whether to delete samples with lost or changed rows, which cannot be
        repaired. They are masked, as by `AtomicDataZarrWriter.delete`.
    progress : bool, optional
        Whether to show a progress bar (which needs tqdm). By default one appears on a terminal
        when the check lasts longer than two seconds and tqdm is installed.

    Returns
    -------
    Report
        The findings, after the repair if one was requested, and the repairs.

    Raises
    ------
    StoreNotFoundError
        If there is no Zarr group.
    StoreFormatError
        If its root cannot be read, or it is not a store of atomic systems; during a repair, if a
        link or another foreign file is in the way.
    StoreLockedError
        If a repair is requested and a writer has the store open.
    StoreReadOnlyError
        If a repair is requested and the store was opened read-only.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> store = {}
    >>> with zp.ZarrData(store) as sink:
    ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [2], energy=-79.0))
    >>> report = check(store)
    >>> report.ok, report.samples, [field.name for field in report.fields]
    (True, 1, ['positions', 'atomic_numbers', 'energy'])
    """
    root = Root.of(store)
    try:
        found = _examine_settled(root, progress)
    except StorePartsError:
        every = {
            name: check(place, repair=repair, drop=drop, progress=progress)
            for name, place in parts(store).items()
        }
        return _united(str(root), every)
    if not repair or not (found.live or found.report.plan(drop=drop)):
        return found.report
    if root.read_only:
        raise StoreReadOnlyError(f"{root} was opened read-only: open it for writing to repair it")
    done: list[str] = []
    for _ in range(_REPAIRS):
        found = _repair(root, done.append, drop=drop, progress=progress)
        report = _examine(root, progress=progress).report
        if "deleted" not in found.report.kinds() or not report.plan(drop=drop):
            break  # otherwise a deletion was undone, and its samples may be damaged
    return replace(report, repairs=tuple(dict.fromkeys(done)))


def _united(place: str, reports: Mapping[str, Report]) -> Report:
    """Report of a parent from those of its parts."""
    fields: dict[str, FieldFacts] = {}
    for report in reports.values():
        for item in report.fields:
            known = fields.get(item.name)
            more = item if known is None else replace(item, present=item.present + known.present)
            fields[item.name] = more
    every = reports.values()
    findings = [
        replace(finding, place=f"part-{name}/{finding.place}")
        for name, report in reports.items()
        for finding in report.findings
    ]
    return Report(
        place,
        sum(one.samples for one in every),
        sum(one.deleted for one in every),
        sum(one.atoms for one in every),
        sum(one.edges for one in every),
        tuple(fields.values()),
        worst_first(findings),
        tuple(
            f"part-{name}: {done}" for name, report in reports.items() for done in report.repairs
        ),
    )


def _repair(
    root: Root, log: Callable[[str], object], *, drop: bool, progress: bool | None
) -> Examination:
    """Lock a store, examine it and repair it."""
    if root.directory is None:
        root = root.for_writing()
        lock = root.acquire_lock()
    else:
        lock = WriterLock.of_place(root.directory)
    try:
        found = _examine(root, locked=True, progress=progress)
        with translate_zarr_errors(f"{root}, while it was repaired,"):
            repair_store(found, lock, log, drop=drop)
    finally:
        if lock is not None:
            lock.release()
    return found


def _examine_settled(root: Root, progress: bool | None) -> Examination:
    """Examine a store again if it was emptied, rewritten or given new fields meanwhile."""
    for _ in range(_ATTEMPTS - 1):
        before = _attributes(root)
        found = _examine(root, progress=progress)
        if found.report.ok or _attributes(root) == before:
            return found
    return _examine(root, progress=progress)


def _attributes(root: Root) -> Attributes | None:
    try:
        return Attributes.read(_root_group(root))
    except StorePartsError:
        raise
    except StoreFormatError:  # reported as a finding
        return None


def _root_group(root: Root) -> zarr.Group:
    group = root.open_group()
    if group is None:
        raise StoreNotFoundError.at(root)
    return group


def _examine(root: Root, *, locked: bool = False, progress: bool | None = None) -> Examination:
    """Examine a store; `locked` if the caller holds its lock."""
    group = _root_group(root)
    findings: list[Finding] = []
    holder = None if locked or root.directory is None else holder_of(root.directory)
    try:
        attributes = Attributes.read(group)
    except StorePartsError:
        raise
    except StoreFormatError as error:
        message = f"{error}; put zarr.json back from a copy of the store"
        finding = Finding("attributes", Severity.ERROR, "zarr.json", message)
        return Examination(Report(str(root), findings=(finding,)))
    if not attributes.ours and ATOMS_PTR not in group:
        raise StoreFormatError(
            f"{root} is a Zarr group without {ATOMS_PTR}: expected a store that zarrpipe or "
            "nvalchemi wrote"
        )
    report_lock(holder, findings.append)
    store = CheckedStore(root, group, attributes)
    pointers = store.open(ATOMS_PTR, add=findings.append)
    if pointers is not None:  # before a writer commits more
        store.samples, store.uncommitted = committed_samples(pointers, attributes.num_samples)
    open_fields(store, findings.append)
    found = _check_arrays(store, findings, progress)
    report_strays(store, findings.append)
    report_leftovers(store, findings.append)
    live = holder is not None and holder_lives(holder)
    if live:
        findings = [
            replace(finding, severity=Severity.NOTE, repair="")
            if finding.kind in _EXPLAINED_BY_A_WRITER
            else finding
            for finding in findings
        ]
    report = _report(store, found.counts, found.samples or SampleFindings(), findings)
    return replace(found, report=report, live=live)


def _check_arrays(
    store: CheckedStore, findings: list[Finding], progress: bool | None
) -> Examination:
    """Check pointers, samples and masks, and append to `findings`."""
    add, counts = findings.append, count_committed(store)
    if counts is None:
        return Examination(Report(str(store.root)), store)
    report_pointers(store, counts, add)
    report_lengths(store, counts, add)
    report_number(store, counts.samples, add)
    needed = {path: counts.rows(store.levels[path]) for path in store.arrays}
    samples, shifts = _check_samples(store, counts, needed, add, progress), None
    in_samples: list[Finding] = []
    samples.report(in_samples.append, ours=store.ours)
    if len(samples.of("edges")) and store.appended_by_another:
        shifts = find_edge_shifts(_blocks(store, counts), counts.samples)
    for finding in in_samples:
        relative = finding.kind == "edges" and shifts is not None and shifts.by.any()
        add(describe_relative_edges(finding, shifts) if relative and shifts else finding)
    report_masks(store, counts.samples, samples.deleted, add)
    report_presence(store, counts.samples, add)
    for path, rows in store.arrays.items():
        drop = FILL if store.ours and path in store.paths.values() else ""
        rows.report_broken(add, samples.at("unreadable", path), drop)
    report_chunk_files(store, needed, add)
    return Examination(Report(str(store.root)), store, counts, samples, shifts)


def _check_samples(
    store: CheckedStore,
    counts: CheckedCounts,
    needed: dict[str, int],
    add: Callable[[Finding], object],
    progress: bool | None,
) -> SampleFindings:
    """Check every sample, and the stored sums against all samples."""
    total = sum(needed[path] * rows.row_bytes for path, rows in store.arrays.items())
    samples, statistics, before = SampleFindings(), StatisticsCheck(store), 0
    with progress_bar(progress, f"check {store.root}", total) as done:
        for block in _blocks(store, counts):
            samples.check(block)
            statistics.count(block)
            read = sum(rows.read_bytes for rows in store.arrays.values())
            done(read - before)
            before = read
    statistics.report(counts.samples, samples, add)
    return samples


def _blocks(store: CheckedStore, counts: CheckedCounts) -> Iterator[SampleBlock]:
    return sample_blocks(store, counts.broken, counts.limits)


def _report(
    store: CheckedStore,
    counts: CheckedCounts | None,
    samples: SampleFindings,
    findings: list[Finding],
) -> Report:
    ends = {} if counts is None else counts.ends
    atoms, edges = ends.get(Level.ATOM, 0), ends.get(Level.EDGE, 0)
    fields = []
    for name, path in store.paths.items():
        array, unit = store.arrays[path].array, str(store.units.get(name, ""))
        level, present = store.levels[path], samples.present[name]
        fields.append(FieldFacts(name, level, str(array.dtype), array.shape[1:], unit, present))
    return Report(
        str(store.root),
        0 if counts is None else counts.samples,
        samples.deleted,
        atoms,
        edges,
        tuple(fields),
        worst_first(findings),
    )
