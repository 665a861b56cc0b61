"""Files of other programs into a store: scan, plan, say, check, write."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from zarrpipe.data.validate import check_count
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import (
    ArgumentError,
    SourceError,
    StoreExistsError,
    StoreNotFoundError,
)
from zarrpipe.formats.read.conversion import StressSign
from zarrpipe.formats.read.import_plan import (
    ImportPlan,
    ImportReport,
    ScannedSource,
    check_levels_used,
    united_entries,
)
from zarrpipe.formats.read.importer import Importer
from zarrpipe.formats.read.labels import LabelOptions, plan_labels
from zarrpipe.formats.read.planning import plan_import
from zarrpipe.formats.read.processes import parsing
from zarrpipe.formats.read.resume import ImportRecord
from zarrpipe.formats.read.sources import STDIN, Source, SourceLike, find_sources
from zarrpipe.progress import progress_bar
from zarrpipe.sink import ZarrData
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.metadata import Attributes

_PROCESSES_FROM = 1 << 26
"""Bytes of sources from which processes are worth their start."""
_MOST_PROCESSES = 8


def read_into(
    store: StoreLike,
    sources: SourceLike | Sequence[SourceLike],
    *,
    format: str | None = None,  # noqa: A002  as in ase.io.read
    labels: LabelOptions | None = None,
    units: Mapping[str, str] | None = None,
    stress_sign: StressSign = "tension",
    ignore: Collection[str] = (),
    levels: Mapping[str, str] | None = None,
    source_fields: bool = False,
    if_exists: Literal["append", "error", "replace"] = "error",
    resume: bool = False,
    strict: bool = False,
    force: bool = False,
    dry_run: bool = False,
    dtype: torch.dtype | None = None,
    capacity: int | None = None,
    config: ZarrWriteConfig | Mapping[str, Any] | None = None,
    processes: int | None = None,
    progress: bool = False,
    on_plan: Callable[[ImportPlan], object] | None = None,
) -> ImportReport:
    r"""Read files of other programs into a store.

    All sources are looked through first. What each of their keys becomes is decided, and refused
    where it is not clear, before anything is written. Structures are taken in the order of the
    sources. Every number and string is kept: labels as fields of the registry, others as fields of
    the user's own. A label that a frame lacks is absent. Memory is bounded.

    Parameters
    ----------
    store : StoreLike
        Where to write; see `ZarrData`.
    sources : str, Path or list of them
        Files, globs, directories, stores of zarrpipe or nvalchemi, or "-" for the standard input.
    format : str, optional
        Format of all sources; by default it is recognised from names and contents. It may be a
        library's own name, as ``"ase:vasp-out"`` or ``"dpdata:vasp/outcar"``.
    labels : mapping of str to str, sequence of str or None, optional
        For a field, the key to read it from, such as ``{"energy": "REF_energy"}``; several keys in
        order of preference, or None for none. A name of your own keeps a key under that name. A key
        may be ``"info:energy"``, ``"arrays:..."`` or ``"results:..."``, as ASE has it. Labels that
        are not named here are recognised by the table in `zarrpipe.adapters.dialects`.
    units : mapping of str to str, optional
        Units of the sources where these are not those of ASE: of a label, as
        ``{"stress": "GPa"}``, or of energy, length, mass or charge, which all labels follow, as
        ``{"energy": "kcal/mol"}`` does for forces too. For a field of your own it is recorded.
    stress_sign : {"tension", "pressure"}
        Which is positive in the sources.
    ignore : collection of str
        Keys to leave out.
    levels : mapping of str to str, optional
        ``"atom"`` or ``"system"`` for keys whose level a format does not say: arrays in ``data`` of
        an ASE database, in metatrain's memory maps and in PyG's graphs. Without it such a key is
        left out where neither its name nor its sizes tell, and the report says so.
    source_fields : bool
        Store the path of a sample's file as ``source`` and its number there as ``source_index``.
    if_exists : {"error", "append", "replace"}
        Of a store that has samples; see `ZarrData`.
    resume : bool
        Go on with the import that was the last of this store, with the same sources and options; a
        new one begins if there is none.
    strict : bool
        Raise for a frame that cannot be read, instead of reporting it.
    force : bool
        Go on where the sizes of labels are not plausible.
    dry_run : bool
        Only plan; nothing is written.
    dtype : torch.dtype, optional
        Of floats; by default that of the store, or float64.
    capacity, config
        See `ZarrData`; by default there is room for a million samples, or for what is imported.
    processes : int, optional
        Processes that parse; by default one for each processor if there is enough to do.
    progress : bool
        Whether to show a progress bar.
    on_plan : callable, optional
        Called with the `ImportPlan` before anything is written.

    Returns
    -------
    ImportReport
        What was read as what, what was left out, and the frames that could not be read.

    Raises
    ------
    LabelError
        If two keys may be the same label, or labels are not plausible in their units; nothing was
        written.
    SourceError
        If `strict` and a frame cannot be read.
    StoreExistsError
        If the store has samples and `if_exists` is "error".
    ArgumentError
        If a format or unit is not known, or an import to resume had other sources or options.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "water.xyz"
    >>> _ = file.write_text('1\nREF_energy=-13.6 pbc="F F F"\nH 0.0 0.0 0.0\n')
    >>> store = {}
    >>> report = read_into(store, file)
    >>> report.num_samples, report.plan.to_dict()["fields"]["energy"]["keys"]
    (1, ['info:REF_energy'])
    """
    with ExitStack() as stack:
        if resume and STDIN in (sources if isinstance(sources, list | tuple) else [sources]):
            raise ArgumentError("the standard input cannot be resumed: give a file")
        found, unknown = find_sources(sources, format, stack, levels or {}, store)
        asked = {"labels": labels, "units": units, "ignore": ignore, "dtype": dtype}
        _check_stores(found, {**asked, "stress_sign": stress_sign != "tension"})
        read_parts = stack.enter_context(parsing(_processes(processes, found)))
        scanned = _scanned(found, progress=progress)
        scans = [scan for _, scan in scanned]
        check_levels_used(levels or {}, scans)
        reserved = ("source", "source_index") if source_fields else ()
        label_plan = plan_labels(united_entries(scans), labels or {}, ignore, reserved)
        plan = plan_import(scanned, unknown, label_plan, units or {}, stress_sign, force=force)
        _check_readable(plan, strict=strict)
        if on_plan is not None:
            on_plan(plan)
        report = ImportReport(plan, failures=list(plan.failures))
        if dry_run:
            return report
        if not resume and if_exists == "error":
            _check_not_unfinished(store)
        goes_on = resume or if_exists == "append"
        dtype = dtype or (_stored_dtype(store) if goes_on else torch.float64)
        options = {"source_fields": source_fields, "dtype": str(dtype).removeprefix("torch.")}
        importer = Importer(plan, report, dtype, source_fields=source_fields, strict=strict)
        config = _with_units(ZarrWriteConfig.of(config), plan)
        room = max(1_000_000, plan.num_frames) if capacity is None else capacity
        existing = "append" if resume else if_exists
        with ZarrData(store, room, config, if_exists=existing, stage=False) as sink:
            record = ImportRecord.resume(sink._imports(), plan, options) if resume else None
            if capacity is None:
                sink.resize(len(sink) + plan.num_frames)
            try:
                importer.run(sink, record, options, read_parts, progress=progress)
            except ArgumentError:  # the same call would fail again
                raise
            except BaseException as error:
                error.add_note(
                    f"{report.num_samples + report.num_before} samples of this import are stored: "
                    "go on with the same call and resume=True (--resume)"
                )
                raise
        return report


def _scanned(found: Sequence[Source], *, progress: bool) -> tuple[ScannedSource, ...]:
    """Sources with what a look through each found."""
    scanned: list[ScannedSource] = []
    with progress_bar(progress, "looking through", len(found), unit=" sources") as done:
        for source in found:
            scanned.append(ScannedSource(source, source.reader.scan(source.path)))
            done(1)
    return tuple(scanned)


def _check_readable(plan: ImportPlan, *, strict: bool) -> None:
    """Refuse sources without a frame that can be read, and with `strict` any that cannot."""
    if plan.failures and (strict or not plan.num_frames):
        count = f"and none of {len(plan.failures):,} frames that were looked at can be read"
        raise SourceError(f"{plan.failures[0]} ({'strict' if strict else count})")
    if not plan.num_frames:
        paths = ", ".join(source.path for source, _ in plan.sources)
        raise SourceError(f"there is no frame in {paths}")


def _check_stores(found: Sequence[Source], asked: Mapping[str, object]) -> None:
    """Refuse options that change labels for stores, which are taken as they are."""
    stores = [source.path for source in found if source.reader.name == "zarr"]
    given = [name for name, value in asked.items() if value]
    if stores and given:
        raise ArgumentError(
            f"{', '.join(given)} cannot be given for stores, whose samples are taken as they are "
            f"({', '.join(stores)}): import them apart, or use zarrpipe.merge"
        )


def _processes(asked: int | None, found: Sequence[Source]) -> int:
    """Number of processes that parse; 1 for none beside this one."""
    if asked is not None:
        return check_count("processes", asked, 1, 1024)
    nbytes = sum(source.nbytes for source in found if source.reader.in_processes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 1 if nbytes < _PROCESSES_FROM else min(cores or 1, _MOST_PROCESSES)


def _check_not_unfinished(store: StoreLike) -> None:
    """Refuse a store whose last import did not end, with the way to go on."""
    group = Root.of(store).open_group()
    imports = () if group is None else Attributes.read(group).imports
    count = len(ZarrDataset(store)) if imports else 0
    if count and not imports[-1].get("complete", True):
        raise StoreExistsError(
            f"{store} has {count:,} samples, and its last import did not end: go on with it by "
            "resume=True (--resume), or remove them by if_exists='replace' (--if-exists replace)"
        )


def _stored_dtype(store: StoreLike) -> torch.dtype:
    """Dtype of the positions of a store, or float64 where there is none."""
    try:
        field = ZarrDataset(store).schema.get("positions")
    except StoreNotFoundError:
        field = None
    dtype = np.float64 if field is None else field.dtype
    return torch.from_numpy(np.empty(0, dtype=dtype)).dtype


def _with_units(config: ZarrWriteConfig, plan: ImportPlan) -> ZarrWriteConfig:
    """Config in which fields of the user's own have the units that were given."""
    return replace(config, units={**plan.units.own, **config.units})
