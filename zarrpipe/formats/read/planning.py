"""The plan of an import: units and plausibility, by the first and last frames of its sources."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from zarrpipe.data.batch import Batch
from zarrpipe.errors import ArgumentError, LabelError, SourceError
from zarrpipe.formats.read.conversion import SourceUnits, StressSign, batch_of
from zarrpipe.formats.read.import_plan import ImportPlan, ScannedSource, stated_units
from zarrpipe.formats.read.labels import ISOLATED_ATOM, LabelPlan
from zarrpipe.formats.read.plausibility import doubts
from zarrpipe.formats.read.processes import Task

_MOST_SAMPLED = 16
"""Parts whose labels are looked at before anything is written."""


def plan_import(
    scanned: tuple[ScannedSource, ...],
    not_recognised: Sequence[str],
    labels: LabelPlan,
    units: Mapping[str, str],
    stress_sign: StressSign,
    *,
    force: bool,
) -> ImportPlan:
    """Plan an import by its scans and its first and last frames.

    Raises LabelError where labels are not plausible, unless `force`, and SourceError if none of the
    frames can be read.
    """
    single = any(scan.num_single_atoms for _, scan in scanned)
    single = single and ISOLATED_ATOM not in labels.fields
    known = SourceUnits.of(units, stress_sign)
    plan = ImportPlan(scanned, labels, known, isolated=single, not_recognised=tuple(not_recognised))
    wrong = known.own.keys() - labels.fields.keys()
    if wrong:
        raise ArgumentError(
            f"units has {sorted(wrong)}, expected energy, length, mass, charge or a field of the "
            f"import: {', '.join(labels.fields)}"
        )
    if stress_sign == "pressure" and "stress" not in labels.fields:
        raise ArgumentError(
            "stress_sign='pressure' (--stress-sign pressure), but no key of the sources is a "
            "stress, and a virial keeps its sign: name it by labels={'stress': KEY} (--stress KEY)"
        )
    blocks = [reader.read(part) for reader, part in _sampled_parts(scanned)]
    failures = [one for block in blocks if not isinstance(block, Batch) for one in block.failures]
    if failures and not any(map(len, blocks)):
        count = f"none of {len(failures):,} frames that were looked at can be read"
        raise SourceError(f"{failures[0]} (and {count})")
    stated = stated_units(blocks, labels, units, [scan for _, scan in scanned])
    if stated:
        plan = replace(plan, units=SourceUnits.of(units, stress_sign, stated))
    plan = replace(plan, stated=stated, units_given=frozenset(units))
    frames = [block for block in blocks if not isinstance(block, Batch) and len(block)]
    batches = [
        batch_of(block, labels, plan.units, dtype=torch.float64, isolated=False) for block in frames
    ]
    found = tuple(doubts(batches).values())
    if found and not force:
        raise LabelError(f"{'; '.join(found)}; or import them as they are by force=True (--force)")
    return replace(plan, doubts=found)


def _sampled_parts(scanned: tuple[ScannedSource, ...]) -> list[Task]:
    """First and last parts of the sources, of some where there are many."""
    ends = [
        (source.reader, part)
        for source, scan in scanned
        for part in dict.fromkeys((*scan.parts[:1], *scan.parts[-1:]))
    ]
    step = max(1, len(ends) // _MOST_SAMPLED)
    return [*ends[::step][:_MOST_SAMPLED], *ends[-1:]] if step > 1 else ends
