"""One look through a store, from its attributes to its last sample."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import zarr

from zarrpipe.data.fields import Level
from zarrpipe.errors import StoreFormatError, StoreNotFoundError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.lock import holder_of
from zarrpipe.store.check.blocks import SampleBlock, pieces
from zarrpipe.store.check.check_statistics import Recount
from zarrpipe.store.check.checked_store import CheckedStore, open_subject, units_of
from zarrpipe.store.check.counts import (
    CheckedCounts,
    measure,
    tell_extents,
    tell_masks,
    tell_presence,
)
from zarrpipe.store.check.neighbours import Shifts, explained, shifts_of
from zarrpipe.store.check.report import FieldFacts, Finding, Report, Severity, worst_first
from zarrpipe.store.check.samples import SampleFindings
from zarrpipe.store.check.surroundings import (
    holder_lives,
    tell_chunk_files,
    tell_leftovers,
    tell_lock,
    tell_strays,
)
from zarrpipe.store.format.layout import ATOMS_PTR
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.rewrite.progress import progress_bar

_WORTH_NUMBA = 1 << 28
FILL = "fill what is lost and delete the samples with rows in it"
_LIVE = {
    "uncommitted",
    "not-closed",
    "num-samples",
    "deleted",
    "row-masks",
    "leftover",
    "length",
    "sums",
}


@dataclass(frozen=True)
class Examination:
    """What one look has shown, for a repair to go by.

    Parameters
    ----------
    report
        For people.
    subject, extents, seen, shifts
        For programs; `extents` is None where pointers are missing, `shifts` where none are needed.
    live
        Whether it seems to be written meanwhile.
    """

    report: Report
    subject: CheckedStore | None = None
    extents: CheckedCounts | None = None
    seen: SampleFindings | None = None
    shifts: Shifts | None = None
    live: bool = False


def examine(root: Root, *, alone: bool = False, progress: bool | None = None) -> Examination:
    """Look a store through.

    Parameters
    ----------
    root
        Place of the store.
    alone
        Whether the caller holds the lock.
    progress
        See `zarrpipe.check`.

    Raises
    ------
    StoreNotFoundError
        If there is no Zarr group.
    StoreFormatError
        If the root's metadata cannot be read, or it is no store of atomic systems.
    """
    group = root_group(root)
    findings: list[Finding] = []
    holder = None if alone or root.directory is None else holder_of(root.directory)
    try:
        attributes = Attributes.read(group)
    except StoreFormatError as error:
        message = f"{error}; put zarr.json back from a copy of the store"
        finding = Finding("attributes", Severity.ERROR, "zarr.json", message)
        return Examination(Report(str(root), findings=(finding,)))
    if not attributes.ours and ATOMS_PTR not in group:
        raise StoreFormatError(
            f"{root} is a Zarr group without {ATOMS_PTR}: expected a store that zarrpipe or "
            "nvalchemi wrote"
        )
    tell_lock(holder, findings.append)
    subject = open_subject(root, group, attributes, findings.append)
    found = _look_through(subject, findings, progress)
    tell_strays(subject, findings.append)
    tell_leftovers(subject, findings.append)
    live = holder is not None and holder_lives(holder)
    if live:
        findings = [_as_of_now(finding) for finding in findings]
    report = _report(subject, found.extents, found.seen, findings)
    return replace(found, report=report, live=live)


def root_group(root: Root) -> zarr.Group:
    """Root group of a store.

    Raises
    ------
    StoreNotFoundError
        If there is none.
    """
    there = root.directory is None or root.directory.exists()  # or opening would make it
    group = root.open_group() if there else None
    if group is None:
        raise StoreNotFoundError(f"there is no Zarr store at {root}")
    return group


def _look_through(
    subject: CheckedStore, findings: list[Finding], progress: bool | None
) -> Examination:
    """Look at pointers, samples and masks, and add what is found."""
    tell = findings.append
    extents = measure(subject)
    if extents is None:
        return Examination(Report(str(subject.root)), subject)
    tell_extents(subject, extents, tell)
    seen, recount, shifts = SampleFindings(), Recount(subject), None
    total = sum(
        extents.rows(subject.levels[path]) * rows.row_bytes for path, rows in subject.arrays.items()
    )
    if total > _WORTH_NUMBA:  # ids are computed by it where it is imported
        with suppress(ImportError):
            importlib.import_module("numba")
    with progress_bar(progress, f"check {subject.root}", total) as done:
        _see(subject, extents, (seen, recount), done)
    about_samples: list[Finding] = []
    seen.conclude(about_samples.append, ours=subject.ours)
    recount.conclude(extents, seen, tell)
    if len(seen.of("edges")) and subject.appended_by_another:
        shifts = shifts_of(_pieces(subject, extents), extents.samples)
    for finding in about_samples:
        relative = finding.kind == "edges" and shifts is not None and shifts.explains
        tell(explained(finding, shifts) if relative and shifts is not None else finding)
    tell_masks(subject, extents, seen.deleted, tell)
    tell_presence(subject, extents.samples, tell)
    for path, rows in subject.arrays.items():
        drop = FILL if subject.ours and path in subject.paths.values() else ""
        rows.tell_broken(tell, seen.at("unreadable", path), drop)
    needed = {path: extents.rows(subject.levels[path]) for path in subject.arrays}
    tell_chunk_files(subject, needed, tell)
    return Examination(Report(str(subject.root)), subject, extents, seen, shifts)


def _see(
    subject: CheckedStore,
    extents: CheckedCounts,
    lookers: tuple[SampleFindings, Recount],
    done: Callable[[int], object],
) -> None:
    before = 0
    for piece in _pieces(subject, extents):
        for looker in lookers:
            looker.look(piece)
        read = sum(rows.read_bytes for rows in subject.arrays.values())
        done(read - before)
        before = read


def _pieces(subject: CheckedStore, extents: CheckedCounts) -> Iterator[SampleBlock]:
    return pieces(subject, extents.samples, extents.broken, extents.limits)


def _as_of_now(finding: Finding) -> Finding:
    """A finding about a store that is being written, which explains some of them."""
    if finding.kind not in _LIVE:
        return finding
    return replace(finding, severity=Severity.NOTE, repair="")


def _report(
    subject: CheckedStore,
    extents: CheckedCounts | None,
    seen: SampleFindings | None,
    findings: list[Finding],
) -> Report:
    samples = 0 if extents is None else extents.samples
    return Report(
        str(subject.root),
        samples,
        0 if seen is None else seen.deleted,
        0 if extents is None else extents.rows(Level.ATOM),
        0 if extents is None else extents.rows(Level.EDGE),
        tuple(_facts(subject, name, seen) for name in subject.paths),
        worst_first(findings),
    )


def _facts(subject: CheckedStore, name: str, seen: SampleFindings | None) -> FieldFacts:
    path = subject.paths[name]
    array = subject.arrays[path].array
    unit = units_of(subject).get(name, "")
    return FieldFacts(
        name,
        subject.levels[path],
        str(array.dtype),
        array.shape[1:],
        str(unit),
        0 if seen is None else seen.present[name],
    )
